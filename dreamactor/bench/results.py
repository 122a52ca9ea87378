"""Clips that systems made of a suite: `CLIPS/<system>/<result_name>.mp4`, or another container."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dreamactor.bench.manifest import Suite, SuiteCase, nearest
from dreamactor.errors import ConfigError

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".webp")

Clips = Mapping[str, Mapping[str, Path]]
"""System -> case -> file."""


def find_clips(suite: Suite, root: Path, systems: Sequence[str] = ()) -> dict[str, dict[str, Path]]:
    """Every system's clips of a suite's cases; some may be missing, but not all of one.

    Args:
        suite: The cases.
        root: Has a folder for each system.
        systems: Which; none means all there are.

    Raises:
        ConfigError: No such folder, a system without any clip of the suite, or two files for
            one case.
    """
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder; want CLIPS/SYSTEM/CASE.mp4")
    there = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    for name in systems:
        if name not in there:
            raise ConfigError(f"{root}: no system named {name!r}" + nearest(name, there))
    wanted = {case.result_name: case.name for case in suite.cases}
    found: dict[str, dict[str, Path]] = {}
    for system in systems or there:
        mine: dict[str, Path] = {}
        for path in sorted((root / system).iterdir()):
            if path.suffix.lower() not in SUFFIXES or path.stem not in wanted:
                continue
            case = wanted[path.stem]
            if case in mine:
                raise ConfigError(f"{path}: {mine[case].name} is a clip of the same case")
            mine[case] = path
        if not mine and systems:
            example = f"{suite.cases[0].result_name}.mp4"
            raise ConfigError(f"{root / system}: no clip of {suite.name}; want such as {example}")
        if mine:
            found[system] = mine
    if not found:
        raise ConfigError(
            f"{root}: no clip of {suite.name}; want such as SYSTEM/{suite.cases[0].result_name}.mp4"
        )
    return found


def clip_of(folder: Path, case: SuiteCase) -> Path | None:
    """The clip of a case in one system's folder."""
    paths = (folder / f"{case.result_name}{suffix}" for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def missing_clips(clips: Clips, cases: Iterable[str]) -> dict[str, list[str]]:
    """Cases of which a system has no clip, by system; those with all are left out."""
    wanted = list(cases)
    lacking = {name: [c for c in wanted if c not in mine] for name, mine in clips.items()}
    return {name: names for name, names in lacking.items() if names}
