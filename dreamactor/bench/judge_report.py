"""From answers of a judge to scores and tables with intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from dreamactor.bench.calibration_report import RULE_VERSION
from dreamactor.bench.judges import Judge
from dreamactor.bench.judging import Answer, Scene
from dreamactor.bench.stats import (
    bootstrap,
    format_interval,
    markdown_table,
    paired_difference,
)
from dreamactor.errors import ConfigError

Scored = dict[tuple[str, str], dict[str, float]]
"""(dimension, system) -> case -> mean over repeats."""


def by_clip(answers: Iterable[Answer]) -> dict[tuple[str, str, str], list[Answer]]:
    """Answers by (case, system, dimension), repeats in order."""
    found: dict[tuple[str, str, str], list[Answer]] = {}
    for answer in sorted(answers, key=lambda a: a.repeat):
        found.setdefault((answer.case, answer.system, answer.dimension), []).append(answer)
    return found


def case_means(answers: Iterable[Answer]) -> Scored:
    """Repeats averaged within a case first; those without a score are left out."""
    means: Scored = {}
    for (case, system, dimension), said in by_clip(answers).items():
        scores = [a.score for a in said if a.score is not None]
        if scores:
            means.setdefault((dimension, system), {})[case] = float(np.mean(scores))
    return means


def spread(answers: Iterable[Answer], dimension: str) -> float:
    """Standard deviation between repeats, mean over clips; NaN where nothing was repeated."""
    found = []
    for (_, _, name), said in by_clip(answers).items():
        scores = [a.score for a in said if a.score is not None]
        if name == dimension and len(scores) > 1:
            found.append(float(np.std(scores, ddof=1)))
    return float(np.mean(found)) if found else math.nan


def scores_of(answers: Iterable[Answer], judge: Judge) -> str:
    """JSON Lines: every clip and dimension, with all that its score belongs to."""
    lines = []
    for (case, system, dimension), said in by_clip(answers).items():
        repeats = [a.score for a in said]
        held = [score for score in repeats if score is not None]
        about = judge.about(dimension)
        row = {
            "case": case,
            "system": system,
            "dimension": dimension,
            "score": float(np.mean(held)) if held else None,
            "repeats": repeats,
            "pools": [a.pool for a in said],
            "judge": judge.name,
            "prompt": about.get("prompt"),
            "per_second": about.get("per_second"),
        }
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines)


def report(
    answers: Sequence[Answer],
    judge: Judge,
    scene: Scene,
    command: str,
    cost: str,
    lacking: Mapping[str, Sequence[str]],
    trusted: Mapping[str, bool] | None,
) -> str:
    """Markdown: how it was made, scores, differences, what is missing.

    Args:
        answers: Of the whole run.
        judge: Who gave them.
        scene: What they were about.
        command: Repeats the run.
        cost: The estimate.
        lacking: Cases without a clip, by system.
        trusted: By dimension, from a calibration of this judge.
    """
    dimensions = list(dict.fromkeys(a.dimension for a in answers))
    systems = list(scene.clips)
    means = case_means(answers)
    suite, seed = scene.suite, scene.seed
    cases = len({a.case for a in answers})
    parts = [
        f"Made by `{command}`: judge {judge.name}, suite {suite.name} {suite.version}, {cases} "
        f"cases, {len(answers)} answers. Scores are 1 (worst) to 5; 95 % bootstrap intervals over "
        f"cases, repeats averaged within a case first. Estimated before it began: {cost}.\n",
        _examples(answers, scene),
        _trust(dimensions, trusted),
    ]
    head = ["system", *(d.replace("_", " ") for d in dimensions)]
    rows = []
    for system in systems:
        cells = [bootstrap(means.get((d, system), {}).values(), seed) for d in dimensions]
        rows.append([system, *map(format_interval, cells)])
    repeated = [spread(answers, d) for d in dimensions]
    rows.append(["*between repeats*", *("-" if math.isnan(x) else f"± {x:.2f}" for x in repeated)])
    parts += [markdown_table(head, rows)]
    if len(systems) > 1:
        parts += [
            "Differences on the same cases; * = 0 is outside the interval, each looked at alone.\n"
        ]
        parts += [markdown_table(head, _differences(means, systems, dimensions, seed))]
    about = [_asked(judge.about(d), d) for d in dimensions]
    parts += [markdown_table(["dimension", "prompt", "sha256", "frames"], about)]
    parts += _faults(answers, lacking)
    return "\n".join(parts)


def load_calibration(path: Path, judge: Judge) -> dict[str, bool]:
    """By dimension: may a judge be trusted?

    Raises:
        ConfigError: The file is none of `bench calibrate`, its verdicts are by an older rule, or
            it is of another judge, prompt or way of showing frames.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = {name: (row["about"], bool(row["trusted"])) for name, row in
                found["dimensions"].items()}  # fmt: skip
        name, rule = str(found["judge"]), found.get("rule", 1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: no calibration.json of `bench calibrate`: {error}") from error
    if rule != RULE_VERSION:
        raise ConfigError(
            f"{path}: verdicts by rule {rule} of trust: want {RULE_VERSION}; the same `bench "
            "calibrate` command on its folder writes them anew and asks nothing again"
        )
    for dimension, (about, _) in rows.items():
        now = json.loads(json.dumps(dict(judge.about(dimension))))
        if (name, about) != (judge.name, now):
            differs = sorted(k for k in about.keys() | now.keys() if about.get(k) != now.get(k))
            raise ConfigError(
                f"{path}: calibrates {name} by another {', '.join(differs) or 'name'}; repeat "
                f"`bench calibrate` for {judge.name}"
            )
    return {dimension: trusted for dimension, (_, trusted) in rows.items()}


def _examples(answers: Sequence[Answer], scene: Scene) -> str:
    most = max((len(a.pool) for a in answers), default=0)
    if not most:
        return "No examples stood in the questions.\n"
    drawn = "drawn anew for each repeat" if scene.redraw else "the same in each repeat"
    return (
        f"Scores are relative: up to {most} first frames of other systems' clips of the same case "
        f"stood in each question, without names, {drawn}, from {', '.join(scene.clips)}.\n"
    )


def _trust(dimensions: Sequence[str], trusted: Mapping[str, bool] | None) -> str:
    if trusted is None:
        return (
            "**This judge has not been calibrated here** (`bench calibrate`, then `calibration=`): "
            "take no score for more than its opinion.\n"
        )
    said = {True: "may be", False: "may **not** be", None: "was not calibrated, so may **not** be"}
    words = [f"{d.replace('_', ' ')} {said[trusted.get(d)]}" for d in dimensions]
    return f"By the judge's calibration against truth, to be trusted: {', '.join(words)}.\n"


def _differences(
    means: Scored, systems: Sequence[str], dimensions: Sequence[str], seed: int
) -> list[list[str]]:
    rows = []
    for a, b in combinations(systems, 2):
        cells = []
        for d in dimensions:
            first, second = means.get((d, a), {}), means.get((d, b), {})
            if not first.keys() & second.keys():
                cells.append("-")
                continue
            found = paired_difference(first, second, seed)
            clear = found.clips > 1 and not found.low <= 0 <= found.high
            cells.append(format_interval(found) + (" *" if clear else ""))
        rows.append([f"{a} - {b}", *cells])
    return rows


def _asked(about: Mapping[str, Any], dimension: str) -> list[str]:
    if "prompt" not in about:
        return [dimension, "none: measured", "-", "all"]
    frames = f"{about['per_second']:g} a second and the last"
    return [dimension, f"version {about['version']}", str(about["prompt"])[:12], frames]


def _faults(answers: Sequence[Answer], lacking: Mapping[str, Sequence[str]]) -> list[str]:
    parts = []
    without = [a for a in answers if a.score is None]
    if without:
        first = without[0]
        where = f"{first.case}, {first.system}, {first.dimension}"
        parts.append(
            f"{len(without)} of {len(answers)} answers held no score and count for nothing. The "
            f"first ({where}): {first.why}\n"
        )
    for system, names in lacking.items():
        parts.append(f"{system} has no clip of {len(names)} cases, such as {names[0]}.\n")
    return parts
