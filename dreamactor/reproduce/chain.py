"""Stage after stage, within a time budget: killed at any moment, the same call goes on.

    out/stages/NAME.json   settings of a stage and their hash, minutes it may take, seconds it took,
                           and what came of it once it is done
    out/report.html        written anew after every stage
    out/...                a folder a stage (`stages`)

What is left of the time is shared out before each stage, so one that ends early or late changes
what those behind it get, and the whole stays what was asked for.
"""

from __future__ import annotations

import fcntl
import gc
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from dreamactor.bench.timing import hardware
from dreamactor.errors import ConfigError
from dreamactor.image import refusals
from dreamactor.reproduce.settings import STAGES, ReproduceConfig
from dreamactor.reproduce.stages import Stage, Time, build
from dreamactor.runs import write_text

BEAT = 5.0
"""Seconds between notes of how long a stage has taken: so much of the time is lost by a kill."""
Say = Callable[[str], object]


@dataclass(frozen=True)
class Mark:
    """What is known of a stage that was begun."""

    settings: dict[str, Any]
    digest: str
    """Hash of its settings and of the stages that it rests on."""
    minutes: float
    """What it may take."""
    seconds: float = 0.0
    """What it has taken."""
    done: bool = False
    hardware: str = ""
    result: str = ""
    """What came of it, in words."""
    ended: str = ""
    """When, UTC."""
    starts: int = 0
    """Processes that were at it."""


def reproduce(config: ReproduceConfig, say: Say = lambda line: None) -> Path:
    """Do every stage that is not done; the report.

    Args:
        config: What is asked for.
        say: Gets a line when a stage begins and when it ends.

    Raises:
        ConfigError: A setting cannot work or is not the one that a stage was begun with, the time
            is used up, or another process is at it.
        DreamActorError: What the stages raise.
    """
    stages = build(config)  # refuses before anything is written
    with _alone(config.out):
        marks = read_marks(config.out)
        check(config.out, stages, marks)
        for number, stage in enumerate(stages, 1):
            label = f"[{number}/{len(stages)}] {stage.name}"
            known = marks.get(stage.name)
            if known is not None and known.done:
                say(f"{label}: done before, in {span(known.seconds)}; {known.result}")
                continue
            minutes = known.minutes if known else _allot(config, stages, marks, stage)
            began = known or Mark(dict(stage.settings), digest(stage, stages), minutes)
            say(f"{label}: {STAGES[stage.name]}; {_outlook(config, marks, began)}")
            ended = _carry_out(config.out, stage, began)
            marks[stage.name] = ended
            say(f"{label}: done in {span(ended.seconds)}; {ended.result}")
            _report(config, stages, marks)
        return _report(config, stages, marks)


def plan(config: ReproduceConfig) -> list[str]:
    """What `reproduce` would do, a line a stage; writes nothing.

    Raises:
        ConfigError: As `reproduce`, where that can be known before.
    """
    stages = build(config)
    marks = read_marks(config.out)
    check(config.out, stages, marks)
    open_ = [s.name for s in stages if s.name not in marks]
    left = config.minutes - sum(mark.seconds for mark in marks.values()) / 60
    lines = []
    for stage in stages:
        mark = marks.get(stage.name)
        if mark is not None:
            when = f"{'done' if mark.done else 'begun'}, {span(mark.seconds)}"
        else:
            share = config.parts[stage.name] / sum(config.parts[name] for name in open_)
            when = f"about {span(60 * max(0.0, left) * share)}"
        lines.append(f"{stage.name:11} {when:20} {STAGES[stage.name]}")
    return [*lines, f"settings {digest(stages[-1], stages)}"]


