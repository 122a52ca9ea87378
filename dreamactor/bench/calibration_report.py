"""What a judge's scores of damaged clips say of the judge.

A dimension may be trusted when it ranks the strengths of the damages that it is there to see, and
tells damaged clips from the clean one. Both are taken per case and averaged over cases.
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

RANKED, RIGHT, CASES = 0.5, 0.8, 6
"""Least lower end of the interval of the rank correlation, share of pairs in order, and cases."""
RULE = (
    f"may be trusted = the lower end of the rank correlation is {RANKED} or more, {RIGHT:.0%} of "
    f"the pairs are in order or more, and both were seen in {CASES} cases or more"
)

Owners = Mapping[str, tuple[str, str, int]]
"""System -> kind of its damage, the dimension that should see it, level from 1."""


@dataclass(frozen=True)
class Verdict:
    """What one dimension of a judge is worth."""

    ranked: Interval
    """Rank correlation of strength and lost points, mean over its kinds; 1 = always in order."""
    right: Interval
    """Share of pairs in which the damaged clip has fewer points than the clean one."""
    tied: float
    """Share of pairs with the same points; they are not right."""
    drift: float
    """Mean distance of the lowest and highest score of one and the same question; NaN if none was
    asked twice."""
    unjudged: int

    @property
    def trusted(self) -> bool:
        """By `RULE`."""
        seen = min(self.ranked.clips, self.right.clips)
        return seen >= CASES and self.ranked.low >= RANKED and self.right.mean >= RIGHT


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
    ranked, right, tied = [], [], []
    for case in sorted({case for case, _ in points}):
        rhos = [_rho(points, owners, clean, case, kind) for kind in kinds]
        ranked.append(float(np.nanmean(rhos)) if not np.isnan(rhos).all() else np.nan)
        best = points.get((case, clean))
        own = [points[case, s] for s, (_, owner, _) in owners.items()
               if owner == dimension and (case, s) in points]  # fmt: skip
        if best is None or not own:
            continue
        right.append(float(np.mean([x < best for x in own])))
        tied.append(float(np.mean([x == best for x in own])))
    return Verdict(
        bootstrap(ranked, seed),
        bootstrap(right, seed),
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
    head = ["dimension", "rank correlation", "pairs in order", "tied", "drift", "unjudged",
            "verdict"]  # fmt: skip
    rows = [
        [
            d.replace("_", " "), format_interval(v.ranked), format_interval(v.right),
            f"{v.tied:.2f}", "-" if np.isnan(v.drift) else f"{v.drift:.2f}", str(v.unjudged),
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
        cases = sorted({case for case, _ in points})
        rhos = [_rho(points, owners, clean, case, kind) for case in cases]
        scores = [_mean(points, s) for s in (clean, *(mine[k] for k in sorted(mine)))]
        of_kind.append([f"{kind}: {strengths[kind]}", dimension.replace("_", " "), *scores,
                        format_interval(bootstrap(rhos))])  # fmt: skip
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
            "Mean score by strength, and rank correlation, under the dimension that should see the "
            "damage:\n",
            markdown_table(["damage", "dimension", "none",
                            *(f"{k}" for k in range(1, levels + 1)), "rank correlation"],
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


def _rho(
    points: Mapping[tuple[str, str], float], owners: Owners, clean: str, case: str, kind: str
) -> float:
    """Of one kind in one case; NaN with fewer than three scores."""
    levels = {clean: 0} | {s: level for s, (name, _, level) in owners.items() if name == kind}
    held = [(level, -points[case, s]) for s, level in levels.items() if (case, s) in points]
    if len(held) < 3:
        return float("nan")
    found = spearman(*zip(*held, strict=True))
    return 0.0 if np.isnan(found) else found  # the same score for everything ranks nothing


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
