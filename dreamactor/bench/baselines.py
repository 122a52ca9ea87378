"""Systems without any learning: what every trained system has to beat.

A system gets a reference (H, W, 3) and a driving clip (T, H, W, 3), both uint8 RGB of one size,
and returns (T, H, W, 3) uint8. `copy_reference` keeps the identity and follows no motion,
`driving_itself` is the reverse, and `flow_warp` is the classical attempt at both.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from dreamactor.bench.metrics import dis_flow
from dreamactor.errors import ShapeError

Frames = NDArray[np.uint8]
Flow = NDArray[np.float32]


class System(Protocol):
    """Anything that animates a reference by a driving clip."""

    def __call__(self, reference: Frames, driving: Frames) -> NDArray[Any]:
        """Animate; (H, W, 3) and (T, H, W, 3) -> (T, H, W, 3), uint8 or in [0, 1]."""
        ...


def copy_reference(reference: Frames, driving: Frames) -> Frames:
    """Show the reference in every frame; (H, W, 3) and (T, H, W, 3) -> (T, H, W, 3)."""
    _check(reference, driving)
    return np.repeat(reference[None], len(driving), axis=0)


def driving_itself(reference: Frames, driving: Frames) -> Frames:
    """Show the driving clip; (H, W, 3) and (T, H, W, 3) -> (T, H, W, 3)."""
    _check(reference, driving)
    return driving.copy()


def flow_warp(reference: Frames, driving: Frames) -> Frames:
    """Move the reference's pixels as the driver's pixels move since its first frame.

    For frame t the flow from t back to 0 is composed of the flows between neighbours,
    B_t(p) = b_t(p) + B_{t-1}(p + b_t(p)), and the reference is read at p + B_t(p). Motion is
    relative: the subject is assumed to stand at first where and as the driver does.

    Args:
        reference: (H, W, 3).
        driving: (T, H, W, 3).

    Returns:
        (T, H, W, 3); the first frame is the reference.
    """
    _check(reference, driving)
    height, width = reference.shape[:2]
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    back: Flow = np.zeros_like(grid)  # (H, W, 2), from frame t to frame 0
    frames = [reference]
    for earlier, frame in pairwise(driving):
        step = dis_flow(frame, earlier)
        back = step + _read(back, grid + step)
        frames.append(_read(reference, grid + back))
    return np.stack(frames)


def _read(image: NDArray[Any], at: Flow) -> NDArray[Any]:
    """Values of an (H, W, C) image at the positions (H, W, 2), x then y, bilinear."""
    x, y = np.ascontiguousarray(at[..., 0]), np.ascontiguousarray(at[..., 1])
    return np.asarray(cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


def _check(reference: Frames, driving: Frames) -> None:
    if driving.ndim != 4 or not len(driving) or driving.shape[1:] != reference.shape:
        raise ShapeError(
            f"reference is {reference.shape}, driving {driving.shape}: "
            "want (H, W, 3) and (T, H, W, 3) of one size"
        )
