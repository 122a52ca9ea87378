"""Items made by this process, by local processes, or by a Ray cluster; the same for all of them.

    finish(todo)  ->  work(): one worker, until nothing is left  ->  Todo.attempt(item)

What an item is only its `Todo` knows. A worker that dies holds nothing up: its claim goes stale
(`work.claims`) and another worker, or the next run of the same command, makes the item again.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Literal, NoReturn, Protocol

from tqdm import tqdm

from dreamactor.errors import ConfigError

PAUSE = 0.5
"""Seconds between two looks at items that others are at."""
Outcome = Literal["made", "there", "busy", "failed"]


class Todo(Protocol):
    """Items to be made in a folder; pickled to go to workers, so it holds no open files."""

    @property
    def items(self) -> Sequence[str]:
        """Their names, in the same order for every worker."""
        ...

    @property
    def on_gpu(self) -> bool:
        """Whether a worker needs a GPU of its own."""
        ...

    def attempt(self, item: str) -> Outcome:
        """Make one item, unless it is there, or somebody is at it.

        A fault that the user can mend is written down, and the next item gets its turn.
        """
        ...

    def is_there(self, item: str) -> bool:
        """Whether an item is there; quick, so that progress can be asked for often."""
        ...

    def failure(self, item: str) -> str | None:
        """Why an item could not be made, if that was so."""
        ...


def finish(todo: Todo, workers: int = 0, ray: bool = False, before: int | None = None) -> None:
    """Make all items, showing progress.

    Args:
        todo: What there is to do.
        workers: Local processes, 0 = this one; with `ray` the number of actors.
        ray: Use Ray Data; the folder must be the same on all machines.
        before: How many are there already; None asks for each.

    Raises:
        ConfigError: Ray is not installed.
    """
    items = todo.items
    done = sum(map(todo.is_there, items)) if before is None else before
    with (
        tqdm(total=len(items), initial=done, unit="item", disable=None, leave=False) as bar,
        interruptible(),
    ):
        if ray:
            _spread(todo, max(1, workers), bar.update)
        elif workers:
            _share(todo, workers, lambda n: bar.update(n - bar.n))
        else:
            work(todo, tick=bar.update)


def work(
    todo: Todo,
    items: Sequence[str] | None = None,
    first: int = 0,
    tick: Callable[[], object] = lambda: None,
) -> None:
    """One worker: make items until all are there, also those that other workers leave behind.

    Args:
        todo: What there is to do.
        items: Some of its items; None means all.
        first: Where in the list to begin, so that workers seldom meet.
        tick: Called after every item that this worker made or failed at.
    """
    left = list(todo.items if items is None else items)
    left = left[first:] + left[:first]
    while left:
        outcomes = []
        for item in left:
            outcomes.append(todo.attempt(item))
            if outcomes[-1] in ("made", "failed"):
                tick()
        left = [item for item, outcome in zip(left, outcomes, strict=True) if outcome == "busy"]
        if left:
            time.sleep(PAUSE)


def _share(todo: Todo, workers: int, settled: Callable[[int], object]) -> None:
    """Local processes; the work is done when all items are, whoever fell by the way."""
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_serve, args=(todo, k * len(todo.items) // workers))
        for k in range(workers)
    ]
    try:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):  # also reaps the dead
            for process in processes:
                process.join(PAUSE / workers)
            settled(sum(todo.is_there(i) or todo.failure(i) is not None for i in todo.items))
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
            process.join()


def _serve(todo: Todo, first: int) -> None:
    """A local worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's
    try:
        with interruptible():
            work(todo, first=first)
    except KeyboardInterrupt:  # no traceback among the parent's words
        sys.exit(130)


class _Actor:
    """A Ray worker."""

    def __init__(self, todo: Todo) -> None:
        self.todo = todo

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Make the item of a row; what else is at it is waited for, so that none is left out."""
        work(self.todo, [row["item"]])
        return row


def _spread(todo: Todo, actors: int, tick: Callable[[], object]) -> None:
    """Ray Data."""
    try:
        import ray.data
    except ImportError as error:
        raise ConfigError(
            "ray=true: Ray is not installed; pip install 'dreamactor[ray]', or use workers=N"
        ) from error
    rows = [{"item": item} for item in todo.items if not todo.is_there(item)]
    made = ray.data.from_items(rows, override_num_blocks=max(1, len(rows))).map(
        _Actor,
        fn_constructor_args=(todo,),
        concurrency=actors,
        num_gpus=1 if todo.on_gpu else 0,
    )
    for _ in made.iter_rows():
        tick()


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that hidden folders and claims go."""
    try:
        kept = signal.signal(signal.SIGTERM, _interrupt)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, kept)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
