"""The whole recipe as one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dreamactor.cli.options import end_on_sigterm, listing

Listing = listing("dreamactor.reproduce.settings:ReproduceConfig")


def reproduce(
    config: Annotated[Path, typer.Argument(help="YAML file, such as configs/reproduce.yaml.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="What differs: key=value or section.key=value ... All are below."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the stages and their time, write nothing.")
    ] = False,
) -> None:
    """Do the whole recipe within a time budget, and write one report; the same command goes on."""
    end_on_sigterm()
    from dreamactor.config import from_file
    from dreamactor.reproduce.settings import ReproduceConfig

    asked = from_file(ReproduceConfig, config, settings or [])
    from dreamactor.reproduce.chain import plan, reproduce

    if dry_run:
        print("\n".join(plan(asked)))
        return
    print(reproduce(asked, say=lambda line: print(line, flush=True)))
