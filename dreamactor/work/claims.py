"""Claims: which worker is at which item, through files alone, so on any shared folder.

A claim on item X is a file X.0 that only one process can create (O_CREAT | O_EXCL). Its owner
touches it every `BEAT` seconds. A claim is stale when it has not been touched for `expiry` seconds,
or when its owner ran on this machine and is dead; then the next worker creates X.1, and so on:
the highest number counts, and nothing is ever taken from under anybody. Clocks of several
machines must agree to a fraction of `expiry`.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dreamactor.image import refusals

BEAT = 5.0
"""Seconds between two signs of life."""
EXPIRY = 60.0
"""Seconds without a sign of life after which an item is taken over."""


@dataclass(frozen=True)
class Claim:
    """A right to work on an item, as long as `held`."""

    claims: Claims
    item: str
    number: int

    @property
    def path(self) -> Path:
        """The file."""
        return self.claims.folder / f"{self.item}.{self.number}"

    @property
    def held(self) -> bool:
        """Whether nobody has taken over; a worker that was stopped for long has to ask."""
        return self.claims.numbers(self.item)[-1:] == [self.number]


class Claims:
    """The claims in a folder.

    Args:
        folder: Made if it is not there.
        expiry: Seconds until a silent owner counts as dead.
    """

    def __init__(self, folder: Path, expiry: float = EXPIRY) -> None:
        self.folder, self.expiry = folder, expiry
        with refusals(folder):
            folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def take(self, item: str) -> Iterator[Claim | None]:
        """Claim an item for the length of the block; None if somebody is at it."""
        claim = self._create(item)
        if claim is None:
            yield None
            return
        ended = threading.Event()
        beat = threading.Thread(target=self._beat, args=(claim, ended), daemon=True)
        beat.start()
        try:
            yield claim
        finally:
            ended.set()
            beat.join()
            self._release(claim)

    def numbers(self, item: str) -> list[int]:
        """Numbers of an item's claims, rising."""
        return sorted(int(path.suffix[1:]) for path in self.folder.glob(f"{item}.*"))

    def is_stale(self, path: Path) -> bool:
        """Whether the owner of a claim is dead, or silent for too long; True if it is gone."""
        try:
            silent = time.time() - path.stat().st_mtime
            owner = json.loads(path.read_text() or "{}")
        except FileNotFoundError:
            return True
        except ValueError:  # being written
            owner = {}
        if silent > self.expiry:
            return True
        return bool(owner.get("machine") == _machine() and not _lives(owner["process"]))

    def _create(self, item: str) -> Claim | None:
        numbers = self.numbers(item)
        if any(not self.is_stale(self.folder / f"{item}.{k}") for k in numbers[-1:]):
            return None
        claim = Claim(self, item, numbers[-1] + 1 if numbers else 0)
        owner = {"machine": _machine(), "process": os.getpid(), "key": secrets.token_hex(8)}
        try:
            with claim.path.open("x") as file:
                file.write(json.dumps(owner))
        except FileExistsError:
            return None
        # Between looking and creating, an owner may have let go and another begun at number 0.
        lower = [self.folder / f"{item}.{k}" for k in self.numbers(item) if k < claim.number]
        if claim.held and all(map(self.is_stale, lower)):
            return claim
        claim.path.unlink(missing_ok=True)
        return None

    def _beat(self, claim: Claim, ended: threading.Event) -> None:
        while not ended.wait(min(BEAT, self.expiry / 4)):
            with suppress(FileNotFoundError):
                os.utime(claim.path)

    def _release(self, claim: Claim) -> None:
        for number in self.numbers(claim.item):
            if number < claim.number:
                (self.folder / f"{claim.item}.{number}").unlink(missing_ok=True)
        claim.path.unlink(missing_ok=True)


def _machine() -> str:
    """This start of this machine, and this space of process numbers (containers have others)."""
    names = []
    for path, read in (
        ("/proc/sys/kernel/random/boot_id", Path.read_text),
        ("/proc/self/ns/pid", os.readlink),
    ):
        with suppress(OSError):
            names.append(read(Path(path)).strip())
    return "/".join([os.uname().nodename, *names])


def _lives(process: int) -> bool:
    """Whether a process runs; one that ended and was not yet asked for its result does not."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except OSError:  # another user's, or no /proc
        return True
