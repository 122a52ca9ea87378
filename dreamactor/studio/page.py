"""The studio's page in front of the API, and other pages as its tabs.

    GET /             data/studio/studio.html, with /studio.css, /studio.js, /favicon.svg
    GET /tabs         further tabs: what they are called, where they are, or how to open them
    /NAME/            an application of one's own for each tab that is open

Everything comes from this server: the page's policy lets the browser load nothing from elsewhere,
and run no script but the one file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse, RedirectResponse
from starlette.types import ASGIApp

from dreamactor.bench.study.answers import Book
from dreamactor.bootstrap.manifest import DataSet
from dreamactor.studio.api import Server

FILES = Path(__file__).parents[1] / "data" / "studio"
POLICY = "; ".join(
    (
        *("default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'"),
        *("img-src 'self'", "media-src 'self'", "frame-src 'self'", "form-action 'none'"),
        *("base-uri 'none'", "frame-ancestors 'none'"),
    )
)
KINDS = {
    "studio.css": "text/css",
    "studio.js": "text/javascript",
    "favicon.svg": "image/svg+xml",
}


@dataclass(frozen=True)
class Tab:
    """Another page inside the studio."""

    name: str
    """Of its path, a-z."""
    title: str
    how: str
    """The command that opens it."""
    app: ASGIApp | None = None
    """Its application, whose page names its own files relative to itself; None = not open."""


def studio(tabs: Sequence[Tab]) -> Callable[[FastAPI, Server], None]:
    """What `create_api` takes as one of `extend`."""

    def extend(app: FastAPI, server: Server) -> None:
        @app.get("/", include_in_schema=False)
        def page() -> FileResponse:
            headers = {"Content-Security-Policy": POLICY}
            return FileResponse(FILES / "studio.html", headers=headers)

        for name, kind in KINDS.items():
            app.add_api_route(
                f"/{name}", _file(FILES / name, kind), methods=["GET"], include_in_schema=False
            )

        @app.get("/tabs", include_in_schema=False)
        def known() -> list[dict[str, Any]]:
            return [
                {
                    "name": tab.name,
                    "title": tab.title,
                    "path": f"{tab.name}/" if tab.app else None,
                    "how": tab.how,
                }
                for tab in tabs
            ]

        for tab in tabs:
            if tab.app is not None:
                app.add_api_route(
                    f"/{tab.name}", _moved(tab.name), methods=["GET"], include_in_schema=False
                )
                app.mount(f"/{tab.name}", tab.app)

    return extend


def _file(path: Path, kind: str) -> Callable[[], FileResponse]:
    return lambda: FileResponse(path, media_type=kind)


def _moved(name: str) -> Callable[[], RedirectResponse]:
    return lambda: RedirectResponse(f"/{name}/")


def review_tab(data: DataSet | None, judge: str | None = "measured") -> Tab:
    """The bootstrap review of a data set.

    Args:
        data: Gated; None = the tab says how to open it.
        judge: Only what this judge let pass; None = everything.

    Raises:
        ConfigError: There is nothing to review.
    """
    how = "dreamactor studio --data DATASET"
    if data is None:
        return Tab("review", "Bootstrap review", how)
    from dreamactor.bootstrap import page, review

    review.queue(data, "anna", judge)  # so that it is said here and not on the page
    # the studio's guard has looked at the host
    return Tab("review", "Bootstrap review", how, page.create_app(data, judge, ("*",)))


def study_tab(book: Book | None = None) -> Tab:
    """The human study.

    Args:
        book: A study and its answers, held; None = the tab says how to open it.
    """
    how = "dreamactor studio --study STUDY"
    if book is None:
        return Tab("study", "Study", how)
    from dreamactor.bench.study.server import create_app

    # the studio's guard has looked at the host
    return Tab("study", "Study", how, create_app(book, ("*",)))
