"""What commands of several files share: options, and how settings and SIGTERM are taken."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn, TypeVar

import typer

T = TypeVar("T")

Settings = Annotated[list[str] | None, typer.Argument(help="Settings that differ: key=value ...")]
Results = Annotated[Path, typer.Option(help="Folder of the results; the same command goes on.")]
Replace = Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")]
AsJson = Annotated[bool, typer.Option("--json", help="All that is known, as JSON.")]
Describer = Annotated[
    str, typer.Option(help="auto: the model named by DREAMACTOR_MLLM_*, if any; or offline.")
]
LocalDevice = Annotated[str, typer.Option(help="Of a local model: cpu, cuda or cuda:N.")]
Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(help="0 = any that is free.")]


def parsed(cls: type[T], settings: list[str] | None) -> T:
    """The config that a command's settings state; faults as of `config.from_words`."""
    from dreamactor.config import from_words  # its YAML costs --help 30 ms

    return from_words(cls, settings or [])


def end_on_sigterm() -> None:
    """From here on SIGTERM ends the command as Ctrl-C does, so that it can put things away."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
