"""A pool of rendered twins on disk, written by many processes, read while it grows.

A pool is a folder of shards. Shard NNNNNN holds SHARD successive twins (`world.pairs.Twins`):
two identities in one motion, each shown by T + 2 frames: a reference, the frame before, T frames.

    NNNNNN.npy     uint8 (SHARD, 2, T + 2, H, W, 4); channel 3 is the subject mask
    NNNNNN.joints  float32 (SHARD, 2, T + 2, 17, 2), an array file too: where the joints of
                   `conditioning.skeleton.JOINTS` are on these frames, x right and y down in parts
                   of the side; NaN for joints that are not in the picture or that the body lacks
    NNNNNN.surface float16 (SHARD, 2, T + 2, H / 8, W / 8, 3), likewise: the spot of the body that
                   each cell of 8 x 8 pixels shows at its centre (`world.pairs.Twins.surfaces`)
    NNNNNN.json    for each of the twins a caption of either as the target

T is 16, one whole segment, or less: short pools hold more motions and people in the same space.
Twins i are the same whatever the number of processes: their draws are keyed by (seed, i).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamactor.conditioning.skeleton import JOINTS
from dreamactor.errors import ConfigError
from dreamactor.image import refusals
from dreamactor.runs import end_with_parent
from dreamactor.world.scene import Joints

SHARD = 16
TARGET_FRAMES = 16
PATIENCE = 180.0
"""Seconds a trainer waits for a pool to hold enough to start with."""


@dataclass(frozen=True)
class PoolConfig:
    """What a pool is made of."""

    cast: Path
    """Cast pack."""
    split: str = "train"
    seed: int = 0
    size: int = 256
    """Pixels of a side."""
    frames: int = TARGET_FRAMES
    """T, a multiple of 4."""
    plural: float = 0.0
    """Share of twins of groups: one drives many, many drive many, an upper body a whole one. The
    others are those of a pool without. Joints of several people are left out (NaN)."""

    def __post_init__(self) -> None:
        if not 0 <= self.plural <= 1:
            raise ConfigError(f"plural={self.plural}: want a share, 0 to 1")
        if self.frames not in range(4, TARGET_FRAMES + 1, 4):
            raise ConfigError(f"frames={self.frames}: want 4, 8, 12 or {TARGET_FRAMES}")


@dataclass(frozen=True)
class Shard:
    """What one shard holds."""

    index: int
    pixels: NDArray[np.uint8]
    """(SHARD, 2, T + 2, H, W, 4)."""
    joints: NDArray[np.float32]
    """(SHARD, 2, T + 2, 17, 2)."""
    surface: NDArray[np.float16]
    """(SHARD, 2, T + 2, H / 8, W / 8, 3), NaN where there is no subject."""
    captions: list[list[str]]
    """Two for each of the twins."""


def shard_path(folder: Path, index: int) -> Path:
    """Where a shard lies."""
    return folder / f"{index:06d}.npy"


def ready_shards(folder: Path) -> list[int]:
    """Indices of finished shards, in order."""
    return sorted(int(path.stem) for path in folder.glob("[0-9]*.npy"))


def check_pool(*folders: Path) -> None:
    """Refuse pools that nobody has begun; to be asked before a run writes anything.

    Raises:
        ConfigError: There is no such folder.
        MediaError: What it lies in cannot be entered.
    """
    for folder in folders:
        with refusals(folder, "reached"):
            if not folder.is_dir():
                raise ConfigError(f"{folder}: no such pool; fill one with `dreamactor world pool`")


def read_shard(folder: Path, index: int) -> Shard:
    """All of a shard."""
    path = shard_path(folder, index)
    with path.with_suffix(".joints").open("rb") as file:
        joints: NDArray[np.float32] = np.load(file)
    with path.with_suffix(".surface").open("rb") as file:
        surface: NDArray[np.float16] = np.load(file)
    captions: list[list[str]] = json.loads(path.with_suffix(".json").read_text())
    pixels = np.load(path)
    if pixels.ndim != 6:
        raise ConfigError(f"{path}: holds {pixels.shape}, want twins (S, 2, T + 2, H, W, 4)")
    return Shard(index, pixels, joints, surface, captions)


def write_shard(folder: Path, shard: Shard) -> None:
    """Write a shard; its pixels appear last and whole (not flushed: renderers would wait)."""
    path = shard_path(folder, shard.index)
    beside = path.with_name(f".{path.name}.part")
    with beside.open("wb") as file:
        np.save(file, shard.pixels)
    with path.with_suffix(".joints").open("wb") as file:
        np.save(file, shard.joints)
    with path.with_suffix(".surface").open("wb") as file:
        np.save(file, shard.surface)
    path.with_suffix(".json").write_text(json.dumps(shard.captions))
    os.replace(beside, path)


def joint_array(joints: Joints, side: int) -> NDArray[np.float32]:
    """One actor's joints in the order of JOINTS.

    Args:
        joints: On T frames.
        side: Pixels of a side of the pictures.

    Returns:
        (T, 17, 2) in parts of the side, NaN where a joint is not in the picture.
    """
    out = np.full((len(joints.pixels), len(JOINTS), 2), np.nan, np.float32)
    for k, name in enumerate(joints.names):
        seen = joints.visible[:, k]
        out[seen, JOINTS.index(name)] = joints.pixels[seen, k] / side
    return out


def consume_shard(folder: Path, index: int) -> None:
    """Delete a shard's arrays; its captions stay and tell that it was made."""
    path = shard_path(folder, index)
    for part in (path, path.with_suffix(".joints"), path.with_suffix(".surface")):
        part.unlink(missing_ok=True)


