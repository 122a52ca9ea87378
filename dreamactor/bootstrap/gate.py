"""`dreamactor bootstrap filter`: four scores of 1 to 5 for each item, and the paper's rule.

    faults (measured) or an MLLM's answer  ->  Scores  ->  Verdict: average > 4.5

Measured scores are those of `bench.measured`. Their scales put 3 where the truth says that a fault
turns bad: the other three scores being 5, that is where the average falls to 4.5.
"""

from __future__ import annotations

import json
import math
import multiprocessing
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from dreamactor.bench.measured import Evidence
from dreamactor.bench.scores import HIGHEST, LOWEST, Scores
from dreamactor.bootstrap.manifest import DataSet
from dreamactor.bootstrap.triplets import THRESHOLD, Verdict
from dreamactor.errors import AnswerError, ConfigError, MediaError
from dreamactor.image import read_image
from dreamactor.runs import begin_worker
from dreamactor.video import iter_frames

Answer = tuple[Scores, Mapping[str, Any]]
"""Scores, and JSON values that explain them."""


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

    def __call__(self, evidence: Evidence) -> Answer:
        """Judge one item."""
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


def gate(data: DataSet, judge: Judge, threshold: float = THRESHOLD, workers: int = 0) -> Gated:
    """Judge every item that this judge has not judged yet; repeat to go on.

    Where a judge has no answer the next item gets its turn.

    Args:
        data: The data set.
        judge: Who scores.
        threshold: What the average has to exceed.
        workers: Local processes that the judge is sent to; 0 = this one alone.

    Raises:
        ConfigError: The threshold cannot be.
        MediaError: A worker died.
    """
    if not LOWEST <= threshold < HIGHEST:
        raise ConfigError(f"threshold={threshold}: want {LOWEST:.0f} to below {HIGHEST:.0f}")
    return _gate(data, judge, threshold, workers)


def _gate(data: DataSet, judge: Judge, threshold: float, workers: int = 0) -> Gated:
    about = json.loads(json.dumps(dict(judge.about)))
    items, passed, unjudged, todo = data.items(), 0, {}, {}
    for item in items:
        known, clip = data.said(item, "gate").get(judge.name), data.facts(item)["clip"]["sha256"]
        if known is None or (known["about"], known["clip"]) != (about, clip):
            todo[item] = clip
        else:  # the threshold may be another
            passed += _say(data, item, judge, threshold, known)
    bar = tqdm(total=len(todo), unit="item", disable=None, leave=False)
    with bar, closing(_answers(data, judge, list(todo), workers)) as answers:
        for item, answer in answers:
            bar.update()
            if isinstance(answer, AnswerError):
                unjudged[item] = str(answer)
                continue
            scores, why = answer
            said = {"about": about, "clip": todo[item], "scores": scores.plain(), "why": dict(why)}
            passed += _say(data, item, judge, threshold, said)
    data.write_manifest()
    return Gated(len(items), passed, len(todo) - len(unjudged), unjudged)


def _say(data: DataSet, item: str, judge: Judge, threshold: float, said: Mapping[str, Any]) -> bool:
    """Keep a verdict beside its scores; whether the item passes."""
    verdict = Verdict(judge.name, Scores(**said["scores"]), threshold)
    passed = {"average": verdict.scores.average, "passed": verdict.passed}
    data.say(item, "gate", judge.name, {**said, "threshold": threshold, **passed})
    return verdict.passed


def _answers(
    data: DataSet, judge: Judge, items: Sequence[str], workers: int
) -> Generator[tuple[str, Answer | AnswerError], None, None]:
    """What the judge says of each item, in order."""
    if not workers:
        for item in items:
            yield item, _answer(data, judge, item)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _begin, (data.root, judge))
    try:
        waiting = [(item, pool.submit(_answer_here, item)) for item in items]
        for item, future in waiting:
            yield item, future.result()
    except BrokenProcessPool as error:
        raise MediaError(
            f"{data.root}: a worker died, perhaps for want of memory; the same command goes on, "
            f"with fewer of them by --workers {max(1, workers // 2)}"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _answer(data: DataSet, judge: Judge, item: str) -> Answer | AnswerError:
    try:
        return judge(evidence_of(data, item))
    except AnswerError as error:
        return error


_worker: tuple[DataSet, Judge]  # of a worker process


def _begin(root: Path, judge: Judge) -> None:
    global _worker
    begin_worker()
    _worker = DataSet(root), judge


def _answer_here(item: str) -> Answer | AnswerError:
    return _answer(*_worker, item)


def gate_best(
    data: DataSet,
    judge: Judge,
    threshold: float = THRESHOLD,
    least: int = 0,
    workers: int = 0,
) -> tuple[Gated, float]:
    """As `gate`; where fewer than `least` items pass, the threshold falls until so many do.

    Items of the same average pass together.

    Returns:
        What was found, and the threshold that counted.
    """
    found = gate(data, judge, threshold, workers)
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
