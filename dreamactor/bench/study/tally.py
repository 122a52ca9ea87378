"""From answers to arrays: who passed the checks, and what they said of which system."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dreamactor.bench.study.answers import Answer, Said
from dreamactor.bench.study.plan import DIMENSIONS, Item, Plan, Rater, Rule

Floats = NDArray[np.float64]
WORDS = {1: "good", 0: "same", -1: "bad"}
"""Of the system of `gsb`, against the other one."""


@dataclass(frozen=True)
class Checked:
    """What the checks say of a rater."""

    rater: int
    answered: int
    items: int
    failed: int
    checks: int
    """Spoilt and identical ones that were answered."""
    apart: float
    """Mean difference between first and repeated scores, points; NaN without any."""
    why: str | None
    """What they are left out for; None = they count."""


@dataclass(frozen=True)
class Tally:
    """What counts. R raters, C cases, S systems, O others that are in pairs with that of `gsb`."""

    raters: tuple[int, ...]
    cases: tuple[str, ...]
    scores: Floats
    """(R, C, S, 3) 1 to 5, NaN where nothing was said; first answers, no checks."""
    pairs: Floats
    """(R, C, O) 1 = the system of `gsb` is better, 0 = the same, -1 = the other one is."""
    others: tuple[str, ...]
    repeats: Floats
    """(N, 2, 3) first and second scores of repeated items."""
    left: int
    """Real pairs of which the left clip was taken."""
    right: int


def check_rater(rater: Rater, said: Mapping[str, Answer], rule: Rule) -> Checked:
    """Hold one rater's answers against the rule."""
    verdicts = [_passes(item, said[item.id], rule) for item in rater.items if item.id in said]
    checks = [passed for passed in verdicts if passed is not None]
    failed = len(checks) - sum(checks)
    pairs = [_scores(said[x]) - _scores(said[y]) for x, y in _repeats(rater, said)]
    apart = float(np.abs(pairs).mean()) if pairs else float("nan")
    why = None
    if len(verdicts) < rule.least * len(rater.items):
        why = f"answered {len(verdicts)} of {len(rater.items)} items"
    elif checks and failed > rule.fails * len(checks):
        why = f"failed {failed} of {len(checks)} checks"
    elif apart > rule.repeat:
        why = f"repeated ratings {apart:.2f} points apart"
    return Checked(rater.number, len(verdicts), len(rater.items), failed, len(checks), apart, why)


def check_raters(plan: Plan, said: Said, without: Collection[int] = ()) -> list[Checked]:
    """Everybody who has answered anything, but those who want their answers removed."""
    return [
        check_rater(rater, said.of(rater), plan.rule)
        for rater in plan.raters
        if rater.number not in without and said.of(rater)
    ]


def tally(plan: Plan, said: Said, raters: Sequence[int]) -> Tally:
    """The answers of these raters as arrays."""
    cases, systems = list(plan.scenarios), list(plan.systems)
    others = [name for name in systems if name != plan.gsb] if plan.gsb else []
    scores = np.full((len(raters), len(cases), len(systems), len(DIMENSIONS)), np.nan)
    pairs = np.full((len(raters), len(cases), len(others)), np.nan)
    repeats, sides = [], {"a": 0, "b": 0, "same": 0}
    for r, number in enumerate(raters):
        rater = plan.by_number[number]
        own = said.of(rater)
        repeats += [(_scores(own[x]), _scores(own[y])) for x, y in _repeats(rater, own)]
        for item in rater.items:
            if item.check or item.id not in own:
                continue
            c = cases.index(item.case)
            if item.kind == "rate":
                scores[r, c, systems.index(item.systems[0])] = _scores(own[item.id])
                continue
            sides[own[item.id].said["choice"]] += 1
            other = next(name for name in item.systems if name != plan.gsb)
            pairs[r, c, others.index(other)] = verdict(plan, item, own[item.id])
    found = np.array(repeats, np.float64).reshape(-1, 2, len(DIMENSIONS))
    return Tally(
        tuple(raters), tuple(cases), scores, pairs, tuple(others), found, sides["a"], sides["b"]
    )


def verdict(plan: Plan, item: Item, answer: Answer) -> int:
    """1, 0 or -1: how the system of `gsb` did in a pair."""
    choice = answer.said["choice"]
    if choice == "same":
        return 0
    return 1 if item.systems[("a", "b").index(choice)] == plan.gsb else -1


def table(plan: Plan, said: Said, checked: Sequence[Checked]) -> str:
    """answers.csv: every answer that counts or not, one a line, with what it was about."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(
        ["rater", "counts", "place", "kind", "check", "case", "scenario", "system", *DIMENSIONS,
         "left", "right", "choice", "gsb", "seconds", "plays", "time"]
    )  # fmt: skip
    for row in checked:
        rater = plan.by_number[row.rater]
        for place, item in enumerate(rater.items, 1):
            answer = said.of(rater).get(item.id)
            if answer is None:
                continue
            if item.kind == "rate":
                what = [item.systems[0], *(answer.said[name] for name in DIMENSIONS), *[""] * 4]
            else:
                gsb = "" if item.check else WORDS[verdict(plan, item, answer)]
                what = ["", "", "", "", *item.systems, answer.said["choice"], gsb]
            lines.writerow(
                [row.rater, int(row.why is None), place, item.kind, item.check or "", item.case,
                 plan.scenarios[item.case], *what, answer.seconds, answer.plays, answer.time]
            )  # fmt: skip
    return text.getvalue()


def _passes(item: Item, answer: Answer, rule: Rule) -> bool | None:
    """Whether a check was passed; None = this is none."""
    if item.check == "identical":
        return bool(answer.said["choice"] == "same")
    if item.check in ("noise", "frozen"):
        dimension = "imaging" if item.check == "noise" else "motion"
        return bool(answer.said[dimension] <= rule.low)
    return None


def _repeats(rater: Rater, said: Mapping[str, Answer]) -> list[tuple[str, str]]:
    """Ids of first and repeated items that were both answered."""
    return [
        (item.of, item.id)
        for item in rater.items
        if item.of is not None and item.id in said and item.of in said
    ]


def _scores(answer: Answer) -> Floats:
    return np.array([answer.said[name] for name in DIMENSIONS], np.float64)
