"""One result of a case in numbers: compared with what the suite shows of that case.

A result is taken at the times of the truth's frames (or, without one, the driver's), each frame the
nearest in time, and brought to their size, so that systems of other rates and sizes can be judged.

Joints are compared where the truth has one subject whose joints are known.

Legend: T frames of H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dreamactor.bench.manifest import Suite, SuiteCase
from dreamactor.bench.metrics import clip_flow
from dreamactor.bench.metrics.distance import clip_vector, project
from dreamactor.bench.metrics.every import Known, measure_every
from dreamactor.bench.metrics.features import features_of
from dreamactor.bench.pointing import Pointing
from dreamactor.image import fit
from dreamactor.video import iter_frames, probe, resample

if TYPE_CHECKING:
    from dreamactor.bench.perceptual import Perceptual

SAME = 0.02
"""Part by which shapes may differ without a note."""


@dataclass(frozen=True)
class Numbers:
    """Of one clip."""

    values: dict[str, float]
    """By the names of `metrics.table`, and `length`, the part of the driver's; NaN where undefined
    or not to be had."""
    vectors: tuple[list[float], list[float]] | None = None
    """Result and truth as `metrics.distance` sees them."""
    notes: list[str] = field(default_factory=list)
    """What a reader should know."""


def measure_clip(
    suite: Suite,
    case: SuiteCase,
    clip: Path,
    lpips: int = 4,
    weights: Path | None = None,
    pointing: Pointing | None = None,
) -> Numbers:
    """Every number of one clip.

    Args:
        suite: Where the case is from.
        case: What was asked for.
        clip: What came.
        lpips: Frames that ST-LPIPS looks at; 0 leaves out all that its network is needed for.
        weights: That network's; None takes the package's.
        pointing: Finds joints; None leaves them out.

    Raises:
        MediaError: The clip cannot be read.
    """
    driving, info = suite.driving(case)
    reference, truth = suite.reference(case), suite.truth(case)
    size = truth.shape[1:3] if truth is not None else reference.shape[:2]
    height, width = size
    shown, seconds = probe(clip), len(driving) / float(info.fps)
    length = shown.frames / float(shown.fps) / seconds
    notes = []
    if abs(length - 1) > 1 / len(driving):
        notes.append(f"{length:.2f} times the driver's length")
    if abs(shown.width / shown.height / (width / height) - 1) > SAME:
        notes.append(f"{shown.width} x {shown.height}, want the shape of {width} x {height}")
    frames = resample(iter_frames(clip), info.fps, seconds)
    result = np.stack([_sized(frame, (height, width)) for frame in frames])
    known = _known(suite, case, reference, driving, truth, (height, width))
    net = load_perceptual(weights) if lpips else None
    joints = None if pointing is None else pointing(result, known, float(info.fps))
    found = measure_every(result, known, net, lpips or None, joints)
    vectors = None
    if net is not None and found.vector is not None and known.truth is not None:
        pooled = features_of(known.truth, net).pooled
        theirs = project(clip_vector(pooled)[None])[0]
        vectors = (found.vector.tolist(), theirs.tolist())
    return Numbers({**found.values, "length": length}, vectors, notes)


@lru_cache(maxsize=1)
def load_perceptual(weights: Path | None) -> Perceptual:
    """The network of ST-LPIPS, once a process.

    Raises:
        WeightsError: Its weights are missing, or not of it.
    """
    from dreamactor.bench.perceptual import Perceptual

    return Perceptual.load("alex", weights)


def _known(
    suite: Suite,
    case: SuiteCase,
    reference: NDArray[np.uint8],
    driving: NDArray[np.uint8],
    truth: NDArray[np.uint8] | None,
    size: tuple[int, int],
) -> Known:
    """All in one size; without arrays the whole picture counts as the truth's subject."""
    still = _sized(reference, size)
    moving = np.stack([_sized(frame, size) for frame in driving])
    if truth is None or len(truth) != len(driving):
        return Known(still, moving)
    arrays = suite.arrays(case)
    if arrays is None:
        return Known(still, moving, truth, np.ones(truth.shape[:3], np.bool_), clip_flow(truth))
    known = Known(still, moving, truth, arrays.mask > 0, arrays.flow)
    if len(arrays.joints) != 1:
        return known
    names, pixels, visible = next(iter(arrays.joints.values()))
    return replace(known, joints=pixels.astype(np.float64), seen=visible, names=names)


def _sized(frame: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    return fit(frame, size, "letterbox")[0]
