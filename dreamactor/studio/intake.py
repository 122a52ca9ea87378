"""Uploads: onto the disk under a name of ours, then through a child that decodes them.

    uploads/ID/raw         what was sent; goes when it was looked at, whatever came out
    uploads/ID/file.png    pixels of the reference, written by us
    uploads/ID/file.mp4    frames of the driving clip, written by us

Names from outside are never used, or asked for.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from dreamactor.errors import ConfigError, MediaError
from dreamactor.studio.queue import Queue, Upload
from dreamactor.studio.settings import MIB, Limits

Kind = Literal["reference", "driving"]
FILES: dict[str, str] = {"reference": "file.png", "driving": "file.mp4"}
KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "LANG")
"""What decoders see of the environment."""


class Busy(ConfigError):  # noqa: N818  # a state more than a fault
    """Too much at once; later it will do."""


class Intake:
    """Takes uploads of one server in; made and used inside its event loop."""

    def __init__(self, root: Path, queue: Queue, limits: Limits) -> None:
        self.root, self.queue, self.limits = root, queue, limits
        self.folder = root / "uploads"
        self.folder.mkdir(exist_ok=True)
        self._at_once = 0
        self._turns = asyncio.Semaphore(limits.decoders)
        self._nursery = Nursery(limits)

    def path(self, upload: Upload) -> Path:
        """Where its pixels are."""
        return self.folder / upload.id / FILES[upload.kind]

    async def take(self, kind: Kind, body: AsyncIterator[bytes]) -> Upload:
        """Take a file in.

        Args:
            kind: What it shall be.
            body: Its bytes; whoever feeds them sees to size and speed (`guard.py`).

        Raises:
            Busy: Too many uploads, or no room on the disk.
            MediaError: It is no picture or clip, or breaks a limit.
        """
        name = secrets.token_hex(8)
        folder = self.folder / name
        with self._place():
            folder.mkdir()
            try:
                raw, out = folder / "raw", folder / FILES[kind]
                sent = await _write(raw, body)
                async with self._turns:
                    facts = await self._nursery.decode(kind, raw, out)
                raw.unlink()
                return await asyncio.to_thread(self.queue.add_upload, name, kind, facts | sent)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise

    def _place(self) -> _Place:
        if self._at_once >= self.limits.uploads:
            raise Busy(f"{self._at_once} uploads at once, the limit is {self.limits.uploads}")
        free = shutil.disk_usage(self.root).free // MIB
        if free < self.limits.free_mb:
            raise Busy(f"the server's disk is full: {free} MiB free")
        return _Place(self)

    def sweep(self, before: float) -> None:
        """Remove uploads of before that time that no job names, and what a kill has left."""
        for name in self.queue.forget_uploads(before):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for folder in self.folder.iterdir():
            with suppress(OSError):  # it may go meanwhile
                if folder.stat().st_mtime < before and self.queue.upload(folder.name) is None:
                    shutil.rmtree(folder, ignore_errors=True)

    async def close(self) -> None:
        """End the decoders."""
        await self._nursery.close()


class _Place:
    """One of the uploads at once."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def __enter__(self) -> None:
        self._intake._at_once += 1

    def __exit__(self, *_: object) -> None:
        self._intake._at_once -= 1


async def _write(path: Path, body: AsyncIterator[bytes]) -> dict[str, Any]:
    """Bytes onto the disk; their number and hash."""
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        async for piece in body:
            file.write(piece)
            digest.update(piece)
            size += len(piece)
    if not size:
        raise MediaError("the file is empty")
    return {"bytes": size, "sha256": digest.hexdigest()}


class Nursery:
    """The process that forks decoders (`decode.py`); begun with the first file."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._starting = asyncio.Lock()

    async def decode(self, kind: Kind, raw: Path, out: Path) -> dict[str, Any]:
        """What a child says of a file that it has written anew.

        Raises:
            Busy: The nursery broke down; the next call gets another one.
            MediaError: The child refuses it, or broke down over it.
        """
        name = secrets.token_hex(16)  # so that a child cannot answer for another
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        async with self._starting:
            process = await self._running()
            self._waiting[name] = answer
        ask = {"id": name, "kind": kind, "raw": str(raw), "out": str(out)}
        line = json.dumps({**ask, "limits": vars(self._limits)}) + "\n"
        try:
            assert process.stdin is not None
            process.stdin.write(line.encode())
            said = await asyncio.wait_for(answer, self._limits.decode_seconds + 10)
        except (TimeoutError, OSError) as error:
            raise Busy("the decoder does not answer; try again") from error
        finally:
            self._waiting.pop(name, None)
        if "refused" in said:
            raise MediaError(str(said["refused"]))
        return dict(said["facts"])

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "dreamactor.studio.decode"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env={k: os.environ[k] for k in KEPT if k in os.environ} | _one_thread(),
            )
            self._reader = asyncio.create_task(self._read(self._process))
        return self._process

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            said = json.loads(line)
            future = self._waiting.get(said["id"])
            if future is not None and not future.done():
                future.set_result(said)
        await process.wait()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Busy("the decoder broke down; try again"))

    async def close(self) -> None:
        """End it."""
        if self._process is None or self._process.stdin is None:
            return
        self._process.stdin.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), 5)
        if self._process.returncode is None:
            self._process.kill()


def _one_thread() -> dict[str, str]:
    """Threads of numeric libraries reserve memory, of which decoders have little."""
    return {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
