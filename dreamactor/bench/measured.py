"""The judge that measures: four scores of 1 to 5 from faults that are seen without the truth.

A measured score is 5 where a fault is as small as in 95 % of faultless clips and 3 half way to
`bad`, on a straight line. From there on it falls ever more slowly and never reaches 1, so that of
two bad clips the worse has the lower score; a gate that asks for more than 4.5 on average of four
sees the line alone. The worst fault of a dimension counts. The scales are `data/gate.json`, made by
`bootstrap calibrate` (`bootstrap.calibrate.fit_scales` says how).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dreamactor.bench.faults import Faults, Watched, find_faults
from dreamactor.bench.scores import HIGHEST, LOWEST, Scores
from dreamactor.errors import ConfigError
from dreamactor.image import Rgb

SCALES = Path(__file__).parents[1] / "data" / "gate.json"
RULE = 2
"""Of `Scale.score`; 1 went on straight, and was 1 from `bad` on."""
FAULTS_OF = {
    "imaging_quality": ("blur", "harshness", "grain"),
    "motion_smoothness": ("jerk", "haste", "stillness", "halt", "straying"),
    "temporal_consistency": ("flicker", "residual", "drift"),
    "appearance_consistency": ("colours",),
}
"""Which faults count for which score."""


@dataclass(frozen=True)
class Evidence:
    """What a judge is shown."""

    source: NDArray[np.uint8]
    """(T, H, W, 3) V_src."""
    identity: Rgb
    """(H, W, 3) I_o."""
    result: NDArray[np.uint8]
    """(T, H, W, 3) V_o."""
    fps: float
    """Frames a second of both clips."""


@dataclass(frozen=True)
class Scale:
    """From a fault to a score."""

    good: float
    """The fault at and below which the score is 5."""
    bad: float
    """The fault at which it is 2."""

    def score(self, fault: float) -> float:
        """1 to 5, with no bend; NaN counts as worst."""
        if math.isnan(fault):
            return LOWEST
        halves = 2 * max(0.0, (fault - self.good) / (self.bad - self.good))
        return float(HIGHEST - 2 * halves if halves < 1 else LOWEST + 2 / halves)


class Measured:
    """The judge that measures; needs no network.

    Args:
        scales: Of each fault; None takes those that ship.
    """

    name = "measured"

    def __init__(self, scales: Mapping[str, Scale] | None = None) -> None:
        self.scales = dict(scales or load_scales())

    @property
    def about(self) -> Mapping[str, Any]:
        """The scales, and the rule by which they are read."""
        scales = {k: [s.good, s.bad] for k, s in self.scales.items()}
        return {"scales": scales, "rule": RULE}

    def __call__(self, evidence: Evidence) -> tuple[Scores, Mapping[str, Any]]:
        """Scores and faults."""
        faults = find_faults(Watched(evidence.source), evidence.identity, Watched(evidence.result))
        return self.scores(faults), faults.plain()

    def scores(self, faults: Faults) -> Scores:
        """The worst fault of each dimension counts."""
        found = faults.plain()
        return Scores(
            **{
                dimension: min(self.scales[name].score(found[name]) for name in names)
                for dimension, names in FAULTS_OF.items()
            }
        )


def load_scales(path: Path = SCALES) -> dict[str, Scale]:
    """Scales of all faults.

    Raises:
        ConfigError: The file is missing or not one of `bootstrap calibrate`.
    """
    try:
        found = json.loads(path.read_text())["scales"]
        scales = {name: Scale(float(good), float(bad)) for name, (good, bad) in found.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: no scales of a gate; make them by `bootstrap calibrate`"
        ) from error
    missing = {name for names in FAULTS_OF.values() for name in names} - scales.keys()
    if missing or any(not s.good < s.bad for s in scales.values()):
        raise ConfigError(f"{path}: scales are missing or empty: {sorted(missing) or scales}")
    return scales
