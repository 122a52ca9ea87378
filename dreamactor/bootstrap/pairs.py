"""`dreamactor bootstrap pairs`: stage 1 on source clips and new identities, into a data set.

    requests -> attempt(): claim, make, publish       one item, the same function everywhere
             -> work()                                one worker: until nothing is left
             -> in this process | local processes | Ray

A worker that dies holds nothing up: its claim goes stale and another worker, or the next run of
the same command, makes the item again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn

from tqdm import tqdm

from dreamactor.backbones.load import Variant, check_pose
from dreamactor.bootstrap.claims import EXPIRY
from dreamactor.bootstrap.generators import Animator, Generator
from dreamactor.bootstrap.manifest import DataSet, Request
from dreamactor.bootstrap.sources import Folders, Sources, World
from dreamactor.config import check_device, check_least
from dreamactor.errors import ConfigError, DreamActorError, MediaError
from dreamactor.provenance import sha256, versions
from dreamactor.runs import write_text
from dreamactor.video import probe

PAUSE = 0.5
"""Seconds between two looks at items that others are at."""
Outcome = Literal["made", "there", "busy", "failed"]


@dataclass(frozen=True)
class PairsConfig:
    """Settings of `bootstrap pairs`, besides its folders."""

    count: int = 100
    """Pairs of the world; of folders, every clip is taken."""
    per_source: int = 1
    """Identities that each clip gets."""
    seed: int = 0
    """Of the choice of identities and of the noise."""
    split: str = "train"
    """Of the world: train, validation or test."""
    backbone: str = "nano"
    """What animates."""
    weights: Path | None = None
    """Folder of its weights; none takes those that ship."""
    adapter: Path | None = None
    """Adapter of `train pose` or `train rgb` for it; none means none."""
    variant: Variant = "rgb"
    """What drives: the source clip itself, or with pose (the paper's stage 1) its skeletons."""
    pose: str | None = None
    """Who finds the joints of the pose variant; none takes keypoints."""
    estimator: Path | None = None
    """Its weights; none takes those that ship."""
    steps: int | None = None
    """Sampling steps; none takes the model's default."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    threads: int = 4
    """CPU threads of a worker; has a say in the last bits."""
    workers: int = 0
    """Local processes; 0 = this one alone."""
    ray: bool = False
    """Spread over the Ray cluster that this machine belongs to; `workers` = actors, at least 1."""
    expiry: float = EXPIRY
    """Seconds without a sign of life until a worker of another machine counts as dead."""

    def __post_init__(self) -> None:
        check_least(self, {"count": 1, "per_source": 1, "workers": 0, "expiry": 1})
        check_device(self.device)
        check_pose(self.variant, self.pose)


def animator(config: PairsConfig) -> Animator:
    """The generator that settings ask for; it loads its weights when called."""
    return Animator(
        config.backbone,
        config.weights,
        config.steps,
        config.device,
        config.threads,
        config.adapter,
        config.variant,
        config.pose,
        config.estimator,
    )


@dataclass(frozen=True)
class Made:
    """What a run of `make_pairs` found and did."""

    data: DataSet
    items: int
    """Items asked for."""
    made: int
    """Of them made by this run."""
    failed: dict[str, str]
    """Why an item could not be made, by its name; the next run tries again."""


def make_pairs(
    out: Path,
    sources: Sources,
    generator: Generator,
    workers: int = 0,
    ray: bool = False,
    expiry: float = EXPIRY,
) -> Made:
    """Make every item that is missing; the same call goes on where an earlier one stopped.

    Args:
        out: The data set, made or continued; several machines may work on it at once.
        sources: What is asked for.
        generator: Stage 1.
        workers: Local processes, 0 = this one; with `ray` the number of actors.
        ray: Use Ray Data.
        expiry: As of `Claims`.

    Raises:
        ConfigError: The data set was begun with another generator, or Ray is not installed.
        MediaError: Inputs cannot be read, nothing can be written, or all workers died.
    """
    about = json.loads(json.dumps(dict(generator.about)))
    data = DataSet.begin(out, about, expiry)
    requests = list({r.item: r for r in sources.requests(data, about)}.values())
    _forget_failures(data, requests)
    before = sum(map(data.is_whole, (r.item for r in requests)))
    with (
        tqdm(total=len(requests), initial=before, unit="item", disable=None, leave=False) as bar,
        _interruptible(),
    ):
        if ray:
            _spread(data, requests, generator, max(1, workers), bar.update)
        elif workers:
            _share(data, requests, generator, workers, lambda n: bar.update(n - bar.n))
        else:
            work(data, requests, generator, tick=bar.update)
    data.write_manifest()
    failed = {r.item: why for r in requests if (why := _failure(data, r.item)) is not None}
    missing = len({r.item for r in requests} - set(data.items()) - failed.keys())
    if missing:
        raise MediaError(
            f"{out}: {missing} of {len(requests)} items are missing since all workers died, "
            "perhaps for want of memory; the same command goes on, with fewer of them by "
            f"workers={max(1, workers // 2)}"
        )
    return Made(data, len(requests), len(requests) - before - len(failed), failed)


def run_pairs(
    out: Path, sources: Path | None, references: Path | None, cast: Path | None, config: PairsConfig
) -> str:
    """What the command line asks for; says what came of it.

    Raises:
        ConfigError: Neither two folders nor a cast pack, or a setting cannot work.
        MediaError: As `make_pairs`; or items could not be made: the first is named.
    """
    if (cast is None) == (sources is None) or (sources is None) != (references is None):
        raise ConfigError("want --sources and --references together, or --cast alone")
    asked: Sources
    if cast is not None:
        from dreamactor.world.cast import load_cast
        from dreamactor.world.pairs import PairSampler

        sampler = PairSampler(load_cast(cast), config.split)
        asked = World(sampler, config.count, config.per_source, config.seed)
    else:
        assert sources is not None
        assert references is not None
        asked = Folders(sources, references, config.per_source, config.seed)
    done = make_pairs(out, asked, animator(config), config.workers, config.ray, config.expiry)
    if done.failed:
        item, why = next(iter(done.failed.items()))
        raise MediaError(
            f"{out}: {len(done.failed)} of {done.items} items could not be made, the others are "
            f"there. The first, {item}: {why}"
        )
    return f"{out}: {done.items} items, {done.made} of them made now"


def attempt(data: DataSet, request: Request, generator: Generator) -> Outcome:
    """Make one item, unless it is there, or somebody is at it.

    A fault that the user can mend is written down, and the next item gets its turn.
    """
    item = request.item
    with data.claims.take(item) as claim:
        if claim is None:
            return "busy"
        if data.is_whole(item):
            return "there"
        if _failure(data, item) is not None:
            return "failed"
        try:
            with data.publishing(claim) as folder:
                start = time.perf_counter()
                generator(request.forward, folder / "clip.mp4")
                facts = _facts(request, folder / "clip.mp4", time.perf_counter() - start)
                write_text(folder / "item.json", json.dumps(facts, indent=1) + "\n")
        except DreamActorError as error:
            (data.root / "failed").mkdir(exist_ok=True)
            write_text(data.root / "failed" / f"{item}.json", json.dumps({"why": str(error)}))
            return "failed"
    return "made"


def work(
    data: DataSet,
    requests: Sequence[Request],
    generator: Generator,
    first: int = 0,
    tick: Callable[[], object] = lambda: None,
) -> None:
    """Make items until all are there, also those that other workers leave behind.

    Args:
        data: The data set.
        requests: All items, in the same order for every worker.
        generator: Stage 1.
        first: Where in the list to begin, so that workers seldom meet.
        tick: Called after every item that this worker made or failed at.
    """
    left = [*requests[first:], *requests[:first]]
    while left:
        outcomes = []
        for request in left:
            outcomes.append(attempt(data, request, generator))
            if outcomes[-1] in ("made", "failed"):
                tick()
        left = [r for r, outcome in zip(left, outcomes, strict=True) if outcome == "busy"]
        if left:
            time.sleep(PAUSE)


def _facts(request: Request, clip: Path, seconds: float) -> dict[str, Any]:
    """item.json.

    Raises:
        MediaError: The clip does not show the moments that the source clip shows.
    """
    forward = request.forward
    given, made = probe(forward.source.path), probe(clip)
    if (made.frames, made.fps) != (given.frames, given.fps):
        raise MediaError(
            f"{forward.source.path.name}: {given.frames} frames at {given.fps} gave "
            f"{made.frames} at {made.fps}: want a source clip of constant rate"
        )
    return {
        "item": request.item,
        "source": {"file": forward.source.path.name, "sha256": forward.source.sha256},
        "identity": {"file": forward.identity.path.name, "sha256": forward.identity.sha256},
        "seed": forward.seed,
        "generator": dict(request.generator),
        "clip": {"sha256": sha256(clip), "frames": made.frames, "fps": str(made.fps)},
        "synthetic": True,
        "notes": dict(request.notes),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "by": f"{platform.node()}/{os.getpid()}",
        "seconds": round(seconds, 3),
        "versions": versions(),
    }


def _failure(data: DataSet, item: str) -> str | None:
    path = data.root / "failed" / f"{item}.json"
    return str(json.loads(path.read_text())["why"]) if path.is_file() else None


def _forget_failures(data: DataSet, requests: Iterable[Request]) -> None:
    for request in requests:
        (data.root / "failed" / f"{request.item}.json").unlink(missing_ok=True)


# ---- many workers -----------------------------------------------------------------------------


def _share(
    data: DataSet,
    requests: Sequence[Request],
    generator: Generator,
    workers: int,
    settled: Callable[[int], object],
) -> None:
    """Local processes; the work is done when all items are, whoever fell by the way."""
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(
            target=_serve,
            args=(data.root, data.claims.expiry, requests, generator, k * len(requests) // workers),
        )
        for k in range(workers)
    ]
    try:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):  # also reaps the dead
            for process in processes:
                process.join(PAUSE / workers)
            there = sum((data.folder(r.item) / "item.json").is_file() for r in requests)
            settled(there + len(list((data.root / "failed").glob("*.json"))))
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
            process.join()


def _serve(
    root: Path, expiry: float, requests: Sequence[Request], generator: Generator, first: int
) -> None:
    """A local worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's
    try:
        with _interruptible():
            work(DataSet(root, expiry), requests, generator, first)
    except KeyboardInterrupt:  # no traceback among the parent's words
        sys.exit(130)


class _Actor:
    """A Ray worker."""

    def __init__(self, root: Path, expiry: float, generator: Generator) -> None:
        self.data, self.generator = DataSet(root, expiry), generator

    def __call__(self, row: dict[str, Request]) -> dict[str, str]:
        """Make the item of a row; what else is at it is waited for, so that none is left out."""
        work(self.data, [row["item"]], self.generator)
        return {"item": row["item"].item}


def _spread(
    data: DataSet,
    requests: Sequence[Request],
    generator: Generator,
    actors: int,
    tick: Callable[[], object],
) -> None:
    """Ray Data; the data set's folder must be the same on all machines."""
    try:
        import ray.data
    except ImportError as error:
        raise ConfigError(
            "ray=true: Ray is not installed; pip install 'dreamactor[ray]', or use workers=N"
        ) from error
    todo = [{"item": r} for r in requests if not data.is_whole(r.item)]
    rows = ray.data.from_items(todo, override_num_blocks=max(1, len(todo))).map(
        _Actor,
        fn_constructor_args=(data.root, data.claims.expiry, generator),
        concurrency=actors,
        num_gpus=1 if str(data.generator.get("device")) == "cuda" else 0,
    )
    for _ in rows.iter_rows():
        tick()


@contextmanager
def _interruptible() -> Iterator[None]:
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
