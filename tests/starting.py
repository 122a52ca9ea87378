"""Commands in processes of their own, forked off a server that has imported what they need.

Importing torch, diffusers and peft takes longer than all that a tiny run does, so it happens once.
The server computes nothing and has one thread: what is forked off it is like a new process, with
a pid, an environment, an output and an exit code of its own, and can be killed.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

ALONE = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
IMPORTED = ["pytest", "dreamactor.reproduce.stages", "dreamactor.backbones.wan_training"]
"""What the server imports: training, and all that the chain of `reproduce` needs."""


@dataclass(frozen=True)
class Started:
    """A process."""

    process: ForkServerProcess
    said: Path
    """What it writes to stdout and stderr."""

    @property
    def output(self) -> str:
        """What it has said so far."""
        return self.said.read_text() if self.said.is_file() else ""

    @property
    def running(self) -> bool:
        return self.process.exitcode is None

    def send(self, number: signal.Signals) -> None:
        """A signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait(self, seconds: float = 120) -> int:
        """Its exit code; of one that was killed the signal, negative."""
        self.process.join(seconds)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            raise AssertionError(f"not done in {seconds:.0f} s: {self.output}")
        return code


def start(words: Iterable[object], said: Path, **variables: object) -> Started:
    """Start `dreamactor WORDS`, or a script if the first of them is one.

    Args:
        words: Its arguments.
        said: A new file for what it says.
        variables: Of its environment, over those of this process.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with pytest.MonkeyPatch.context() as patch:  # torch reads them when it is imported
        for name, value in ALONE.items():
            patch.setenv(name, value)
        forkserver.ensure_running()
    environment = {**os.environ, **ALONE, **{name: str(v) for name, v in variables.items()}}
    process = context.Process(target=_run, args=([str(w) for w in words], said, environment))
    process.start()
    return Started(process, said)


def run(words: Iterable[object], said: Path, seconds: float = 120) -> str:
    """Start it, and wait until it has ended well; what it said."""
    started = start(words, said)
    assert started.wait(seconds) == 0, started.output
    return started.output


def run_together(words: Sequence[object], said: Path, count: int = 2, seconds: float = 180) -> None:
    """Start it in processes that find each other as those of torchrun do; all must end well."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    place = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    every = [
        start(
            words, said.with_name(f"{said.name}.{rank}"),
            RANK=rank, LOCAL_RANK=rank, MASTER_ADDR="localhost", **place,
        )
        for rank in range(count)
    ]  # fmt: skip
    codes = [each.wait(seconds) for each in every]
    assert codes == [0] * count, "\n".join(each.output for each in every)


def _run(words: list[str], said: Path, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with said.open("wb") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    if words[0].endswith(".py"):
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")
        return
    from dreamactor.cli import main

    sys.argv = ["dreamactor", *words]
    main()
