"""One command per verb; a group of commands lies in the file of its name.

    animate     animate, describe, demo
    facts       verify, backbones, doctor
    reproduce   reproduce
    serve       serve, studio
    study, train, world, bench, bootstrap
    options     what several of them share

What is heavy is imported inside commands: `dreamactor --help` loads no torch.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from typing import TYPE_CHECKING, NoReturn

import typer
from typer.exceptions import TyperException

from dreamactor.cli import animate, bench, bootstrap, facts, reproduce, serve, study, train, world
from dreamactor.errors import DreamActorError

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

AGAIN = 0.05
"""Seconds until a Ctrl-C that nothing could raise is tried again."""

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
for command, cls in (  # as --help lists them
    (animate.animate, None),
    (facts.verify, None),
    (animate.describe, None),
    (facts.backbones, None),
    (facts.doctor, None),
    (animate.demo, None),
    (reproduce.reproduce, reproduce.Listing),
    (serve.serve, serve.Listing),
    (serve.studio, serve.Listing),
):
    app.command(cls=cls)(command)
app.add_typer(study.app, name="study")
app.add_typer(train.app, name="train")
app.add_typer(world.app, name="world")
app.add_typer(bench.app, name="bench")
app.add_typer(bootstrap.app, name="bootstrap")


def main() -> None:
    """Run a command; faults of the user are one line and exit code 2, Ctrl-C and SIGTERM 130."""
    try:
        with _interruptible():
            code = app(standalone_mode=False)
    except DreamActorError as error:
        _fail(str(error))
    except TyperException as error:
        if not error.format_message():  # a group without a command has shown its help
            sys.exit(2)
        _fail(error.format_message())
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Have a Ctrl-C count that met a finalizer, such as those that run within imports.

    Python prints what is raised there and goes on as if nothing had been.
    """
    before = sys.unraisablehook

    def hook(met: UnraisableHookArgs) -> None:
        if issubclass(met.exc_type, KeyboardInterrupt):
            Timer(AGAIN, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            before(met)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _fail(message: str) -> NoReturn:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
