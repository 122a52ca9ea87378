"""`dreamactor bench join`: rows of several runs on the same pairs in one report.

Rows are often measured in runs of their own, one a GPU. What they are compared by is the pairs that
all of them did, so those must be the same ones, measured in the same way; only weights may differ,
and whether captions were told.

    report.md       tables of all rows, over seeds, against a baseline pair by pair
    seesaw.png      identity against motion error
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamactor.bench import seesaw, stats
from dreamactor.bench.evaluate import TRUTH, Record, read_whole
from dreamactor.bench.goals import goals_table
from dreamactor.bench.manifest import nearest
from dreamactor.bench.report import tables
from dreamactor.bench.seeds import over_seeds, seeds_of
from dreamactor.bench.settings import notes_on, notes_on_joints, open_folder
from dreamactor.bench.variants import COPY, variant_goals
from dreamactor.errors import ConfigError
from dreamactor.runs import write_text

OF_ROWS = ("weights", "captions")
"""Settings of a run that are of its rows, not of how they were measured."""
NEEDS_NONE = (TRUTH, COPY)
"""Rows that no weights are in."""


@dataclass(frozen=True)
class Run:
    """A results file."""

    path: Path
    settings: Mapping[str, Any]
    """Its first line."""
    records: Mapping[str, Mapping[str, Record]]
    """By row and case."""

    @classmethod
    def read(cls, folder: Path) -> Run:
        """The one of a folder.

        Raises:
            ConfigError: There are none, or they are of something else.
        """
        path = folder / "results.jsonl"
        settings, records = read_whole(path)
        if "cast" not in settings.get("about", {}):
            raise ConfigError(f"{path}: no results of `bench variants`; name another folder")
        rows: dict[str, dict[str, Record]] = {}
        for record in records:
            rows.setdefault(record.system, {})[record.case] = record
        return cls(folder, settings, rows)

    @property
    def about(self) -> dict[str, Any]:
        """What its numbers depend on besides."""
        return dict(self.settings["about"])

    @property
    def measured(self) -> dict[str, Any]:
        """What must be the same in another run, for its rows to be compared."""
        every = {**self.settings, **self.about}
        return {k: v for k, v in every.items() if k not in (*OF_ROWS, "about")}

    def made_by(self, row: str) -> dict[str, Any]:
        """What a row depends on that may differ between runs; nothing where no weights are in."""
        if row in NEEDS_NONE:
            return {}
        weights = self.about.get("weights", {})
        mine = {k: v for k, v in weights.items() if k.startswith(f"{row} ")}
        if f"{row} adapter" in mine or not mine:
            base = {k: v for k, v in weights.items() if " " not in k and k != "keypoints"}
            mine |= base
        return {"weights": mine, "captions": self.about.get("captions", False)}


def join_runs(folders: Sequence[Path], out: Path, baseline: str | None = None) -> Path:
    """Write the report and the plot.

    Args:
        folders: Of runs of `bench variants`, finished or not.
        out: Folder of the report, none of those.
        baseline: Row that the others are compared with, a row's name without its seeds; None takes
            the first that is neither the truth nor the copy.

    Returns:
        The report.

    Raises:
        ConfigError: A folder has no results, runs are of other pairs or settings, two rows have
            one name, no pair has all rows, or there is no such baseline.
        MediaError: `out` cannot be written.
    """
    if out.resolve() in {folder.resolve() for folder in folders}:
        raise ConfigError(f"--out {out} is one of the runs: want a folder of its own")
    runs = [Run.read(folder) for folder in folders]
    records, left_out = joined(runs)
    rows = [row for row in seeds_of(r.system for r in records) if row != TRUTH]
    base = baseline or next((row for row in rows if row != COPY), COPY)
    if base not in rows:
        raise ConfigError(f"no row {base!r}{nearest(base, rows)}; known: {', '.join(rows)}")
    seed, cases = int(runs[0].about["seed"]), {record.case for record in records}
    open_folder(out)
    names = " ".join(folder.name for folder in folders)
    command = f"dreamactor bench join --out FOLDER --baseline {base} {names}"
    where = f"results of {len(runs)} run{'s' * (len(runs) > 1)}"
    extra = seesaw.section(out, records, seed)
    goals = variant_goals(over_seeds(records), seed)
    if goals:
        extra.append(("Goals", goals_table(goals)))
    extra.append(("Notes", " ".join([_notes(runs), *left_out])))
    made = stats.caption(command, where, seed, len(cases))
    write_text(out / "report.md", tables(records, made, seed, base, extra))
    return out / "report.md"


def joined(runs: Sequence[Run]) -> tuple[list[Record], list[str]]:
    """Records of all rows on the pairs that all rows have; sentences on runs that have more.

    Raises:
        ConfigError: As of `join_runs`.
    """
    first = runs[0]
    rows: dict[str, tuple[Run, dict[str, Record]]] = {}
    for run in runs:
        _check_same(first, run)
        for row, mine in run.records.items():
            if row not in rows:
                rows[row] = run, dict(mine)
                continue
            owner, known = rows[row]
            if owner.made_by(row) != run.made_by(row):
                raise ConfigError(
                    f"{owner.path} and {run.path} both have a row {row!r}, of other weights or "
                    f"captions: want other names, such as {row}@0 and {row}@1 for two seeds"
                )
            rows[row] = owner, {**mine, **known}
    shared = set.intersection(*(set(mine) for _, mine in rows.values())) if rows else set()
    if not shared:
        counts = ", ".join(f"{run.path.name} {len(_cases(run))}" for run in runs)
        raise ConfigError(f"no pair that all rows have ({counts} pairs): let the runs go on")
    records = [mine[case] for _, mine in rows.values() for case in sorted(shared)]
    more = [run for run in runs if len(_cases(run)) > len(shared)]
    said = [f"Of {run.path.name}'s {len(_cases(run))} pairs {len(shared)} count." for run in more]
    return records, said


def _cases(run: Run) -> set[str]:
    return {case for mine in run.records.values() for case in mine}


def _check_same(first: Run, run: Run) -> None:
    here, there = run.measured, first.measured
    differs = sorted(k for k in here.keys() | there.keys() if here.get(k) != there.get(k))
    if differs:
        said = ", ".join(f"{k} ({here.get(k)}, there {there.get(k)})" for k in differs)
        raise ConfigError(
            f"{run.path} was not measured as {first.path} was: {said}; want runs of the same pairs "
            "and settings"
        )


def _notes(runs: Sequence[Run]) -> str:
    first = runs[0]
    weights: dict[str, str] = {}
    for run in runs:
        weights |= run.about.get("weights", {})
    lpips = 0 if first.settings.get("lpips") is None else first.settings.get("lpips_frames")
    notes = [notes_on({**first.about, "weights": weights}, lpips)]
    if "joints" in first.settings:
        notes.append(notes_on_joints(first.settings["joints"]))
    told = [run.about.get("captions", False) for run in runs]
    if len(set(told)) > 1:
        silent = [
            row
            for run, captions in zip(runs, told, strict=True)
            for row in run.records
            if not captions and row not in NEEDS_NONE
        ]
        notes.append(f"Captions were told to all but {', '.join(dict.fromkeys(silent))}.")
    return " ".join(notes)