def digest(stage: Stage, stages: Sequence[Stage]) -> str:
    """Hash of a stage's settings and, through those before it, of all that it rests on."""
    before = {s.name: digest(s, stages) for s in stages if s.name in stage.after}
    text = json.dumps([stage.name, dict(stage.settings), before], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_marks(out: Path) -> dict[str, Mark]:
    """Marks of all stages that were begun."""
    found = {}
    for name in STAGES:
        path = _path(out, name)
        if path.is_file():
            try:
                found[name] = Mark(**json.loads(path.read_text()))
            except (ValueError, TypeError) as error:
                raise ConfigError(f"{path}: not the mark of a stage ({error})") from error
    return found


def check(out: Path, stages: Sequence[Stage], marks: Mapping[str, Mark]) -> None:
    """Refuse settings with which what is there was not made.

    Raises:
        ConfigError: Names the first stage and the settings that differ.
    """
    for stage in stages:
        mark = marks.get(stage.name)
        if mark is None:
            continue
        for name in stage.after:
            if name not in marks or not marks[name].done:
                raise ConfigError(
                    f"{_path(out, stage.name)}: this stage was begun, and {name}, which it rests "
                    f"on, is not done; put stages/{name}.json back, or name another folder by out="
                )
        if mark.digest == digest(stage, stages):
            continue
        now, then = json.loads(json.dumps(dict(stage.settings))), mark.settings
        keys = sorted(k for k in now.keys() | then.keys() if now.get(k) != then.get(k))
        what = ", ".join(f"{k} ({_brief(then.get(k))}, now {_brief(now.get(k))})" for k in keys)
        raise ConfigError(
            f"{out}: stage {stage.name} was {'made' if mark.done else 'begun'} with another "
            f"{what}; go on with the old settings, or name another folder by out="
        )
    if unknown := sorted(marks.keys() - {stage.name for stage in stages}):
        raise ConfigError(
            f"{out}: stage {unknown[0]} was begun, and these settings have none; go on with the "
            "old ones, or name another folder by out="
        )


def _brief(value: object) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 20 else f"{text[:12]}..."


def _allot(
    config: ReproduceConfig, stages: Sequence[Stage], marks: Mapping[str, Mark], stage: Stage
) -> float:
    """Minutes of a stage that begins now: its share of what is left."""
    left = config.minutes - sum(mark.seconds for mark in marks.values()) / 60
    if left <= 0 and stage.timed:
        raise ConfigError(
            f"minutes={config.minutes:g} are used up before the stage {stage.name}; go on with "
            f"minutes={config.minutes * 1.5 - min(0.0, left):.4g}, say"
        )
    open_ = [s.name for s in stages if s.name not in marks]
    parts = config.parts
    return max(0.0, left) * parts[stage.name] / sum(parts[name] for name in open_)


def _outlook(config: ReproduceConfig, marks: Mapping[str, Mark], mark: Mark) -> str:
    """How long a stage and the whole may still take."""
    own = max(0.0, 60 * mark.minutes - mark.seconds)
    spent = mark.seconds + sum(m.seconds for m in marks.values() if m.done)
    left = max(own, 60 * config.minutes - spent)
    at = datetime.now() + timedelta(seconds=left)
    again = f", {span(mark.seconds)} were spent on it before" if mark.starts else ""
    return f"about {span(own)}{again}; all is done in about {span(left)} (ETA {at:%H:%M})"


def span(seconds: float) -> str:
    """A time in words, such as "40 s" or "12.5 min"."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _carry_out(out: Path, stage: Stage, mark: Mark) -> Mark:
    """Run a stage while its seconds are noted; its mark when it is done."""
    start, stop = time.monotonic(), threading.Event()
    begun = replace(mark, starts=mark.starts + 1)

    def now(**changes: Any) -> Mark:
        spent = mark.seconds + time.monotonic() - start
        return replace(begun, seconds=round(spent, 1), **changes)

    def beat() -> None:
        while not stop.wait(BEAT):
            _write(out, stage.name, now())

    _write(out, stage.name, begun)
    beating = threading.Thread(target=beat, daemon=True)
    beating.start()
    finished: dict[str, Any] = {}
    try:
        given = Time(mark.minutes, lambda: mark.minutes - now().seconds / 60)
        result = stage.run(given)
        ended = datetime.now(UTC).isoformat(timespec="seconds")
        finished = {"done": True, "hardware": _machine(), "result": result, "ended": ended}
    finally:
        stop.set()
        beating.join()
        last = now(**finished)
        _write(out, stage.name, last)
        _let_go()
    return last


def _machine() -> str:
    import torch

    return hardware("cuda" if torch.cuda.is_available() else "cpu")


def _let_go() -> None:
    """Memory of a stage, for the next one."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _path(out: Path, name: str) -> Path:
    return out / "stages" / f"{name}.json"


def _write(out: Path, name: str, mark: Mark) -> None:
    write_text(_path(out, name), json.dumps(asdict(mark), indent=1) + "\n")


def _report(config: ReproduceConfig, stages: Sequence[Stage], marks: Mapping[str, Mark]) -> Path:
    from dreamactor.reproduce.page import write_page

    return write_page(config, [stage.name for stage in stages], marks)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """The folder, made if needed, while no other process is at it."""
    with refusals(out):
        (out / "stages").mkdir(parents=True, exist_ok=True)
        file = (out / "lock").open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{out}: another process is at work on it; wait for it") from error
        yield
