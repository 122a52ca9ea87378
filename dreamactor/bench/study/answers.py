"""What raters said: a file that only grows, one JSON object a line.

    {"rater": 3, "consent": SHA256 of the text, "time": UTC}
    {"rater": 3, "item": ID, "answer": {...}, "seconds": 8.1, "plays": 2, "time": UTC}

A line is on the disk before the rater's page hears of it, so that whatever kills the server takes
no answer with it. Of several answers to an item the last one counts.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dreamactor.bench.study.plan import CHOICES, DIMENSIONS, SCALE, Item, Plan, Rater
from dreamactor.errors import ConfigError, MediaError
from dreamactor.image import refusals


@dataclass(frozen=True)
class Answer:
    """What somebody said of an item."""

    said: Mapping[str, Any]
    """A score by dimension; or the choice of a pair."""
    seconds: float
    """That its page was in view, until the answer."""
    plays: int
    """How often the clips had come to their end by then."""
    time: str
    """UTC."""


@dataclass
class Said:
    """Everything that was said."""

    consents: dict[int, str]
    """When, by the rater's number."""
    answers: dict[int, dict[str, Answer]]
    """By rater's number and item's id."""

    def of(self, rater: Rater) -> Mapping[str, Answer]:
        """The answers of one rater, by item."""
        return self.answers.get(rater.number, {})


def check_answer(item: Item, said: Mapping[str, Any]) -> None:
    """Refuse what is no answer to an item.

    Raises:
        ConfigError: Says what is wanted.
    """
    if item.kind == "pair":
        if set(said) != {"choice"} or said["choice"] not in CHOICES:
            raise ConfigError(f"answer {dict(said)}: want choice: {', '.join(CHOICES)}")
        return
    fits = set(said) == set(DIMENSIONS)
    if not fits or any(type(x) is not int or x not in SCALE for x in said.values()):
        raise ConfigError(f"answer {dict(said)}: want {', '.join(DIMENSIONS)}, each 1 to 5")


def read_answers(plan: Plan) -> Said:
    """Read what was said so far; a last line that a crash tore is left out.

    Raises:
        ConfigError: A line that is no answer to this study's items.
    """
    found = Said({}, {})
    if not plan.answers.is_file():
        return found
    text = plan.answers.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            _take(plan, found, json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
            raise ConfigError(
                f"{plan.answers}:{number}: no answer of this study ({error}); "
                "mend or remove that line"
            ) from error
    return found


def _take(plan: Plan, found: Said, line: Mapping[str, Any]) -> None:
    rater = plan.by_number[line["rater"]]
    if "consent" in line:
        found.consents.setdefault(rater.number, line["time"])
        return
    check_answer(rater.by_id[line["item"]], line["answer"])
    answer = Answer(line["answer"], float(line["seconds"]), int(line["plays"]), line["time"])
    found.answers.setdefault(rater.number, {})[line["item"]] = answer


class Book:
    """The answers of a study that is being served; one process at a time holds it.

    Made by `open_book`. Safe to be used by several threads.
    """

    def __init__(self, plan: Plan, file: int) -> None:
        self.plan, self.said = plan, read_answers(plan)
        self._file, self._lock = file, threading.Lock()

    def agree(self, rater: Rater, text: str) -> None:
        """Keep that somebody has agreed to the text with this sha256."""
        with self._lock:
            if rater.number not in self.said.consents:
                self._append({"rater": rater.number, "consent": text, "time": _now()})

    def answer(
        self, rater: Rater, item: str, said: Mapping[str, Any], seconds: float, plays: int
    ) -> None:
        """Keep an answer.

        Raises:
            ConfigError: It is none, or the rater has not agreed to take part.
            MediaError: The rater has no such item, or the disk refuses.
        """
        if item not in rater.by_id:
            raise MediaError(f"no item {item!r}")
        check_answer(rater.by_id[item], said)
        with self._lock:
            if rater.number not in self.said.consents:
                raise ConfigError("nobody has agreed to take part yet: begin on the first page")
            line = {"rater": rater.number, "item": item, "answer": dict(said)}
            more = {"seconds": round(seconds, 1), "plays": plays, "time": _now()}
            self._append({**line, **more})

    def _append(self, line: dict[str, Any]) -> None:
        content = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        with refusals(self.plan.answers):
            before = os.fstat(self._file).st_size
            try:
                if os.write(self._file, content) != len(content):
                    raise OSError(28, "the disk is full")
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, before)  # nothing half said, nothing said unheard
                raise
        _take(self.plan, self.said, line)


@contextmanager
def open_book(plan: Plan) -> Iterator[Book]:
    """Hold the answers to add to them; what a crash tore at the end is cut off.

    Raises:
        ConfigError: Another process holds them, or they are damaged.
        MediaError: They cannot be written.
    """
    with refusals(plan.answers):
        file = os.open(plan.answers, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"{plan.root}: is being served already; end that, or use its links"
            ) from error
        with refusals(plan.answers):
            text = plan.answers.read_bytes()
            os.ftruncate(file, text.rfind(b"\n") + 1)
            os.fsync(file)
            _sync_folder(plan.root)
        yield Book(plan, file)
    finally:
        os.close(file)


def _sync_folder(path: Path) -> None:
    """The file's name is to last as its content does."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
