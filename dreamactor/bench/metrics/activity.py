"""How much a clip moves at all: a still one is smooth, consistent and useless.

Legend: T frames of H x W pixels; flows as in `dreamactor.bench.metrics`.
"""

from __future__ import annotations

import numpy as np

from dreamactor.bench.metrics.clips import Array, Floats


def dynamic_degree(seen: Array) -> float:
    """How fast the fastest twentieth of the picture moves, in units of VBench's threshold.

    Mean over frame pairs of (mean length of the 5 % longest vectors) / (6 min(H, W) / 256).

    Args:
        seen: (T - 1, H, W, 2) pixels, from `clip_flow`.

    Returns:
        0 = frozen; a pair over 1 counts as moving for VBench; NaN without pairs.

    Source:
        VBench dynamic_degree.py. There RAFT measures the flow at 8 fps, and a clip gets 1 or 0:
        see `is_dynamic`.
    """
    speeds = _fast_speeds(seen)
    return float(speeds.mean()) if len(speeds) else float("nan")


def is_dynamic(seen: Array) -> bool:
    """VBench's verdict: at least round(T / 4) frame pairs are over the threshold.

    Args:
        seen: (T - 1, H, W, 2) pixels of a clip at 8 fps.
    """
    wanted = round(4 * (len(seen) + 1) / 16)
    return bool((_fast_speeds(seen) > 1).sum() >= wanted)


def _fast_speeds(seen: Array) -> Floats:  # (T - 1,)
    """Mean length of the 5 % longest vectors of each pair over VBench's threshold."""
    pairs, height, width = seen.shape[:3]
    lengths = np.linalg.norm(seen.astype(np.float64), axis=-1).reshape(pairs, height * width)
    count = int(height * width * 0.05)
    fastest = np.sort(lengths, axis=1)[:, -count:]
    return np.asarray(fastest.mean(1) / (6 * min(height, width) / 256), np.float64)
