"""Settings from words, run folders and keyed draws."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch

from dreamactor.config import (
    Section,
    Setting,
    check_device,
    check_finite,
    check_least,
    from_file,
    from_words,
    settings_of,
)
from dreamactor.errors import ConfigError
from dreamactor.runs import RunFolder, generator, numpy_generator, seed_of, write_text


@dataclass(frozen=True)
class Settings:
    pool: Path
    minutes: float = 1.0
    batch: int = 4
    compile: bool = True
    start: Path | None = None
    motion: Literal["clean", "noised"] = "clean"
    near: ClassVar[float] = 0.0


def test_words_become_typed_values() -> None:
    words = ["pool=a/b", "minutes=2", "compile=false", "start=none", "motion=noised"]
    assert from_words(Settings, words) == Settings(Path("a/b"), 2.0, compile=False, motion="noised")


@dataclass(frozen=True)
class Chain:
    minutes: float = 1.0
    start: Path | None = None
    pose: Section = field(default_factory=Section)


def test_a_file_states_what_differs_and_words_go_over_it(tmp_path: Path) -> None:
    """exact: values as they would be typed, sections kept as words, the last one counts."""
    path = tmp_path / "chain.yaml"
    path.write_text("minutes: 60\nstart:\npose: {rank: 64, rate: 5e-4, compile: false, held: 6}\n")
    config = from_file(Chain, path, ["minutes=2", "pose.held=4", "pose.start=none"])
    assert (config.minutes, config.start) == (2.0, None)
    assert config.pose.words == ["rank=64", "rate=5e-4", "compile=false", "held=4", "start=none"]


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("minuts: 2", [], "nearest is minutes"),
        ("poses: {rank: 2}", [], "unknown setting 'poses.rank'; nearest is pose"),
        ("minutes: {rank: 2}", [], "unknown setting 'minutes.rank'"),
        ("pose: 3", [], "pose: want settings of it, such as pose.key=value"),
        ("minutes: [1, 2]", [], "minutes: want one value, not list"),
        ("pose: {rank: {a: 1}}", [], "pose: want one value, not dict"),
        ("- minutes", [], "want settings, such as minutes: 60"),
        ("minutes: 'a", [], "not YAML"),
        ("", ["minutes=1", "minutes=2"], "given twice"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, words: list[str], message: str) -> None:
    path = tmp_path / "chain.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        from_file(Chain, path, words)
    with pytest.raises(ConfigError, match="no settings: No such file"):
        from_file(Chain, tmp_path / "other.yaml", words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["minuts=2"], "nearest is minutes"),
        (["minutes"], "want key=value"),
        (["near=1"], "unknown setting 'near'.*start, motion$"),
        (["pool=a", "pool=b"], "given twice"),
        (["pool=a", "batch=1.5"], "want int"),
        (["pool=a", "minutes=nan"], "minutes=nan: want a number"),
        (["pool=a", "compile=yes"], "want true or false"),
        (["pool=a", "motion=dirty"], "want one of clean, noised"),
        ([], "pool: not given; want pool=..."),
    ],
)
def test_bad_words_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_words(Settings, words)


def test_numbers_without_end_or_none_at_all_are_refused() -> None:
    endless = from_words(Settings, ["pool=a", "minutes=inf"])
    check_least(endless, {"minutes": 1})
    with pytest.raises(ConfigError, match="minutes=inf: want a finite number"):
        check_finite(endless, "batch", "minutes")
    with pytest.raises(ConfigError, match="minutes=nan: want 1 or more"):
        check_least(Settings(Path("a"), math.nan), {"minutes": 1})


@dataclass(frozen=True)
class More(Settings):
    minutes: float = 2.0
    """Time
    budget."""
    limit: Section = field(default_factory=Section)
    kept: ClassVar[int] = 1
    """No setting."""


@dataclass(frozen=True)
class Most(More):
    minutes: float = 3.0
    rate: float | None = 5e-5
    """Of learning."""


def test_settings_are_listed_with_what_they_mean() -> None:
    """exact: inherited ones too, without class variables; the nearest docstring counts."""
    assert settings_of(Most) == [
        Setting("pool", "path", None, ""),
        Setting("minutes", "float", "3.0", "Time budget."),
        Setting("batch", "int", "4", ""),
        Setting("compile", "true|false", "true", ""),
        Setting("start", "path|none", "none", ""),
        Setting("motion", "clean|noised", "clean", ""),
        Setting("limit.key", "settings", "value", ""),
        Setting("rate", "float|none", "5e-05", "Of learning."),
    ]


def test_devices_are_known_by_name() -> None:
    for device in ("cpu", "cuda", "cuda:1"):
        check_device(device)
    for device in ("gpu", "cuda:", "cuda:a", "cuda:0 ", "CPU", ""):
        with pytest.raises(ConfigError, match=f"device='{device}': want cpu, cuda or cuda:N"):
            check_device(device)


def test_draws_are_keyed_by_item() -> None:
    """unchanged by: what was drawn before; different for every part of the key."""
    first = torch.randn(4, generator=generator(0, "a", 1))
    generator(0, "a", 0)
    assert torch.equal(first, torch.randn(4, generator=generator(0, "a", 1)))
    seeds = {seed_of(s, stream, i) for s in (0, 1) for stream in ("a", "b") for i in (0, 1)}
    assert len(seeds) == 8
    assert numpy_generator(0, "a", 1).random() == numpy_generator(0, "a", 1).random()


def test_a_log_grows_by_lines(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path / "run", {"rate": 1})
    folder.log(step=1, loss=0.5)
    folder.log(step=2, loss=0.25)
    assert (folder.path / "metrics.jsonl").read_text().count("\n") == 2


def test_a_run_that_has_done_nothing_takes_other_settings(tmp_path: Path) -> None:
    """refuses: another config as soon as there is a result, and not before."""
    folder = RunFolder.open(tmp_path / "tensorboard" / "run", {"rate": 1})
    (folder.path / "tensorboard").mkdir()
    (folder.path / "tensorboard" / "events").write_text("begins")
    write_text(folder.path / "metrics.jsonl", "")
    RunFolder.open(folder.path, {"rate": 2})
    folder.log(step=1, loss=0.5)
    RunFolder.open(folder.path, {"rate": 2})
    with pytest.raises(ConfigError, match="started with another rate"):
        RunFolder.open(folder.path, {"rate": 1})


def test_write_text_leaves_nothing_beside(tmp_path: Path) -> None:
    write_text(tmp_path / "a.json", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
