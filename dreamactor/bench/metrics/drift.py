"""What changes over a clip that should not: colours, identity, sharpness, segment by segment.

A clip is cut into equal segments; of each there is one number. Long clips are made in segments that
go on from each other, and small errors add up: two numbers say so, the last segment against the
first and the slope per minute. Motion changes a little of everything, so the truth has values of
its own.

Legend: T frames of H x W pixels; S segments.
"""

from __future__ import annotations

import cv2
import numpy as np

from dreamactor.bench.metrics.clips import LUMA, Array, Floats, unit_range
from dreamactor.errors import ShapeError

SEGMENTS = 4


def by_segment(values: Floats, segments: int = SEGMENTS) -> Floats:  # (S, ...)
    """Means over S equal runs of a value (T, ...) of each frame.

    Raises:
        ShapeError: There are fewer values than segments.
    """
    if len(values) < segments:
        raise ShapeError(f"{len(values)} values: want {segments} or more, one a segment")
    return np.stack([run.mean(0) for run in np.array_split(values, segments)])


def per_minute(by_segments: Floats, seconds: float) -> float:
    """Slope of a value of each segment (S,), least squares, per minute of the clip.

    Args:
        by_segments: From `by_segment`.
        seconds: The clip's length.
    """
    count = len(by_segments)
    middles = (np.arange(count) + 0.5) / count * seconds / 60
    away = middles - middles.mean()
    return float((away * (by_segments - by_segments.mean())).sum() / np.square(away).sum())


def last_to_first(by_segments: Floats) -> float:
    """The last segment's value over the first's; NaN where that is 0."""
    return float(by_segments[-1] / by_segments[0]) if by_segments[0] else float("nan")


def colour_path(clip: Array, segments: int = SEGMENTS) -> Floats:  # (S,)
    """How far each segment's mean colour is from the first one's: CIE76 dE in CIELAB, 0 first.

    Args:
        clip: (T, H, W, 3).
        segments: S.
    """
    lab = [
        cv2.cvtColor(frame.astype(np.float32), cv2.COLOR_RGB2LAB).mean((0, 1), dtype=np.float64)
        for frame in unit_range(clip)
    ]
    means = by_segment(np.stack(lab), segments)  # (S, 3)
    return np.asarray(np.linalg.norm(means - means[0], axis=1))


def colour_drift(clip: Array, segments: int = SEGMENTS) -> float:
    """Distance of the mean colours of the last and first segment, dE; 0 = none; lower is better.

    2.3 is just to be seen side by side. Blind to colours that come and go in between (`colour_path`
    has them) and to changes that leave the mean colour as it is.

    Args:
        clip: (T, H, W, 3).
        segments: S.
    """
    return float(colour_path(clip, segments)[-1])


def identity_drift(likeness: Floats, segments: int = SEGMENTS) -> float:
    """Likeness to the reference that the last segment lost; 0 = none; lower is better.

    The first segment's mean less the last's. Blind to an identity that is wrong from the start.

    Args:
        likeness: (n,) of frames in order, from `appearance.part_likeness`.
        segments: S.
    """
    means = by_segment(likeness, segments)
    return float(means[0] - means[-1])


def sharpness_drift(clip: Array, segments: int = SEGMENTS) -> float:
    """|log2| of the last segment's gradient energy over the first's; 0 = none; lower is better.

    1 = edges twice as wide, or half as wide, as of `sharpness_ratio`. Motion blur and turning
    subjects move it too.

    Args:
        clip: (T, H, W, 3).
        segments: S.

    Returns:
        0 or more; NaN where a segment is flat.
    """
    luma = unit_range(clip) @ np.array(LUMA)  # (T, H, W)
    energy = sum(np.square(np.diff(luma, axis=axis)).mean((1, 2)) for axis in (1, 2))
    ratio = last_to_first(by_segment(np.asarray(energy), segments))
    return abs(float(np.log2(ratio))) if ratio > 0 else float("nan")
