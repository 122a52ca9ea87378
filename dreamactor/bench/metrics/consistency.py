"""Does a clip stay itself from frame to frame? To features, and to optical flow.

A frozen frame is perfectly consistent: read these beside `dynamic_degree` or `following`.

Legend: n frames that a network saw, of h x w cells with C channels (`features`); T frames of H x W
pixels.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dreamactor.bench.metrics.clips import Array, unit_range
from dreamactor.bench.metrics.features import cell_weights
from dreamactor.errors import ShapeError


def feature_consistency(cells: NDArray[np.float32], weight: NDArray[Any] | None = None) -> float:
    """Likeness of each frame to the one before and to the first; 1 = frozen, higher is better.

    Mean over t >= 1 of (cos(f_t, f_t-1) + cos(f_t, f_0)) / 2, cosines below 0 counting 0, f the
    weighted mean of a frame's cells. VBench asks DINO; AlexNet's features are blunter, so all
    values lie near 1.

    Args:
        cells: (n, C, h, w) from `features_of`.
        weight: (n, H, W) of any size: a mask of the subject for its consistency, the
            reverse for the background's; None = the whole frame.

    Returns:
        0 to 1; NaN for one frame.

    Source:
        VBench subject_consistency.py and background_consistency.py.
    """
    count, _, height, width = cells.shape
    if count < 2:
        return float("nan")
    if weight is None:
        weight = np.ones((count, height, width))
    if len(weight) != count:
        raise ShapeError(f"{len(weight)} weights of {count} frames: want one a frame")
    shares = cell_weights(weight, (height, width))
    f = np.einsum("nchw,nhw->nc", cells.astype(np.float64), shares)
    f /= np.maximum(np.linalg.norm(f, axis=1, keepdims=True), 1e-12)
    before, first = (f[1:] * f[:-1]).sum(1), f[1:] @ f[0]
    return float(((before.clip(0) + first.clip(0)) / 2).mean())


def warp_error(clip: Array, flow: Array) -> float:
    """What motion does not explain between neighbours: 0 = all is explained; lower is better.

    Mean over frame pairs of |I_t(p) - I_t+1(p + flow_t(p))|, values in [0, 1]. What comes into
    sight counts too, so that the truth has a value of its own.

    Args:
        clip: (T, H, W, 3).
        flow: (T - 1, H, W, 2) pixels, from `clip_flow` of the clip itself.

    Returns:
        0 to 1; NaN for a single frame.

    Source:
        Lai et al. 2018, "Learning Blind Video Temporal Consistency", without their occlusion mask.
    """
    x = unit_range(clip).astype(np.float32)
    if len(flow) != len(x) - 1 or flow.shape[1:3] != x.shape[1:3]:
        raise ShapeError(f"clip is {x.shape}, flow {flow.shape}: want (T - 1, H, W, 2)")
    height, width = x.shape[1:3]
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    errors = []
    for frame, following, step in zip(x, x[1:], flow, strict=False):
        at = grid + step.astype(np.float32)
        back = cv2.remap(
            following,
            np.ascontiguousarray(at[..., 0]),
            np.ascontiguousarray(at[..., 1]),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        errors.append(float(np.abs(back - frame).mean(dtype=np.float64)))
    return float(np.mean(errors)) if errors else float("nan")
