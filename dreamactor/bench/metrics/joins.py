"""Does a clip show where it was put together? How much it changes there, against elsewhere.

Legend: T frames of H x W pixels.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from dreamactor.bench.metrics.clips import Array, Floats, unit_range
from dreamactor.errors import ShapeError


def changes(clip: Array, boxes: Array) -> Floats:  # (T - 1,)
    """Mean absolute change from each frame to the next, within the second one's box, 0 to 1.

    Args:
        clip: (T, H, W, 3).
        boxes: (T, 4).
    """
    x = unit_range(clip)
    return np.array([
        np.abs(x[t, top:bottom, left:right] - x[t - 1, top:bottom, left:right]).mean()
        for t, (top, left, bottom, right) in enumerate(boxes[: len(x)])
        if t
    ])  # fmt: skip


def jump(changed: Floats, joins: Collection[int], others: Collection[int]) -> float:
    """Change into the frames where parts join, over that into others: 1 = joins do not show.

    Motion has its own highs and lows, so compare with the truth's value at the same frames.

    Args:
        changed: (T - 1,) from `changes`.
        joins: Numbers of the frames with which a part begins, 1 to T - 1.
        others: Those to compare with.

    Returns:
        0 or more; NaN where there is nothing to compare, or no motion elsewhere.

    Raises:
        ShapeError: A frame has none before it, or is not there.
    """
    for t in (*joins, *others):
        if not 1 <= t <= len(changed):
            raise ShapeError(f"frame {t}: want 1 to {len(changed)}")
    if not joins or not others:
        return float("nan")
    there, elsewhere = (float(changed[[t - 1 for t in of]].mean()) for of in (joins, others))
    return there / elsewhere if elsewhere else float("nan")
