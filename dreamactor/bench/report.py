"""From a results file to Markdown: tables of means with intervals, overall and by group.

A mean is shown with half the width of its 95 % interval; where the place of the interval matters
(is 0 in it?), as "mean [low, high]".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dreamactor.bench import stats
from dreamactor.bench.evaluate import TRUTH, Record, read
from dreamactor.bench.seeds import over_seeds, seeds_of, spread
from dreamactor.errors import ConfigError

GROUPS = ("domain", "style", "framing")


@dataclass(frozen=True)
class Column:
    """How a metric is shown."""

    name: str
    title: str
    better: Literal["up", "down", "one", "truth"]
    """Which way is better; "one" = near 1, "truth" = near the truth's own row."""
    digits: int


COLUMNS = (
    Column("psnr", "PSNR dB", "up", 2),
    Column("ssim", "SSIM", "up", 3),
    Column("l1", "L1", "down", 4),
    Column("lpips", "ST-LPIPS", "down", 3),
    Column("sharpness_ratio", "sharpness", "one", 2),
    Column("psnr_frame", "PSNR frame dB", "up", 2),
    Column("ssim_frame", "SSIM frame", "up", 3),
    Column("lpips_frame", "ST-LPIPS frame", "down", 3),
    Column("sharpness_frame", "sharpness frame", "one", 2),
    Column("flow_epe", "motion error px", "down", 2),
    Column("akd", "AKD px", "down", 2),
    Column("pck", "PCK@0.1", "up", 3),
    Column("colour_likeness", "identity (colours)", "up", 3),
    Column("dynamic_degree", "dynamic degree", "truth", 2),
    Column("temporal_flicker", "flicker", "truth", 3),
)
BRIEF = ("psnr", "ssim", "lpips", "sharpness_ratio", "flow_epe", "akd", "colour_likeness")
"""Metrics of all tables but the first."""
OF_TRUTH = ("flow_epe", "colour_likeness", "dynamic_degree", "temporal_flicker")
"""Metrics that say something of the truth itself."""
OVER_SEEDS = (
    "Mean over clips of the mean over seeds; the interval is over clips. Between seeds: standard "
    "deviation of the seeds' means over the same clips. A difference of rows that is not well "
    "above it may be the seed's alone."
)
ARROWS = {"up": "↑", "down": "↓", "one": "→1", "truth": "→truth"}


def values(records: Iterable[Record], system: str, metric: str, **groups: str) -> dict[str, float]:
    """One metric of one system by case, where every group named has the value given.

    Example:
        >>> values(records, "copy", "psnr", domain="human")  # doctest: +SKIP
        {'0:0000': 15.2, ...}
    """
    return {
        r.case: r.metrics[metric]
        for r in sorted(records, key=lambda r: r.case)
        if r.system == system and all(getattr(r, k) == v for k, v in groups.items())
    }


def summary_table(records: Iterable[Record], group: str | None = None, seed: int = 0) -> str:
    """Markdown table: a row a system (and group), a column a metric, "mean ± half interval".

    Args:
        records: Of one results file.
        group: None, or one of `GROUPS`: then only the metrics of `BRIEF`.
        seed: Of the bootstrap.
    """
    cells: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        where = () if group is None else (str(getattr(record, group)),)
        cells.setdefault((*where, record.system), []).append(record)
    shown = _shown([r for members in cells.values() for r in members])
    if group is not None:
        shown = [c for c in shown if c.name in BRIEF]
    header = ["system", "clips", *(f"{c.title} {ARROWS[c.better]}" for c in shown)]
    order = {name: i for i, name in enumerate(dict.fromkeys(key[-1] for key in cells))}
    rows = []
    for key in sorted(cells, key=lambda key: (*key[:-1], key[-1] == TRUTH, order[key[-1]])):
        members = sorted(cells[key], key=lambda r: r.case)
        texts = []
        for c in shown:
            interval = stats.bootstrap((r.metrics[c.name] for r in members), seed)
            empty = key[-1] == TRUTH and c.name not in OF_TRUTH
            texts.append("" if empty else stats.format_interval(interval, c.digits, "plus-minus"))
        rows.append([*key, str(len(members)), *texts])
    return stats.markdown_table(header if group is None else [group, *header], rows)


