"""The queue: jobs and uploads in one SQLite file, so that a killed server goes on where it was.

    queued -> running -> done | failed | cancelled
       ^         |
       '---------'  its worker died, or the server was stopped

A worker claims a job and gets a key; whatever it says later counts only while that key is the
job's. A job goes back into the queue only when its worker is known to be gone (the kernel says so,
see `crew.py`), so nothing is at work twice; a worker that comes back from the dead finds that its
key is worth nothing. A job that has killed `TRIES` workers fails, so that it cannot take all of
them; a server that was stopped or killed is not its fault.

Every change is one transaction on the disk (WAL, synchronous=FULL) before anybody is told of it.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from dreamactor.errors import ConfigError

State = Literal["queued", "running", "done", "failed", "cancelled"]
Order = Literal["go on", "stop", "lost"]
"""To who is at work: go on; stop, it was cancelled; or the job is no longer yours."""
ENDS: tuple[State, ...] = ("done", "failed", "cancelled")
TRIES = 3
"""Workers that a job may cost."""
VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS uploads (
  id TEXT PRIMARY KEY, kind TEXT NOT NULL, made REAL NOT NULL, facts TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS jobs (
  number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
  state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
  asked TEXT NOT NULL, reference TEXT NOT NULL, driving TEXT NOT NULL,
  made REAL NOT NULL, begun REAL, ended REAL,
  tries INTEGER NOT NULL DEFAULT 0, worker TEXT, key TEXT, stop INTEGER NOT NULL DEFAULT 0,
  stage TEXT, step INTEGER NOT NULL DEFAULT 0, steps INTEGER NOT NULL DEFAULT 0, eta REAL,
  preview INTEGER NOT NULL DEFAULT 0, beat INTEGER NOT NULL DEFAULT 0, error TEXT
);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, number);
"""


@dataclass(frozen=True)
class Job:
    """One line of the queue."""

    number: int
    """Order in which jobs were handed in."""
    id: str
    state: State
    asked: Mapping[str, Any]
    """The settings, as they were handed in."""
    reference: str
    """Id of an upload."""
    driving: str
    made: float
    """Seconds since 1970, as `begun` and `ended`."""
    begun: float | None
    """When its last worker began."""
    ended: float | None
    tries: int
    """Workers that began."""
    worker: str | None
    key: str | None
    """Of the worker at it; not for the world."""
    stop: bool
    """Somebody wants it to stop."""
    stage: str | None
    """What is being done."""
    step: int
    """Sampling steps made."""
    steps: int
    """Of these; 0 = not known yet."""
    eta: float | None
    """Seconds left, as the worker saw it last."""
    preview: int
    """How often the picture of the last frame was renewed; 0 = there is none."""
    beat: int
    """Signs of life of its worker."""
    error: str | None
    """One line."""

    def plain(self) -> dict[str, Any]:
        """For JSON and for the world."""
        return {k: v for k, v in vars(self).items() if k not in ("key", "beat")}


@dataclass(frozen=True)
class Progress:
    """What a worker says of its job."""

    stage: str
    step: int
    steps: int
    eta: float | None
    preview: int


@dataclass(frozen=True)
class Upload:
    """A file that was taken in."""

    id: str
    kind: str
    """reference or driving."""
    made: float
    facts: Mapping[str, Any]
    """Sizes, length, sha256 of what was sent."""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {"id": self.id, "kind": self.kind, "made": self.made, **self.facts}


class Full(ConfigError):  # noqa: N818  # a state of the queue more than a fault
    """No room for another job."""


