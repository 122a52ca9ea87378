"""`dreamactor bootstrap filter`: four scores of 1 to 5 for each item, and the paper's rule.

    faults (measured) or an MLLM's answer  ->  Scores  ->  Verdict: average > 4.5

Measured scores are those of `bench.measured`. Their scales put 3 where the truth says that a fault
turns bad: the other three scores being 5, that is where the average falls to 4.5.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from dreamactor.bench.measured import Evidence
from dreamactor.bench.scores import HIGHEST, LOWEST, Scores
from dreamactor.bootstrap.manifest import DataSet
from dreamactor.bootstrap.triplets import THRESHOLD, Verdict
from dreamactor.errors import AnswerError, ConfigError
from dreamactor.image import read_image
from dreamactor.video import iter_frames


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
