"""What commands of several files share: options, and how settings and SIGTERM are taken."""

from __future__ import annotations

import importlib
import logging
import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from dreamactor.config import Setting

T = TypeVar("T")

Settings = Annotated[
    list[str] | None, typer.Argument(help="Settings that differ: key=value ... All are below.")
]
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


def listing(config: str) -> type[TyperCommand]:
    """A command whose --help ends with all settings of a config.

    Args:
        config: MODULE:CLASS of the one that the command takes. By name, for its module may load
            torch: it is imported where help of this one command is asked for.
    """

    class Listing(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            super().format_help(ctx, formatter)  # Rich prints it before the import, not into this
            formatter.write("")  # a paragraph that follows something begins with an empty line
            module, _, name = config.partition(":")
            logging.disable(logging.WARNING)  # advice of libraries to developers
            try:
                cls = getattr(importlib.import_module(module), name)
            except ImportError as error:
                formatter.write_paragraph()
                formatter.write_text(f"Settings are listed where {error.name} is installed.")
                return
            finally:
                logging.disable(logging.NOTSET)
            from dreamactor.config import settings_of

            settings = sorted(settings_of(cls), key=lambda setting: setting.default is not None)
            with formatter.section("Settings, typed as here; * has to be given"):
                formatter.write_dl([_row(setting) for setting in settings], col_max=26)

    return Listing


def _row(setting: Setting) -> tuple[str, str]:
    """What is typed, and what it means."""
    if setting.default is None:
        return f"* {setting.name}=...", f"<{setting.kind}> {setting.meaning} [required]"
    return f"  {setting.name}={setting.default}", f"<{setting.kind}> {setting.meaning}"


def end_on_sigterm() -> None:
    """From here on SIGTERM ends the command as Ctrl-C does, so that it can put things away."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
