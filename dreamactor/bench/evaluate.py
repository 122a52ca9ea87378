"""Systems over cases: every metric of every clip into a JSON Lines file, and tables from it.

    cases, systems -> run() -> results.jsonl -> report() -> Markdown

The file's first line holds the settings, every other one clip of one system. Rerunning the
command measures what is missing; other settings are refused, since their numbers do not mix.
Shapes: T frames of H x W pixels; boxes and flows as in `dreamactor.bench.metrics`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dreamactor.bench import metrics, stats
from dreamactor.errors import ConfigError, ShapeError

if TYPE_CHECKING:
    from dreamactor.bench.baselines import System
    from dreamactor.bench.perceptual import Perceptual

TRUTH = "truth"  # the row that measures the truth against itself: the best any system can get
GROUPS = ("domain", "style", "framing")
MARGIN = 8  # pixels around the subject; a limb a little outside the truth's silhouette counts


@dataclass(frozen=True)
class Case:
    """One held-out pair with its truth."""

    name: str
    """Unique; results are keyed by it."""
    domain: str
    """Who is animated by whom, such as "human to animal"."""
    style: str
    """Look of the picture, such as "toon"."""
    framing: str
    """How much of the subject is shown, such as "full body"."""
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


@dataclass(frozen=True)
class Record:
    """What was measured on one clip of one system."""

    case: str
    system: str
    domain: str
    style: str
    framing: str
    seconds: float
    """Wall time of the system on this clip."""
    metrics: dict[str, float]
    """By the names of `COLUMNS`; NaN where undefined."""


@dataclass(frozen=True)
class Column:
    """How a metric is shown."""

    name: str
    title: str
    better: Literal["up", "down", "one", "truth"]
    """Which way is better; "one" = near 1, "truth" = near the truth's own row."""
    digits: int


COLUMNS = (
    Column("psnr", "PSNR dB", "up", 2),
    Column("ssim", "SSIM", "up", 3),
    Column("l1", "L1", "down", 4),
    Column("lpips", "ST-LPIPS", "down", 3),
    Column("psnr_frame", "PSNR frame dB", "up", 2),
    Column("sharpness_ratio", "sharpness", "one", 2),
    Column("flow_epe", "motion error px", "down", 2),
    Column("dynamic_degree", "dynamic degree", "truth", 2),
    Column("temporal_flicker", "flicker", "truth", 3),
)
ARROWS = {"up": "↑", "down": "↓", "one": "→1", "truth": "→truth"}


def measure(
    result: NDArray[Any], case: Case, perceptual: Perceptual | None = None, margin: int = MARGIN
) -> dict[str, float]:
    """Every metric of one result, by the names of `COLUMNS`.

    Fidelity and sharpness are taken in the truth's subject box of each frame, `psnr_frame` and
    the two of motion smoothness on whole frames, `flow_epe` on the subject's pixels.

    Args:
        result: (T, H, W, 3), uint8 or floating point in [0, 1].
        case: What it is measured against.
        perceptual: Network of `lpips`; None leaves that metric NaN.
        margin: Pixels around the subject.
    """
    truth, boxes = case.truth, metrics.subject_box(case.mask, margin)
    psnr = metrics.psnr(result, truth, boxes)  # refuses a wrong shape first
    seen = metrics.clip_flow(result)
    return {
        "psnr": psnr,
        "ssim": metrics.ssim(result, truth, boxes),
        "l1": metrics.l1(result, truth, boxes),
        "lpips": math.nan
        if perceptual is None
        else metrics.lpips(result, truth, perceptual, boxes),
        "psnr_frame": metrics.psnr(result, truth),
        "sharpness_ratio": metrics.sharpness_ratio(result, truth, boxes),
        "flow_epe": metrics.flow_epe(seen, case.flow, case.mask),
        "dynamic_degree": metrics.dynamic_degree(seen),
        "temporal_flicker": metrics.temporal_flicker(result),
    }


def run(
    cases: Iterable[Case],
    systems: Mapping[str, System],
    path: Path | str,
    perceptual: Perceptual | None = None,
    margin: int = MARGIN,
) -> list[Record]:
    """Measure every system on every case, going on where an earlier run stopped.

    Args:
        cases: May be lazy; total time is shown if it has a length.
        systems: By the name shown in tables; "truth" is added and may not be among them.
        path: JSON Lines file, made or continued. Results are written as they come.
        perceptual: As of `measure`.
        margin: As of `measure`.

    Returns:
        All records of the file, those of earlier runs too.

    Raises:
        ConfigError: The file has other settings, or two cases have one name.
        ShapeError: A system's result has not the truth's shape.
    """
    if TRUTH in systems:
        raise ConfigError(f"a system is named {TRUTH!r}: that row is added by itself")
    path, settings = Path(path), _settings(perceptual, margin)
    records = _resume(path, settings)
    done = {(r.case, r.system) for r in records}
    met: set[str] = set()
    total = len(cases) if isinstance(cases, Sequence) else None
    with path.open("a", encoding="utf-8") as file:
        for case in tqdm(cases, "evaluate", total, unit="case"):
            if case.name in met:
                raise ConfigError(f"two cases are named {case.name!r}: want unique names")
            met.add(case.name)
            for name in (*systems, TRUTH):
                if (case.name, name) in done:
                    continue
                start = time.perf_counter()
                result = (
                    case.truth if name == TRUTH else systems[name](case.reference, case.driving)
                )
                seconds = time.perf_counter() - start
                if result.shape != case.truth.shape:
                    raise ShapeError(
                        f"system {name!r} on {case.name!r} gave {result.shape}: "
                        f"want {case.truth.shape}"
                    )
                values = measure(result, case, perceptual, margin)
                about = case.domain, case.style, case.framing
                record = Record(case.name, name, *about, round(seconds, 4), values)
                file.write(_to_line(record))
                file.flush()
                records.append(record)
    return records


