"""What `bench metrics` found, as tables and a plot: metric x damage, and metric x true error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dreamactor.bench import stats
from dreamactor.bench.agreement import ranked, spearman
from dreamactor.bench.damages import STRENGTHS
from dreamactor.bench.metrics import distance
from dreamactor.bench.metrics.clips import Floats
from dreamactor.bench.metrics.table import METRICS, Metric
from dreamactor.errors import ConfigError
from dreamactor.image import atomic
from dreamactor.runs import numpy_generator

if TYPE_CHECKING:
    from dreamactor.bench.validation import Row

CLEAN = "truth"
"""Name of the clip that nothing was done to."""
ERRORS = ("lpips", "psnr", "flow_epe")
"""The true errors that the others are to tell without the truth."""
LITTLE = 0.1
"""Of the spread over clean clips: a metric that moves less than that is blind to a damage."""
ARROWS = {"up": "↑", "down": "↓", "one": "→1", "truth": "→truth"}
PANELS = 4
LEGEND = """Worse: the mean over clips gets worse with every strength; beside it the share of clips
that do so one by one. *uneven*: worse at the end, but not at every step. *fooled*: it gets
better. ·: it moves by less than a tenth of its spread over clean clips. Bold: what it must
show. Strengths of the damages: """


@dataclass(frozen=True)
class Reaction:
    """Of a metric to a damage."""

    means: Floats
    """(6,) over clips, undamaged first; NaN where undefined."""
    word: str
    """"worse", "uneven", "fooled" or "blind"."""
    clips: float
    """Share of the clips on which it gets worse with every strength; NaN for a set."""


def worseness(metric: Metric, values: Floats, clean: Floats | float = math.nan) -> Floats:
    """Values turned so that larger is worse.

    Args:
        metric: Whose.
        values: Any shape.
        clean: The truth's own values, for metrics that should be near them; NaN = not known, larger
            is then taken for better.
    """
    if metric.better == "down":
        return values
    if metric.better == "one":
        return np.abs(np.log2(np.maximum(values, 1e-9)))
    if metric.better == "truth" and not np.isnan(clean).all():
        return np.abs(values - clean)
    return -values


def reaction(metric: Metric, values: Floats) -> Reaction:
    """How a metric of single clips takes a damage.

    Args:
        metric: Whose.
        values: (N, 6) clips by strength, undamaged first.
    """
    with np.errstate(invalid="ignore"):
        bad = worseness(metric, values, values[:, :1])
    counts = (~np.isnan(values)).sum(0)
    means, worse = (
        np.where(counts > 0, np.nansum(v, 0) / np.maximum(counts, 1), math.nan)
        for v in (values, bad)
    )
    spread = float(np.nanstd(values[:, 0]))
    steps = [rising(row) for row in bad]
    return Reaction(means, _word(worse, LITTLE * spread), float(np.mean(steps)))


def set_reaction(distances: Floats) -> Reaction:
    """The same for a distance of sets (6,), 0 first."""
    return Reaction(distances, _word(distances, 0.0), math.nan)


def rising(worse: Floats) -> bool:
    """Whether no step goes down and the last is above the first; NaN is left out."""
    known = worse[~np.isnan(worse)]
    return bool(len(known) > 1 and (np.diff(known) >= 0).all() and known[-1] > known[0])


def _word(worse: Floats, little: float) -> str:
    known = worse[~np.isnan(worse)]
    if len(known) < 2 or np.ptp(known) <= little or np.ptp(known) < 1e-12:
        return "blind"
    if rising(known):
        return "worse"
    return "uneven" if known[-1] > known[0] else "fooled"


def reactions(rows: Sequence[Row]) -> dict[tuple[str, str], Reaction]:
    """Of every metric to every damage, by their names; only cases that have all strengths count."""
    by_key = {row.key: row for row in rows}
    cases = sorted({row.case for row in rows})
    found = {}
    for name, strengths in STRENGTHS.items():
        keys = [(CLEAN, 0.0), *((name, float(s)) for s in strengths)]
        whole = [case for case in cases if all((case, *key) in by_key for key in keys)]
        if not whole:
            raise ConfigError(f"no case has all strengths of {name!r}: measure some first")
        for metric in METRICS:
            if "a set" in metric.needs:
                sets = [np.array([by_key[case, *key].vector for case in whole]) for key in keys]
                away = np.array([distance.frechet(sets[0], other) for other in sets])
                found[metric.name, name] = set_reaction(away)
                continue
            values = np.array(
                [[by_key[case, *key].values[metric.name] for key in keys] for case in whole]
            )
            found[metric.name, name] = reaction(metric, values)
    return found


def matrix(found: Mapping[tuple[str, str], Reaction]) -> str:
    """Markdown table, metric x damage: how it takes it, and the share of clips."""
    lines = []
    for metric in METRICS:
        cells = []
        for name in STRENGTHS:
            this = found[metric.name, name]
            share = "" if math.isnan(this.clips) else f" {this.clips:.2f}"
            cell = {"worse": f"worse{share}", "blind": "·"}.get(this.word, f"*{this.word}*")
            cells.append(f"**{cell}**" if name in metric.shows else cell)
        lines.append([f"{metric.title} {ARROWS[metric.better]}", *cells])
    return stats.markdown_table(["metric", *STRENGTHS], lines)


def ends(found: Mapping[tuple[str, str], Reaction]) -> str:
    """Markdown table of means: undamaged, and under the strongest of every damage."""
    lines = []
    for metric in METRICS:
        clean = found[metric.name, next(iter(STRENGTHS))].means[0]
        last = [found[metric.name, name].means[-1] for name in STRENGTHS]
        texts = ["-" if math.isnan(v) else f"{v:.{metric.digits}f}" for v in (clean, *last)]
        lines.append([f"{metric.title} {ARROWS[metric.better]}", *texts])
    return stats.markdown_table(["metric", "truth", *STRENGTHS], lines)


def failures(found: Mapping[tuple[str, str], Reaction]) -> list[str]:
    """What a metric must show and does not, a line each."""
    return [
        f"{metric.title}: {name} ({found[metric.name, name].word})"
        for metric in METRICS
        for name in metric.shows
        if found[metric.name, name].word != "worse"
    ]


def correlations(rows: Iterable[Row], seed: int = 0, within: bool = False) -> str:
    """Markdown table: rank correlation of every truth-free metric with the true errors.

    Both are turned so that larger is worse: 1 = one order. Cases are drawn again for the interval,
    so that clips of one case stay together.

    Args:
        rows: Of generated clips.
        seed: Of the resampling.
        within: Mean over cases of the correlation among a case's clips, which says whether a metric
            can tell which of several results is best; else over all clips together.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.case, []).append(row)
    cases = sorted(groups)
    by_name = {metric.name: metric for metric in METRICS}
    lines = []
    for metric in (m for m in METRICS if m.free):
        cells = []
        for error in ERRORS:
            both = metric, by_name[error]
            pairs = [
                np.stack([worseness(m, _values(groups[case], m)) for m in both], axis=1)
                for case in cases
            ]
            cells.append(_correlation(pairs, seed, within))
        lines.append([f"{metric.title} {ARROWS[metric.better]}", *cells])
    titles = [f"{by_name[name].title}" for name in ERRORS]
    return stats.markdown_table(["metric", *titles], lines)


