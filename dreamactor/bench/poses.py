"""`dreamactor bench pose`: how well estimators find the joints of held-out characters.

A folder is a run, and the same command resumes it; estimators can be added later:

    config.json     what the numbers depend on
    metrics.jsonl   every number of every clip of every estimator
    samples/sheet.png  some frames, the truth and what each estimator found
    report.md       tables with intervals

Legend: T frames, S subjects, J joints of both sides' limbs (12).
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dreamactor import __version__
from dreamactor.backbones.keypoints import DATA
from dreamactor.backbones.load import ESTIMATORS, load_estimator
from dreamactor.bench import stats
from dreamactor.bench.cases import SPLIT, Source
from dreamactor.bench.timing import hardware
from dreamactor.conditioning.pose import PoseEstimator
from dreamactor.conditioning.skeleton import (
    FORE,
    HIND,
    JOINTS,
    SEEN,
    Array,
    Frames,
    PoseTrack,
    draw,
    select,
)
from dreamactor.config import check_device, check_least
from dreamactor.errors import ConfigError
from dreamactor.image import contact_sheet, write_png
from dreamactor.provenance import sha256
from dreamactor.runs import RunFolder, write_text
from dreamactor.world.pairs import FPS, Pair
from dreamactor.world.tracks import Exact, track_of

LIMBS = tuple(f"{joint[:-1]}{side}" for side in "lr" for joint in FORE + HIND)
"""The joints that every estimator knows, left ones first; half of them are counted in swaps."""
APART = 0.1
"""Parts of the subject's size by which left and right must differ for a swap to be told."""
ON_SHEET = 8
COLUMNS = {
    "pck5": ("PCK@0.05 ↑", 3),
    "pck10": ("PCK@0.1 ↑", 3),
    "pck10_seen": ("PCK@0.1 seen ↑", 3),
    "pck10_hidden": ("PCK@0.1 hidden ↑", 3),
    "pck10_trunk": ("PCK@0.1 trunk ↑", 3),
    "lost": ("lost ↓", 3),
    "swaps": ("left/right swaps ↓", 3),
    "ms": ("ms a frame ↓", 1),
}
LEGEND = f"""PCK@p: share of joints found within p times the longer side of the subject's box, over
the 12 joints of the limbs that are in the picture; seen and hidden ones (behind a surface) apart,
and head, neck, spine, pelvis and tail of estimators that know them as "trunk". Lost: confidence
below {SEEN:g}. Swaps: of the pairs of a left and a right joint that are {APART:g} of the size or
more apart, those of which each is found at the other's place, nearer to it than half the way
between. Where an estimator finds several people the best one counts.
A figure that is not defined on a clip, such as one of hidden joints where none is, is left out."""


@dataclass(frozen=True)
class PoseBenchConfig:
    """Settings of one `bench pose`."""

    count: int = 100
    """Held-out clips."""
    estimators: str = "keypoints"
    """Which, with commas: world, keypoints, mediapipe, rtmlib."""
    weights: Path | None = None
    """Weights of keypoints, other than those that ship with the package."""
    rtmlib: Path | None = None
    """Folder of rtmlib's weights; None lets it fetch its own."""
    device: str = "cpu"
    """Where keypoints and rtmlib run: cpu, cuda or cuda:N."""
    seed: int = 0
    """Of clips and intervals."""
    size: int = 256
    """Pixels of a side."""

    def __post_init__(self) -> None:
        check_least(self, {"count": 1, "size": 64})
        check_device(self.device)
        for name in self.names:
            if name not in ("world", *ESTIMATORS):
                raise ConfigError(
                    f"estimators={self.estimators}: no {name!r}; known: {', '.join(ESTIMATORS)}"
                )

    @property
    def names(self) -> list[str]:
        """The words of `estimators`."""
        return [word.strip() for word in self.estimators.split(",")]


