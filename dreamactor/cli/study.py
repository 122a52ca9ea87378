"""`dreamactor study`: people rate systems, blinded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dreamactor.cli.options import Host, Port, Settings, end_on_sigterm, listing, parsed
from dreamactor.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="A blinded study with people: make, serve, report.")


@app.command("make", cls=listing("dreamactor.bench.study.design:StudyConfig"))
def study_make(
    suite: Annotated[Path, typer.Option(help="Suite whose cases are shown.")],
    clips: Annotated[Path, typer.Option(help="Folder with a folder of results per system.")],
    out: Annotated[Path, typer.Option(help="Study; the same command goes on.")],
    settings: Settings = None,
) -> None:
    """Plan a study and write its clips under names that say nothing."""
    end_on_sigterm()
    from dreamactor.bench.study.design import StudyConfig
    from dreamactor.bench.study.make import make_study, summary

    print(summary(make_study(suite, clips, out, parsed(StudyConfig, settings))))


@app.command("serve")
def study_serve(
    root: Annotated[Path, typer.Argument(help="Study of `study make`.", metavar="STUDY")],
    host: Host = "127.0.0.1",
    port: Port = 8770,
) -> None:
    """Serve the raters' page, and print every rater's link."""
    end_on_sigterm()
    try:
        from dreamactor.bench.study.server import serve
    except ImportError as error:
        wanted = f"the page needs {error.name}: pip install 'dreamactor[review]'"
        raise ConfigError(wanted) from error
    serve(root, host, port, lambda line: print(line, flush=True))


@app.command("report")
def study_report(
    root: Annotated[Path, typer.Argument(help="Study with answers.", metavar="STUDY")],
    out: Annotated[Path | None, typer.Option(help="Page; default report.md in STUDY.")] = None,
    without: Annotated[
        list[int] | None, typer.Option(help="Number of a rater who wants to be left out.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the resamples.")] = 0,
) -> None:
    """Means, shares, intervals and agreement of the answers that count."""
    from dreamactor.bench.study.report import report_study

    print(report_study(root, out, without or (), seed))
