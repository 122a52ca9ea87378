"""How fast the world is drawn: clips a second, in one process and in many."""

from __future__ import annotations

import multiprocessing
import queue
import threading
import time
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np

from dreamactor.errors import AssetError, ConfigError, DreamActorError
from dreamactor.world.body import pose_clip
from dreamactor.world.camera import frame_camera
from dreamactor.world.cast import Cast, load_cast
from dreamactor.world.render import Renderer
from dreamactor.world.scene import Actor, Scene

FRAMES, SIZE = 16, 256
STARTUP = 120.0  # seconds that loading a pack and opening OpenGL may take
LOOK = 0.2  # seconds between looks at whether all renderers live


@dataclass(frozen=True)
class Speed:
    """Clips a second of all processes together, and what draws them."""

    rate: float
    processes: int
    driver: str


def measure(pack: Path, processes: int = 1, seconds: float = 10.0) -> Speed:
    """Draw random clips (16 frames, 256 x 256, RGB, mask and joints) for some seconds.

    Args:
        pack: The cast pack; every process loads it.
        processes: Renderers at work.
        seconds: How long they draw, once all are ready.

    Raises:
        AssetError: The pack is damaged, or nothing can draw here.
        ConfigError: No process, or no time.
    """
    if processes < 1 or not seconds > 0:
        raise ConfigError(f"processes={processes} seconds={seconds}: want at least 1, more than 0")
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(processes), context.Queue()
    jobs = [
        context.Process(target=_work, args=(pack, k, seconds, start, results), daemon=True)
        for k in range(processes)
    ]
    for job in jobs:
        job.start()
    try:
        done = [_result(results, jobs, STARTUP + 2 * seconds) for _ in jobs]
        for job in jobs:
            job.join()
    finally:
        for job in jobs:
            job.terminate()  # if another died, they wait for it
    faults = [found for found in done if isinstance(found, str)]
    if faults:
        raise AssetError(next((f for f in faults if f), "a renderer was not ready in time"))
    drawn = [found for found in done if not isinstance(found, str)]
    return Speed(sum(rate for rate, _ in drawn), processes, drawn[0][1])


def _result(
    results: Queue[tuple[float, str] | str], jobs: list[SpawnProcess], patience: float
) -> tuple[float, str] | str:
    """What the next renderer says, unless one dies without a word."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return results.get(timeout=LOOK)
        except queue.Empty as fault:
            if time.monotonic() > deadline or any(job.exitcode for job in jobs):
                raise AssetError("a renderer died before it had drawn a clip") from fault


def _work(
    pack: Path,
    seed: int,
    seconds: float,
    start: Barrier,
    results: Queue[tuple[float, str] | str],
) -> None:
    try:
        cast = load_cast(pack)
        renderer, rng = Renderer(cast), np.random.default_rng(seed)
        _draw(cast, renderer, rng)
        start.wait(STARTUP)
        begin, count = time.perf_counter(), 0
        while (took := time.perf_counter() - begin) < seconds:
            _draw(cast, renderer, rng)
            count += 1
        results.put((count / took, renderer.driver))
    except DreamActorError as fault:
        start.abort()
        results.put(str(fault))
    except threading.BrokenBarrierError:
        results.put("")


def _draw(cast: Cast, renderer: Renderer, rng: np.random.Generator) -> None:
    """Anyone in the pack does anything made for them."""
    looks = [look for look in cast.looks.values() if look.motions]
    look = looks[rng.integers(len(looks))]
    motion = cast.motions[look.motions[rng.integers(len(look.motions))]]
    actor = Actor(look, pose_clip(cast, look, motion, np.arange(FRAMES, dtype=np.float32) / FRAMES))
    camera = frame_camera(cast, actor, azimuth=rng.uniform(-60, 60))
    renderer.render(Scene((actor,), camera, height=SIZE, width=SIZE))
