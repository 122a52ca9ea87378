"""`dreamactor study report`: means, shares, intervals and agreement of the answers that count.

OUT.md     what is read
OUT.json   the same numbers
OUT.csv    every answer
OUT.png    bars with intervals
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dreamactor.bench.agreement import Level
from dreamactor.bench.stats import (
    RESAMPLES,
    Interval,
    markdown_table,
)
from dreamactor.bench.study import scores
from dreamactor.bench.study.answers import Said, read_answers
from dreamactor.bench.study.plan import DIMENSIONS, SCALE, Plan, load_plan
from dreamactor.bench.study.tally import Checked, Tally, check_raters, table, tally
from dreamactor.errors import ConfigError
from dreamactor.image import atomic, check_output
from dreamactor.runs import write_text

TITLES = dict(zip(DIMENSIONS, ("imaging quality", "motion", "appearance"), strict=True))
VALUES = np.array(SCALE, np.float64)
GSB = {"good": 1, "same": 0, "bad": -1}
LEVELS: tuple[Level, ...] = ("ordinal", "interval")

Json = dict[str, Any]


def report_study(
    root: Path, out: Path | None = None, without: Collection[int] = (), seed: int = 0
) -> Path:
    """Write the report of what was answered so far.

    Args:
        root: The study.
        out: The page, .md; None = report.md in the study. The other files lie beside it.
        without: Numbers of raters who want their answers removed.
        seed: Of the resamples.

    Returns:
        The page.

    Raises:
        ConfigError: There is no study, or no answer that counts.
    """
    plan = load_plan(root)
    out = check_output(out or root / "report.md", True, (".md",))
    said = read_answers(plan)
    if unknown := sorted(set(without) - plan.by_number.keys()):
        raise ConfigError(f"--without {unknown[0]}: want a rater, 1 to {len(plan.raters)}")
    checked = check_raters(plan, said, without)
    if not checked:
        raise ConfigError(f"{root}: nobody has answered yet; `study serve` prints their links")
    kept = [row.rater for row in checked if row.why is None]
    if not kept:
        reasons = "; ".join(f"{row.rater} {row.why}" for row in checked)
        raise ConfigError(f"{root}: no rater's answers count: {reasons}")
    numbers = measure(plan, said, checked, tally(plan, said, kept), seed)
    write_text(out.with_suffix(".csv"), table(plan, said, checked))
    draw_plot(out.with_suffix(".png"), numbers)
    text = json.dumps(_finite(numbers), indent=1, ensure_ascii=False)
    write_text(out.with_suffix(".json"), text + "\n")
    write_text(out, page(plan, numbers, out.stem))
    return out


def measure(plan: Plan, said: Said, checked: Sequence[Checked], found: Tally, seed: int) -> Json:
    """All numbers of a report, as JSON values (NaN where something is not defined)."""
    draws = scores.draw(len(found.raters), len(found.cases), seed)
    seconds: dict[str, list[float]] = {"rate": [], "pair": []}
    for number in found.raters:
        rater = plan.by_number[number]
        for item in rater.items:
            if item.id in said.of(rater):
                seconds[item.kind].append(said.of(rater)[item.id].seconds)
    return {
        "suite": dict(plan.suite), "cases": len(found.cases), "systems": list(plan.systems),
        "gsb": plan.gsb, "seed": seed, "resamples": RESAMPLES,
        "scenarios": len(set(plan.scenarios.values())),
        "rule": asdict(plan.rule), "raters": [asdict(row) for row in checked],
        "counted": len(found.raters), "planned": len(plan.raters),
        "seconds": {k: float(np.median(v)) for k, v in seconds.items() if v},
        "ratings": _ratings(plan, found, draws), "differences": _differences(plan, found, draws),
        "pairs": {other: _pair(found.pairs[..., k], draws) for k, other in enumerate(found.others)},
        "left": found.left, "right": found.right,
        "alpha": _alphas(found, draws), "repeats": _repeats(found),
    }  # fmt: skip


def _ratings(plan: Plan, found: Tally, draws: scores.Draws) -> Json:
    """By system and dimension."""
    told: Json = {}
    for s, system in enumerate(plan.systems):
        for d, name in enumerate(DIMENSIONS):
            cells = found.scores[:, :, s, d]
            told.setdefault(system, {})[name] = {
                **asdict(scores.spread(cells)),
                "answers": int((~np.isnan(cells)).sum()),
                "over_cases": _plain(scores.mean_interval(cells, draws, "cases")),
                "over_both": _plain(scores.mean_interval(cells, draws, "both")),
            }
    return told


def _differences(plan: Plan, found: Tally, draws: scores.Draws) -> Json:
    """The system of `gsb` minus every other one, rater by rater and case by case."""
    if plan.gsb is None:
        return {}
    ours = found.scores[:, :, plan.systems.index(plan.gsb)]  # (R, C, 3)
    return {
        other: {
            name: _plain(
                scores.mean_interval(
                    ours[..., d] - found.scores[:, :, plan.systems.index(other), d], draws, "both"
                )
            )
            for d, name in enumerate(DIMENSIONS)
        }
        for other in found.others
    }


def _pair(cells: scores.Floats, draws: scores.Draws) -> Json:
    """Shares and lead of one other system; cells (R, C) of 1, 0, -1."""
    known = ~np.isnan(cells)
    told: Json = {"answers": int(known.sum())}
    for word, value in GSB.items():
        share = np.where(known, (cells == value).astype(np.float64), np.nan)
        told[word] = _plain(scores.mean_interval(share, draws, "both"))
    told["lead_over_cases"] = _plain(scores.mean_interval(cells, draws, "cases"))
    told["lead_over_both"] = _plain(scores.mean_interval(cells, draws, "both"))
    return told


def _alphas(found: Tally, draws: scores.Draws) -> Json:
    told: Json = {}
    for level in LEVELS:
        for d, name in enumerate(DIMENSIONS):
            alpha = scores.alpha_interval(found.scores[..., d], VALUES, draws, level)
            told.setdefault(name, {})[level] = _plain(alpha)
        if found.others:
            values = np.array(sorted(GSB.values()), np.float64)
            alpha = scores.alpha_interval(found.pairs, values, draws, level)
            told.setdefault("pairs", {})[level] = _plain(alpha)
    return told


def _repeats(found: Tally) -> Json:
    return {
        name: asdict(scores.again(found.repeats[:, 0, d], found.repeats[:, 1, d]))
        for d, name in enumerate(DIMENSIONS)
    }


def page(plan: Plan, numbers: Json, stem: str) -> str:
    """The report as Markdown."""
    out = [row for row in numbers["raters"] if row["why"]]
    came, most = len(numbers["raters"]), numbers["planned"]
    names = ", ".join(f"rater {row['rater']} ({row['why']})" for row in out)
    parts = [
        f"# Study on {plan.suite['name']} {plan.suite['version']}",
        f"{numbers['cases']} cases of {numbers['scenarios']} scenarios, "
        f"{len(plan.systems)} systems; {came} of {most} raters came, {numbers['counted']} count. "
        f"**Left out: {len(out)}**{': ' + names if out else ''}. By the rule that was set with "
        f"the plan, {plan.rule.words()}.",
        f"Seed {numbers['seed']}, {RESAMPLES} resamples. \"Over cases\" is what other cases would "
        "change for these raters; \"over both\" draws raters and cases anew, and alone speaks of "
        "people in general. Every answer is in "
        f"[{stem}.csv]({stem}.csv), every number in [{stem}.json]({stem}.json).",
        f"![Means and shares with their intervals]({stem}.png)",
        "## Ratings, 1 to 5",
        "Mean ± standard deviation between the raters' own means, as the paper's table has it.",
        _ratings_table(plan, numbers),
        "## Intervals of 95 %",
        _intervals_table(plan, numbers),
    ]  # fmt: skip
    if plan.gsb:
        parts += [
            f"## {plan.gsb} minus the others",
            "Of the same rater and case, over both; clear where 0 is outside.",
            _differences_table(numbers),
            f"## Pairs: {plan.gsb} is good, the same or bad against",
            _pairs_table(numbers),
            f"Of the pairs that were decided, {_share(numbers['left'], numbers['right'])} went to "
            "the left clip. Sides are balanced: what is missing to 50% is a habit and no lead.",
        ]
    parts += [
        "## Agreement",
        "Krippendorff's alpha between raters over all clips, cases drawn anew: 1 = always alike, "
        "0 = as by chance. Repeated: two scores of one rater for one clip.",
        _agreement_table(numbers),
        "Median seconds in view: "
        + ", ".join(
            f"{value:.0f} a {'rating' if kind == 'rate' else 'pair'}"
            for kind, value in numbers["seconds"].items()
        )
        + ".",
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _ratings_table(plan: Plan, numbers: Json) -> str:
    rows = []
    for system in plan.systems:
        told = numbers["ratings"][system]
        marks = [f"{_number(told[k]['mean'])} ± {_number(told[k]['std'])}" for k in DIMENSIONS]
        rows.append([system, str(told[DIMENSIONS[0]]["answers"]), *marks])
    return markdown_table(["system", "answers", *TITLES.values()], rows)


def _intervals_table(plan: Plan, numbers: Json) -> str:
    rows = []
    for name, title in TITLES.items():
        for system in plan.systems:
            told = numbers["ratings"][system][name]
            rows.append([title, system, *(_text(told[k]) for k in ("over_cases", "over_both"))])
    return markdown_table(["", "system", "over cases", "over both"], rows)


def _differences_table(numbers: Json) -> str:
    rows = [
        [other, *(_text(told[name], "+.2f") for name in DIMENSIONS)]
        for other, told in numbers["differences"].items()
    ]
    return markdown_table(["against", *TITLES.values()], rows)


def _pairs_table(numbers: Json) -> str:
    rows = []
    for other, told in numbers["pairs"].items():
        shares = [_text(told[word]) for word in GSB]
        leads = [_text(told[f"lead_over_{over}"], "+.2f") for over in ("cases", "both")]
        rows.append([other, str(told["answers"]), *shares, *leads])
    header = ["against", "answers", "good", "same", "bad", "lead over cases", "lead over both"]
    return markdown_table(header, rows)


def _agreement_table(numbers: Json) -> str:
    rows = []
    for name, told in numbers["alpha"].items():
        again = numbers["repeats"].get(name)
        cells = [_text(told[level]) for level in LEVELS]
        if again is None or not again["count"]:
            cells += ["-"] * 4
        else:
            cells += [str(again["count"]), f"{again['same']:.0%}", f"{again['near']:.0%}"]
            cells.append(_number(again["apart"]))
        rows.append([TITLES.get(name, name), *cells])
    header = ["", "alpha, ordinal", "alpha, interval", "repeated", "equal", "within 1", "apart"]
    return markdown_table(header, rows)


def draw_plot(path: Path, numbers: Json) -> None:
    """Means by system, a panel a dimension; shares of the pairs below each other."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("the plot needs matplotlib: pip install 'dreamactor[bench]'") from error
    systems, pairs = numbers["systems"], numbers["pairs"]
    panels = len(DIMENSIONS) + bool(pairs)
    high = 1.6 + 0.42 * len(systems)
    figure = Figure(figsize=(3.3 * panels + 0.8, high), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels)
    for panel, (name, title) in zip(axes, TITLES.items(), strict=False):
        for y, system in enumerate(systems):
            told = numbers["ratings"][system][name]["over_both"]
            colour = "#2f6db3" if system == numbers["gsb"] else "#9aa5b1"
            panel.barh(y, told["mean"] - 1, left=1, color=colour, height=0.62)
            spread = [[told["mean"] - told["low"]], [told["high"] - told["mean"]]]
            if not math.isnan(told["mean"]):
                panel.errorbar(told["mean"], y, xerr=spread, color="#222", capsize=3, lw=1.3)
        panel.set(xlim=(1, 5), xticks=SCALE, title=title)
        panel.set_yticks(range(len(systems)), systems if panel is axes[0] else [])
        panel.invert_yaxis()
        panel.spines[["top", "right"]].set_visible(False)
    if pairs:
        _draw_pairs(axes[-1], numbers)
    with atomic(path) as hidden:
        figure.savefig(hidden, format="png")


