"""`dreamactor serve` and `dreamactor studio`: put together, listen, and end in good order."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from dreamactor.errors import ConfigError
from dreamactor.local import LOOPBACK, listen
from dreamactor.studio.api import Server, create_api
from dreamactor.studio.crew import Crew, only_server
from dreamactor.studio.guard import Access
from dreamactor.studio.queue import Queue
from dreamactor.studio.settings import Limits, Setup
from dreamactor.studio.words import Words
from dreamactor.studio.worker import QUEUE, Animator, Pipelines

TOKEN = "DREAMACTOR_TOKEN"
"""Variable of the environment: no token on a command line that others can list."""
HEAD_BYTES = 16 << 10
"""Most bytes of a request's head."""
GRACE = 5
"""Seconds for answers that are under way when the server ends."""


@dataclass(frozen=True)
class Place:
    """Where a server listens and keeps its files."""

    folder: Path
    host: str = "127.0.0.1"
    port: int = 8700
    names: tuple[str, ...] = ()
    """Further names that it is reached by, as of a proxy before it."""
    devices: tuple[str, ...] = ("cpu",)
    """One worker for each."""


def access(place: Place, token: str | None) -> Access:
    """Who may ask.

    Raises:
        ConfigError: Everybody could, from other machines.
    """
    inside = place.host in LOOPBACK
    if not inside and not token:
        raise ConfigError(
            f"host={place.host} without a token: whoever reaches it could use it; set {TOKEN}, or "
            "listen on 127.0.0.1"
        )
    return Access((*LOOPBACK, *place.names) if inside else ("*",), token or None)


def serve(
    place: Place,
    setup: Setup,
    say: Callable[[str], object],
    extend: Sequence[Callable[[FastAPI, Server], object]] = (),
    animator: Animator | None = None,
    ready: Callable[[str], object] = lambda address: None,
) -> None:
    """Serve until Ctrl-C or SIGTERM; jobs that are left wait for the next server.

    Args:
        place: Where.
        setup: The models, and limits.
        say: Gets lines for people.
        extend: Adds to the application.
        animator: Does the jobs; None = in earnest.
        ready: Gets the address when the server answers.

    Raises:
        ConfigError: A setting that cannot work, or the folder or address is taken.
        MediaError: The folder, or another path, cannot be reached or written to.
        WeightsError: As `Setup.check`.
    """
    for device in place.devices:
        setup.check(device)
    admitted = access(place, os.environ.get(TOKEN, "").strip())
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    limits = setup.limits
    with only_server(place.folder), listen(place.host, place.port) as listening:
        queue = Queue(place.folder / QUEUE)
        crew = Crew(place.folder, queue, place.devices, setup, animator or Pipelines())
        app = create_api(
            place.folder.absolute(), queue, setup, limits, admitted, crew, Words(setup.describer),
            extend,
        )  # fmt: skip
        shown, port = listening.getsockname()[:2]
        name = f"[{shown}]" if ":" in shown else shown
        address = f"http://{name}:{port}/"
        waiting = queue.count().get("queued", 0) + queue.count().get("running", 0)
        went_on = f"; goes on with {waiting} jobs" if waiting else ""
        say(f"{address}  in {place.folder}{went_on}  (Ctrl-C ends it; jobs stay in the queue)")
        server = _Server(config(app, limits), lambda: ready(address))
        with suppress(KeyboardInterrupt):  # it has ended in good order by then
            server.run(sockets=[listening])
        queue.close()


def config(app: FastAPI, limits: Limits) -> uvicorn.Config:
    """How uvicorn runs it."""
    return uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        http=prompt(limits.patience),
        limit_concurrency=limits.connections,
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_graceful_shutdown=GRACE,
        proxy_headers=False,
    )


class _Server(uvicorn.Server):
    """Says when it answers."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], object]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets)  # type: ignore[arg-type]
        if self.started:
            self._ready()


def prompt(seconds: float) -> type[H11Protocol]:
    """The protocol for clients who send the head of each request within that time.

    uvicorn itself waits for ever for a head whose bytes trickle in.
    """

    class Prompt(H11Protocol):
        late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.expect()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.expect()

        def connection_lost(self, exc: Exception | None) -> None:
            self.forget()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self.forget()  # between two requests the keep-alive timer counts

        def expect(self) -> None:
            """Begin to wait for a head, unless that goes on already; or end it, when it is here."""
            answering = self.cycle is not None and not self.cycle.response_complete
            if answering:
                self.forget()
            elif self.late is None and not self.transport.is_closing():
                self.late = self.loop.call_later(seconds, self.transport.close)

        def forget(self) -> None:
            if self.late is not None:
                self.late.cancel()
                self.late = None

    return Prompt
