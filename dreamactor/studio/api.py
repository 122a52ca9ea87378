"""The HTTP API: uploads, jobs, events; `/openapi.json` describes it.

    POST   /uploads?kind=reference|driving    the file as the body   -> 201, an upload
    GET    /uploads/{id}, /uploads/{id}/file
    POST   /describe                          two uploads            -> the fused prompt
    POST   /jobs                              two uploads, settings  -> 201, a job
    GET    /jobs, /jobs/{id}, /jobs/{id}/events
    GET    /jobs/{id}/result, /record, /preview, /driving
    POST   /jobs/{id}/cancel
    DELETE /jobs/{id}
    GET    /about, /health
    POST   /session                           the token              -> a cookie, for browsers

Uploads are bare bodies and not forms: one file is one request, which can be limited, streamed and
shown the progress of, and there is no file name in it. Every fault is {"error": "one line"}.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from dreamactor import __version__
from dreamactor.errors import AnswerError, ConfigError, DreamActorError
from dreamactor.studio.crew import Crew
from dreamactor.studio.guard import COOKIE, Access, Guard
from dreamactor.studio.intake import Busy, Intake, Kind
from dreamactor.studio.orders import ID, Order, Part, Token
from dreamactor.studio.queue import ENDS, Full, Job, Queue, Upload
from dreamactor.studio.settings import Limits, Setup
from dreamactor.studio.told import told
from dreamactor.studio.words import Words
from dreamactor.studio.worker import JOBS

KEPT_SECONDS = 3600.0
"""How long an upload that no job names is kept."""
SWEEP_SECONDS = 600.0
LOOK_SECONDS = 0.25
"""Between two looks for news of jobs."""
PING_SECONDS = 15.0
"""Between signs of life on a stream of events."""
RETRY = {"Retry-After": "5"}
Id = Annotated[str, InPath(pattern=ID)]


@dataclass
class Server:
    """All that a request may need."""

    root: Path
    queue: Queue
    setup: Setup
    limits: Limits
    access: Access
    crew: Crew
    news: News
    words: Words
    intake: Intake | None = None
    listeners: int = 0

    @property
    def device(self) -> str:
        """Where jobs run, of several workers the first one's."""
        return next(iter(self.crew.devices.values()))

    def upload(self, name: str, kind: str | None = None) -> Upload:
        """An upload, or 404."""
        found = self.queue.upload(name)
        if found is None or (kind is not None and found.kind != kind):
            raise HTTPException(404, f"no upload {name}" + (f" of a {kind}" if kind else ""))
        return found

    def path(self, name: str, kind: str | None = None) -> Path:
        """Where the pixels of an upload are, or 404."""
        assert self.intake is not None
        return self.intake.path(self.upload(name, kind))

    def job(self, name: str) -> Job:
        """A job, or 404."""
        found = self.queue.job(name)
        if found is None:
            raise HTTPException(404, f"no job {name}")
        return found

    def shown(self, job: Job) -> dict[str, Any]:
        """A job for the world."""
        return {**job.plain(), "ahead": self.news.queue.ahead(job)}

    def file(self, name: str, file: str, kind: str, saved_as: str | None = None) -> FileResponse:
        """A file of a job, or 404."""
        path = self.root / JOBS / self.job(name).id / file
        if not path.is_file():
            raise HTTPException(404, f"job {name} has no {file}")
        return FileResponse(path, media_type=kind, filename=saved_as)


