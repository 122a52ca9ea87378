"""Is it still who the reference shows? To features of parts of the body, and to colours.

A reference and a result share their background, and pooled features of whole frames hardly tell
identities apart on one background. So every part of the result's subject is looked for in the
reference by itself, in whatever place and pose it has there.

Legend: n frames that a network saw, of h x w cells with C channels (`features`); T frames of H x W
pixels.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dreamactor.bench.metrics.clips import Array, Floats, to_bytes
from dreamactor.bench.metrics.features import cell_weights
from dreamactor.errors import ShapeError

BINS = (8, 16, 16)
"""Of a palette: lightness, a, b of CIELAB; hue says more of who it is than light does."""
FRAMES = 6
"""Of a clip whose colours are looked at."""


def appearance(
    cells: NDArray[np.float32], reference: NDArray[np.float32], weight: NDArray[Any]
) -> float:
    """Likeness of the subject's parts to the reference's, 1 = all are there; higher is better.

    Mean over frames of `part_likeness`. Only what the result shows is asked for: a part that the
    reference shows and the result has lost costs nothing.

    Args:
        cells: (n, C, h, w) of the result, from `features_of`.
        reference: (C, h, w) of the reference.
        weight: (n, H, W) of any size, where the result's subject is: a mask, or `moving`.
    """
    return float(part_likeness(cells, reference, weight).mean())


def part_likeness(
    cells: NDArray[np.float32], reference: NDArray[np.float32], weight: NDArray[Any]
) -> Floats:  # (n,)
    """Of every frame: sum over cells p of w_p max over the reference's cells q of cos(f_p, f_q).

    Arguments as of `appearance`; w is the weight's share in p.
    """
    count, channels, height, width = cells.shape
    if reference.ndim != 3 or len(reference) != channels or len(weight) != count:
        raise ShapeError(
            f"cells are {cells.shape}, the reference's {reference.shape}, weights of {len(weight)} "
            "frames: want (n, C, h, w), (C, h, w) and n"
        )
    shares = cell_weights(weight, (height, width)).reshape(count, -1)  # (n, h w)
    theirs = reference.reshape(channels, -1).astype(np.float64)
    values = np.zeros(count)
    for t, frame in enumerate(cells.astype(np.float64)):
        likeness = frame.reshape(channels, -1).T @ theirs  # (h w, cells of the reference)
        values[t] = float(shares[t] @ likeness.max(1))
    return values


def colour_likeness(
    clip: Array,
    reference: Array,
    mask: NDArray[Any] | None = None,
    reference_mask: NDArray[Any] | None = None,
) -> float:
    """Likeness of colours, 1 = the same palette, 0 = no colour in common; higher is better.

    Mean over `FRAMES` frames, evenly spread, of the Bhattacharyya coefficient of two palettes
    (`palette`).

    Args:
        clip: (T, H, W, 3).
        reference: (H, W, 3).
        mask: (T, H, W) the result's subject; None = whole frames, which share their background.
        reference_mask: (H, W) the reference's; None as `mask`.

    Returns:
        0 to 1; NaN where a mask is empty throughout.
    """
    wanted = palette(to_bytes(reference[None])[0], reference_mask)
    chosen = np.linspace(0, len(clip) - 1, min(FRAMES, len(clip))).round().astype(int)
    found = [
        palette(frame, None if mask is None else mask[t])
        for t, frame in zip(chosen, to_bytes(clip[chosen]), strict=True)
        if mask is None or mask[t].any()
    ]
    return float(np.mean(np.stack(found) @ wanted)) if found and wanted.any() else float("nan")


def palette(frame: NDArray[np.uint8], mask: NDArray[Any] | None = None) -> Floats:  # (bins,)
    """Root of the shares of colours in CIELAB: the product of two is their likeness, 0 to 1.

    Args:
        frame: (H, W, 3).
        mask: (H, W) pixels that count; None = all.

    Source:
        Bhattacharyya coefficient.
    """
    lab = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2LAB)
    only = None if mask is None else np.ascontiguousarray(mask, np.uint8)
    counts = cv2.calcHist([lab], [0, 1, 2], only, list(BINS), [0, 256] * 3).ravel()
    return np.sqrt(counts.astype(np.float64) / max(float(counts.sum()), 1))
