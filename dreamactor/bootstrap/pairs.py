"""`dreamactor bootstrap pairs`: stage 1 on source clips and new identities, into a data set.

requests -> Making.attempt(): claim, make, publish    one item, the same function everywhere
         -> work.workers.finish()                     in this process | local processes | Ray
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from dreamactor.backbones.load import Variant, check_pose
from dreamactor.bootstrap.generators import Animator, Generator
from dreamactor.bootstrap.manifest import DataSet, Request
from dreamactor.bootstrap.sources import Folders, Sources, World
from dreamactor.config import check_device, check_least
from dreamactor.errors import ConfigError, DreamActorError, MediaError
from dreamactor.provenance import sha256, versions
from dreamactor.runs import write_text
from dreamactor.video import probe
from dreamactor.work.claims import EXPIRY
from dreamactor.work.workers import Outcome, finish


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
    size: int = 256
    """Pixels of a side of its pairs; what the backbone was trained at."""
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
        check_least(self, {"count": 1, "per_source": 1, "size": 32, "workers": 0, "expiry": 1})
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
    making = Making(
        data.root, expiry, generator, {r.item: r for r in sources.requests(data, about)}
    )
    _forget_failures(data, making.items)
    before = sum(map(data.is_whole, making.items))
    finish(making, workers, ray, before)
    data.write_manifest()
    failed = {item: why for item in making.items if (why := making.failure(item)) is not None}
    missing = len(making.requests.keys() - set(data.items()) - failed.keys())
    if missing:
        raise MediaError(
            f"{out}: {missing} of {len(making.items)} items are missing since all workers died, "
            "perhaps for want of memory; the same command goes on, with fewer of them by "
            f"workers={max(1, workers // 2)}"
        )
    count = len(making.items)
    return Made(data, count, count - before - len(failed), failed)


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

        sampler = PairSampler(load_cast(cast), config.split, config.size)
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


@dataclass(frozen=True)
class Making:
    """Requests to a generator, for `work.workers`."""

    root: Path
    """The data set."""
    expiry: float
    """As of `Claims`."""
    generator: Generator
    """Stage 1."""
    requests: Mapping[str, Request]
    """By the names of their items."""

    @cached_property
    def data(self) -> DataSet:
        """The data set, opened once a process."""
        return DataSet(self.root, self.expiry)

    @property
    def items(self) -> Sequence[str]:
        """Names of the items."""
        return list(self.requests)

    @property
    def on_gpu(self) -> bool:
        """Whether the generator runs on one."""
        return str(self.data.generator.get("device")) == "cuda"

    def is_there(self, item: str) -> bool:
        """Whether it was published; whether it is whole, `attempt` looks."""
        return (self.data.folder(item) / "item.json").is_file()

    def failure(self, item: str) -> str | None:
        """Why an item could not be made."""
        return _failure(self.data, item)

    def attempt(self, item: str) -> Outcome:
        """Claim, make, publish."""
        data, request = self.data, self.requests[item]
        with data.claims.take(item) as claim:
            if claim is None:
                return "busy"
            if data.is_whole(item):
                return "there"
            if self.failure(item) is not None:
                return "failed"
            try:
                with data.publishing(claim) as folder:
                    start = time.perf_counter()
                    self.generator(request.forward, folder / "clip.mp4")
                    facts = _facts(request, folder / "clip.mp4", time.perf_counter() - start)
                    write_text(folder / "item.json", json.dumps(facts, indent=1) + "\n")
            except DreamActorError as error:
                (data.root / "failed").mkdir(exist_ok=True)
                write_text(data.root / "failed" / f"{item}.json", json.dumps({"why": str(error)}))
                return "failed"
        return "made"


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


def _forget_failures(data: DataSet, items: Iterable[str]) -> None:
    for item in items:
        (data.root / "failed" / f"{item}.json").unlink(missing_ok=True)