class News:
    """Wakes who listens when a job has changed."""

    def __init__(self, path: Path) -> None:
        self.queue = Queue(path)
        """Of its own, to read from: what others write is a change to it, and it waits for none."""
        self.mark = self.queue.changed()
        """Another one after every change."""
        self._next = asyncio.Event()

    async def watch(self) -> None:
        """Look for changes, for ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = self.queue.changed()
            if now != self.mark:
                self.mark = now
                self._next.set()
                self._next = asyncio.Event()

    async def wait(self, mark: int, seconds: float) -> bool:
        """Whether anything has changed since `mark`, now or within that time."""
        if self.mark == mark:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._next.wait(), seconds)
        return self.mark != mark


def create_api(
    root: Path,
    queue: Queue,
    setup: Setup,
    limits: Limits,
    access: Access,
    crew: Crew,
    words: Words,
    extend: Sequence[Callable[[FastAPI, Server], object]] = (),
) -> FastAPI:
    """The application.

    Args:
        root: The server's folder, with `queue` in it.
        queue: Jobs and uploads.
        setup: The models.
        limits: How much anybody may ask.
        access: Who may ask.
        crew: The workers; begun and ended with the application.
        words: Describes.
        extend: Adds to it, as the studio's page does.
    """
    server = Server(root, queue, setup, limits, access, crew, News(root / "queue.sqlite"), words)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        server.intake = Intake(root, queue, limits)
        await asyncio.to_thread(crew.start)
        tasks = [asyncio.create_task(t) for t in (server.news.watch(), _sweep(server))]
        yield
        for task in tasks:
            task.cancel()
        words.close()
        server.news.queue.close()
        await server.intake.close()
        await asyncio.to_thread(crew.stop)

    app = FastAPI(
        title="DreamActor",
        version=__version__,
        description="Animate the subject of a picture with the motion of a clip.",
        docs_url=None,  # that page would load its scripts from elsewhere
        redoc_url=None,
        lifespan=life,
    )
    app.add_middleware(Guard, access=access, limits=limits)
    _faults(app, server)
    _general(app, server)
    _uploads(app, server)
    _jobs(app, server)
    _results(app, server)
    for more in extend:
        more(app, server)
    return app


async def _sweep(server: Server) -> None:
    assert server.intake is not None
    while True:
        await asyncio.to_thread(server.intake.sweep, time() - KEPT_SECONDS)
        await asyncio.sleep(SWEEP_SECONDS)


def _faults(app: FastAPI, server: Server) -> None:
    """One line each, whatever went wrong."""

    def line(status: int, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"error": " ".join(text.split())}, status, headers)

    @app.exception_handler(DreamActorError)
    def ours(request: Request, error: DreamActorError) -> JSONResponse:
        if isinstance(error, Full):
            return line(429, str(error), RETRY)
        if isinstance(error, Busy | AnswerError):
            return line(503, str(error), RETRY)
        return line(422, told(str(error), server.root, server.setup))

    @app.exception_handler(HTTPException)
    def theirs(request: Request, error: HTTPException) -> JSONResponse:
        return line(error.status_code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(x) for x in first["loc"] if x not in ("body", "query", "path"))
        return line(422, f"{where or 'body'}: {first['msg']}"[:500])

    @app.exception_handler(Exception)
    def unknown(request: Request, error: Exception) -> JSONResponse:
        return line(500, f"a fault of the server ({type(error).__name__}); its log has more")


def _general(app: FastAPI, server: Server) -> None:
    limits, setup = server.limits, server.setup

    @app.get("/health")
    def health() -> JSONResponse:
        """Whether workers are there, and how long the queue is."""
        alive, count = server.crew.alive, server.queue.count()
        said = {
            "ok": alive > 0,
            "workers": alive,
            "queued": count.get("queued", 0),
            "running": count.get("running", 0),
        }
        return JSONResponse(said, 200 if alive else 503)

    @app.get("/about")
    def about() -> dict[str, Any]:
        """What this server can do, and its limits."""
        return {
            "version": __version__,
            "backbone": setup.backbone,
            "variants": list(setup.variants),
            "steps": setup.steps,
            "presets": setup.presets(server.device, limits.steps),
            "devices": list(server.crew.devices.values()),
            "limits": vars(limits),
        }

    @app.post("/session", status_code=204)
    def session(said: Token, request: Request) -> Response:
        """Change the token for a cookie: pages cannot send headers for pictures and clips."""
        if not server.access.knows(said.token):
            raise HTTPException(401, "this is not the server's token")
        response = Response(status_code=204)
        forwarded = request.headers.get("x-forwarded-proto", request.url.scheme)
        response.set_cookie(
            COOKIE,
            server.access.cookie,
            httponly=True,
            samesite="strict",
            secure=forwarded == "https",
        )
        return response


def _uploads(app: FastAPI, server: Server) -> None:
    @app.post(
        "/uploads",
        status_code=201,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
                },
            }
        },
    )
    async def upload(kind: Kind, request: Request) -> dict[str, Any]:
        """Take in the body of this request, a picture or a clip."""
        if request.headers.get("content-type", "").startswith(("multipart/", "application/x-www")):
            raise HTTPException(415, "want the bare file as the body, not a form")
        assert server.intake is not None
        return (await server.intake.take(kind, request.stream())).plain()

    @app.get("/uploads/{name}")
    def uploaded(name: Id) -> dict[str, Any]:
        """What is known of an upload."""
        return server.upload(name).plain()

    @app.get("/uploads/{name}/file")
    def pixels(name: Id) -> FileResponse:
        """Its pixels, as this server has written them anew."""
        kind = server.upload(name).kind
        media = "image/png" if kind == "reference" else "video/mp4"
        return FileResponse(server.path(name), media_type=media)

    @app.post("/describe")
    async def describe(part: Part) -> dict[str, Any]:
        """What moves, who shall move, and both in the prompt that a job without one would get."""
        reference = server.path(part.reference, "reference")
        driving = server.path(part.driving, "driving")
        return await server.words.ask(reference, driving, part.start, part.end)


def _jobs(app: FastAPI, server: Server) -> None:
    queue, limits = server.queue, server.limits

    @app.post("/jobs", status_code=201)
    def submit(order: Order) -> dict[str, Any]:
        """Put a job at the end of the queue; when this answers, it is on the disk."""
        if not order.consent:
            raise ConfigError(
                "consent=false: want true, that you have the right to animate this person or work"
            )
        asked = order.model_dump(exclude={"reference", "driving"})
        reference = server.path(order.reference, "reference")
        clip = server.upload(order.driving, "driving")
        if order.steps is not None and order.steps > limits.steps:
            raise ConfigError(f"steps={order.steps}: want 1 to {limits.steps}")
        if order.preset is not None and order.steps is None:
            steps = server.setup.choice(order.preset, server.device).steps or 1
            if steps > limits.steps:
                raise ConfigError(
                    f"preset={order.preset}: takes {steps} steps; want 1 to {limits.steps}, or "
                    "steps named too"
                )
        if order.start >= (length := clip.facts["seconds"]):
            raise ConfigError(f"start={order.start:g}: the clip has {length:g} s")
        if order.end is not None and order.end <= order.start:
            raise ConfigError(f"end={order.end:g}: want more than start, {order.start:g}")
        stated = {k: v for k, v in asked.items() if k not in ("start", "end", "consent")}
        server.setup.config(  # made only to be asked: it refuses what cannot work
            stated, server.device, reference, server.path(clip.id), Path("result.mp4")
        )
        return server.shown(queue.submit(order.reference, order.driving, asked, limits.queue))

    @app.get("/jobs")
    def jobs(
        count: Annotated[int, Query(ge=1, le=200)] = 50,
        before: Annotated[int | None, Query(ge=0, lt=1 << 63)] = None,
    ) -> list[dict[str, Any]]:
        """The newest jobs, newest first; `before` is a number, for the page after."""
        return [server.shown(job) for job in queue.jobs(count, before)]

    @app.get("/jobs/{name}")
    def job(name: Id) -> dict[str, Any]:
        """Where a job is, and all its settings."""
        return server.shown(server.job(name))

    @app.get("/jobs/{name}/events")
    async def events(name: Id) -> StreamingResponse:
        """Server-sent events: the job whenever it changes, until it has ended."""
        server.job(name)
        if server.listeners >= limits.listeners:
            raise Busy(f"{server.listeners} listen already; ask for /jobs/{name} instead")
        return StreamingResponse(_events(server, name), media_type="text/event-stream")

    @app.post("/jobs/{name}/cancel")
    def cancel(name: Id) -> dict[str, Any]:
        """End a job: at once where it waits, at its next step where it runs."""
        server.job(name)
        found = queue.cancel(name)
        assert found is not None
        return server.shown(found)

    @app.delete("/jobs/{name}", status_code=204)
    def remove(name: Id) -> Response:
        """Take a job that has ended, with its result, out of the history."""
        if server.job(name).state not in ENDS or not queue.remove(name):
            raise HTTPException(409, f"job {name} has not ended; cancel it first")
        shutil.rmtree(server.root / JOBS / name, ignore_errors=True)
        return Response(status_code=204)


def _results(app: FastAPI, server: Server) -> None:
    @app.get("/jobs/{name}/result")
    def result(name: Id, download: bool = False) -> FileResponse:
        """The clip."""
        saved_as = f"dreamactor_{name}.mp4" if download else None
        return server.file(name, "result.mp4", "video/mp4", saved_as)

    @app.get("/jobs/{name}/record")
    def record(name: Id, download: bool = False) -> FileResponse:
        """Its record: that it is synthetic, from what it was made and with which settings."""
        saved_as = f"dreamactor_{name}.json" if download else None
        return server.file(name, "result.json", "application/json", saved_as)

    @app.get("/jobs/{name}/preview")
    def preview(name: Id) -> FileResponse:
        """The frame that was made last, while it runs."""
        return server.file(name, "preview.jpg", "image/jpeg")

    @app.get("/jobs/{name}/driving")
    def driving(name: Id) -> FileResponse:
        """The part of the clip that drives."""
        with suppress(HTTPException):
            return server.file(name, "driving.mp4", "video/mp4")
        return FileResponse(server.path(server.job(name).driving), media_type="video/mp4")


async def _events(server: Server, name: str) -> AsyncIterator[str]:
    """Lines of a stream of events."""
    server.listeners += 1
    try:
        said = None
        while True:
            mark = server.news.mark
            job = server.news.queue.job(name)
            if job is None:  # removed from the history
                return
            now = json.dumps(server.shown(job))
            if now != said:
                said = now
                yield f"event: job\ndata: {now}\n\n"
            if job.state in ENDS:
                return
            if not await server.news.wait(mark, PING_SECONDS):
                yield ": still here\n\n"
    finally:
        server.listeners -= 1