def _values(rows: Sequence[Row], metric: Metric) -> Floats:
    return np.array([row.values[metric.name] for row in rows], np.float64)


def _correlation(pairs: Sequence[Floats], seed: int, within: bool) -> str:
    """Of (n, 2) values of each case, as "rho [low, high]"; ranks are those among all clips."""
    if within:
        interval = stats.bootstrap([spearman(p[:, 0], p[:, 1]) for p in pairs], seed)
        return stats.format_interval(interval)
    everything, owner = np.concatenate(pairs), np.repeat(np.arange(len(pairs)), [*map(len, pairs)])
    known = ~np.isnan(everything).any(1)
    rho = spearman(everything[:, 0], everything[:, 1])
    if math.isnan(rho):
        return "-"
    x, y = (ranked(everything[known, k]) for k in (0, 1))
    sums = np.zeros((len(pairs), 6))  # of each case, so that a draw of cases is a product
    np.add.at(sums, owner[known], np.stack([x * 0 + 1, x, y, x * x, y * y, x * y], axis=1))
    draws = numpy_generator(seed, "correlations", len(pairs)).integers(
        len(pairs), size=(stats.RESAMPLES, len(pairs))
    )
    n, sx, sy, sxx, syy, sxy = sums[draws].sum(1).T
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = (n * sxy - sx * sy) / np.sqrt((n * sxx - sx**2) * (n * syy - sy**2))
    low, high = np.nanquantile(drawn, stats.EDGES)
    return stats.format_interval(stats.Interval(rho, float(low), float(high), len(pairs)))


