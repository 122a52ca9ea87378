"""Animating over HTTP: serve, and studio, which has a page in front."""

from __future__ import annotations

import sys
import webbrowser
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from dreamactor.cli.options import Host, Port, Settings, end_on_sigterm, listing, parsed
from dreamactor.errors import ConfigError

Listing = listing("dreamactor.studio.settings:Setup")
Folder = Annotated[Path, typer.Option(help="Of queue and results; the same command goes on.")]
Names = Annotated[
    list[str] | None, typer.Option(help="Another name that it is reached by, as of a proxy.")
]
Devices = Annotated[
    list[str] | None, typer.Option(help="cpu, cuda or cuda:N; one worker for each.")
]


def serve(
    folder: Folder,
    settings: Settings = None,
    host: Host = "127.0.0.1",
    port: Port = 8700,
    name: Names = None,
    device: Devices = None,
) -> None:
    """Animate over HTTP: a durable queue, one worker for each device, an API.

    The variable DREAMACTOR_TOKEN, if set, is the token that every request has to show.
    """
    _serve(folder, settings, host, port, name, device)


def studio(
    folder: Folder,
    settings: Settings = None,
    host: Host = "127.0.0.1",
    port: Port = 8700,
    name: Names = None,
    device: Devices = None,
    data: Annotated[
        Path | None, typer.Option(help="Data set of `bootstrap pairs`, to review in a tab.")
    ] = None,
    study: Annotated[
        Path | None, typer.Option(help="Study of `study make`, to take part in in a tab.")
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
) -> None:
    """The same as serve, with a page in front of it: upload, trim, animate, compare, history."""
    _serve(folder, settings, host, port, name, device, True, data, study, browser)


def _serve(
    folder: Path,
    settings: list[str] | None,
    host: str,
    port: int,
    names: list[str] | None,
    devices: list[str] | None,
    page: bool = False,
    data: Path | None = None,
    study: Path | None = None,
    browser: bool = False,
) -> None:
    end_on_sigterm()
    if sys.platform == "win32":
        raise ConfigError("serve and studio want Linux or macOS; on Windows they run inside WSL")
    from dreamactor.studio.settings import Setup

    setup = parsed(Setup, settings)
    try:
        from dreamactor.studio import server
    except ImportError as error:
        raise ConfigError(f"this needs {error.name}: pip install 'dreamactor[studio]'") from error
    from dreamactor.bench.study.server import links, open_study
    from dreamactor.bootstrap.manifest import DataSet
    from dreamactor.studio.page import review_tab, studio, study_tab

    place = server.Place(folder, host, port, tuple(names or ()), tuple(devices or ("cpu",)))
    reviewed = None if data is None else DataSet(data)
    with ExitStack() as stack:
        book = None if study is None else stack.enter_context(open_study(study))
        extend = [studio([review_tab(reviewed), study_tab(book)])] if page else []

        def ready(address: str) -> None:
            for line in links(book, f"{address}study") if book else ():
                print(line, flush=True)
            if browser:
                webbrowser.open(address)

        server.serve(place, setup, lambda line: print(line, flush=True), extend, ready=ready)
    if reviewed is not None:
        reviewed.write_manifest()