def difference_table(records: Iterable[Record], baseline: str, seed: int = 0) -> str:
    """Markdown table of every other system minus `baseline`, clip by clip: "mean [low, high]"."""
    kept = [r for r in records if r.system != TRUTH]
    systems = list(dict.fromkeys(r.system for r in kept))
    if baseline not in systems:
        raise ConfigError(f"baseline {baseline!r}: there are {sorted(systems)}")
    shown = [c for c in _shown(kept) if c.name in BRIEF]
    rows = []
    for system in (s for s in systems if s != baseline):
        differences = [
            stats.paired_difference(
                values(kept, system, c.name), values(kept, baseline, c.name), seed
            )
            for c in shown
        ]
        texts = [
            stats.format_interval(d, c.digits) for d, c in zip(differences, shown, strict=True)
        ]
        rows.append([f"{system} - {baseline}", str(differences[0].clips), *texts])
    return stats.markdown_table(["difference", "clips", *(c.title for c in shown)], rows)


def seeds_table(records: Iterable[Record], seed: int = 0) -> str:
    """Markdown table of the metrics of `BRIEF`, row by row: a row's seeds are one.

    Args:
        records: Of every seed.
        seed: Of the bootstrap.
    """
    kept = [r for r in records if r.system != TRUTH]
    merged, rows = over_seeds(kept), seeds_of(r.system for r in kept)
    lines = []
    for c in (c for c in _shown(kept) if c.name in BRIEF):
        for row, systems in rows.items():
            several = systems != [row]
            interval = stats.bootstrap(values(merged, row, c.name).values(), seed)
            apart = spread(kept, row, c.name)
            lines.append([
                f"{c.title} {ARROWS[c.better]}", row,
                str(len(systems)) if several else "-",
                str(interval.clips),
                stats.format_interval(interval, c.digits),
                "-" if math.isnan(apart) else f"{apart:.{c.digits}f}",
            ])  # fmt: skip
    header = ["metric", "row", "seeds", "clips", "mean [95 %]", "between seeds"]
    return stats.markdown_table(header, lines)


def report(
    path: Path | str,
    command: str,
    hardware: str,
    seed: int = 0,
    baseline: str | None = None,
    extra: Sequence[tuple[str, str]] = (),
) -> str:
    """The whole of a results file as Markdown: overall, against a baseline, by group.

    Args:
        path: File of `evaluate.run`.
        command: What made it, to be repeated by the reader.
        hardware: Where, such as "2 CPU cores" or "1 H100".
        seed: Of the systems and of the bootstrap.
        baseline: System that the others are compared with clip by clip; None = no such table.
        extra: Title and text of sections between the first table and the others.
    """
    records = read(path)
    made = stats.caption(command, hardware, seed, len({r.case for r in records}))
    return tables(records, made, seed, baseline, extra)


def tables(
    records: Sequence[Record],
    made: str,
    seed: int = 0,
    baseline: str | None = None,
    extra: Sequence[tuple[str, str]] = (),
) -> str:
    """What `report` writes, of records from wherever.

    Args:
        records: Seeds of a row (`dreamactor.bench.seeds`) are apart in the first table, and one
            row in all others.
        made: How they came about; stands first.
        seed: Of the bootstrap.
        baseline: As of `report`, by the name of its row.
        extra: As of `report`.

    Raises:
        ConfigError: There is no such baseline, or names of rows clash.
    """
    merged = over_seeds(records)
    parts = [made, summary_table(records, seed=seed)]
    if any(systems != [row] for row, systems in seeds_of(r.system for r in records).items()):
        parts.append(f"### Over seeds\n\n{OVER_SEEDS}\n\n{seeds_table(records, seed)}")
    parts += [f"### {title}\n\n{text}" for title, text in extra]
    if baseline is not None:
        parts.append(f"### Against {baseline}\n\n{difference_table(merged, baseline, seed)}")
    parts += [f"### By {group}\n\n{summary_table(merged, group, seed)}" for group in GROUPS]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _shown(records: Sequence[Record]) -> list[Column]:
    """Columns that have a value anywhere."""
    return [c for c in COLUMNS if any(not math.isnan(r.metrics[c.name]) for r in records)]
