"""The workers of a server: one process for each device; who dies is replaced.

A job goes back into the queue when its worker is known to be gone: its process was waited for, or,
of an earlier server's, the kernel has let go of the lock that it held.
"""

from __future__ import annotations

import fcntl
import logging
import multiprocessing
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Event, Thread

from dreamactor.errors import ConfigError
from dreamactor.image import refusals
from dreamactor.studio.queue import Queue
from dreamactor.studio.settings import Setup
from dreamactor.studio.worker import WORKERS, Animator, work

LOCK = "server.lock"
POLL = 0.5
"""Seconds between looks at the workers."""
SILENCE = 60.0
"""Seconds without a sign of life after which a worker that has a job is killed; also the longest
that a cancelled job goes on, since its worker gives none from then on."""
PATIENCE = 15.0
"""Seconds for workers to end, of an earlier server and of this one."""
REST = (1.0, 30.0)
"""Seconds before a worker that died is replaced: at first, and at most."""

log = logging.getLogger(__name__)


@contextmanager
def only_server(root: Path) -> Iterator[None]:
    """Have a folder for this server alone, with no worker of an earlier one left.

    Raises:
        ConfigError: Another server is at it.
        MediaError: It can be no folder, or not be written to.
    """
    with refusals(root):
        root.mkdir(0o700, parents=True, exist_ok=True)  # pictures of people are in it
        locks = [(root / name).open("w") for name in (LOCK, WORKERS)]
    with locks[0] as server, locks[1] as workers:
        if not _locked(server.fileno(), 0):
            raise ConfigError(f"{root}: another server is at it; want another --folder")
        if not _locked(workers.fileno(), PATIENCE):
            raise ConfigError(f"{root}: workers of an earlier server are still at it; end them")
        fcntl.flock(workers, fcntl.LOCK_UN)
        yield


def _locked(file: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.05)


class Crew:
    """Begins workers, watches them, ends them."""

    def __init__(
        self, root: Path, queue: Queue, devices: Sequence[str], setup: Setup, animator: Animator
    ) -> None:
        self._root, self._queue = root.absolute(), queue
        self._setup, self._animator = setup, animator
        # two workers of one device have two names
        self.devices = {f"{k}-{device}": device for k, device in enumerate(devices)}
        self._processes: dict[str, BaseProcess] = {}
        self._deaths = dict.fromkeys(self.devices, 0)
        self._due = dict.fromkeys(self.devices, 0.0)
        self._heard: dict[str, tuple[tuple[str, int], float]] = {}
        self._over = Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        """Put back what an earlier server left, and begin."""
        self._queue.release(blame=False)
        for name in self.devices:
            self._begin(name)
        self._thread.start()

    @property
    def alive(self) -> int:
        """Workers that are there."""
        return sum(process.is_alive() for process in self._processes.values())

    def stop(self) -> None:
        """End the workers; what they were at waits in the queue for the next server."""
        self._over.set()
        self._thread.join()
        for process in self._processes.values():
            process.terminate()
        end = time.monotonic() + PATIENCE
        for name, process in self._processes.items():
            process.join(max(0, end - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
            self._queue.release(name, blame=False)

    def _begin(self, name: str) -> None:
        # spawned: a forked child would share the server's sockets and threads
        process = multiprocessing.get_context("spawn").Process(
            target=work,
            args=(self._root, name, self.devices[name], self._setup, self._animator),
            name=f"dreamactor worker {name}",
        )
        process.start()
        self._processes[name] = process

    def _watch(self) -> None:
        while not self._over.wait(POLL):
            try:
                self._look()
            except sqlite3.Error as error:  # a full disk, say; the next look may do better
                log.warning("workers cannot be looked after: %s", error)

    def _look(self) -> None:
        beats = self._queue.beats()
        for name, process in list(self._processes.items()):
            if not process.is_alive():
                self._replace(name, process)
            elif self._silent(name, beats.get(name)):
                log.warning("worker %s says nothing for %.0f s: killed", name, SILENCE)
                process.kill()
                process.join()

    def _replace(self, name: str, process: BaseProcess) -> None:
        """Free the job of a worker that died, and after a while begin another."""
        now = time.monotonic()
        if not self._due[name]:
            process.join()
            self._queue.release(name)
            self._deaths[name] += 1
            rest = min(REST[0] * 2 ** (self._deaths[name] - 1), REST[1])
            log.warning("worker %s ended (%s); another in %.0f s", name, process.exitcode, rest)
            self._due[name] = now + rest
        elif now >= self._due[name]:
            self._due[name] = 0.0
            self._begin(name)

    def _silent(self, name: str, beat: tuple[str, int] | None) -> bool:
        """Whether a worker with a job has given no sign of life for too long."""
        now = time.monotonic()  # stands still while the machine sleeps
        if beat is None:
            self._heard.pop(name, None)
            return False
        known = self._heard.get(name)
        if known is None or known[0] != beat:
            self._heard[name] = (beat, now)
            self._deaths[name] = 0 if beat[1] > 1 else self._deaths[name]
            return False
        return now - known[1] > SILENCE
