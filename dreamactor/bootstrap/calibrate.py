"""`dreamactor bootstrap calibrate`: set the gate's scales on truth, and hold the gate against it.

Scales are set on the validation split of a cast pack and reported on its test split: other
people, other animals, other motions. A folder is a run, and the same command resumes it:

    results.jsonl   faults and true errors of every clip, one case a line
    gate.json       the scales, for `dreamactor/data/gate.json`
    gate.png        ROC, and score against true error
    report.md       what the gate finds, by kind of fault
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dreamactor import __version__
from dreamactor.bench.agreement import Roc, count_found, roc
from dreamactor.bench.cases import as_case
from dreamactor.bench.faults import Faults, Watched, find_faults
from dreamactor.bench.measured import Measured, Scale
from dreamactor.bench.metrics import clip_flow, flow_epe
from dreamactor.bench.planted import plant, true_errors, worst
from dreamactor.bench.scores import DIMENSIONS
from dreamactor.bench.settings import open_folder
from dreamactor.bench.stats import markdown_table
from dreamactor.bootstrap.triplets import THRESHOLD
from dreamactor.config import check_least
from dreamactor.errors import ConfigError
from dreamactor.image import atomic
from dreamactor.runs import numpy_generator, write_text
from dreamactor.video import iter_frames, write_clip
from dreamactor.world.cast import Cast, load_cast
from dreamactor.world.pairs import FPS, PairSampler

if TYPE_CHECKING:
    from dreamactor.bench.systems import Animation

SET_ON, HELD_ON = "validation", "test"
FAULTLESS = 0.95
"""Share of the faultless clips that get 5 for a fault."""
SHOWN_BY = {
    "blur": ("blur", "smear"),
    "harshness": ("noise", "identity"),
    "grain": ("noise",),
    "jerk": ("jitter", "noise", "flicker"),
    "haste": ("shuffled", "jitter"),
    "stillness": ("frozen", "slow", "stutter"),
    "halt": ("frozen", "slow", "stutter"),
    "straying": ("backwards", "shuffled", "slow"),
    "flicker": ("flicker",),
    "residual": ("flicker", "noise", "fade"),
    "drift": ("tint", "fade"),
    "colours": ("identity", "tint", "fade"),
}
"""Which planted kinds a fault is there to show; its scale is set on them and on clean clips."""


@dataclass(frozen=True)
class CalibrateConfig:
    """Settings of `bootstrap calibrate`."""

    count: int = 16
    """Pairs of each split into which faults are planted, 25 clips each."""
    clean: int = 40
    """Further pairs of each split that stay faultless, one clip each."""
    seed: int = 0
    """Of pairs and planted faults."""
    size: int = 256
    """Pixels of a side."""
    nano: bool = True
    """Also judge what the embedded model makes of the test pairs."""

    def __post_init__(self) -> None:
        check_least(self, {"count": 2, "clean": 0})


@dataclass(frozen=True)
class Row:
    """One clip: what was planted, what is seen without the truth, and what the truth says."""

    split: str
    case: int
    kind: str
    severity: float
    faults: dict[str, float]
    errors: dict[str, float]

    @property
    def error(self) -> float:
        """True error in parts of its limit."""
        return worst(self.errors)

    @property
    def bad(self) -> bool:
        """Whether the truth calls it bad."""
        return self.error > 1


def calibrate(cast: Path, out: Path, config: CalibrateConfig) -> Path:
    """Measure what is not measured yet, set the scales, and write the report.

    Args:
        cast: Cast pack with a validation and a test split.
        out: Folder of the run.
        config: Settings.

    Returns:
        The report.
    """
    pack = load_cast(cast)
    path = open_folder(out) / "results.jsonl"
    settings = {**asdict(config), "cast": pack.digest, "version": __version__}
    rows = _measure(pack, path, config, settings)
    scales = fit_scales([row for row in rows if row.split == SET_ON])
    about = {"cast": pack.digest, "count": config.count, "seed": config.seed}
    made = {"made": "dreamactor bootstrap calibrate", **about, "version": __version__}
    plain = {name: [round(s.good, 4), round(s.bad, 4)] for name, s in scales.items()}
    write_text(out / "gate.json", json.dumps({**made, "scales": plain}, indent=1) + "\n")
    held = [row for row in rows if row.split == HELD_ON]
    judge = Measured(scales)
    draw(out / "gate.png", held, judge)
    stated = [f"{k}={v}" for k, v in asdict(config).items() if v != getattr(CalibrateConfig, k)]
    command = " ".join([f"dreamactor bootstrap calibrate --cast {cast.name} --out FOLDER", *stated])
    write_text(out / "report.md", report(held, judge, command))
    return out / "report.md"


def fit_scales(rows: Sequence[Row]) -> dict[str, Scale]:
    """Set every scale: 5 for faultless clips, 3 where the truth says that the fault turns bad.

    The place of 3 is the bar that best splits good and bad clips of the kinds that show the fault
    (largest recall minus false alarms). But it is at least as far beyond `good` as `good` is
    beyond the median of faultless clips: there are twelve faults, and a faultless clip that is
    unusual in one of them is no reason to lose it. `bad` lies as far beyond 3 as `good` before.
    """
    scales = {}
    for name, kinds in SHOWN_BY.items():
        clean = [row.faults[name] for row in rows if row.kind == "clean"]
        median, good = (float(np.quantile(clean, share)) for share in (0.5, FAULTLESS))
        shown = [row for row in rows if row.kind in (*kinds, "clean")]
        curve = roc([row.faults[name] for row in shown], [row.bad for row in shown])
        best = int(np.argmax(curve.found - curve.alarms))
        turn = float(np.mean(curve.bars[[best, min(best + 1, len(curve.bars) - 1)]]))
        turn = max(turn, good + max(good - median, 1e-3))
        scales[name] = Scale(good, 2 * turn - good)
    return scales


def report(rows: Sequence[Row], judge: Measured, command: str) -> str:
    """Markdown: overall, then by kind."""
    marks = [judge.scores(Faults(**row.faults)).average for row in rows]
    planted = [k for k, row in enumerate(rows) if not row.kind.startswith("nano")]
    sure = [k for k in planted if rows[k].bad or rows[k].kind == "clean"]
    head = ["clips", "truly bad", "area under ROC", "precision", "recall", "false alarms"]
    body = []
    for label, chosen in (("bad against faultless", sure), ("all planted", planted)):
        bad = [rows[k].bad for k in chosen]
        found = count_found([marks[k] <= THRESHOLD for k in chosen], bad)
        area = roc([-marks[k] for k in chosen], bad).area
        shares = (area, found.precision, found.recall, found.false_alarms)
        body.append([label, str(len(chosen)), str(sum(bad)), *(f"{x:.2f}" for x in shares)])
    lines = [
        f"Made by `{command}`; scales set on {SET_ON} pairs, all figures here on {HELD_ON} pairs. "
        "Bad = a true error over its limit. Some planted faults are too small to be bad.\n",
        markdown_table(["", *head], body),
    ]
    kinds = []
    for kind, severity in dict.fromkeys((row.kind, row.severity) for row in rows):
        own = [k for k, r in enumerate(rows) if (r.kind, r.severity) == (kind, severity)]
        kinds.append(
            [
                f"{kind} {severity:g}" if severity else kind,
                str(len(own)),
                f"{np.median([rows[k].error for k in own]):.2f}",
                f"{np.mean([rows[k].bad for k in own]):.2f}",
                f"{np.median([marks[k] for k in own]):.2f}",
                f"{np.mean([marks[k] <= THRESHOLD for k in own]):.2f}",
            ]
        )
    of_kind = ["kind", "clips", "true error", "truly bad", "average score", "rejected"]
    return "\n".join([*lines, markdown_table(of_kind, kinds)])


def draw(path: Path, rows: Sequence[Row], judge: Measured) -> None:
    """ROC of the whole gate and of each score alone; average score against true error."""
    try:
        from matplotlib import colormaps
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("the plot needs matplotlib: pip install 'dreamactor[bench]'") from error
    planted = [row for row in rows if not row.kind.startswith("nano")]
    sure = [row for row in planted if row.bad or row.kind == "clean"]
    figure = Figure(figsize=(10.5, 4.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    scores = [judge.scores(Faults(**row.faults)) for row in sure]
    bad = [row.bad for row in sure]
    for name in DIMENSIONS:
        _curve(left, roc([-s.plain()[name] for s in scores], bad), name.replace("_", " "))
    marks = [s.average for s in scores]
    _curve(left, roc([-x for x in marks], bad), "average of four", color="black", linewidth=2.2)
    every = [-judge.scores(Faults(**row.faults)).average for row in planted]
    curve = roc(every, [row.bad for row in planted])
    _curve(left, curve, "with faults too small to be bad", color="black", linestyle=":")
    found = count_found([x <= THRESHOLD for x in marks], bad)
    left.plot(found.false_alarms, found.recall, "o", color="black")
    left.annotate(f"average {THRESHOLD}", (found.false_alarms + 0.03, found.recall - 0.09))
    left.set(xlabel="good clips rejected", ylabel="bad clips rejected", title="Finding bad pairs")
    left.legend(loc="lower right", fontsize=8, frameon=False)
    right.set_prop_cycle(color=[colormaps["tab20"](k) for k in range(20)])
    for kind in dict.fromkeys(row.kind for row in rows):
        own = [row for row in rows if row.kind == kind]
        marks = [judge.scores(Faults(**row.faults)).average for row in own]
        errors = np.clip([row.error for row in own], 0.02, 50)
        shape = "k*" if kind.startswith("nano") else "o"
        right.plot(errors, marks, shape, ms=5, lw=0, label=kind)
    right.set(xscale="log", xlabel="true error, parts of its limit", ylabel="average score")
    right.axhline(THRESHOLD, color="0.3", linewidth=1)
    right.axvline(1, color="0.3", linewidth=1)
    right.set_title("Upper right: bad and let through")
    right.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    with atomic(path) as hidden:
        figure.savefig(hidden, format="png")


def _curve(axes: Any, curve: Roc, label: str, **style: Any) -> None:
    axes.plot(curve.alarms, curve.found, label=f"{label}: {curve.area:.2f}", **style)


# ---- measuring ---------------------------------------------------------------------------------


def _measure(
    cast: Cast, path: Path, config: CalibrateConfig, settings: Mapping[str, Any]
) -> list[Row]:
    rows = _resume(path, settings)
    done = {(row.split, row.case) for row in rows}
    nano = _nano(config) if config.nano else None
    last = config.count + config.clean
    order = [*range(config.count, last), *range(config.count)]
    wanted = [(split, k) for split in (SET_ON, HELD_ON) for k in order]
    samplers = {split: PairSampler(cast, split, config.size) for split in (SET_ON, HELD_ON)}
    with path.open("a") as file:
        for split, index in tqdm(wanted, unit="pair", disable=None, leave=False):
            if (split, index) in done:
                continue
            fresh = list(_rows(samplers[split], index, config, nano if split == HELD_ON else None))
            file.write(json.dumps([asdict(row) for row in fresh]) + "\n")
            file.flush()
            rows += fresh
    return rows


def _rows(
    sampler: PairSampler, index: int, config: CalibrateConfig, nano: Animation | None
) -> Iterable[Row]:
    """Rows of one pair; every clip goes through a file, as those of a data set do."""
    pair = sampler.pair(config.seed, index, truth=True)
    case = as_case(pair, f"{sampler.split}/{index}", index)
    driver = pair.driving[1:, ..., 3] > 0
    neighbour = sampler.pair(config.seed, (index + 1) % config.count).target
    rng = numpy_generator(config.seed, f"plant/{sampler.split}", index)
    source = Watched(_coded(case.driving))
    planted = plant(case, driver, np.ascontiguousarray(neighbour[..., :3]), rng)
    clips = list(planted if index < config.count else islice(planted, 1))  # the first is clean
    if index < config.count and nano is not None:
        clips.append((f"nano, {nano.steps} steps", 0.0, nano.animate([case])[0]))
    floor = flow_epe(clip_flow(case.truth), case.flow, case.mask)
    for kind, severity, clip in clips:
        made = Watched(_coded(clip))
        faults = find_faults(source, case.reference, made).plain()
        errors = true_errors(made.clip, made.flow, case, floor)
        yield Row(sampler.split, index, kind, severity, faults, errors)


def _coded(clip: NDArray[np.uint8]) -> NDArray[np.uint8]:
    with tempfile.TemporaryDirectory() as folder:
        write_clip(Path(folder) / "clip.mp4", clip, FPS)
        return np.stack([frame for _, frame in iter_frames(Path(folder) / "clip.mp4")])


def _nano(config: CalibrateConfig) -> Animation:
    from dreamactor.backbones.load import load_backbone
    from dreamactor.bench.systems import Animation

    nano = load_backbone("nano")
    return Animation(nano, nano.native.steps, config.seed)


def _resume(path: Path, settings: Mapping[str, Any]) -> list[Row]:
    """Rows of earlier runs; a half-written last line is cut off, a new file begun."""
    head = json.dumps(dict(settings), sort_keys=True)
    lines = path.read_text().split("\n") if path.is_file() else []
    if not lines or not lines[0]:
        write_text(path, head + "\n")
        return []
    if lines[0] != head:
        raise ConfigError(f"{path} was made with other settings: {lines[0]}; name another folder")
    whole = lines[:-1]  # what stands behind the last end of a line is torn
    write_text(path, "\n".join(whole) + "\n")
    return [Row(**row) for line in whole[1:] for row in json.loads(line)]