def bench_pose(cast: Path, out: Path, config: PoseBenchConfig) -> Path:
    """Measure everything that is not measured yet, then write tables and a sheet.

    Args:
        cast: Cast pack with a test split.
        out: Folder of the run.
        config: Settings.

    Returns:
        The report.

    Raises:
        AssetError: The pack is missing, damaged or without a test split.
        ConfigError: An estimator is not installed, or the folder was begun with other settings.
        WeightsError: Weights cannot be loaded.
    """
    source = Source(cast, config.seed, config.size)
    sampler = source.sampler()
    loaded = {name: _load(name, config) for name in config.names}
    folder = RunFolder.open(out, _about(config, sampler.cast.digest))
    path = out / "metrics.jsonl"
    rows = [json.loads(line) for line in path.open()] if path.is_file() else []
    done = {(row["clip"], row["estimator"]) for row in rows}
    sheet = []
    for index in range(config.count):
        clip = source.name(index)
        todo = [name for name in loaded if (clip, name) not in done]
        if not todo and index >= ON_SHEET:
            continue
        pair = sampler.pair(config.seed, index, truth=True)
        frames, truth, size = clip_of(pair)
        found = {}
        for name in todo if index >= ON_SHEET else loaded:
            estimator = loaded[name] or Exact(_all_found(truth))
            began = time.perf_counter()
            found[name] = estimator(frames, FPS)
            ms = (time.perf_counter() - began) / len(frames) * 1000
            if name in todo:
                about = {"domain": pair.spec.domain, "framing": pair.spec.target.framing}
                numbers = score(found[name], truth, size)
                folder.log(clip=clip, estimator=name, **about, **numbers, ms=round(ms, 2))
        if index < ON_SHEET:
            sheet.append((clip, _shown(frames, truth, found)))
    write_png(out / "samples" / "sheet.png", contact_sheet(sheet, config.size, 14))
    rows = [json.loads(line) for line in path.open()]
    write_text(out / "report.md", _report(rows, cast, config))
    return out / "report.md"


def clip_of(pair: Pair) -> tuple[Frames, PoseTrack, Array]:
    """Frames of a pair's target, its exact joints, and (T,) the longer side of its box, pixels.

    Args:
        pair: Drawn with truth, so that hidden joints are known.
    """
    frames = np.ascontiguousarray(pair.target[..., :3])
    truth = track_of([pair.target_joints], (frames.shape[1], frames.shape[2]), FPS)
    positions, confidence = truth.positions[1:], truth.confidence[1:]
    truth = replace(truth, positions=positions, confidence=confidence)  # frame 0: the reference
    sizes = []
    for mask in pair.target[..., 3] > 0:
        rows, columns = np.nonzero(mask)
        sizes.append(max(np.ptp(rows), np.ptp(columns)) + 1 if len(rows) else np.nan)
    return frames, truth, np.array(sizes, np.float32)


def _all_found(truth: PoseTrack) -> PoseTrack:
    """The truth with hidden joints as sure as those that are seen."""
    return replace(truth, confidence=truth.positions.any(axis=-1).astype(np.float32))


def score(found: PoseTrack, truth: PoseTrack, size: Array) -> dict[str, float | None]:
    """Every number of one clip but its time.

    Args:
        found: Of the same frames; the subject that is nearest to the truth counts.
        truth: Exact joints of one subject, in the order of JOINTS; a joint that the body lacks
            has the position (0, 0) in all frames. Confidence 1 = seen.
        size: (T,) longer side of the subject's box, pixels; NaN where it is not in the picture.
    """
    has = truth.positions[:, 0].any(axis=(0, 2))  # (17,)
    place = truth.positions[:, 0]  # (T, 17, 2)
    inside = ((place >= 0) & (place <= (truth.width, truth.height))).all(axis=-1) & has
    inside &= np.isfinite(size)[:, None]
    seen = truth.confidence[:, 0] > 0
    limb, known = np.isin(JOINTS, LIMBS), np.isin(JOINTS, found.names)
    counted, trunk = inside & limb & known, inside & ~limb & ("pelvis" in found.names)
    found = select(found, JOINTS)
    off = np.linalg.norm(found.positions - place[:, None], axis=-1) / size[:, None, None]
    close = (off <= 0.1) & counted[:, None]  # (T, S, 17)
    best = int(close.sum(axis=(0, 2)).argmax())
    off, sure = off[:, best], found.confidence[:, best]

    def share(values: NDArray[np.bool_], among: NDArray[np.bool_]) -> float | None:
        return round(float(values[among].mean()), 4) if among.any() else None

    return {
        "pck5": share(off <= 0.05, counted),
        "pck10": share(off <= 0.1, counted),
        "pck10_seen": share(off <= 0.1, counted & seen),
        "pck10_hidden": share(off <= 0.1, counted & ~seen),
        "pck10_trunk": share(off <= 0.1, trunk),
        "lost": share(sure < SEEN, counted),
        "swaps": share(*_swaps(found.positions[:, best], place, counted, size)),
    }


