"""Systems over cases: every metric of every clip into a JSON Lines file.

    cases, systems -> run() -> results.jsonl -> report.report() -> Markdown

The file's first line holds the settings, every other one clip of one system. Rerunning the
command measures what is missing; other settings are refused, since their numbers do not mix.
Shapes: T frames of H x W pixels; boxes and flows as in `dreamactor.bench.metrics`.
"""

from __future__ import annotations

import fcntl
import json
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dreamactor.bench import metrics
from dreamactor.bench.metrics.appearance import colour_likeness
from dreamactor.bench.metrics.clips import MARGIN
from dreamactor.bench.networks import OF_JOINTS, by_networks
from dreamactor.errors import ConfigError, MediaError, ShapeError

if TYPE_CHECKING:
    from dreamactor.bench.baselines import System
    from dreamactor.bench.perceptual import Perceptual
    from dreamactor.bench.pointing import Pointing
    from dreamactor.world.scene import Joints

TRUTH = "truth"  # the row that measures the truth against itself: the best any system can get
BACKLOG = 48  # cases whose metrics may be under way at once; 25 MB each
IDENTITY = "colour_likeness"  # of those without truth what reacts to identity (docs/metrics.md)
METRICS = (
    *("psnr", "ssim", "l1", "lpips", "sharpness_ratio"),
    *("psnr_frame", "ssim_frame", "lpips_frame", "sharpness_frame"),
    *("flow_epe", "dynamic_degree", "temporal_flicker"),
    *OF_JOINTS,
    IDENTITY,
)
"""Names of all metrics; those that end in `_frame` look at whole frames."""


@dataclass(frozen=True)
class Case:
    """One held-out pair with its truth."""

    name: str
    """Unique; results are keyed by it."""
    domain: str
    """Who is animated by whom, such as "human"."""
    style: str
    """Look of the picture, such as "toon"."""
    framing: str
    """How much of the subject is shown, such as "full"."""
    reference: NDArray[np.uint8]
    """(H, W, 3) the subject to animate."""
    driving: NDArray[np.uint8]
    """(T, H, W, 3) the clip whose motion is wanted."""
    truth: NDArray[np.uint8]
    """(T, H, W, 3) the subject doing that motion."""
    mask: NDArray[np.bool_]
    """(T, H, W) the truth's subject."""
    flow: NDArray[np.float32]
    """(T - 1, H, W, 2) the truth's motion from frame t to t + 1, pixels, x then y."""
    index: int = 0
    """Number of the case; systems that draw random numbers draw by it."""
    before: NDArray[np.uint8] | None = None
    """(H, W, 3) the driver's frame before the first one, where there is one."""
    caption: str = ""
    """Who does what in the truth."""
    joints: Joints | None = None
    """The truth's, on its T frames, where they are known."""
    driver: Joints | None = None
    """The driving clip's, on its T frames, likewise."""

    def __post_init__(self) -> None:
        frames, height, width = self.mask.shape
        wanted: dict[str, tuple[int, ...]] = {
            "reference": (height, width, 3),
            "driving": (frames, height, width, 3),
            "truth": (frames, height, width, 3),
            "flow": (frames - 1, height, width, 2),
        }
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape:
                given = getattr(self, name).shape
                raise ShapeError(f"case {self.name!r}: {name} is {given}: want {shape}")
        for name in ("joints", "driver"):
            known: Joints | None = getattr(self, name)
            if known is not None and len(known.pixels) != frames:
                given = len(known.pixels)
                raise ShapeError(f"case {self.name!r}: {name} of {given} frames: want {frames}")


@dataclass(frozen=True)
class Record:
    """What was measured on one clip of one system."""

    case: str
    system: str
    domain: str
    style: str
    framing: str
    seconds: float
    """Wall time of the system on this clip; of a batch, its share."""
    metrics: dict[str, float]
    """By the names of `METRICS`; NaN where undefined or not asked for."""


@runtime_checkable
class CaseSystem(Protocol):
    """A system that sees whole cases, several at once."""

    def animate(self, cases: Sequence[Case]) -> Sequence[NDArray[Any]]:
        """A clip (T, H, W, 3) of each case, uint8 or in [0, 1]; whatever batch it is in."""
        ...


Systems = Mapping[str, "System | CaseSystem"]


@dataclass(frozen=True)
class Options:
    """What is measured and how; numbers made with others do not mix."""

    margin: int = MARGIN
    """Pixels around the subject."""
    lpips_frames: int | None = None
    """Frames of a clip that `lpips` looks at, evenly spread; None = all."""
    whole: bool = False
    """Also measure fidelity and sharpness on whole frames (PSNR always is)."""
    identity: bool = False
    """Also hold the colours against the reference's: whose identity is it?"""
    about: Mapping[str, Any] = field(default_factory=dict)
    """JSON values that tell what else the numbers depend on: pack, seed, weights."""


PLAIN = Options()


