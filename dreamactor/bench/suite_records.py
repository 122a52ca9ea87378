"""What a run over a suite holds: run.json, and a record for every clip that was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dreamactor.errors import ConfigError
from dreamactor.image import atomic


@dataclass(frozen=True)
class SuiteRecord:
    """What was measured on one clip of one system."""

    case: str
    system: str
    groups: Mapping[str, str]
    """As of `Suite.groups`."""
    clip: str
    """sha256 of the clip's file."""
    file: str
    """Where it lies, from the run's folder on if it is in it."""
    seconds: float | None
    """That making it took; none where it lay there."""
    values: Mapping[str, float]
    """By the name of the metric; those that are undefined are left out."""
    vectors: Sequence[Sequence[float]] | None = None
    """Result and truth as `metrics.distance` sees them."""
    notes: Sequence[str] = ()
    """What a reader should know, such as another shape of frames."""

    def path(self, out: Path) -> Path:
        """The clip of a run."""
        return out / self.file


def records_of(out: Path, system: str = "*") -> dict[Path, SuiteRecord]:
    """Records of one system, or all, by system and case, and the files that they are read from."""
    paths = sorted((out / "measures").glob(f"{system}/*.json"))
    return {path: SuiteRecord(**json.loads(path.read_text())) for path in paths}


def collect(out: Path) -> list[SuiteRecord]:
    """All records of a run, by system and case; results.jsonl is written anew."""
    records = list(records_of(out).values())
    with atomic(out / "results.jsonl") as hidden:
        lines = (json.dumps(asdict(record), ensure_ascii=False) for record in records)
        hidden.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return records


def read_run(out: Path) -> dict[str, Any]:
    """run.json of a run.

    Raises:
        ConfigError: There is none, or it is damaged or of something else.
    """
    path = out / "run.json"
    if not path.is_file():
        raise ConfigError(f"{out}: no run: want a folder of `bench run`")
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path}: damaged: {error}; name another --out") from error
    match found:
        case {"format": _, "suite": _, "measures": _, "systems": {**systems}} if all(
            isinstance(about, dict) for about in systems.values()
        ):
            return dict(found)
    raise ConfigError(f"{path}: not of `bench run`; name another --out")
