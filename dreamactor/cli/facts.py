"""What is known of a file, the models and this machine: verify, backbones, doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dreamactor.cli.options import AsJson, end_on_sigterm


def verify(
    file: Annotated[Path, typer.Argument(help="Clip or picture.")], as_json: AsJson = False
) -> int:
    """Look for the marks of results: 0 found, 1 none, 3 the file was changed since."""
    end_on_sigterm()
    from dreamactor.verify import verify

    found = verify(file)
    print(json.dumps(found.plain(), indent=1) if as_json else "\n".join(found.lines()))
    return found.code


def backbones() -> None:
    """List the models: size, GPU memory, licence, and what of them is tested."""
    from dreamactor.backbones.catalogue import table

    print("\n".join(table()))


def doctor() -> None:
    """Say what this machine can run, and with which settings."""
    from dreamactor.doctor import look, report

    for line in report(look()):
        print(line)
