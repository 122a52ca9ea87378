"""What a network for pictures sees in a clip: the features of consistency, appearance, distance.

The network is the AlexNet trunk of ST-LPIPS (`dreamactor.bench.perceptual`), which comes from a
package index and asks for no download. It was made for pictures of things, not for people: two
faces are alike to it.

Legend: n frames that are looked at, of h x w cells; C channels; D = 1152 channels of all 5 stages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dreamactor.bench.metrics.clips import Floats, Ints, unit_range
from dreamactor.errors import ShapeError

if TYPE_CHECKING:
    from dreamactor.bench.perceptual import Perceptual

SIDE = 128
"""Pixels of the longer side of what the network sees."""
FRAMES = 6
"""Of a clip that it sees, evenly spread."""
STAGE = 2
"""The stage whose cells are kept: the third, 384 channels on cells of 8 pixels."""


@dataclass(frozen=True)
class Features:
    """Of one clip."""

    cells: NDArray[np.float32]
    """(n, C, h, w) of stage `STAGE`, every cell of length 1."""
    pooled: Floats
    """(n, D) means over the cells of every stage."""
    frames: Ints
    """(n,) which frames these are."""


def features_of(clip: NDArray[Any], net: Perceptual, frames: int = FRAMES) -> Features:
    """Look at a clip.

    Args:
        clip: (T, H, W, 3).
        net: On its device.
        frames: n, if the clip has as many.
    """
    import torch

    from dreamactor.bench.perceptual import unit_length

    chosen = np.linspace(0, len(clip) - 1, min(frames, len(clip))).round().astype(np.int64)
    cells, pooled = [], []
    for frame in unit_range(clip[chosen]):
        x = torch.from_numpy(_shrunk(frame) * 2 - 1).permute(2, 0, 1)[None]
        with torch.inference_mode():
            stages = [
                unit_length(stage) for stage in net.features(x.to(next(net.buffers()).device))
            ]
        cells.append(stages[STAGE][0].cpu().numpy())
        means = [stage.double().mean((2, 3))[0] for stage in stages]
        pooled.append(torch.cat(means).cpu().numpy())
    return Features(np.stack(cells), np.stack(pooled), chosen)


def cell_weights(weight: NDArray[Any], cells: tuple[int, int]) -> Floats:  # (n, h, w)
    """A weight of pixels (n, H, W) as means over cells h x w, of sum 1 in every frame.

    A frame without any weight has it evenly.
    """
    if weight.ndim != 3:
        raise ShapeError(f"weight is {weight.shape}: want (n, H, W)")
    height, width = cells
    means = [
        cv2.resize(frame.astype(np.float64), (width, height), interpolation=cv2.INTER_AREA)
        for frame in weight
    ]
    small = np.stack(means)
    total = small.sum((1, 2), keepdims=True)
    return np.where(total > 0, small, 1) / np.where(total > 0, total, height * width)


def moving(clip: NDArray[Any]) -> Floats:  # (T, h, w)
    """Where a clip differs from its median frame: a guess of its subject when no mask is known.

    Args:
        clip: (T, H, W, 3); a camera that stands still, or the guess is worth little.

    Returns:
        0 to 1 on what is left of the frame when its longer side is at most `SIDE` pixels: mean
        absolute difference over channels above that of half the pixels (so that noise and flicker
        move nothing), blurred by a hundredth of the side.
    """
    x = np.stack([_shrunk(frame) for frame in unit_range(clip)])
    away = np.abs(x - np.median(x, axis=0)).mean(-1)
    away = (away - np.median(away, axis=(1, 2), keepdims=True)).clip(0)
    sigma = max(x.shape[1:3]) / 100
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in away.astype(np.float64)])


def _shrunk(frame: Floats) -> NDArray[np.float32]:
    height, width = frame.shape[:2]
    scale = SIDE / max(height, width)
    if scale >= 1:
        return frame.astype(np.float32)
    size = max(32, round(width * scale)), max(32, round(height * scale))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA).astype(np.float32)
