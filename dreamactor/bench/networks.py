"""The metrics that take a network, for all results of a case at once.

Networks run in the process that has their device; all else may be measured by workers
(`dreamactor.bench.evaluate`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dreamactor.bench import metrics
from dreamactor.bench.metrics.clips import to_bytes
from dreamactor.bench.metrics.every import Known
from dreamactor.world.pairs import FPS

if TYPE_CHECKING:
    from dreamactor.bench.evaluate import Case, Options
    from dreamactor.bench.perceptual import Perceptual
    from dreamactor.bench.pointing import Pointing

OF_JOINTS = ("akd", "pck")
"""Metrics of `metrics.joints` that are taken of each clip."""
Results = Mapping[str, NDArray[Any]]
"""(T, H, W, 3) by system."""


def by_networks(
    results: Results,
    case: Case,
    options: Options,
    perceptual: Perceptual | None = None,
    pointing: Pointing | None = None,
) -> dict[str, dict[str, float]]:
    """Values by system and name of the metric; only those of the networks there are.

    Args:
        results: Of one case.
        case: What they are measured against.
        options: What is measured.
        perceptual: Network of `lpips`.
        pointing: Finds the joints of `akd` and `pck`.
    """
    values: dict[str, dict[str, float]] = {name: {} for name in results}
    if perceptual is not None:
        _feel(values, results, case, options, perceptual)
    if pointing is not None:
        _point(values, results, case, pointing)
    return values


def _feel(
    values: Mapping[str, dict[str, float]],
    results: Results,
    case: Case,
    options: Options,
    perceptual: Perceptual,
) -> None:
    boxes = {"lpips": metrics.subject_box(case.mask, options.margin)}
    if options.whole:
        boxes["lpips_frame"] = np.array([0, 0, *case.truth.shape[1:3]])
    for metric, box in boxes.items():
        felt = metrics.lpips_each(
            list(results.values()), case.truth, perceptual, box, frames=options.lpips_frames
        )
        for name, value in zip(results, felt, strict=True):
            values[name][metric] = value


def _point(
    values: Mapping[str, dict[str, float]], results: Results, case: Case, pointing: Pointing
) -> None:
    joints = case.joints
    if joints is None:
        return
    known = Known(
        case.reference,
        case.driving,
        case.truth,
        case.mask,
        joints=joints.pixels.astype(np.float64),
        seen=joints.visible.astype(bool),
        names=joints.names,
    )
    for name, result in results.items():
        found = pointing(to_bytes(result), known, FPS)
        assert found is not None
        values[name] |= {metric: found.values()[metric] for metric in OF_JOINTS}