def _swaps(
    found: Array, place: Array, counted: NDArray[np.bool_], size: Array
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(T, 6) whether a left and a right joint lie in each other's place, and whether it is told."""
    left, right = ([JOINTS.index(n) for n in LIMBS[k : k + 6]] for k in (0, 6))
    apart = np.linalg.norm(place[:, left] - place[:, right], axis=-1)
    crossed = [
        np.linalg.norm(found[:, a] - place[:, b], axis=-1) < apart / 2
        for a, b in ((left, right), (right, left))
    ]
    told = counted[:, left] & counted[:, right] & (apart >= APART * size[:, None])
    return crossed[0] & crossed[1], told


def _load(name: str, config: PoseBenchConfig) -> PoseEstimator | None:
    """An estimator; None for the world, which is told each clip's truth."""
    if name == "world":
        return None
    weights = {"keypoints": config.weights, "rtmlib": config.rtmlib}.get(name)
    return load_estimator(name, weights, config.device)


def _about(config: PoseBenchConfig, digest: str) -> dict[str, str | int]:
    """What the numbers depend on; the number of clips and the list of estimators may grow."""
    about: dict[str, str | int] = {"version": __version__, "cast": digest, "split": SPLIT}
    about |= {"seed": config.seed, "size": config.size, "device": config.device}
    weights = config.weights or DATA
    return {**about, "weights": sha256(weights)} if weights.is_file() else about


def _shown(frames: Frames, truth: PoseTrack, found: dict[str, PoseTrack]) -> Sequence[Frames]:
    """The middle frame: as it is, with the truth, with what each estimator found."""
    middle = len(frames) // 2
    tracks = [truth, *found.values()]
    return [frames[middle], *(draw(track, over=frames)[middle] for track in tracks)]


def _report(rows: Sequence[dict[str, object]], cast: Path, config: PoseBenchConfig) -> str:
    """Markdown: a table of all clips, and of people and animals apart."""
    words = [f"dreamactor bench pose --cast {cast.name} --out FOLDER count={config.count}"]
    words += [f"estimators={config.estimators}", f"seed={config.seed}"]
    clips = len({row["clip"] for row in rows})
    caption = stats.caption(" ".join(words), hardware(config.device), config.seed, clips)
    header = ["estimator", "domain", "clips", *(title for title, _ in COLUMNS.values())]
    lines = []
    for name in dict.fromkeys(str(row["estimator"]) for row in rows):
        for domain in ("all", "human", "animal"):
            chosen = [r for r in rows if r["estimator"] == name and domain in ("all", r["domain"])]
            if chosen:
                cells = [_cell(chosen, c, digits) for c, (_, digits) in COLUMNS.items()]
                lines.append([name, domain, str(len(chosen)), *cells])
    return f"{caption}\n\n{stats.markdown_table(header, lines)}\n{LEGEND}\n"


def _cell(rows: Sequence[dict[str, object]], column: str, digits: int) -> str:
    values = [float(str(row[column])) for row in rows if row[column] is not None]
    return stats.format_interval(stats.bootstrap(values), digits, "plus-minus")
