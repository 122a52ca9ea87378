"""Clips as the metrics see them: values, boxes around a subject, brightness.

Legend: T frames of H x W pixels, RGB last; boxes as in `dreamactor.bench.metrics`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dreamactor.errors import MediaError, ShapeError

Array = NDArray[Any]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LUMA = (0.299, 0.587, 0.114)  # BT.601
MARGIN = 8  # pixels around the subject; a limb a little outside the truth's silhouette counts


def unit_range(clip: Array) -> Floats:
    """A clip as float64 in [0, 1], from uint8 in [0, 255] or floating point in [0, 1]."""
    if clip.ndim != 4 or clip.shape[-1] != 3:
        raise ShapeError(f"clip is {clip.shape}: want (T, H, W, 3)")
    if clip.dtype == np.uint8:
        return clip.astype(np.float64) / 255
    if not np.issubdtype(clip.dtype, np.floating):
        raise MediaError(f"clip holds {clip.dtype}: want uint8 or floating point in [0, 1]")
    x = clip.astype(np.float64)
    if not np.isfinite(x).all() or x.min() < -1e-3 or x.max() > 1 + 1e-3:
        raise MediaError(f"clip spans {x.min():.3g} to {x.max():.3g}: want [0, 1] or uint8")
    return x.clip(0, 1)


def to_bytes(clip: Array) -> NDArray[np.uint8]:
    """Levels 0 to 255 of a clip of either kind."""
    return (unit_range(clip) * 255).round().astype(np.uint8)


def subject_box(mask: Array, margin: int = 0) -> Ints:  # (T, 4)
    """Smallest box around the subject of every frame.

    Args:
        mask: (T, H, W), true on the subject.
        margin: Pixels added on each side, as far as the frame goes.

    Returns:
        (T, 4) boxes. A frame without subject gets the union of the others' boxes; a clip
        without any gets whole frames.
    """
    if mask.ndim != 3:
        raise ShapeError(f"mask is {mask.shape}: want (T, H, W)")
    height, width = mask.shape[1:]
    boxes = np.zeros((len(mask), 4), np.int64)
    for t, frame in enumerate(mask.astype(bool)):
        rows, columns = np.flatnonzero(frame.any(1)), np.flatnonzero(frame.any(0))
        if len(rows):
            boxes[t] = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
    seen = boxes[:, 2] > 0
    boxes[~seen] = union_box(boxes[seen]) if seen.any() else (0, 0, height, width)
    boxes += np.array([-margin, -margin, margin, margin])
    return boxes.clip(0, [height, width, height, width])


def union_box(boxes: Array) -> Ints:  # (4,)
    """Smallest box that holds all boxes; boxes: (T, 4) or (4,)."""
    boxes = np.asarray(boxes, np.int64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])


def boxes_of(clip: Array, boxes: Array | None) -> Ints:  # (T, 4)
    """Boxes of every frame, checked; None = whole frames."""
    frames, height, width = clip.shape[:3]
    if boxes is None:
        boxes = np.array([0, 0, height, width])
    boxes = np.asarray(boxes, np.int64)
    if boxes.shape not in {(4,), (frames, 4)}:
        raise ShapeError(f"boxes are {boxes.shape}: want (4,) or ({frames}, 4)")
    boxes = np.broadcast_to(boxes, (frames, 4))
    size = [height, width]
    if (boxes[:, :2] < 0).any() or (boxes[:, 2:] > size).any():
        raise ShapeError(f"a box leaves the {height}x{width} frame: {boxes.tolist()}")
    if (boxes[:, :2] >= boxes[:, 2:]).any():
        raise ShapeError(f"a box is empty; want (top, left, bottom, right): {boxes.tolist()}")
    return boxes


def check_same(result: Array, truth: Array) -> None:
    """Refuse clips of different shapes, or of no frames."""
    if result.shape != truth.shape or not len(truth):
        raise ShapeError(
            f"result is {result.shape}, truth {truth.shape}: want the same (T, H, W, 3)"
        )


def same(result: Array, truth: Array) -> tuple[Floats, Floats]:
    """Both clips by `unit_range`, if they are of one shape."""
    check_same(result, truth)
    return unit_range(result), unit_range(truth)


def crops(result: Array, truth: Array, boxes: Array | None) -> Iterator[tuple[Floats, Floats]]:
    """What is in the boxes, frame by frame: (h, w, 3) of the result and of the truth."""
    a, b = same(result, truth)
    for x, y, (top, left, bottom, right) in zip(a, b, boxes_of(a, boxes), strict=True):
        yield x[top:bottom, left:right], y[top:bottom, left:right]


def gray(frame: Array) -> NDArray[np.uint8]:  # (H, W)
    """Brightness of a frame (H, W, 3), as OpenCV has it."""
    x = frame if frame.dtype == np.uint8 else (frame.clip(0, 1) * 255).round().astype(np.uint8)
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(x), cv2.COLOR_RGB2GRAY), np.uint8)
