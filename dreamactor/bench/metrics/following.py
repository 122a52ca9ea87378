"""Does the result move as the driver does? Asked of the two clips alone, without the truth.

Driver and subject differ in place, size and looks, so motion is compared part by part: optical
flow, less the camera's, in the box in which each of them moves, averaged on a grid of `CELLS` x
`CELLS` cells of that box and measured in sizes of the box. Frames are brought to one brightness and
blurred first, so that flicker and noise are no motion.

Legend: T frames of H x W pixels; a motion grid is (T - 1, g, g, 2), x then y, sizes of the box a
frame.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dreamactor.bench.metrics.clips import LUMA, Floats, unit_range
from dreamactor.bench.metrics.flow import clip_flow
from dreamactor.errors import ShapeError

CELLS = 8
"""Of a side of the box: limbs fall into cells of their own, unlike bodies still share most."""
BLUR = 2.0
"""Pixels."""
SLOW = 0.3
"""Pixels a frame below which a vector says nothing of where the subject is."""
OUTSIDE = 0.02
"""Share of all motion that may lie beyond each side of the box."""
REACH = 6
"""Frames to either side in which the lag is looked for."""


def motion_grid(clip: NDArray[Any], cells: int = CELLS) -> Floats:  # (T - 1, g, g, 2)
    """What moves where, in the subject's own box; all 0 where nothing moves.

    Args:
        clip: (T, H, W, 3).
        cells: g.
    """
    flow = _steadied(clip_flow(_quiet(clip)).astype(np.float64))
    top, left, bottom, right = _box(flow)
    if top == bottom or left == right:
        return np.zeros((len(flow), cells, cells, 2))
    size = max(bottom - top, right - left)
    cut = [
        cv2.resize(step[top:bottom, left:right], (cells, cells), interpolation=cv2.INTER_AREA)
        for step in flow
    ]
    return np.stack(cut) / size


def following(result: Floats, driver: Floats) -> float:
    """How well the result's motion is the driver's: 1 = the same, 0 = unlike; higher is better.

    2 <a, b> / (<a, a> + <b, b>) over all cells and frames of two motion grids: their cosine,
    lowered where one moves more than the other. A still result has 0, one that is late less,
    the opposite motion -1. The truth itself stays below 1, for bodies and framings differ:
    compare it with the truth's own value, or systems with each other.

    Args:
        result: (T - 1, g, g, 2) from `motion_grid`.
        driver: Like `result`.

    Returns:
        -1 to 1; NaN where the driver does not move.

    Source:
        The concordance coefficient of Lin 1989 without its means: to stand still is no offset.
    """
    _check(result, driver)
    theirs = float(np.square(driver).sum())
    if theirs == 0:
        return float("nan")
    return float(2 * (result * driver).sum() / (np.square(result).sum() + theirs))


def lag(result: Floats, driver: Floats, reach: int = REACH) -> float:
    """How many frames the result is early or late; 0 is best.

    The lag at which the product of the two motion grids is highest, refined by a parabola through
    it and its neighbours. Only the frames that both have at a lag count towards it, so that of two
    lags of a walk the shorter one is found.

    Args:
        result: (T - 1, g, g, 2) from `motion_grid`.
        driver: Like `result`.
        reach: Frames to either side that are tried, as far as half the clip is left.

    Returns:
        0 to `reach`; NaN where either does not move.
    """
    _check(result, driver)
    if not result.any() or not driver.any():
        return float("nan")
    reach = min(reach, len(driver) // 2)
    lags = range(-reach, reach + 1)
    likeness = np.array([(a * b).sum() for a, b in (_shifted(result, driver, k) for k in lags)])
    best = int(likeness.argmax())
    found = float(best - reach)
    if 0 < best < 2 * reach:
        before, at, after = likeness[best - 1 : best + 2]
        bend = before - 2 * at + after
        found += float((before - after) / (2 * bend)) if bend < 0 else 0.0
    return abs(found)


def _quiet(clip: NDArray[Any]) -> NDArray[np.uint8]:
    """Brightness alone, of one mean in all frames, blurred; (T, H, W, 3) in levels."""
    luma = unit_range(clip) @ np.array(LUMA)  # (T, H, W)
    means = luma.mean((1, 2), keepdims=True)
    luma *= means.mean() / np.maximum(means, 1e-3)
    soft = np.stack([cv2.GaussianBlur(frame, (0, 0), BLUR) for frame in luma])
    return (soft * 255).round().clip(0, 255).astype(np.uint8)[..., None].repeat(3, axis=-1)


def _steadied(flow: Floats) -> Floats:
    """Flow less the median along the frame's rim, which is the camera's motion."""
    height, width = flow.shape[1:3]
    rim = np.ones((height, width), bool)
    edge = max(1, min(height, width) // 16)
    rim[edge:-edge, edge:-edge] = False
    return flow - np.median(flow[:, rim], axis=1)[:, None, None]


def _box(flow: Floats) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of where all but `OUTSIDE` a side moves; empty if nothing does."""
    lengths = np.linalg.norm(flow, axis=-1)
    motion = np.where(lengths > SLOW, lengths, 0).sum(0)  # (H, W)
    edges = []
    for axis in (1, 0):
        risen = np.cumsum(motion.sum(axis))
        if risen[-1] == 0:
            return 0, 0, 0, 0
        found = np.searchsorted(risen, np.array([OUTSIDE, 1 - OUTSIDE]) * risen[-1])
        edges.append((int(found[0]), int(found[1]) + 1))
    return edges[0][0], edges[1][0], edges[0][1], edges[1][1]


def _shifted(result: Floats, driver: Floats, late: int) -> tuple[Floats, Floats]:
    """What both have if the result is `late` frames late."""
    if late < 0:
        return result[:late], driver[-late:]
    return result[late:], driver[: len(driver) - late]


def _check(result: Floats, driver: Floats) -> None:
    if result.shape != driver.shape or driver.ndim != 4 or driver.shape[-1] != 2:
        raise ShapeError(
            f"motion grids are {result.shape} and {driver.shape}: want (T - 1, g, g, 2)"
        )
