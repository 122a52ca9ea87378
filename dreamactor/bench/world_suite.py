"""AW Bench World: a suite drawn from the held-out cast, the same bytes whenever it is built.

    SUITE/suite.json, media.jsonl, cases.jsonl    see `bench.manifest`
    SUITE/media/driving, reference, truth         clips and pictures; arrays.npz beside truths
    SUITE/sheets/SCENARIO.png, camera-CAMERA.png  six cases of each scenario and camera
    SUITE/build.json                              what it was asked for; other settings refuse

A build that was stopped goes on: what is drawn stays, and the manifest is written at the end.
Driving clips are stored 4:2:0, as any clip is; truths with the colour of every pixel (4:4:4), for
what they lost no system could make good.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dreamactor import __version__
from dreamactor.bench.coverage import coverage
from dreamactor.bench.manifest import (
    Media,
    Scenario,
    Suite,
    SuiteCase,
    Truth,
    digest_of,
    read_clip,
    save_suite,
    write_arrays,
)
from dreamactor.bench.settings import open_folder
from dreamactor.bench.suite_sheets import write_sheets
from dreamactor.bench.world_plan import CASES, SHARES, sets
from dreamactor.bench.world_rows import driver_row, prompt_of, reference_row, truth_row
from dreamactor.bench.world_sets import DrawnSet, draw_set
from dreamactor.config import check_finite, check_least
from dreamactor.errors import AssetError, ConfigError
from dreamactor.image import write_png
from dreamactor.provenance import processor, sha256
from dreamactor.runs import end_with_parent, write_text
from dreamactor.video import write_clip
from dreamactor.world.cast import load_cast
from dreamactor.world.crowd import Stage
from dreamactor.world.pairs import FPS, PairSampler
from dreamactor.world.scene import Rendered
from dreamactor.world.troupe import Troupe

SPLIT = "test"
LICENCE = "CC-BY-SA-3.0"
VERSION = "1"
CRF = 10
"""Of H.264: truths (4:4:4) come back at 45 dB in the mean, driving clips (4:2:0) at about 39."""


@dataclass(frozen=True)
class WorldSuiteConfig:
    """Settings of `dreamactor bench world`."""

    sets: int = 50
    """Of two driving clips, four references and six cases each; 50 are the whole suite."""
    cases: int = 6
    """Of each set, the first of its six; only what these need is drawn."""
    seed: int = 0
    """Of all draws."""
    size: int = 256
    """Pixels of a side."""
    length: float = 1.0
    """Factor on the length of clips, which is 2 s, of some 5; other lengths show other draws."""
    arrays: bool = True
    """Whether masks, joints and flow lie beside truths."""
    processes: int = 0
    """Workers that draw; 0 = this process alone."""

    def __post_init__(self) -> None:
        """Check every value by itself.

        Raises:
            ConfigError: One that cannot work.
        """
        check_least(self, {"sets": 1, "cases": 1, "size": 32, "length": 0.2, "processes": 0})
        check_finite(self, "length")
        if self.cases > len(CASES):
            raise ConfigError(f"cases={self.cases}: a set has {len(CASES)}")
        if self.size % 2:
            raise ConfigError(f"size={self.size}: want an even number, such as {self.size + 1}")


@dataclass(frozen=True)
class Source:
    """What every worker draws from, and where to."""

    cast: Path
    out: Path
    config: WorldSuiteConfig


@dataclass(frozen=True)
class Made:
    """One set, written."""

    media: tuple[Media, ...]
    cases: tuple[SuiteCase, ...]
    squares: tuple[float, ...]
    """Mean squared error that storing cost each truth that was drawn now."""
    driver: str
    """Of OpenGL."""


def build_suite(
    cast: Path, out: Path, config: WorldSuiteConfig, say: Callable[[str], None] = print
) -> str:
    """Draw the suite, as far as it is not drawn yet.

    Args:
        cast: Cast pack with a test split.
        out: Folder of the suite.
        config: What to draw.
        say: Takes lines of what was made.

    Returns:
        The digest of the suite.

    Raises:
        AssetError: The pack cannot be read, or has not enough to show.
        ConfigError: The folder holds another suite.
    """
    source = Source(cast, open_folder(out), config)
    pack = load_cast(cast).digest
    _claim(out, config, pack)
    for kind in ("driving", "reference", "truth"):
        open_folder(out / "media" / kind)
    order = list(SHARES)
    jobs = sorted(sets(config.sets), key=lambda job: (order.index(job[0]), job[1]))
    made = list(tqdm(_work(source, jobs), "sets", len(jobs), disable=None, leave=False))
    about = {
        "made": "dreamactor bench world",
        "settings": {k: v for k, v in asdict(config).items() if k != "processes"},
        "split": SPLIT,
        "cast": pack,
        "dreamactor": __version__,
        "driver": sorted({one.driver for one in made}),
        "processor": processor(),
    }
    media = {m.name: m for one in made for m in one.media}
    cases = [case for one in made for case in one.cases]
    suite = Suite(out, "AW Bench World", VERSION, LICENCE, media, cases, about)
    write_sheets(suite)
    save_suite(suite)
    say(coverage(suite))
    if errors := [e for one in made for e in one.squares]:
        level = 10 * np.log10(255**2 / np.maximum(errors, 1e-9))
        say(
            f"truths drawn now: {len(errors)}, stored at {level.mean():.1f} dB, the worst at "
            f"{level.min():.1f} dB"
        )
    return digest_of(out)


def _claim(out: Path, config: WorldSuiteConfig, pack: str) -> None:
    """Say in the folder what it is for; refuse one that is for something else."""
    asked = {k: v for k, v in asdict(config).items() if k != "processes"} | {"cast": pack}
    known = out / "build.json"
    if known.is_file():
        before = json.loads(known.read_text(encoding="utf-8"))
        if other := sorted(
            k for k in asked.keys() | before.keys() if asked.get(k) != before.get(k)
        ):
            raise ConfigError(
                f"{out}: holds a suite of another {', '.join(other)}; name another --out folder"
            )
    elif (out / "suite.json").exists():
        raise ConfigError(f"{out}: holds a suite that was not drawn here; name another folder")
    write_text(known, json.dumps(asked, indent=1) + "\n")


def _work(source: Source, jobs: list[tuple[Scenario, int]]) -> Iterator[Made]:
    """Make sets in order, here or in workers."""
    if not source.config.processes:
        maker = SetMaker(source)
        yield from (maker.make(*job) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(source.config.processes, context, _prepare, (source,)) as pool:
            yield from pool.map(_make, jobs)
    except BrokenProcessPool as fault:
        raise AssetError(
            "a worker process died, perhaps for want of memory; the same command goes on, with "
            f"fewer workers by processes={max(1, source.config.processes // 2)}"
        ) from fault


_worker: SetMaker  # of a worker process


def _prepare(source: Source) -> None:
    global _worker
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    _worker = SetMaker(source)


def _make(job: tuple[Scenario, int]) -> Made:
    return _worker.make(*job)


class SetMaker:
    """Draws sets and writes what of them is not there yet."""

    def __init__(self, source: Source) -> None:
        self.out, self.config = source.out, source.config
        self.sampler = PairSampler(load_cast(source.cast), SPLIT, source.config.size)
        self.troupe = Troupe(self.sampler)

    def make(self, scenario: Scenario, number: int) -> Made:
        """One set: its files and its rows of the manifest."""
        config = self.config
        drawn = draw_set(self.troupe, config.seed, scenario, number, config.size, config.length)
        pairs = CASES[: config.cases]
        clips = {clip: driver_row(drawn, clip) for clip in sorted({c for c, _ in pairs})}
        pictures = {k: reference_row(drawn, k) for k in sorted({place for _, place in pairs})}
        for clip, row in clips.items():
            if not (self.out / row.file).is_file():
                self._write_clip(row, self._draw(drawn.drivers[clip], 0).rgb)
        for place, row in pictures.items():
            if not (self.out / row.file).is_file():
                stage = drawn.references[place].stage
                write_png(self.out / row.file, self._draw(stage, 0).rgb[0])
        truths: list[Media] = []
        squares: list[float] = []
        cases: list[SuiteCase] = []
        for k, (clip, place) in enumerate(pairs):
            name = f"{scenario}/{len(CASES) * number + k:04d}"
            truth = truth_row(drawn, clip, place, name, config.arrays)
            if truth is not None:
                squares += self._truth(truth, drawn, clip, place)
                truths.append(truth)
            cases.append(
                SuiteCase(
                    name, scenario, pictures[place].name, clips[clip].name,
                    None if truth is None else truth.name, prompt_of(drawn, clip, place),
                )
            )  # fmt: skip
        media = [self._signed(row) for row in (*clips.values(), *pictures.values(), *truths)]
        driver = self.sampler.renderer.driver
        return Made(tuple(media), tuple(cases), tuple(squares), driver)

    def _truth(self, row: Media, drawn: DrawnSet, clip: int, place: int) -> list[float]:
        """Write a truth; the mean squared error of its storing, if it was not there."""
        path = self.out / row.file
        arrays = None if row.arrays is None else self.out / row.arrays
        if path.is_file() and (arrays is None or arrays.is_file()):
            return []
        reference = drawn.references[place]
        found = self._draw(reference.stage, 1 + reference.clips.index(clip), "all")
        if arrays is not None:
            assert found.flow is not None
            joints = {k: (j.names, j.pixels, j.visible) for k, j in enumerate(found.joints, 1)}
            write_arrays(arrays, Truth(found.mask, joints, found.flow))
        self._write_clip(row, found.rgb, full_chroma=True)
        stored, _ = read_clip(path)
        return [float(np.square(stored.astype(np.float64) - found.rgb).mean())]

    def _draw(self, stage: Stage, shot: int, truth: Literal["none", "all"] = "none") -> Rendered:
        return self.sampler.renderer.render(stage.scene(shot), truth)

    def _write_clip(self, row: Media, frames: NDArray[np.uint8], full_chroma: bool = False) -> None:
        path = self.out / row.file
        write_clip(path, frames, FPS, crf=CRF, overwrite=True, full_chroma=full_chroma)

    def _signed(self, row: Media) -> Media:
        """The row with the digests of its files."""
        arrays = None if row.arrays is None else sha256(self.out / row.arrays)
        return replace(row, sha256=sha256(self.out / row.file), arrays_sha256=arrays)
