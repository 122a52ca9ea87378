"""Motion as optical flow sees it, and how far it is from the true one.

Legend: T frames of H x W pixels; clips and flows as in `dreamactor.bench.metrics`.
"""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from dreamactor.bench.metrics.clips import Array, gray
from dreamactor.errors import ShapeError

DIS_SIDE = 12  # pixels: OpenCV's DIS refuses smaller frames


def dis_flow(frame: Array, following: Array, start: Array | None = None) -> NDArray[np.float32]:
    """Dense optical flow between two frames, (H, W, 2) in pixels, x then y.

    Args:
        frame: (H, W, 3), where the vectors stand.
        following: (H, W, 3), where they point.
        start: (H, W, 2) first guess, or None for zero.

    Source:
        Kroeger et al. 2016, DIS; OpenCV's, preset MEDIUM: 0.4 px error at 9 px of motion on
        a turned photo, 9 ms for 256 x 256.
    """
    if min(frame.shape[:2]) < DIS_SIDE:
        raise ShapeError(f"optical flow on {frame.shape[:2]}: want sides of {DIS_SIDE} or more")
    solver = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # type: ignore[attr-defined]
    guess = None if start is None else start.astype(np.float32)
    flow = solver.calc(gray(frame), gray(following), guess)
    return np.asarray(flow, np.float32)


def clip_flow(clip: Array) -> NDArray[np.float32]:  # (T - 1, H, W, 2)
    """Flow from each frame of a clip to the next, as `dis_flow` sees it; clip: (T, H, W, 3)."""
    pairs = [dis_flow(a, b) for a, b in pairwise(clip)]
    return np.stack(pairs) if pairs else np.zeros((0, *clip.shape[1:3], 2), np.float32)


def flow_epe(seen: Array, flow: Array, mask: Array) -> float:
    """Mean end-point error of motion on the subject, pixels a frame; lower is better.

    Mean over frame pairs of the mean over the subject's pixels of |seen - flow|. Pairs without
    subject are left out.

    The estimate errs on a perfect clip too: `flow_epe(clip_flow(truth), ...)` is the floor.
    A frozen clip scores the mean length of the true flow, `flow_epe(0 * flow, flow, mask)`.

    Args:
        seen: (T - 1, H, W, 2) flow of the result, from `clip_flow`.
        flow: (T - 1, H, W, 2) true flow.
        mask: (T, H, W) or (T - 1, H, W), true on the truth's subject.

    Returns:
        Pixels; NaN without any subject.
    """
    mask = mask[: len(flow)].astype(bool)
    if seen.shape != flow.shape or mask.shape != flow.shape[:3]:
        raise ShapeError(f"flows are {seen.shape} and {flow.shape}, the mask {mask.shape}")
    error = np.linalg.norm(seen.astype(np.float64) - flow, axis=-1)  # (T - 1, H, W)
    values = [e[m].mean() for e, m in zip(error, mask, strict=True) if m.any()]
    return float(np.mean(values)) if values else float("nan")
