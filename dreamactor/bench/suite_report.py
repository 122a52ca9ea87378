"""What came of a run over a suite: report.md, report.json and report.html.

Numbers are means over clips; a system that lacks clips of some cases is compared with others on
the cases that both have. Clips that share a character or a motion are not independent, so true
intervals are somewhat wider.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dreamactor.bench import stats
from dreamactor.bench.manifest import AXES, Suite
from dreamactor.bench.metrics.distance import jackknife
from dreamactor.bench.metrics.table import METRICS, Metric
from dreamactor.bench.report import ARROWS
from dreamactor.bench.suite_page import write_page
from dreamactor.bench.suite_records import SuiteRecord, collect, read_run
from dreamactor.runs import turn, write_text

LENGTH = Metric("length", "length", "suite_measure", "one", ("driver",), (), 2)
BRIEF = (
    "psnr",
    "lpips",
    "sharpness_ratio",
    "flow_epe",
    "appearance",
    "following",
    "dynamic_degree",
)
"""Metrics of the tables by scenario."""
MAIN = ("psnr", "lpips", "following")
"""Metrics of the tables by axis."""
FEWEST = 8
"""Clips from which on the distance of sets is told."""
NOTED = 5
"""Clips with a note that are named."""


def write_report(suite: Suite, out: Path) -> Path:
    """Write all three; the page's path. Commands that work on one run take turns.

    Args:
        suite: That the run is over.
        out: The run's folder.
    """
    with turn(out):
        records = collect(out)
        head = read_run(out)
        write_text(out / "report.md", markdown(suite, head, records))
        write_text(out / "report.json", json.dumps(summary(suite, head, records), indent=1) + "\n")
        return write_page(suite, out, head, records, shown(records))


def shown(records: Iterable[SuiteRecord]) -> list[Metric]:
    """Metrics that have a value anywhere, length only where it is not 1."""
    records = list(records)
    kept = [c for c in METRICS if any(c.name in r.values for r in records)]
    odd = any(abs(r.values.get("length", 1) - 1) > 0.02 for r in records)
    return [*kept, LENGTH] if odd else kept


def values(records: Iterable[SuiteRecord], system: str, metric: str) -> dict[str, float]:
    """One metric of one system by case, where it is defined."""
    return {r.case: r.values[metric] for r in records if r.system == system and metric in r.values}


def axes(records: Sequence[SuiteRecord]) -> dict[str, dict[str, list[SuiteRecord]]]:
    """Records by value of every axis on which cases differ, such as "driving camera"."""
    found = {}
    for axis in (f"{side} {axis}" for side in ("reference", "driving") for axis in AXES):
        known = sorted({r.groups[axis] for r in records if axis in r.groups})
        if len(known) > 1:
            found[axis] = {v: [r for r in records if r.groups.get(axis) == v] for v in known}
    return found


def markdown(suite: Suite, head: Mapping[str, Any], records: Sequence[SuiteRecord]) -> str:
    """report.md."""
    systems, columns = list(head["systems"]), shown(records)
    with_truth = [c for c in columns if not c.free]
    free = [c for c in columns if c.free]
    parts = [
        f"# {suite.name} {suite.version}",
        f"{len(suite.cases)} cases, digest {suite.digest[:12]}. Means over clips, after ± half the "
        "width of the 95 % interval (bootstrap over clips). What a metric sees, and what it is "
        "blind to: docs/metrics.md.",
        "## Against the truth",
        _table(records, systems, with_truth),
        _distances(records, systems),
        "## Without the truth",
        _table(records, systems, free),
    ]
    differences = _differences(records, systems, columns)
    if differences:
        parts += [f"## Clip by clip against {systems[0]}", differences]
    brief = [c for c in columns if c.name in BRIEF]
    for scenario in dict.fromkeys(case.scenario for case in suite.cases):
        held = [r for r in records if r.groups["scenario"] == scenario]
        if held:
            parts += [f"## {scenario}", _table(held, systems, brief)]
    parts += _by_axis(records, systems, [c for c in columns if c.name in MAIN])
    parts += _lacking(suite, records, systems)
    parts += [
        "## Systems",
        *(f"- {name}: `{json.dumps(head['systems'][name])}`" for name in systems),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(
    suite: Suite, head: Mapping[str, Any], records: Sequence[SuiteRecord]
) -> dict[str, Any]:
    """report.json: every mean with its interval, overall and by scenario; the main ones by axis."""
    systems, columns = list(head["systems"]), shown(records)
    means: list[dict[str, Any]] = []
    for scenario in (None, *dict.fromkeys(case.scenario for case in suite.cases)):
        held = [r for r in records if scenario in (None, r.groups["scenario"])]
        means += _means(held, systems, columns, {"scenario": scenario})
    main = [c for c in columns if c.name in MAIN]
    by_axis: list[dict[str, Any]] = []
    for axis, known in axes(records).items():
        for value, held in known.items():
            by_axis += _means(held, systems, main, {"axis": axis, "value": value})
    return {**head, "cases": len(suite.cases), "means": means, "axes": by_axis}


def _means(
    records: Sequence[SuiteRecord],
    systems: Sequence[str],
    columns: Sequence[Metric],
    about: Mapping[str, str | None],
) -> Iterator[dict[str, Any]]:
    for system in systems:
        for column in columns:
            found = stats.bootstrap(values(records, system, column.name).values())
            if found.clips:
                yield {"system": system, **about, "metric": column.name, **asdict(found)}


def _table(
    records: Sequence[SuiteRecord], systems: Sequence[str], columns: Sequence[Metric]
) -> str:
    return stats.markdown_table(_titles(columns), _rows(records, systems, columns))


def _by_axis(
    records: Sequence[SuiteRecord], systems: Sequence[str], columns: Sequence[Metric]
) -> list[str]:
    tables = []
    for axis, known in axes(records).items():
        rows = []
        for value, held in known.items():
            rows += [[value, *row] for row in _rows(held, systems, columns)]
        tables.append(stats.markdown_table([axis, *_titles(columns)], rows))
    if not tables:
        return []
    note = (
        "Axes on which cases differ, of reference and driving clip. Rows are of other cases, so "
        "they differ in more than the axis; cases of which it is not said are in none. A case "
        "without truth has no PSNR and no ST-LPIPS."
    )
    return ["## By axis", note, *tables]


def _titles(columns: Sequence[Metric]) -> list[str]:
    return ["system", "clips", *(f"{c.title} {ARROWS[c.better]}" for c in columns)]


def _rows(
    records: Sequence[SuiteRecord], systems: Sequence[str], columns: Sequence[Metric]
) -> list[list[str]]:
    """One a system that has clips."""
    rows = []
    for system in systems:
        clips = sum(r.system == system for r in records)
        if clips:
            found = [stats.bootstrap(values(records, system, c.name).values()) for c in columns]
            cells = [
                stats.format_interval(x, c.digits, "plus-minus") if x.clips else ""
                for x, c in zip(found, columns, strict=True)
            ]
            rows.append([system, str(clips), *cells])
    return rows


def _differences(
    records: Sequence[SuiteRecord], systems: Sequence[str], columns: Sequence[Metric]
) -> str:
    """Every other system minus the first, on the cases that both have."""
    rows = []
    for system in systems[1:]:
        cells = []
        for column in columns:
            a, b = (values(records, name, column.name) for name in (system, systems[0]))
            both = a.keys() & b.keys()
            found = stats.paired_difference(a, b) if both else stats.NONE
            cells.append(
                "" if math.isnan(found.mean) else stats.format_interval(found, column.digits)
            )
        rows.append([system, *cells])
    return stats.markdown_table(["system", *(c.title for c in columns)], rows) if rows else ""


def _distances(records: Sequence[SuiteRecord], systems: Sequence[str]) -> str:
    """Of the set of a system's clips to the set of their truths; it is no mean over clips."""
    rows = []
    for system in systems:
        pairs = [r.vectors for r in records if r.system == system and r.vectors is not None]
        if len(pairs) >= FEWEST:
            mine, theirs = (np.array([pair[k] for pair in pairs]) for k in (0, 1))
            distance, error = jackknife(mine, theirs)
            rows.append([system, str(len(pairs)), f"{distance:.2f} ± {1.96 * error:.2f}"])
    if not rows:
        return ""
    return stats.markdown_table(["system", "clips", "FAD-V ↓, jackknife"], rows)


def _lacking(suite: Suite, records: Sequence[SuiteRecord], systems: Sequence[str]) -> list[str]:
    """What a reader should know before comparing: missing clips, and odd ones."""
    lines = []
    for system in systems:
        had = {r.case for r in records if r.system == system}
        if len(had) < len(suite.cases):
            lines.append(f"- {system}: {len(suite.cases) - len(had)} cases without a clip")
        noted = [r for r in records if r.system == system and r.notes]
        if noted:
            named = "; ".join(f"{r.case}: {', '.join(r.notes)}" for r in noted[:NOTED])
            lines.append(f"- {system}: {len(noted)} clips of another shape or length ({named})")
    return ["## To be known", *lines] if lines else []
