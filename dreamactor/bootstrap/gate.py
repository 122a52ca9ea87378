"""`dreamactor bootstrap filter`: four scores of 1 to 5 for each item, and the paper's rule.

    faults (measured) or an MLLM's answer  ->  Scores  ->  Verdict: average > 4.5

A measured score is 5 where a fault is as small as in 95 % of faultless clips and 1 at `bad`, on a
straight line between; the worst fault of a dimension counts. 3 lies where the truth says that a
fault turns bad: the other three scores being 5, that is where the average falls to 4.5. The scales
are `data/gate.json`, made by `bootstrap calibrate` (`calibrate.fit_scales` says how).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dreamactor.bootstrap.faults import Faults, Watched, find_faults
from dreamactor.bootstrap.manifest import DataSet
from dreamactor.bootstrap.triplets import HIGHEST, LOWEST, THRESHOLD, Scores, Verdict
from dreamactor.errors import AnswerError, ConfigError
from dreamactor.image import Rgb, read_image
from dreamactor.video import iter_frames

SCALES = Path(__file__).parents[1] / "data" / "gate.json"
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


class Judge(Protocol):
    """Whatever gives four scores."""

    @property
    def name(self) -> str:
        """Part of a file name."""
        ...

    @property
    def about(self) -> Mapping[str, Any]:
        """JSON values: all that the scores depend on besides the evidence."""
        ...

    def __call__(self, evidence: Evidence) -> tuple[Scores, Mapping[str, Any]]:
        """Scores, and JSON values that explain them."""
        ...


@dataclass(frozen=True)
class Scale:
    """From a fault to a score."""

    good: float
    """The fault at and below which the score is 5."""
    bad: float
    """The fault at and above which it is 1."""

    def score(self, fault: float) -> float:
        """1 to 5; NaN counts as worst."""
        if math.isnan(fault):
            return LOWEST
        part = (fault - self.good) / (self.bad - self.good)
        return float(HIGHEST - (HIGHEST - LOWEST) * min(1.0, max(0.0, part)))


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
        """The scales."""
        return {"scales": {k: [s.good, s.bad] for k, s in self.scales.items()}}

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


@dataclass(frozen=True)
class Gated:
    """What a run of the gate found."""

    items: int
    passed: int
    fresh: int
    """Judged by this run; the others had been judged by the same judge."""
    unjudged: dict[str, str]
    """Why an item got no scores, by its name; the next run asks again."""


def gate(data: DataSet, judge: Judge, threshold: float = THRESHOLD) -> Gated:
    """Judge every item that this judge has not judged yet; repeat to go on.

    Where a judge has no answer the next item gets its turn.

    Args:
        data: The data set.
        judge: Who scores.
        threshold: What the average has to exceed.

    Raises:
        ConfigError: The threshold cannot be.
    """
    if not LOWEST <= threshold < HIGHEST:
        raise ConfigError(f"threshold={threshold}: want {LOWEST:.0f} to below {HIGHEST:.0f}")
    return _gate(data, judge, threshold)


def _gate(data: DataSet, judge: Judge, threshold: float) -> Gated:
    about = json.loads(json.dumps(dict(judge.about)))
    items, fresh, passed, unjudged = data.items(), 0, 0, {}
    for item in tqdm(items, unit="item", disable=None, leave=False):
        known = data.said(item, "gate").get(judge.name)
        clip = data.facts(item)["clip"]["sha256"]
        if known is None or (known["about"], known["clip"]) != (about, clip):
            try:
                scores, why = judge(evidence_of(data, item))
            except AnswerError as error:
                unjudged[item] = str(error)
                continue
            known = {"about": about, "clip": clip, "scores": scores.plain(), "why": dict(why)}
            fresh += 1
        verdict = Verdict(judge.name, Scores(**known["scores"]), threshold)
        passed += verdict.passed
        said = {**known, "threshold": threshold, "average": verdict.scores.average}
        data.say(item, "gate", judge.name, {**said, "passed": verdict.passed})
    data.write_manifest()
    return Gated(len(items), passed, fresh, unjudged)


def gate_best(
    data: DataSet, judge: Judge, threshold: float = THRESHOLD, least: int = 0
) -> tuple[Gated, float]:
    """As `gate`; where fewer than `least` items pass, the threshold falls until so many do.

    Items of the same average pass together.

    Returns:
        What was found, and the threshold that counted.
    """
    found = gate(data, judge, threshold)
    if found.passed >= least:
        return found, threshold
    said = (data.verdict(item, judge.name) for item in data.items())
    averages = sorted((v.scores.average for v in said if v is not None), reverse=True)
    if not averages:
        return found, threshold
    weakest = averages[min(least, len(averages)) - 1]
    lowered = math.nextafter(weakest, 0.0)
    again = _gate(data, judge, lowered)
    return replace(again, fresh=found.fresh), lowered


def evidence_of(data: DataSet, item: str) -> Evidence:
    """Read what a judge is shown."""
    synthesis, fps = data.synthesis(item), float(Fraction(data.facts(item)["clip"]["fps"]))
    clips = [
        np.stack([frame for _, frame in iter_frames(path)])
        for path in (synthesis.forward.source.path, synthesis.clip.path)
    ]
    return Evidence(clips[0], read_image(synthesis.forward.identity.path), clips[1], fps)