def read(path: Path | str) -> list[Record]:
    """Records of a results file, in order."""
    return _parse(Path(path))[1]


def summary_table(records: Iterable[Record], group: str | None = None, seed: int = 0) -> str:
    """Markdown table: a row a system (and group), a column a metric, "mean [low, high]".

    Args:
        records: Of one results file.
        group: None, or one of `GROUPS`.
        seed: Of the bootstrap.
    """
    cells: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        where = () if group is None else (str(getattr(record, group)),)
        cells.setdefault((*where, record.system), []).append(record)
    shown = _shown([r for members in cells.values() for r in members])
    header = ["system", "clips", *(f"{c.title} {ARROWS[c.better]}" for c in shown)]
    order = {name: i for i, name in enumerate(dict.fromkeys(key[-1] for key in cells))}
    rows = []
    for key in sorted(cells, key=lambda key: (*key[:-1], key[-1] == TRUTH, order[key[-1]])):
        members = sorted(cells[key], key=lambda r: r.case)
        intervals = [stats.bootstrap((r.metrics[c.name] for r in members), seed) for c in shown]
        texts = [stats.format_interval(i, c.digits) for i, c in zip(intervals, shown, strict=True)]
        rows.append([*key, str(len(members)), *texts])
    return stats.markdown_table(header if group is None else [group, *header], rows)


def difference_table(records: Iterable[Record], baseline: str, seed: int = 0) -> str:
    """Markdown table of every other system minus `baseline`, clip by clip."""
    values: dict[str, dict[str, dict[str, float]]] = {}  # system -> metric -> case
    kept = [r for r in records if r.system != TRUTH]
    for record in kept:
        for name, value in record.metrics.items():
            values.setdefault(record.system, {}).setdefault(name, {})[record.case] = value
    if baseline not in values:
        raise ConfigError(f"baseline {baseline!r}: the file has {sorted(values)}")
    shown = _shown(kept)
    rows = []
    for system in (s for s in values if s != baseline):
        pairs = [(values[system][c.name], values[baseline][c.name]) for c in shown]
        differences = [stats.paired_difference(a, b, seed) for a, b in pairs]
        texts = [
            stats.format_interval(d, c.digits) for d, c in zip(differences, shown, strict=True)
        ]
        rows.append([f"{system} - {baseline}", str(len(values[system][shown[0].name])), *texts])
    return stats.markdown_table(["difference", "clips", *(c.title for c in shown)], rows)


def report(
    path: Path | str, command: str, hardware: str, seed: int = 0, baseline: str | None = None
) -> str:
    """The whole of a results file as Markdown: overall, against a baseline, by group.

    Args:
        path: File of `run`.
        command: What made it, to be repeated by the reader.
        hardware: Where, such as "2 CPU cores" or "1 H100".
        seed: Of the systems and of the bootstrap.
        baseline: System that the others are compared with clip by clip; None = no such table.
    """
    records = read(path)
    clips = len({r.case for r in records})
    parts = [stats.caption(command, hardware, seed, clips), summary_table(records, seed=seed)]
    if baseline is not None:
        parts.append(f"### Against {baseline}\n\n{difference_table(records, baseline, seed)}")
    parts += [f"### By {group}\n\n{summary_table(records, group, seed)}" for group in GROUPS]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _shown(records: Sequence[Record]) -> list[Column]:
    """Columns that have a value anywhere."""
    return [c for c in COLUMNS if any(not math.isnan(r.metrics[c.name]) for r in records)]


def _settings(perceptual: Perceptual | None, margin: int) -> dict[str, Any]:
    net = None if perceptual is None else f"{perceptual.net}-{len(perceptual.stages)}"
    return {"margin": margin, "lpips": net, "metrics": [c.name for c in COLUMNS]}


def _resume(path: Path, settings: dict[str, Any]) -> list[Record]:
    """Records of the file so far; a half-written last line is cut off, a new file begun."""
    if not path.exists() or not path.stat().st_size:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"settings": settings}) + "\n", encoding="utf-8")
        return []
    whole = path.read_bytes()
    if not whole.endswith(b"\n"):
        path.write_bytes(whole[: whole.rfind(b"\n") + 1])
        return _resume(path, settings)
    stored, records = _parse(path)
    if stored != settings:
        raise ConfigError(f"{path} was made with {stored}, now {settings}: name another file")
    return records


def _parse(path: Path) -> tuple[dict[str, Any], list[Record]]:
    if not path.is_file():
        raise ConfigError(f"results {path} do not exist: run the evaluation first")
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        settings: dict[str, Any] = json.loads(lines[0])["settings"]
        rows = [json.loads(line) for line in lines[1:]]
        for row in rows:
            row["metrics"] = {k: math.nan if v is None else v for k, v in row["metrics"].items()}
        return settings, [Record(**row) for row in rows]
    except (IndexError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} is no results file of ours ({error}): name another") from error


def _to_line(record: Record) -> str:
    row = asdict(record)
    row["metrics"] = {k: None if math.isnan(v) else v for k, v in record.metrics.items()}
    return json.dumps(row, allow_nan=False) + "\n"
