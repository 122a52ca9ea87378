"""Rows of several runs of `bench nano` over the pairs that all of them did: two tables.

    python scripts/same_pairs.py NAME=FOLDER/results.jsonl ...

Systems of nano are named NAME; all others are taken from the first. The second table is the
difference of each run's rows from the first run's, pair by pair.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from dreamactor.bench import stats
from dreamactor.bench.evaluate import Record, read
from dreamactor.bench.report import summary_table, values

BRIEF = ("psnr", "ssim", "lpips", "sharpness_ratio", "flow_epe")


def main() -> None:
    """Print both."""
    runs: dict[str, list[Record]] = {}
    for word in sys.argv[1:]:
        name, _, path = word.partition("=")
        runs[name] = read(Path(path))
    wanted = {r.system for records in runs.values() for r in records}
    done = [
        {r.case for r in records if r.system == system}
        for records in runs.values()
        for system in wanted & {r.system for r in records}
    ]
    same = set.intersection(*done)
    first, rows = next(iter(runs)), []
    for name, records in runs.items():
        for record in records:
            nano = record.system.startswith("nano")
            if record.case in same and (nano or name == first):
                system = f"{name}, {record.system[6:]}" if nano else record.system
                rows.append(replace(record, system=system))
    print(f"{len(same)} pairs\n\n{summary_table(rows)}")
    systems = list(dict.fromkeys(r.system for r in rows if r.system.startswith(f"{first}, ")))
    table = []
    for name in list(runs)[1:]:
        for system in systems:
            other = system.replace(first, name, 1)
            if not any(r.system == other for r in rows):
                continue
            pairs = [(values(rows, other, m), values(rows, system, m)) for m in BRIEF]
            cells = [stats.paired_difference(*pair) for pair in pairs]
            found = (stats.format_interval(cell, 3) for cell in cells)
            table.append([f"{other} - {system}", *found])
    print(stats.markdown_table(["difference", *BRIEF], table))


if __name__ == "__main__":
    main()
