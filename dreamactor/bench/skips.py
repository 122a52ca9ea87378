"""Rows of `bench nano` in which blocks are skipped: what a feature cache spares, and what it costs.

How many blocks each clip skipped is in skipped.jsonl beside the results, a line a batch of clips;
a batch that was done again counts once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dreamactor.backbones.feature_cache import LEAST_STEPS, FeatureCache, Tally, parse
from dreamactor.bench import stats
from dreamactor.bench.evaluate import Case, Record
from dreamactor.bench.report import values
from dreamactor.errors import ConfigError

SHOWN = {"psnr": ("PSNR dB", 2), "lpips": ("ST-LPIPS", 3), "flow_epe": ("motion error px", 2)}
FILE = "skipped.jsonl"


@dataclass(frozen=True)
class SkipRow:
    """A row that skips blocks."""

    steps: int
    cache: FeatureCache


def rows_of(words: str, counts: Sequence[int]) -> list[SkipRow]:
    """Rows that a setting asks for: SETTING or SETTING@STEPS, with commas between.

    Args:
        words: The setting; none adds no row.
        counts: Steps of those that name none.

    Raises:
        ConfigError: A word that is none, or steps of which nothing can be skipped.
    """
    found = []
    for word in words.split(","):
        setting, at, number = word.strip().partition("@")
        cache = parse(setting)
        if at and not (number.isascii() and number.isdigit() and int(number) >= LEAST_STEPS):
            raise ConfigError(
                f"caches={word.strip()}: want steps of {LEAST_STEPS} or more, such as {cache}@16"
            )
        if cache.on:
            steps = [int(number)] if at else [n for n in counts if n >= LEAST_STEPS]
            found += [SkipRow(n, cache) for n in steps]
    return list(dict.fromkeys(found))


def noting(path: Path, system: str) -> Callable[[Sequence[Case], Tally], None]:
    """What adds a line to a file for each batch of a system."""

    def note(cases: Sequence[Case], tally: Tally) -> None:
        names = [case.name for case in cases]
        line = {"system": system, "cases": names, "calls": tally.calls, "skipped": tally.skipped}
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    return note


def read(path: Path) -> dict[str, Tally]:
    """Block calls of each system over all batches; a line that a kill cut short is left out."""
    lines: dict[tuple[str, ...], tuple[int, int]] = {}
    for text in path.read_text().splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        lines[(line["system"], *line["cases"])] = (line["calls"], line["skipped"])
    found: dict[str, Tally] = {}
    for (system, *_), (calls, skipped) in lines.items():
        tally = found.setdefault(system, Tally())
        tally.calls, tally.skipped = tally.calls + calls, tally.skipped + skipped
    return found


def table(
    records: Iterable[Record],
    rows: Mapping[str, SkipRow],
    plain: Mapping[int, str],
    skipped: Mapping[str, Tally],
    seed: int = 0,
) -> str:
    """Markdown table: what is skipped, and the difference to rows that skip nothing.

    Each row is held against the same steps, and against the most steps without a cache that
    compute no more blocks.

    Args:
        records: Of one results file.
        rows: Rows that skip, by name.
        plain: Names of the others by their steps.
        skipped: Block calls of the rows.
        seed: Of the intervals.

    Raises:
        ConfigError: A row's block calls are not there.
    """
    records, lines = list(records), []
    for name, row in rows.items():
        if name not in skipped:
            raise ConfigError(f"{FILE}: no line of {name!r}, though it was measured; want its own")
        tally = skipped[name]
        share = tally.skipped / tally.calls
        worth = row.steps * (1 - share)
        cheaper = [n for n in sorted(plain) if n <= worth and n != row.steps]
        against = [n for n in (row.steps, *cheaper[-1:]) if n in plain]
        for steps in against:
            cells = []
            for metric, (_, digits) in SHOWN.items():
                one, other = (values(records, s, metric) for s in (name, plain[steps]))
                cells.append(
                    stats.format_interval(stats.paired_difference(one, other, seed), digits)
                )
            lines.append([name, f"{share:.0%}", f"{worth:.1f}", f"{steps} steps", *cells])
    titles = [title for title, _ in SHOWN.values()]
    return stats.markdown_table(["row", "skipped", "steps' worth", "minus", *titles], lines)
