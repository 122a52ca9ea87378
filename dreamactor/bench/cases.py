"""Held-out pairs of the world as cases, drawn here or in worker processes.

A case of index i is pair i of (seed, "test"): both identities and the motion are unseen in
training. Its T = 16 frames are the target's; the driving clip is aligned with them, and the
driver's frame before the first one is kept beside it.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from dreamactor import __version__
from dreamactor.bench import evaluate
from dreamactor.bench.evaluate import Case
from dreamactor.bench.settings import BenchConfig
from dreamactor.errors import AssetError
from dreamactor.runs import begin_worker
from dreamactor.world.cast import Cast, load_cast
from dreamactor.world.pairs import Pair, PairSampler
from dreamactor.world.scene import Joints

if TYPE_CHECKING:
    from dreamactor.bench.perceptual import Perceptual
    from dreamactor.bench.pointing import Pointing

SPLIT = "test"


@dataclass(frozen=True)
class Source:
    """Where cases come from."""

    cast: Path
    """Cast pack."""
    seed: int = 0
    size: int = 256
    """Pixels of a side."""

    def name(self, index: int) -> str:
        """Name of a case."""
        return f"{SPLIT}/{self.seed}/{index:04d}"

    def sampler(self) -> PairSampler:
        """Draws the pairs; opens no graphics yet.

        Raises:
            AssetError: The pack is missing or damaged, or has no test split.
        """
        return PairSampler(load_cast(self.cast), SPLIT, self.size)


def cases(cast: Cast, count: int, seed: int = 0, size: int = 256) -> Iterator[Case]:
    """The first `count` cases of a pack, one by one.

    Args:
        cast: A loaded pack with a test split.
        count: How many.
        seed: Of the pairs.
        size: Pixels of a side.
    """
    sampler = PairSampler(cast, SPLIT, size)
    for index in range(count):
        yield as_case(sampler.pair(seed, index, truth=True), f"{SPLIT}/{seed}/{index:04d}", index)


def as_case(pair: Pair, name: str, index: int) -> Case:
    """A pair, drawn with truth, as a case."""
    assert pair.flow is not None, "draw the pair with truth=True"
    rgb = np.ascontiguousarray(pair.driving[..., :3])
    return Case(
        name=name,
        domain=pair.spec.domain,
        style=pair.spec.target.style.kind,
        framing=pair.spec.target.framing,
        reference=np.ascontiguousarray(pair.reference[..., :3]),
        driving=rgb[1:],
        truth=np.ascontiguousarray(pair.target[..., :3]),
        mask=pair.target[..., 3] > 0,
        flow=pair.flow,
        index=index,
        before=rgb[0],
        caption=pair.caption,
        joints=_behind_first(pair.target_joints),  # the reference
        driver=_behind_first(pair.driving_joints),  # the frame before
    )


def _behind_first(joints: Joints) -> Joints:
    """The same from the second frame on."""
    later = {k: getattr(joints, k)[1:] for k in ("pixels", "depth", "visible")}
    return replace(joints, **later)


class Studio:
    """Draws cases, here or in worker processes, and lends those to the metrics.

    Args:
        source: What is drawn.
        processes: Workers; 0 draws in this process, one case when it is asked for.

    Example:
        >>> with Studio(Source(Path("full.castpack")), 8) as studio:  # doctest: +SKIP
        ...     evaluate.run(studio.cases(range(200)), systems, path, pool=studio.pool)
    """

    def __init__(self, source: Source, processes: int = 0) -> None:
        self.source, self.processes = source, processes
        self.sampler = source.sampler()  # here too, so that a bad pack is refused at once
        self.pool: Executor | None = None

    @property
    def about(self) -> dict[str, Any]:
        """What the pictures depend on, for `evaluate.Options.about`."""
        return {
            "version": __version__,
            "cast": self.sampler.cast.digest,
            "seed": self.source.seed,
            "size": self.source.size,
        }

    def __enter__(self) -> Self:
        if self.processes:
            self.pool = ProcessPoolExecutor(
                self.processes, multiprocessing.get_context("spawn"), _prepare, (self.source,)
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=kind is None, cancel_futures=True)
        if isinstance(fault, BrokenProcessPool):
            raise AssetError(
                "a worker process died, perhaps for want of memory; the same command goes on "
                f"where it stopped, with fewer workers by processes={max(1, self.processes // 2)}"
            ) from fault

    def cases(self, indices: Sequence[int]) -> Drawing:
        """Cases of these indices, in order, lazily."""
        return Drawing(self, indices)

    def measure(
        self,
        path: Path,
        systems: evaluate.Systems,
        config: BenchConfig,
        perceptual: Perceptual | None,
        options: evaluate.Options,
        pointing: Pointing | None = None,
    ) -> tuple[list[evaluate.Record], list[str], bool]:
        """Measure the first cases, as far as they are not measured yet.

        Args:
            path: results.jsonl of the run.
            systems: By name.
            config: How many cases, and how many at once.
            perceptual: Network of ST-LPIPS, or None.
            options: What is measured.
            pointing: Finds joints, or None.

        Returns:
            All records of the file, the names of the cases, and whether any was measured now.
        """
        names = {self.source.name(i): i for i in range(config.count)}
        todo = [names[name] for name in evaluate.missing(path, systems, names)]
        records = evaluate.run(
            self.cases(todo),
            systems,
            path,
            perceptual,
            options,
            config.at_once,
            self.pool,
            pointing,
        )
        return records, list(names), bool(todo)

    def case(self, index: int) -> Case:
        """One case, drawn here."""
        return _case(self.source, self.sampler, index)


@dataclass(frozen=True)
class Drawing:
    """Cases that come as they are asked for; workers draw a few ahead."""

    studio: Studio
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Case]:
        pool = self.studio.pool
        if pool is None:
            yield from map(self.studio.case, self.indices)
            return
        waiting: deque[Future[Case]] = deque()
        for index in self.indices:
            waiting.append(pool.submit(_draw, index))
            if len(waiting) > 2 * self.studio.processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


_worker: tuple[Source, PairSampler]  # of a worker process


def _prepare(source: Source) -> None:
    """Start a worker: one thread each, since there is a worker a core; Ctrl-C is the parent's."""
    import torch

    global _worker
    begin_worker()
    torch.set_num_threads(1)
    _worker = source, source.sampler()


def _draw(index: int) -> Case:
    return _case(*_worker, index)


def _case(source: Source, sampler: PairSampler, index: int) -> Case:
    return as_case(sampler.pair(source.seed, index, truth=True), source.name(index), index)
