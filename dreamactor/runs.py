"""Run folders and keyed random draws.

A run is a folder, and the same command resumes it:

    config.json        what the run was started with; another config refuses
    metrics.jsonl      one JSON object a line, appended
    state.safetensors  weights, averages, optimisers, step, seconds so far (`training.state`)
    samples/           pictures written while training
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np

from dreamactor.errors import ConfigError
from dreamactor.image import atomic

if TYPE_CHECKING:
    import torch


def seed_of(seed: int, stream: str, item: int) -> int:
    """A 63-bit seed for one item of one stream; neighbouring items are unrelated."""
    text = f"{seed}/{stream}/{item}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def generator(seed: int, stream: str, item: int) -> torch.Generator:
    """A CPU generator for one item, so that a draw depends on nothing but its key."""
    import torch  # seconds; what else is here does without

    return torch.Generator().manual_seed(seed_of(seed, stream, item))


def numpy_generator(seed: int, stream: str, item: int) -> np.random.Generator:
    """The same for numpy."""
    return np.random.default_rng(seed_of(seed, stream, item))


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    with atomic(path) as hidden:
        hidden.write_text(text)


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Wait until no other process or thread has its turn at what is in a folder."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def end_with_parent() -> None:
    """In a worker process: end when the parent is gone, also if that was killed outright."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


def begin_worker() -> None:
    """Start a worker process of a pool: Ctrl-C is its parent's, and it ends with it.

    OpenCV gets one thread, since there is a worker a core.
    """
    end_with_parent()
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values of a config: paths become text."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in config.items()}


@dataclass(frozen=True)
class RunFolder:
    """One training run on disk."""

    path: Path

    @classmethod
    def open(cls, path: Path, config: Mapping[str, Any], leads: bool = True) -> RunFolder:
        """Create a run folder, or go on with one that has the same config.

        One in which nothing has been done yet takes any.

        Args:
            path: The folder.
            config: JSON values.
            leads: Whether this process is the one that writes; others only get the path.

        Raises:
            ConfigError: The folder belongs to a run with another config.
        """
        if not leads:
            return cls(path)
        path.mkdir(parents=True, exist_ok=True)
        (path / "samples").mkdir(exist_ok=True)
        text = json.dumps(dict(config), indent=1, sort_keys=True) + "\n"
        known, folder = path / "config.json", cls(path)
        if folder.begun and known.is_file() and known.read_text() != text:
            old, new = json.loads(known.read_text()), json.loads(text)
            differs = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
            raise ConfigError(
                f"{path}: this run was started with another {', '.join(differs)}; "
                "repeat that command to resume it, or name another --out folder"
            )
        write_text(known, text)
        return folder

    def log(self, **values: float | int | str | None) -> None:
        """Append one line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")

    def forget(self, after: int) -> None:
        """Drop the lines of steps that a crash undid, and one that it tore."""
        path, kept = self.path / "metrics.jsonl", []
        for line in path.read_text().splitlines(keepends=True) if path.is_file() else []:
            if line.endswith("\n") and json.loads(line)["step"] <= after:
                kept.append(line)
        write_text(path, "".join(kept))

    @property
    def begun(self) -> bool:
        """Whether it holds anything that a run of other settings would not have made."""
        files = (p for p in self.path.rglob("*") if p.is_file() and p.stat().st_size)
        made = (p.relative_to(self.path).parts[0] for p in files)
        return any(name not in ("config.json", "tensorboard") for name in made)

    @property
    def state(self) -> Path:
        """Where a training run keeps what it goes on from."""
        return self.path / "state.safetensors"