def distances(rows: Sequence[Row]) -> str:
    """Markdown table: FAD-V of every system to the truth, with the jackknife's error."""
    vectors: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        vectors.setdefault(row.clip, {})[row.case] = row.vector
    lines = []
    for name in (n for n in vectors if n != CLEAN and n not in STRENGTHS):
        shared = sorted(vectors[name].keys() & vectors[CLEAN].keys())
        if len(shared) < 3:
            continue
        a, b = (np.array([vectors[n][case] for case in shared]) for n in (name, CLEAN))
        value, error = distance.jackknife(a, b)
        errors = [
            stats.bootstrap(r.values[e] for r in rows if r.clip == name and r.case in shared).mean
            for e in ERRORS
        ]
        texts = [f"{distance.frechet(a, b):.1f}", f"{value:.1f} ± {1.96 * error:.1f}"]
        lines.append([name, str(len(shared)), *texts, *(f"{e:.3f}" for e in errors)])
    header = ["system", "clips", "FAD-V ↓", "less its bias", *ERRORS]
    return stats.markdown_table(header, lines)


def report(rows: Sequence[Row], command: str, hardware: str, seed: int) -> str:
    """All of it as Markdown."""
    found = reactions(rows)
    wanted = sum(len(metric.shows) for metric in METRICS)
    missed = failures(found)
    generated = [r for r in rows if r.clip != CLEAN and r.clip not in STRENGTHS]
    systems = list(dict.fromkeys(r.clip for r in generated))
    strengths = "; ".join(
        f"{name} {', '.join(f'{s:g}' for s in values)}" for name, values in STRENGTHS.items()
    )
    cases = len({row.case for row in rows})
    parts = [
        stats.caption(command, hardware, seed, cases).replace("clips", "pairs", 1),
        f"## Known damage\n\n{wanted - len(missed)} of {wanted} reactions that must be there are "
        f"monotone in the mean. Missed: {'; '.join(missed) or 'none'}.",
        matrix(found),
        f"{LEGEND}{strengths}.",
        f"Means, undamaged and under the strongest of each damage:\n\n{ends(found)}",
        f"## Rank correlation with the true errors\n\n{len(generated)} clips of "
        f"{len(systems)} systems: {', '.join(systems)}. 1 = the metric has the order of the error; "
        "of flicker and dynamic degree more is taken for better.",
        correlations(generated, seed),
        "Mean over pairs of the correlation among the results of one pair:",
        correlations(generated, seed, within=True),
        f"## Distance of sets\n\n{distances(rows)}",
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def draw_plot(rows: Sequence[Row], out: Path, metrics: Sequence[Metric] = METRICS) -> None:
    """A panel a metric: mean against strength, a line a damage, bold what it must show.

    Args:
        rows: What was measured.
        out: PNG to write.
        metrics: Those that get a panel.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "plot.png needs matplotlib: `pip install 'dreamactor[bench]'` brings it"
        ) from error
    found = reactions(rows)
    lines = -(-len(metrics) // PANELS)
    figure = Figure(figsize=(3.4 * PANELS, 2.3 * lines), layout="constrained")
    axes = figure.subplots(lines, PANELS).ravel()
    for axis, metric in zip(axes, metrics, strict=False):
        for k, name in enumerate(STRENGTHS):
            shown = name in metric.shows
            axis.plot(
                found[metric.name, name].means,
                color=f"C{k}",
                label=name,
                lw=2 if shown else 0.8,
                ls="-" if shown else "--",
                marker="o" if shown else None,
                ms=3,
            )
        if metric.name == "psnr":
            axis.set_ylim(top=60)  # equal clips have 100 dB
        axis.set_title(f"{metric.title} {ARROWS[metric.better]}", fontsize=9)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    for axis in axes[len(metrics) :]:
        axis.axis("off")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncol=len(STRENGTHS), fontsize=9)
    figure.suptitle(
        "Value against strength of damage, 0 = none; bold: what it must show", fontsize=10
    )
    with atomic(out) as hidden:
        figure.savefig(hidden, dpi=80, format="png")
