"""What a judge's scores of damaged clips say of the judge.

A dimension may be trusted when it tells damaged clips from the clean one and, among the damaged
ones, says of two strengths of one kind which is the stronger. The clean clip is no part of the
second number: with it a judge that finds every damage and grades none has a rank correlation of
.71. Both are taken per case and averaged over cases.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dreamactor.bench.agreement import spearman
from dreamactor.bench.judging import Answer
from dreamactor.bench.stats import Interval, bootstrap, format_interval, markdown_table
from dreamactor.errors import ConfigError
from dreamactor.image import atomic

FOUND, ORDERED, CASES = 0.8, 0.5, 6
"""Least share of damaged clips that are found, lower end of the interval of their order, cases."""
RULE_VERSION = 2
"""In calibration.json; 1 counted the clean clip into the order, and files of it name none."""
RULE = (
    f"may be trusted = {FOUND:.0%} of the damaged clips or more score below the clean one, and "
    "within each kind of damage the rank correlation of strength and lost points among the damaged "
    f"clips alone has an interval whose lower end is {ORDERED} or more, both in {CASES} cases or "
    "more"
)

Owners = Mapping[str, tuple[str, str, int]]
"""System -> kind of its damage, the dimension that should see it, level from 1."""


@dataclass(frozen=True)
class Verdict:
    """What one dimension of a judge is worth."""

    found: Interval
    """Share of damaged clips with fewer points than the clean one."""
    order: Mapping[str, Interval]
    """By kind: rank correlation of strength and lost points without the clean clip; 1 = always in
    order, 0 = no order, such as the same points for all."""
    tied: float
    """Share of damaged clips with the same points as the clean one; they are not found."""
    drift: float
    """Mean distance of the lowest and highest score of one and the same question; NaN if none was
    asked twice."""
    unjudged: int

    @property
    def weakest(self) -> str:
        """The kind that is ordered worst, by the lower end."""
        return min(self.order, key=lambda kind: np.nan_to_num(self.order[kind].low, nan=-2.0))

    @property
    def trusted(self) -> bool:
        """By `RULE`."""
        least = self.order[self.weakest]
        seen = min(self.found.clips, *(x.clips for x in self.order.values()))
        return seen >= CASES and self.found.mean >= FOUND and least.low >= ORDERED


def find_verdicts(
    answers: Iterable[Answer], owners: Owners, clean: str, dimensions: Sequence[str], seed: int = 0
) -> dict[str, Verdict]:
    """A verdict for each dimension.

    Args:
        answers: Of the whole run.
        owners: What the systems are.
        clean: Name of the undamaged one.
        dimensions: Those that were asked for.
        seed: Of the intervals.
    """
    every = list(answers)
    return {d: _verdict([a for a in every if a.dimension == d], owners, clean, d, seed)
            for d in dimensions}  # fmt: skip


def _verdict(
    answers: Sequence[Answer], owners: Owners, clean: str, dimension: str, seed: int
) -> Verdict:
    points = _points(answers)
    kinds = sorted({kind for kind, owner, _ in owners.values() if owner == dimension})
    cases = sorted({case for case, _ in points})
    found, tied = [], []
    for case in cases:
        best = points.get((case, clean))
        own = [points[case, s] for s, (_, owner, _) in owners.items()
               if owner == dimension and (case, s) in points]  # fmt: skip
        if best is None or not own:
            continue
        found.append(float(np.mean([x < best for x in own])))
        tied.append(float(np.mean([x == best for x in own])))
    return Verdict(
        bootstrap(found, seed),
        {k: bootstrap([_order(points, owners, case, k) for case in cases], seed) for k in kinds},
        float(np.mean(tied)) if tied else float("nan"),
        _drift(answers),
        sum(a.score is None for a in answers),
    )


def report(
    verdicts: Mapping[str, Verdict],
    answers: Sequence[Answer],
    owners: Owners,
    clean: str,
    strengths: Mapping[str, str],
    made: str,
    cost: str,
) -> str:
    """Markdown: verdicts, then every kind of damage under every dimension.

    Args:
        verdicts: By dimension.
        answers: Of the whole run.
        owners: What the systems are.
        clean: Name of the undamaged one.
        strengths: Of each kind, in words.
        made: Command, judge, suite.
        cost: The estimate.
    """
    head = ["dimension", "damage found", "tied", "order among damaged, worst kind", "drift",
            "unjudged", "verdict"]  # fmt: skip
    rows = [
        [
            d.replace("_", " "), format_interval(v.found), f"{v.tied:.2f}",
            f"{format_interval(v.order[v.weakest])} {v.weakest}",
            "-" if np.isnan(v.drift) else f"{v.drift:.2f}", str(v.unjudged),
            "may be trusted" if v.trusted else "may **not**",
        ]
        for d, v in verdicts.items()
    ]  # fmt: skip
    kinds = [name for name in strengths if any(name == k for k, _, _ in owners.values())]
    levels = max(level for _, _, level in owners.values())
    of_kind = []
    for kind in kinds:
        mine = {level: s for s, (name, _, level) in owners.items() if name == kind}
        dimension = owners[mine[1]][1]
        points = _points([a for a in answers if a.dimension == dimension])
        scores = [_mean(points, s) for s in (clean, *(mine[k] for k in sorted(mine)))]
        of_kind.append([f"{kind}: {strengths[kind]}", dimension.replace("_", " "), *scores,
                        format_interval(verdicts[dimension].order[kind])])  # fmt: skip
    others = []
    for kind in kinds:
        worst = next(s for s, (name, _, k) in owners.items() if (name, k) == (kind, levels))
        lost = []
        for d in verdicts:
            points = _points([a for a in answers if a.dimension == d])
            fall = [points[c, clean] - points[c, worst] for c, s in points
                    if s == clean and (c, worst) in points]  # fmt: skip
            mark = "**" if owners[worst][1] == d else ""
            lost.append(f"{mark}{np.mean(fall):.2f}{mark}" if fall else "-")
        others.append([kind, *lost])
    return "\n".join(
        [
            f"{made}. Estimated before it began: {cost}. {RULE[0].upper()}{RULE[1:]}. Drift: "
            "between the same questions, in points.\n",
            markdown_table(head, rows),
            "Mean score by strength, and the order among the damaged clips, under the dimension "
            "that should see the damage:\n",
            markdown_table(["damage", "dimension", "none",
                            *(f"{k}" for k in range(1, levels + 1)), "order"],
                           of_kind),
            "Points that the strongest damage costs under each dimension; bold = should be seen. "
            "The others are noted and decide nothing:\n",
            markdown_table(["damage", *(d.replace("_", " ") for d in verdicts)], others),
            "![Scores by strength](calibration.png)\n",
        ]
    )  # fmt: skip


def draw(
    path: Path, answers: Sequence[Answer], owners: Owners, clean: str, dimensions: Sequence[str]
) -> None:
    """One panel a dimension: mean score by strength; the others' strongest damages as crosses.

    Raises:
        ConfigError: There is no matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("the plot needs matplotlib: pip install 'dreamactor[bench]'") from error
    figure = Figure(figsize=(3.3 * len(dimensions), 3.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = np.atleast_1d(figure.subplots(1, len(dimensions), sharey=True))
    for panel, dimension in zip(panels, dimensions, strict=True):
        points = _points([a for a in answers if a.dimension == dimension])
        cases = sorted({case for case, _ in points})
        for kind in dict.fromkeys(kind for kind, _, _ in owners.values()):
            mine = sorted((level, s) for s, (k, _, level) in owners.items() if k == kind)
            own = owners[mine[0][1]][1] == dimension
            shown = [(0, clean), *mine] if own else mine[-1:]
            at = [level for level, _ in shown]
            held = [[points[c, s] for c in cases if (c, s) in points] for _, s in shown]
            means = [float(np.mean(x)) if x else np.nan for x in held]
            if own:
                panel.plot(at, means, "o-", label=kind)
            else:
                panel.plot([at[-1] + 0.4], means, "x", color="0.6")
        panel.set(title=dimension.replace("_", " "), xlabel="strength of the damage")
        panel.set(ylim=(0.8, 5.2), xticks=range(1 + max(k for _, _, k in owners.values())))
        panel.legend(fontsize=8, frameon=False, loc="lower left")
    panels[0].set_ylabel("mean score; x: others' damage")
    with atomic(path) as hidden:
        figure.savefig(hidden, format="png")


def _points(answers: Iterable[Answer]) -> dict[tuple[str, str], float]:
    """(case, system) -> score of the first time it was asked."""
    return {(a.case, a.system): a.score for a in answers if not a.repeat and a.score is not None}


def _order(points: Mapping[tuple[str, str], float], owners: Owners, case: str, kind: str) -> float:
    """Of the damaged clips of one kind in one case; NaN with fewer than three scores."""
    held = [(level, -points[case, s]) for s, (name, _, level) in owners.items()
            if name == kind and (case, s) in points]  # fmt: skip
    if len(held) < 3:
        return float("nan")
    found = spearman(*zip(*held, strict=True))
    return 0.0 if np.isnan(found) else found  # the same score for everything orders nothing


def _mean(points: Mapping[tuple[str, str], float], system: str) -> str:
    held = [x for (_, name), x in points.items() if name == system]
    return f"{np.mean(held):.2f}" if held else "-"


def _drift(answers: Iterable[Answer]) -> float:
    said: dict[tuple[str, str], list[float]] = {}
    for a in answers:
        if a.score is not None:
            said.setdefault((a.case, a.system), []).append(a.score)
    ranges = [max(x) - min(x) for x in said.values() if len(x) > 1]
    return float(np.mean(ranges)) if ranges else float("nan")