def ring(first: int, count: int, capacity: int, held: int = 0) -> Tensor:
    """Where items go in a store in which the oldest give way.

    Args:
        first: Items that came before.
        count: Items that come.
        capacity: Places.
        held: Of the first items, which never give way.

    Returns:
        (count,) int64.
    """
    number = torch.arange(first, first + count)
    return torch.where(number < held, number, (number - held) % (capacity - held) + held)


class ShardFeed:
    """Reads one process's share of a growing pool ahead of time, each shard once.

    Args:
        folder: The pool.
        rank: Of this process.
        count: Of processes; shard k belongs to process k mod count.
        ahead: Shards to hold ready.
    """

    def __init__(self, folder: Path, rank: int, count: int, ahead: int = 3) -> None:
        self.folder, self.rank, self.count = folder, rank, count
        self._ready: queue.Queue[Shard | BaseException] = queue.Queue(ahead)
        self._closed = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def close(self) -> None:
        """Read no more, and let go of what was read."""
        self._closed.set()
        while not self._ready.empty():  # the thread may be waiting for a place
            self._ready.get_nowait()

    def take(self, seconds: float = 0.0) -> Shard | None:
        """The next shard, or None if there is none within `seconds`."""
        try:
            item = self._ready.get(timeout=seconds) if seconds else self._ready.get_nowait()
        except queue.Empty:
            return None
        if isinstance(item, BaseException):
            raise item
        return item

    def wait(
        self, held: Callable[[], int], wanted: int, noun: str, refresh: Callable[[], None]
    ) -> None:
        """Refresh until enough is held to start with; on stderr, what an empty pool lacks.

        Raises:
            ConfigError: There is too little after PATIENCE seconds.
        """
        if self.rank == 0 and not ready_shards(self.folder):
            note = f"{self.folder}: empty yet; waits for {wanted} {noun}, {PATIENCE:.0f} s at most"
            print(note, file=sys.stderr)  # noqa: T201
        deadline = time.monotonic() + PATIENCE
        while held() < wanted:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"{self.folder}: {held()} {noun} after {PATIENCE:.0f} s, want {wanted}; "
                    "is `dreamactor world pool` filling it?"
                )
            refresh()

    def _read(self) -> None:
        seen: set[int] = set()
        try:
            while not self._closed.is_set():
                ready = ready_shards(self.folder)
                fresh = [k for k in ready if k % self.count == self.rank and k not in seen]
                for index in fresh:
                    if self._closed.is_set():
                        return
                    self._ready.put(read_shard(self.folder, index))
                    seen.add(index)
                if not fresh:
                    time.sleep(0.2)
        except BaseException as error:
            self._ready.put(error)


