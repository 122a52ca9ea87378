"""One result of a case in numbers: compared with what the suite shows of that case.

A result is taken at the times of the truth's frames (or, without one, the driver's), each frame the
nearest in time, and brought to their size, so that systems of other rates and sizes can be judged.

Legend: T frames of H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dreamactor.bench.evaluate import Case, Options, measure
from dreamactor.bench.manifest import Suite, SuiteCase
from dreamactor.bench.metrics import clip_flow
from dreamactor.image import fit
from dreamactor.video import iter_frames, probe, resample

if TYPE_CHECKING:
    from dreamactor.bench.perceptual import Perceptual


def measure_clip(
    suite: Suite, case: SuiteCase, clip: Path, lpips: int = 4, weights: Path | None = None
) -> tuple[dict[str, float], list[str]]:
    """Every number of one clip, and what a reader should know of it.

    Args:
        suite: Where the case is from.
        case: What was asked for.
        clip: What came.
        lpips: Frames that ST-LPIPS looks at; 0 leaves it out.
        weights: Its network's; None takes the package's.

    Raises:
        MediaError: The clip cannot be read.
    """
    driving, info = suite.driving(case)
    truth = suite.truth(case)
    reference = suite.reference(case)
    size = truth.shape[1:3] if truth is not None else reference.shape[:2]
    shown = probe(clip)
    notes = []
    seconds = len(driving) / float(info.fps)
    length = shown.frames / float(shown.fps) / seconds
    if abs(length - 1) > 1 / len(driving):
        notes.append(f"{length:.2f} times the driver's length")
    if abs(shown.width / shown.height / (size[1] / size[0]) - 1) > 0.02:
        notes.append(f"{shown.width} x {shown.height}, want the shape of {size[1]} x {size[0]}")
    frames = resample(iter_frames(clip), info.fps, seconds)
    result = np.stack([fit(frame, (size[0], size[1]), "letterbox")[0] for frame in frames])
    values = {"length": length}
    if truth is None or len(truth) != len(result):
        return values, notes
    known = suite.arrays(case)
    mask = np.ones(truth.shape[:3], np.bool_) if known is None else known.mask > 0
    flow = clip_flow(truth) if known is None else known.flow
    network = None if not lpips else _perceptual(weights)
    held = Case(
        case.name, case.scenario, "", "", _sized(reference, size),
        np.stack([_sized(frame, size) for frame in driving]), truth, mask, flow,
    )  # fmt: skip
    values |= measure(result, held, network, Options(lpips_frames=lpips or None))
    return values, notes


def _sized(frame: NDArray[np.uint8], size: Sequence[int]) -> NDArray[np.uint8]:
    return fit(frame, (size[0], size[1]), "letterbox")[0]


@lru_cache(maxsize=1)
def _perceptual(weights: Path | None) -> Perceptual:
    from dreamactor.bench.perceptual import Perceptual

    return Perceptual.load("alex", weights)