class Queue:
    """Jobs and uploads; one object for each process, any number of threads."""

    def __init__(self, path: Path) -> None:
        """Open the file, which is made where it is missing.

        Raises:
            ConfigError: It is no queue, or one of another version.
        """
        self._lock = Lock()
        try:
            self._db = sqlite3.connect(
                path, timeout=60, isolation_level=None, check_same_thread=False
            )
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, VERSION):
                raise ConfigError(
                    f"{path}: a queue of version {version}, want {VERSION}; use another folder"
                )
            self._db.executescript(SCHEMA)
            self._db.execute(f"PRAGMA user_version={VERSION}")
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"{path}: cannot be used as a queue: {error}") from error

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._db.close()

    # ---- of the server ----------------------------------------------------------------------

    def add_upload(self, name: str, kind: str, facts: Mapping[str, Any]) -> Upload:
        """Keep what is known of a file."""
        upload = Upload(name, kind, time.time(), dict(facts))
        with self._writing() as db:
            db.execute(
                "INSERT INTO uploads VALUES (?, ?, ?, ?)",
                (name, kind, upload.made, json.dumps(upload.facts)),
            )
        return upload

    def upload(self, name: str) -> Upload | None:
        """An upload, or None."""
        for row in self._rows("SELECT * FROM uploads WHERE id = ?", name):
            return Upload(row["id"], row["kind"], row["made"], json.loads(row["facts"]))
        return None

    def forget_uploads(self, before: float) -> list[str]:
        """Drop uploads of before that time that no job names; their ids."""
        with self._writing() as db:
            rows = db.execute(
                "DELETE FROM uploads WHERE made < ? AND id NOT IN "
                "(SELECT reference FROM jobs UNION SELECT driving FROM jobs) RETURNING id",
                (before,),
            ).fetchall()
        return [row["id"] for row in rows]

    def submit(self, reference: str, driving: str, asked: Mapping[str, Any], room: int) -> Job:
        """Put a job at the end of the queue; it is on the disk when this returns.

        Args:
            reference: Id of an upload.
            driving: Id of an upload.
            asked: Settings.
            room: Most jobs that may wait or run.

        Raises:
            Full: There are that many.
        """
        name = secrets.token_hex(8)
        with self._writing() as db:
            (count,) = db.execute(
                "SELECT count(*) FROM jobs WHERE state IN ('queued', 'running')"
            ).fetchone()
            if count >= room:
                raise Full(f"{count} jobs wait or run, the limit is {room}; try again later")
            db.execute(
                "INSERT INTO jobs (id, state, asked, reference, driving, made) "
                "VALUES (?, 'queued', ?, ?, ?, ?)",
                (name, json.dumps(dict(asked)), reference, driving, time.time()),
            )
        job = self.job(name)
        assert job is not None
        return job

    def job(self, name: str) -> Job | None:
        """A job, or None."""
        return next(self._jobs("SELECT * FROM jobs WHERE id = ?", name), None)

    def jobs(self, count: int = 50, before: int | None = None) -> list[Job]:
        """The newest jobs, newest first; with `before`, of those of smaller numbers."""
        top = before if before is not None else 1 << 62
        sql = "SELECT * FROM jobs WHERE number < ? ORDER BY number DESC LIMIT ?"
        return list(self._jobs(sql, top, count))

    def ahead(self, job: Job) -> int:
        """How many wait or run before a job that waits."""
        sql = "SELECT count(*) FROM jobs WHERE state IN ('queued', 'running') AND number < ?"
        return 0 if job.state != "queued" else int(self._rows(sql, job.number)[0][0])

    def count(self) -> dict[str, int]:
        """Jobs by state."""
        rows = self._rows("SELECT state, count(*) FROM jobs GROUP BY state")
        return {row[0]: row[1] for row in rows}

    def cancel(self, name: str) -> Job | None:
        """End a job that waits at once, have its worker end one that runs; others stay."""
        with self._writing() as db:
            db.execute(
                "UPDATE jobs SET state = 'cancelled', stop = 1, ended = ? "
                "WHERE id = ? AND state = 'queued'",
                (time.time(), name),
            )
            db.execute("UPDATE jobs SET stop = 1 WHERE id = ? AND state = 'running'", (name,))
        return self.job(name)

    def remove(self, name: str) -> bool:
        """Take a job that has ended out of the history; whether it could be."""
        with self._writing() as db:
            done = db.execute(
                "DELETE FROM jobs WHERE id = ? AND state IN ('done', 'failed', 'cancelled')",
                (name,),
            )
        return done.rowcount == 1

    def release(self, worker: str | None = None, blame: bool = True) -> int:
        """Put the jobs of a worker that is gone back into the queue; how many it had.

        Args:
            worker: Its name; None = all, when no worker is there.
            blame: Whether the job may have killed it, so that this counts as a try.
        """
        spent = TRIES if blame else 1 << 30
        with self._writing() as db:
            done = db.execute(
                "UPDATE jobs SET key = NULL, beat = 0, stage = NULL, eta = NULL, "
                "state = CASE WHEN stop THEN 'cancelled' WHEN tries >= :spent THEN 'failed' "
                "ELSE 'queued' END, "
                "error = CASE WHEN NOT stop AND tries >= :spent THEN :lost END, "
                "ended = CASE WHEN stop OR tries >= :spent THEN :now END, "
                "tries = tries - :free "
                "WHERE state = 'running' AND (:worker IS NULL OR worker = :worker)",
                {
                    "spent": spent,
                    "lost": f"its worker died {TRIES} times at it",
                    "now": time.time(),
                    "free": 0 if blame else 1,
                    "worker": worker,
                },
            )
        return done.rowcount

    def beats(self) -> dict[str, tuple[str, int]]:
        """Worker -> the key and the signs of life of the job that it is at."""
        rows = self._rows("SELECT worker, key, beat FROM jobs WHERE state = 'running'")
        return {row["worker"]: (row["key"], row["beat"]) for row in rows}

    def changed(self) -> int:
        """Another number whenever another process has changed something."""
        return int(self._rows("PRAGMA data_version")[0][0])

    # ---- of a worker ------------------------------------------------------------------------

    def claim(self, worker: str) -> Job | None:
        """The job that has waited longest is this worker's now; None where none waits."""
        if not self._rows("SELECT 1 FROM jobs WHERE state = 'queued' LIMIT 1"):
            return None
        key = secrets.token_hex(8)
        with self._writing() as db:
            db.execute(
                "UPDATE jobs SET state = 'running', worker = ?, key = ?, begun = ?, "
                "tries = tries + 1, step = 0, steps = 0, preview = 0 WHERE number = "
                "(SELECT min(number) FROM jobs WHERE state = 'queued')",
                (worker, key, time.time()),
            )
        return next(self._jobs("SELECT * FROM jobs WHERE key = ?", key), None)

    def order(self, job: Job) -> Order:
        """What the worker of a job shall do."""
        rows = self._rows("SELECT stop FROM jobs WHERE key = ? AND state = 'running'", job.key)
        return "lost" if not rows else "stop" if rows[0]["stop"] else "go on"

    def report(self, job: Job, now: Progress) -> None:
        """Say how far it is; also a sign of life."""
        with self._writing() as db:
            db.execute(
                "UPDATE jobs SET stage = ?, step = ?, steps = ?, eta = ?, preview = ?, "
                "beat = beat + 1 WHERE key = ? AND state = 'running'",
                (now.stage, now.step, now.steps, now.eta, now.preview, job.key),
            )

    def end(self, job: Job, state: State, error: str | None = None) -> bool:
        """The job is over; False where it is no longer this worker's, and nothing changes."""
        assert state in ENDS
        with self._writing() as db:
            done = db.execute(
                "UPDATE jobs SET state = ?, error = ?, ended = ?, key = NULL, eta = NULL "
                "WHERE key = ? AND state = 'running'",
                (state, error, time.time(), job.key),
            )
        return done.rowcount == 1

    def give_back(self, job: Job) -> None:
        """The worker stops in good order: the job waits again, and that was no try."""
        with self._writing() as db:
            db.execute(
                "UPDATE jobs SET state = CASE WHEN stop THEN 'cancelled' ELSE 'queued' END, "
                "ended = CASE WHEN stop THEN ? END, key = NULL, stage = NULL, eta = NULL, "
                "tries = tries - 1 WHERE key = ? AND state = 'running'",
                (time.time(), job.key),
            )

    # ---- below ------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _rows(self, sql: str, *values: object) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def _jobs(self, sql: str, *values: object) -> Iterator[Job]:
        for row in self._rows(sql, *values):
            said = {**row, "asked": json.loads(row["asked"]), "stop": bool(row["stop"])}
            yield Job(**said)
