"""Is the motion smooth? Can a frame be told from its neighbours, as VBench asks.

A frozen frame is perfectly smooth, and blur makes everything easier to tell: read these beside
`dynamic_degree` and `naturalness`.

Legend: T frames of H x W pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dreamactor.bench.metrics.clips import Array, unit_range
from dreamactor.interpolate import Between


def motion_smoothness(clip: Array) -> float:
    """How well dropped frames are told by their neighbours: 1 = perfectly; higher is better.

    Every second frame is dropped and drawn again half-way along the optical flow between its
    neighbours; 1 - mean |frame - drawn|, values in [0, 1], which is VBench's (255 - MAE) / 255.

    Args:
        clip: (T, H, W, 3).

    Returns:
        0 to 1; NaN for less than 3 frames.

    Source:
        VBench motion_smoothness.py, which draws with AMT at the clip's own rate; here it is
        `dreamactor.interpolate` with DIS flow, so values are not comparable with VBench's.
    """
    x = (unit_range(clip) * 255).round().astype(np.uint8)
    errors = [frame_surprise(x, t) for t in range(1, len(x) - 1, 2)]
    return 1 - float(np.mean(errors)) / 255 if errors else float("nan")


def frame_surprise(clip: NDArray[np.uint8], t: int) -> float:
    """Mean error of frame t against the one drawn from its neighbours, levels of 255.

    Args:
        clip: (T, H, W, 3).
        t: Of a frame that has two neighbours.
    """
    guess = Between(clip[t - 1], clip[t + 1]).at(0.5)
    return float(np.abs(clip[t] - guess.astype(np.float64)).mean())


def temporal_flicker(clip: Array) -> float:
    """Likeness of following frames, 1 = frozen: mean of (255 - mean |I_t - I_t+1|) / 255.

    Motion lowers it as flicker does, so compare it with the truth's own value.

    Args:
        clip: (T, H, W, 3).

    Returns:
        0 to 1; NaN for a single frame.

    Source:
        VBench temporal_flickering.py.
    """
    x = unit_range(clip)
    return float(np.mean(1 - np.abs(np.diff(x, axis=0)))) if len(x) > 1 else float("nan")