def fill(
    folder: Path,
    config: PoolConfig,
    shards: range,
    processes: int,
    minutes: float,
    gpus: int = 1,
    room: int = 1_000_000,
    first_gpu: int = 0,
) -> int:
    """Render shards until they are all there or the time is up; a repeated call goes on.

    Args:
        folder: The pool; made if needed.
        config: What to render.
        shards: Indices of the shards to make.
        processes: Renderers at work, each with a GL context of its own.
        minutes: Time budget.
        gpus: EGL devices to spread the processes over.
        room: Shards that may lie in the folder at once; renderers wait until a trainer that
            consumes them makes room.
        first_gpu: The first of those devices.

    Returns:
        The number of finished shards in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = folder / "pool.json"
    asked = {name: getattr(config, name) for name in ("split", "seed", "size", "frames")}
    text = json.dumps(asked | ({"plural": config.plural} if config.plural else {}))
    if known.is_file() and known.read_text() != text:
        raise ConfigError(f"{folder}: holds a pool of {known.read_text()}, not {text}")
    known.write_text(text)
    context = multiprocessing.get_context("spawn")
    stop = time.time() + 60 * minutes
    jobs = [
        context.Process(
            target=_work,
            args=(folder, config, shards[k::processes], stop, first_gpu + k % gpus, room),
        )
        for k in range(processes)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    if all(job.exitcode for job in jobs):
        raise ConfigError(f"{folder}: every renderer failed; see the messages above")
    return len(ready_shards(folder))


@contextmanager
def filling(
    folder: Path,
    config: PoolConfig,
    shards: range,
    processes: int,
    minutes: float,
    gpus: int = 1,
    room: int = 1_000_000,
) -> Iterator[None]:
    """As `fill`, beside the block and as politely as can be; it ends with the block."""
    folder.mkdir(parents=True, exist_ok=True)  # a trainer in the block may be there sooner
    job = multiprocessing.get_context("spawn").Process(
        target=_fill_beside, args=(folder, config, shards, processes, minutes, gpus, room)
    )
    job.start()
    try:
        yield
    finally:
        job.terminate()  # and its renderers with it
        job.join()


def _fill_beside(*given: Any) -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's; renderers inherit it
    os.nice(19)
    fill(*given)


def _work(
    folder: Path, config: PoolConfig, shards: range, stop: float, device: int, room: int
) -> None:
    from dreamactor.world.cast import load_cast
    from dreamactor.world.pairs import CELL, PairSampler
    from dreamactor.world.troupe import PluralSampler

    end_with_parent()  # the next run of the command would render the same shards
    cast = load_cast(config.cast)
    sampler = PairSampler(cast, config.split, config.size, device, config.frames)
    plural = PluralSampler(sampler) if config.plural else None
    for index in shards:
        while time.time() < stop and len(ready_shards(folder)) >= room:
            time.sleep(0.5)
        if time.time() > stop:
            return
        if shard_path(folder, index).with_suffix(".json").is_file():
            continue  # made before, and perhaps consumed since
        shape = (SHARD, 2, config.frames + 2, config.size, config.size, 4)
        pixels = np.empty(shape, np.uint8)
        joints = np.empty((*shape[:3], len(JOINTS), 2), np.float32)
        cells = config.size // CELL
        surface = np.empty((*shape[:3], cells, cells, 3), np.float16)
        captions = []
        for k in range(SHARD):
            item = index * SHARD + k
            found: list[Joints | None]
            if plural is not None and plural.is_due(config.seed, item, config.plural):
                groups = plural.twins(config.seed, item)
                found = [each[0] if len(each) == 1 else None for each in groups.joints]
                clips, surfaces, said = groups.clips, groups.surfaces, list(groups.captions)
            else:
                twins = sampler.twins(config.seed, item)
                found = list(twins.joints)
                clips, surfaces = twins.clips, twins.surfaces
                said = [spec.caption for spec in twins.specs]
            for side in range(2):
                pixels[k, side] = clips[side]
                alone = found[side]
                joints[k, side] = np.nan if alone is None else joint_array(alone, config.size)
                surface[k, side] = surfaces[side]
            captions.append(said)
        write_shard(folder, Shard(index, pixels, joints, surface, captions))