def measure(
    result: NDArray[Any],
    case: Case,
    perceptual: Perceptual | None = None,
    options: Options = PLAIN,
    pointing: Pointing | None = None,
) -> dict[str, float]:
    """Every metric of one result, by the names of `METRICS`.

    Fidelity and sharpness are taken in the truth's subject box of each frame, those named
    `_frame` and the two of motion smoothness on whole frames, `flow_epe` on the subject's pixels.

    Args:
        result: (T, H, W, 3), uint8 or floating point in [0, 1].
        case: What it is measured against.
        perceptual: Network of `lpips`; None leaves that metric NaN.
        options: What is measured.
        pointing: Finds the joints of `akd` and `pck`; None leaves them NaN.
    """
    values = _measure_each({"": result}, case, options)
    return values[""] | by_networks({"": result}, case, options, perceptual, pointing)[""]


def _measure_each(
    results: Mapping[str, NDArray[Any]], case: Case, options: Options
) -> dict[str, dict[str, float]]:
    """All metrics but those of a network; this is what runs in other processes."""
    truth, boxes = case.truth, metrics.subject_box(case.mask, options.margin)
    measured = {}
    for name, result in results.items():
        values = dict.fromkeys(METRICS, math.nan)
        values["psnr"] = metrics.psnr(result, truth, boxes)  # refuses a wrong shape first
        seen = metrics.clip_flow(result)
        values |= {
            "ssim": metrics.ssim(result, truth, boxes),
            "l1": metrics.l1(result, truth, boxes),
            "sharpness_ratio": metrics.sharpness_ratio(result, truth, boxes),
            "psnr_frame": metrics.psnr(result, truth),
            "flow_epe": metrics.flow_epe(seen, case.flow, case.mask),
            "dynamic_degree": metrics.dynamic_degree(seen),
            "temporal_flicker": metrics.temporal_flicker(result),
        }
        if options.whole:
            values["ssim_frame"] = metrics.ssim(result, truth)
            values["sharpness_frame"] = metrics.sharpness_ratio(result, truth)
        if options.identity:
            values[IDENTITY] = colour_likeness(result, case.reference)
        measured[name] = values
    return measured


def run(
    cases: Iterable[Case],
    systems: Systems,
    path: Path | str,
    perceptual: Perceptual | None = None,
    options: Options = PLAIN,
    batch: int = 1,
    pool: Executor | None = None,
    pointing: Pointing | None = None,
) -> list[Record]:
    """Measure every system on every case, going on where an earlier run stopped.

    Args:
        cases: May be lazy; total time is shown if it has a length.
        systems: By the name shown in tables; "truth" is added and may not be among them.
        path: JSON Lines file, made or continued. Results are written as they come.
        perceptual: Network of `lpips`, on its device; None leaves that metric out.
        options: What is measured.
        batch: Cases that a `CaseSystem` gets at once.
        pool: Where metrics are computed; None = here. Networks always run here.
        pointing: Finds the joints of `akd` and `pck`; None leaves those metrics out.

    Returns:
        All records of the file, those of earlier runs too.

    Raises:
        ConfigError: The file has other settings, another process is writing it, or two cases have
            one name.
        ShapeError: A system's result has not the truth's shape.
    """
    if TRUTH in systems:
        raise ConfigError(f"a system is named {TRUTH!r}: that row is added by itself")
    path = Path(path)
    met: set[str] = set()
    waiting: deque[_Measuring] = deque()
    total = len(cases) if isinstance(cases, Sized) else None
    bar = tqdm(total=total, unit="case", disable=None, leave=False)
    with alone(path) as file, bar:
        records = _resume(path, _settings(options, perceptual, pointing))
        done = {(r.case, r.system) for r in records}

        def write(most: int) -> None:
            while len(waiting) > most or (waiting and waiting[0].measured.done()):
                for record in waiting.popleft().records():
                    file.write(_to_line(record))
                    records.append(record)
                file.flush()
                bar.update()

        for group in _groups(cases, batch):
            for case in group:
                if case.name in met:
                    raise ConfigError(f"two cases are named {case.name!r}: want unique names")
                met.add(case.name)
            for case, results in _results(group, systems, done):
                waiting.append(_Measuring.start(case, results, options, perceptual, pointing, pool))
                write(BACKLOG if pool else 0)
        write(0)
    return records


@contextmanager
def alone(path: Path) -> Iterator[IO[str]]:
    """The file, open to append to, while no other process is: both would add the same clips."""
    if path.is_dir():
        raise MediaError(f"{path}: is a folder, want a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{path}: another process is at work on it; wait for it") from error
        yield file


def missing(path: Path | str, systems: Iterable[str], names: Iterable[str]) -> list[str]:
    """Those of the cases `names` that lack a row of a system or of the truth in the file."""
    path = Path(path)
    done = {(r.case, r.system) for r in read(path)} if path.is_file() else set()
    wanted = (*systems, TRUTH)
    return [name for name in names if any((name, system) not in done for system in wanted)]


def read(path: Path | str) -> list[Record]:
    """Records of a results file, in order; a half-written last line is left out."""
    return read_whole(path)[1]


