"""The raters' page and its HTTP interface.

    GET  /                            asks for a code
    GET  /r/{code}                    the page of one rater (data/study/)
    GET  /page.css, /page.js
    GET  /api/{code}                  items in their order, answers so far, where to go on
    PUT  /api/{code}/consent          {}
    PUT  /api/{code}/answers/{item}   {"answer": {...}, "seconds": s, "plays": n}
    GET  /media/{name}                a clip or picture, by its blind name; parts of it, too

The page names all of these relative to itself, so that it may be mounted below another one, as a
tab of the studio. Nothing but these files can be reached, and no answer names a system. Who has
no code sees nothing; a code is drawn from 8e14. Other sites can neither write (PUT is asked for
first, and `Origin` has to be the page's own) nor read under another name (`Host` is checked).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import gethostname, socket
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from dreamactor.bench.study.answers import Book, open_book
from dreamactor.bench.study.plan import Plan, Rater, load_plan
from dreamactor.errors import ConfigError, DreamActorError, MediaError
from dreamactor.local import LOOPBACK, listen

PAGES = Path(__file__).parents[2] / "data" / "study"
EVERYWHERE = ("0.0.0.0", "::")
"""Hosts to listen on that are no names to go to."""
LARGEST = 4096
"""Bytes of what a page may send."""
TYPES = {".css": "text/css", ".js": "text/javascript", ".mp4": "video/mp4", ".png": "image/png"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
NO_STORE, KEEP = "no-store", "private, max-age=86400, immutable"


class Given(BaseModel):
    """What the page sends with an answer."""

    model_config = ConfigDict(extra="forbid", strict=True)
    answer: dict[str, int | str]
    seconds: float = Field(ge=0, le=86400)
    plays: int = Field(ge=0, le=100000)


def create_app(book: Book, hosts: tuple[str, ...] = LOOPBACK) -> FastAPI:
    """The application.

    Args:
        book: The study and its answers, held.
        hosts: Names under which it may be asked; ("*",) = any.
    """
    plan = book.plan
    app = FastAPI(title="Study", docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        reply = _refused(request) or await go_on(request)
        for name, value in HEADERS.items():
            reply.headers[name] = value
        reply.headers.setdefault("Cache-Control", NO_STORE)
        return reply

    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))

    @app.exception_handler(DreamActorError)
    def refuse(request: Request, error: DreamActorError) -> JSONResponse:
        status = 404 if isinstance(error, MediaError) else 400
        return JSONResponse({"error": " ".join(str(error).split())}, status)

    @app.get("/")
    @app.get("/r/{code}")
    def page(code: str = "") -> HTMLResponse:
        text = (PAGES / "page.html").read_text(encoding="utf-8")
        return HTMLResponse(text.replace('="page.', '="../page.') if code else text)

    @app.get("/page.{kind}")
    def part(kind: str) -> FileResponse:
        if kind not in ("css", "js"):
            raise MediaError("no such page")
        return FileResponse(PAGES / f"page.{kind}", media_type=TYPES[f".{kind}"])

    @app.get("/api/{code}")
    def state(code: str) -> dict[str, Any]:
        return state_of(book, _rater(plan, code))

    @app.put("/api/{code}/consent")
    def consent(code: str) -> dict[str, Any]:
        rater = _rater(plan, code)
        book.agree(rater, hashlib.sha256(plan.consent().encode()).hexdigest())
        return {"consent": True}

    @app.put("/api/{code}/answers/{item}")
    def answer(code: str, item: str, given: Given) -> dict[str, Any]:
        book.answer(_rater(plan, code), item, given.answer, given.seconds, given.plays)
        return {"item": item}

    @app.get("/media/{name}")
    def media(name: str) -> FileResponse:
        if name not in plan.media:
            raise MediaError(f"no file {name!r}")
        path = plan.root / "media" / name
        if not path.is_file():
            raise MediaError(f"{name} is gone from the study")
        kind = TYPES[path.suffix]
        return FileResponse(path, media_type=kind, headers={"Cache-Control": KEEP})

    return app


def state_of(book: Book, rater: Rater) -> dict[str, Any]:
    """The items of one rater with their own answers, and where to go on."""
    said = book.said.of(rater)
    items = [
        {**item.public(), "answer": dict(said[item.id].said) if item.id in said else None}
        for item in rater.items
    ]
    open_ = [k for k, item in enumerate(items) if item["answer"] is None]
    return {
        "rater": rater.number,
        "agreed": rater.number in book.said.consents,
        "consent": book.plan.consent(),
        "items": items,
        "place": open_[0] if open_ else len(items),
    }


@contextmanager
def open_study(root: Path) -> Iterator[Book]:
    """Hold a study that is whole, to serve it.

    Raises:
        ConfigError: There is none or a file of it is gone, or it is being served already.
    """
    plan = load_plan(root)
    if gone := [name for name in plan.media if not (root / "media" / name).is_file()]:
        raise ConfigError(f"{root}: {len(gone)} files are gone, such as media/{gone[0]}")
    with open_book(plan) as book:
        yield book


def links(book: Book, base: str) -> list[str]:
    """A line a rater: where they go, and how far they are."""
    lines = []
    for rater in book.plan.raters:
        done = len(book.said.of(rater))
        lines.append(f"{base}/r/{rater.code}  rater {rater.number}: {done} of {len(rater.items)}")
    return lines


def serve(root: Path, host: str, port: int, say: Callable[[str], object]) -> None:
    """Serve a study until Ctrl-C.

    Args:
        root: The study.
        host: Address to listen on.
        port: 0 = any that is free.
        say: Gets the raters' links.

    Raises:
        ConfigError: There is no study or a file of it is gone, it is being served already, or the
            address cannot be had.
    """
    with open_study(root) as book, listen(host, port) as listening:
        shown, taken = listening.getsockname()[:2]
        inside = host in LOOPBACK
        name = shown if inside else gethostname() if host in EVERYWHERE else host
        for line in links(book, f"http://{f'[{name}]' if ':' in name else name}:{taken}"):
            say(line)
        if not inside:
            say(
                f"warning: {host}:{taken} is reached from outside, without encryption; put a "
                "server with TLS in front of it"
            )
        say("each rater gets one of these links; Ctrl-C ends it, nothing gets lost")
        with suppress(KeyboardInterrupt):  # the server has ended in good order by then
            _run(create_app(book, LOOPBACK if inside else ("*",)), listening)


def _run(app: FastAPI, listening: socket) -> None:
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


def _rater(plan: Plan, code: str) -> Rater:
    """Whose code it is; people write it in capitals and with gaps."""
    rater = plan.by_code.get(re.sub(r"[\s-]", "", code).lower())
    if rater is None:
        raise MediaError("this code is not known here; look at the link you were given")
    return rater


def _refused(request: Request) -> Response | None:
    """An answer to what no page of ours sends; None = it may go on."""
    if request.method in ("GET", "HEAD"):
        return None
    length = request.headers.get("content-length", "")
    if not length.isdigit() or int(length) > LARGEST:
        return JSONResponse({"error": f"want a body of at most {LARGEST} bytes"}, 413)
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        return JSONResponse({"error": "want application/json"}, 415)
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        return JSONResponse({"error": "this comes from another page"}, 403)
    return None
