"""The review page and its HTTP interface.

    GET    /                                   the page (data/review.html)
    GET    /api/reviews/{reviewer}             queue, answers so far, where to go on
    PUT    /api/reviews/{reviewer}/{item}      {"motion": bool, "identity": bool, "seconds": s}
    DELETE /api/reviews/{reviewer}/{item}      take an answer back
    GET    /api/agreement                      Cohen's kappa of every two reviewers
    GET    /media/{item}/{what}                source, identity or result

The page names all of these relative to itself, so that it may be mounted below another one. Nothing
but the data set's own files can be reached. Other sites cannot write, since a browser asks
before it sends PUT or DELETE there, nor read under another name (`Host` is checked).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from socket import socket
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from dreamactor.bootstrap import review
from dreamactor.bootstrap.manifest import DataSet
from dreamactor.bootstrap.triplets import Decision
from dreamactor.errors import DreamActorError, MediaError
from dreamactor.image import read_image, write_png
from dreamactor.local import LOOPBACK, listen
from dreamactor.video import iter_frames, probe, write_clip

PAGE = Path(__file__).parents[1] / "data" / "review.html"
SHOWN = ("h264", "vp8", "vp9", "av1")
"""Codecs that browsers play; others are shown by a copy."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
POLICY = (
    "default-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; base-uri 'none'"
)


class Answer(BaseModel):
    """What the page sends."""

    model_config = ConfigDict(extra="forbid", strict=True)
    motion: bool
    identity: bool
    seconds: float = Field(0.0, ge=0, le=86400)


def create_app(data: DataSet, judge: str | None, hosts: tuple[str, ...] = LOOPBACK) -> FastAPI:
    """The application.

    Args:
        data: What is reviewed.
        judge: Only what this judge let pass; None = everything.
        hosts: Names under which it may be asked; ("*",) = any.
    """
    app = FastAPI(title="DreamActor review", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))

    @app.exception_handler(DreamActorError)
    def refuse(request: Request, error: DreamActorError) -> JSONResponse:
        code = 404 if isinstance(error, MediaError) else 400
        return JSONResponse({"error": " ".join(str(error).split())}, code)

    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(PAGE, headers={"Content-Security-Policy": POLICY})

    @app.get("/api/reviews/{reviewer}")
    def state(reviewer: str) -> dict[str, Any]:
        return review.state(data, reviewer, judge)

    @app.put("/api/reviews/{reviewer}/{item}")
    def decide(reviewer: str, item: str, answer: Answer) -> dict[str, Any]:
        decision = Decision(reviewer, answer.motion, answer.identity)
        review.decide(data, item, decision, answer.seconds)
        return {"item": item, "accepts": decision.accepts}

    @app.delete("/api/reviews/{reviewer}/{item}")
    def take_back(reviewer: str, item: str) -> dict[str, Any]:
        data.unsay(item, "review", reviewer)
        return {"item": item}

    @app.get("/api/agreement")
    def agreement() -> list[dict[str, Any]]:
        return review.plain(review.agreement(data))

    @app.get("/media/{item}/{what}")
    def media(item: str, what: Literal["source", "identity", "result"]) -> FileResponse:
        return FileResponse(_shown(data, item, what))

    return app


def serve(
    data: DataSet, judge: str | None, host: str, port: int, say: Callable[[str], object]
) -> None:
    """Serve the page until Ctrl-C, then bring the manifest up to date.

    Raises:
        ConfigError: The address cannot be had.
    """
    with listen(host, port) as listening:
        shown, taken = listening.getsockname()[:2]
        inside = host in LOOPBACK
        say(f"http://{shown if inside else host}:{taken}/  (Ctrl-C ends it; nothing gets lost)")
        if not inside:
            say(f"warning: whoever reaches {host}:{taken} can see and review everything here")
        app = create_app(data, judge, LOOPBACK if inside else ("*",))
        with suppress(KeyboardInterrupt):  # the server has ended in good order by then
            _serve(app, listening)
    data.write_manifest()


def _serve(app: FastAPI, listening: socket) -> None:
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


def _shown(data: DataSet, item: str, what: Literal["source", "identity", "result"]) -> Path:
    """A file of an item that a browser can show; a copy where it could not show the file."""
    synthesis = data.synthesis(item)
    if what == "result":
        return synthesis.clip.path
    if what == "identity":
        path = synthesis.forward.identity.path
        if path.suffix in PICTURES:
            return path
        copy = _copy(data, path, ".png")
        if not copy.is_file():
            write_png(copy, read_image(path))
        return copy
    path = synthesis.forward.source.path
    clip = probe(path)
    if clip.codec in SHOWN and path.suffix in (".mp4", ".webm", ".mov"):
        return path
    copy = _copy(data, path, ".mp4")
    if not copy.is_file():
        write_clip(copy, (frame for _, frame in iter_frames(path)), clip.fps, overwrite=True)
    return copy


def _copy(data: DataSet, path: Path, suffix: str) -> Path:
    folder = data.root / "previews"
    folder.mkdir(exist_ok=True)
    return folder / f"{path.stem}{suffix}"