def read_whole(path: Path | str) -> tuple[dict[str, Any], list[Record]]:
    """Settings of a results file, and its records; a metric that it does not have is NaN."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"results {path} do not exist: run the evaluation first")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    try:
        settings: dict[str, Any] = json.loads(lines[0])["settings"]
        rows = [json.loads(line) for line in lines[1:] if line.endswith("\n")]
        for row in rows:
            found = {k: math.nan if v is None else v for k, v in row["metrics"].items()}
            row["metrics"] = dict.fromkeys(METRICS, math.nan) | found
        return settings, [Record(**row) for row in rows]
    except (IndexError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} is no results file of ours ({error}): name another") from error


@dataclass(frozen=True)
class _Measuring:
    """The results of one case, whose metrics are under way."""

    case: Case
    seconds: dict[str, float]
    felt: dict[str, dict[str, float]]
    measured: Future[dict[str, dict[str, float]]]

    @classmethod
    def start(
        cls,
        case: Case,
        results: dict[str, tuple[NDArray[Any], float]],
        options: Options,
        perceptual: Perceptual | None,
        pointing: Pointing | None,
        pool: Executor | None,
    ) -> _Measuring:
        clips = {name: clip for name, (clip, _) in results.items()}
        measured: Future[dict[str, dict[str, float]]]
        if pool is None:
            measured = Future()
            measured.set_result(_measure_each(clips, case, options))
        else:
            measured = pool.submit(_measure_each, clips, case, options)
        felt = by_networks(clips, case, options, perceptual, pointing)
        return cls(case, {name: spent for name, (_, spent) in results.items()}, felt, measured)

    def records(self) -> Iterator[Record]:
        case = self.case
        for name, values in self.measured.result().items():
            about = case.domain, case.style, case.framing
            both = values | self.felt[name]
            yield Record(case.name, name, *about, round(self.seconds[name], 4), both)


def _groups(cases: Iterable[Case], size: int) -> Iterator[list[Case]]:
    rest = iter(cases)
    while group := list(islice(rest, size)):
        yield group


def _results(
    group: Sequence[Case], systems: Systems, done: set[tuple[str, str]]
) -> Iterator[tuple[Case, dict[str, tuple[NDArray[Any], float]]]]:
    """For each case the clips that are not measured yet, with the seconds they took."""
    found: dict[str, dict[str, tuple[NDArray[Any], float]]] = {case.name: {} for case in group}
    for name, system in systems.items():
        todo = [case for case in group if (case.name, name) not in done]
        if not todo:
            continue
        if isinstance(system, CaseSystem):
            start = time.perf_counter()
            clips = system.animate(todo)
            timed = [(time.perf_counter() - start) / len(todo)] * len(todo)
        else:
            clips, timed = [], []
            for case in todo:
                start = time.perf_counter()
                clips.append(system(case.reference, case.driving))
                timed.append(time.perf_counter() - start)
        for case, clip, spent in zip(todo, clips, timed, strict=True):
            if clip.shape != case.truth.shape:
                raise ShapeError(
                    f"system {name!r} on {case.name!r} gave {clip.shape}: want {case.truth.shape}"
                )
            found[case.name][name] = clip, spent
    for case in group:
        if (case.name, TRUTH) not in done:
            found[case.name][TRUTH] = case.truth, 0.0
        yield case, found[case.name]


def _settings(
    options: Options, perceptual: Perceptual | None, pointing: Pointing | None
) -> dict[str, Any]:
    """What numbers depend on; what is not asked for is left out, as before there was such."""
    net = None if perceptual is None else f"{perceptual.net}-{len(perceptual.stages)}"
    settings, without = {**asdict(options), "lpips": net}, set()
    if pointing is None:
        without |= set(OF_JOINTS)
    else:
        settings["joints"] = pointing.about
    if not options.identity:
        without.add(IDENTITY)
        del settings["identity"]
    return {**settings, "metrics": [name for name in METRICS if name not in without]}


def _resume(path: Path, settings: dict[str, Any]) -> list[Record]:
    """Records of the file so far; a half-written last line is cut off, a new file begun."""
    if not path.stat().st_size:
        path.write_text(json.dumps({"settings": settings}) + "\n", encoding="utf-8")
        return []
    whole = path.read_bytes()
    if not whole.endswith(b"\n"):
        path.write_bytes(whole[: whole.rfind(b"\n") + 1])
        return _resume(path, settings)
    stored, records = read_whole(path)
    if stored != settings:
        keys = stored.keys() | settings.keys()
        differs = sorted(k for k in keys if stored.get(k) != settings.get(k))
        old, new = ({k: s.get(k) for k in differs} for s in (stored, settings))
        raise ConfigError(f"{path} was made with {old}, now {new}: name another file")
    return records


def _to_line(record: Record) -> str:
    row = asdict(record)
    row["metrics"] = {k: None if math.isnan(v) else v for k, v in record.metrics.items()}
    return json.dumps(row, allow_nan=False) + "\n"