def _draw_pairs(panel: Any, numbers: Json) -> None:
    colours = {"good": "#2f6db3", "same": "#d5dae0", "bad": "#c8553d"}
    for y, told in enumerate(numbers["pairs"].values()):
        left = 0.0
        for word, colour in colours.items():
            share = told[word]["mean"]
            label = word if y == 0 else None
            panel.barh(y, share, left=left, color=colour, height=0.62, label=label)
            left += share
        lead = told["lead_over_both"]
        panel.text(
            1.02, y, f"{lead['mean']:+.2f}\n[{lead['low']:+.2f}, {lead['high']:+.2f}]",
            va="center", fontsize=8,
        )  # fmt: skip
    panel.set(xlim=(0, 1), xticks=(0, 0.5, 1))
    panel.set_title(f"{numbers['gsb']} against, and its lead")
    panel.set_yticks(range(len(numbers["pairs"])), list(numbers["pairs"]))
    panel.set_ylim(len(numbers["pairs"]) - 0.5, -0.5)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(loc="upper left", bbox_to_anchor=(0, -0.12), ncols=3, fontsize=8, frameon=False)


def _plain(interval: Interval) -> Json:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high,
            "cases": interval.clips}  # fmt: skip


def _text(told: Json, form: str = ".2f") -> str:
    """Mean and interval; the mean alone of one case or one rater."""
    if math.isnan(told["mean"]):
        return "-"
    mean, low, high = (format(told[k], form) for k in ("mean", "low", "high"))
    return mean if math.isnan(told["low"]) else f"{mean} [{low}, {high}]"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _share(left: int, right: int) -> str:
    return f"{left / (left + right):.0%}" if left + right else "none"


def _finite(value: Any) -> Any:
    """The same with null for NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
