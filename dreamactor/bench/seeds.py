"""Rows that are one training by several seeds: NAME@SEED, such as full@0 and full@1.

A clip's number is then the mean over seeds, so that intervals over clips are of the training, not
of one seed; how far seeds are apart is a number of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from dreamactor.bench.evaluate import Record
from dreamactor.errors import ConfigError


def row_of(system: str) -> str:
    """The row that a system is a seed of; itself if it is none.

    Example:
        >>> row_of("full@1"), row_of("full")
        ('full', 'full')
    """
    name, _, seed = system.rpartition("@")
    return name if name and seed else system


def seeds_of(systems: Iterable[str]) -> dict[str, list[str]]:
    """Systems by the row that they are seeds of, both in the order in which they come.

    Raises:
        ConfigError: A row has a name and is the name of seeds.
    """
    rows: dict[str, list[str]] = {}
    for system in dict.fromkeys(systems):
        rows.setdefault(row_of(system), []).append(system)
    for row, mine in rows.items():
        if row in mine and len(mine) > 1:
            others = ", ".join(name for name in mine if name != row)
            raise ConfigError(f"rows {row} and {others}: want a seed in all, such as {row}@0")
    return rows


def over_seeds(records: Iterable[Record]) -> list[Record]:
    """Records with the mean over seeds in place of a row's seeds; others stay as they are.

    Args:
        records: A clip counts if all seeds of its row have it; NaN where one of them has NaN.

    Raises:
        ConfigError: As of `seeds_of`.
    """
    found = _by_case(records)
    merged: list[Record] = []
    for row, systems in seeds_of(found).items():
        first = found[systems[0]]
        if systems == [row]:
            merged += first.values()
            continue
        for case in _shared([found[system] for system in systems]):
            mine = [found[system][case] for system in systems]
            seconds = float(np.mean([record.seconds for record in mine]))
            means = {
                name: float(np.mean([record.metrics[name] for record in mine]))
                for name in mine[0].metrics
            }
            merged.append(replace(first[case], system=row, seconds=seconds, metrics=means))
    return merged


def spread(records: Iterable[Record], row: str, metric: str) -> float:
    """Standard deviation of the seeds' means over the clips that all of them have a value of.

    Returns:
        In the unit of the metric, with n - 1; NaN with fewer than two seeds or without such clips.
    """
    found = _by_case(record for record in records if row_of(record.system) == row)
    if len(found) < 2:
        return float("nan")
    cases = _shared(list(found.values()))
    table = np.array([[mine[case].metrics[metric] for case in cases] for mine in found.values()])
    table = table[:, ~np.isnan(table).any(0)]  # (seeds, clips)
    return float(table.mean(1).std(ddof=1)) if table.size else float("nan")


def _by_case(records: Iterable[Record]) -> dict[str, dict[str, Record]]:
    found: dict[str, dict[str, Record]] = {}
    for record in records:
        found.setdefault(record.system, {})[record.case] = record
    return found


def _shared(tables: Sequence[Mapping[str, Record]]) -> list[str]:
    """Cases of the first that all the others have too."""
    return [case for case in tables[0] if all(case in table for table in tables[1:])]
