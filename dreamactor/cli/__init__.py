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

import sys
from typing import NoReturn

import typer
from typer.exceptions import TyperException

from dreamactor.cli import animate, bench, bootstrap, facts, reproduce, serve, study, train, world
from dreamactor.errors import DreamActorError

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


def _fail(message: str) -> NoReturn:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
