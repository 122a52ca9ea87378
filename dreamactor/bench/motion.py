"""`dreamactor bench nano`: motion transfer on held-out pairs against the classical baselines.

A folder is a run, and the same command resumes it:

    results.jsonl   every metric of every clip of every system
    timing.json     seconds per clip by stage, for each device it ran on
    contact.png     12 cases: reference, driving, truth, nano, flow warp
    worst.png       the 5 cases on which nano has its lowest PSNR
    skipped.jsonl   blocks that rows with a feature cache skipped
    report.md       tables with intervals, goals, timing
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamactor.bench import evaluate, sheets, skips, timing
from dreamactor.bench.baselines import copy_reference, driving_itself, flow_warp
from dreamactor.bench.cases import Source, Studio
from dreamactor.bench.goals import goals_table, motion_goals
from dreamactor.bench.report import report
from dreamactor.bench.settings import BenchConfig, notes_of, open_folder
from dreamactor.bench.skips import SkipRow
from dreamactor.diffusion.span import parse_span
from dreamactor.errors import ConfigError, WeightsError
from dreamactor.image import write_png
from dreamactor.runs import write_text
from dreamactor.world.pairs import TARGET_FRAMES

if TYPE_CHECKING:
    from dreamactor.backbones.nano import Nano

MAX_STEPS = 1000
ON_SHEET, WORST = 12, 5


@dataclass(frozen=True)
class NanoBenchConfig(BenchConfig):
    """Settings of one `bench nano`; `weights` is a folder."""

    steps: str = "2,4,8,16,32"
    """Sampling steps, a row each; the weights' default is added."""
    caches: str = "none"
    """More rows, with commas between: a feature cache as `animate` takes it, at all steps or as
    CACHE@STEPS, such as first-block:0.1@16."""
    captions: bool = False
    """Tell nano who does what in each case; else it gets no text."""
    guidance: float = 1.0
    """On that text; 1 = off."""
    guidance_span: str = "0:1"
    """Share of the steps in which it works, as `animate` takes it."""
    before: bool = False
    """Show nano the driver's frame before the clip, as training does and `animate` cannot."""

    def __post_init__(self) -> None:
        """As of `BenchConfig`; and the steps are numbers."""
        super().__post_init__()
        _ = self.skip_rows, parse_span(self.guidance_span)
        if self.guidance != 1 and not self.captions:
            raise ConfigError(f"guidance={self.guidance:g}: wants text, captions=true")

    @property
    def said(self) -> dict[str, Any]:
        """Of text and guidance, what is not the default; older folders do not name it."""
        names = ("captions", "guidance", "guidance_span")
        usual = {field.name: field.default for field in fields(self)}
        return {n: getattr(self, n) for n in names if getattr(self, n) != usual[n]}

    @property
    def step_counts(self) -> list[int]:
        """The numbers of `steps`, each once, rising."""
        words = [word.strip() for word in self.steps.split(",")]
        if not all(word.isascii() and word.isdigit() for word in words):
            raise ConfigError(f"steps={self.steps}: want whole numbers such as 2,4,8")
        counts = sorted({int(word) for word in words})
        if counts[0] < 1 or counts[-1] > MAX_STEPS:
            raise ConfigError(f"steps={self.steps}: want 1 to {MAX_STEPS}")
        return counts

    @property
    def skip_rows(self) -> dict[str, SkipRow]:
        """Those of `caches`, by name."""
        rows = skips.rows_of(self.caches, self.step_counts)
        return {f"{_row(row.steps)}, {row.cache}": row for row in rows}


def bench_nano(cast: Path, out: Path, config: NanoBenchConfig) -> Path:
    """Measure everything that is not measured yet, then write tables and pictures.

    Args:
        cast: Cast pack with a test split.
        out: Folder of the run.
        config: Settings.

    Returns:
        The report.

    Raises:
        AssetError: The pack is missing, damaged or without a test split.
        ConfigError: A setting cannot work, or the folder was begun with others.
        WeightsError: Weights were named and cannot be loaded.
    """
    source = Source(cast, config.seed, config.size)
    with Studio(source, config.processes) as studio:
        config.check_device()
        nano, perceptual = load(config.weights, config.device), config.load_perceptual()
        systems, main = _systems(nano, config, out / skips.FILE)
        path = open_folder(out) / "results.jsonl"
        about = {
            **studio.about,
            "weights": nano.weights if nano else {},
            "before": config.before,
            **config.said,
        }
        options = evaluate.Options(lpips_frames=config.lpips or None, about=about)
        records, names, fresh = studio.measure(path, systems, config, perceptual, options)
        if fresh or not (out / "contact.png").is_file():
            shown = [name for name in (main, "flow warp") if name is not None]
            draw_sheets(out, studio, systems, shown, main, records, names[:ON_SHEET])
        timed = _time(out, studio, systems, main, config)
    return _write_report(out, cast, config, records, main, timed, about)


def load(weights: Path | None, device: str) -> Nano | None:
    """The model on its device; None while the package ships no weights and none are named."""
    from dreamactor.backbones.load import load_backbone
    from dreamactor.backbones.nano import DATA, Nano

    if weights is None and not (DATA / "manifest.json").is_file():
        return None
    backbone = load_backbone("nano", weights, device)
    if not isinstance(backbone, Nano):
        raise WeightsError(f"{weights}: weights of {backbone.name}, want nano's")
    return backbone


def _systems(
    nano: Nano | None, config: NanoBenchConfig, noted: Path
) -> tuple[dict[str, Any], str | None]:
    """Systems by name, and the name of nano at its default steps."""
    systems: dict[str, Any] = {
        "copy": copy_reference,
        "driving": driving_itself,
        "flow warp": flow_warp,
    }
    if nano is None:
        return systems, None
    from dreamactor.bench.systems import Animation, Reconstruction

    systems["vae"] = Reconstruction(nano.vae, config.device)
    guidance: dict[str, Any] = {
        "captions": config.captions,
        "guidance": config.guidance,
        "span": parse_span(config.guidance_span),
    }
    for steps in sorted({*config.step_counts, nano.native.steps}):
        systems[_row(steps)] = Animation(
            nano, steps, config.seed, config.device, config.before, **guidance
        )
    for name, row in config.skip_rows.items():
        systems[name] = Animation(
            nano,
            row.steps,
            config.seed,
            config.device,
            config.before,
            skips=row.cache,
            told=skips.noting(noted, name),
            **guidance,
        )
    return systems, _row(nano.native.steps)


def _row(steps: int) -> str:
    return f"nano, {steps} step{'s' if steps > 1 else ''}"


def draw_sheets(
    out: Path,
    studio: Studio,
    systems: Mapping[str, Any],
    shown: Sequence[str],
    main: str | None,
    records: Sequence[evaluate.Record],
    first: Sequence[str],
    columns: int = 4,
) -> None:
    """contact.png and, of a main system, worst.png; the clips are made again.

    Args:
        out: Folder of the run.
        studio: Draws the cases.
        systems: By name.
        shown: Names of those on the sheets.
        main: Name of the one whose worst cases are looked for.
        records: What was measured.
        first: Names of the cases of contact.png.
        columns: Cases side by side.
    """
    chosen = {"contact.png": list(first)}
    if main is not None:
        chosen["worst.png"] = sheets.worst(records, main, WORST)
    blocks = {}
    for name in dict.fromkeys(name for names in chosen.values() for name in names):
        case = studio.case(int(name.rpartition("/")[2]))
        clips = {
            label: (
                system.animate([case])[0]
                if isinstance(system, evaluate.CaseSystem)
                else system(case.reference, case.driving)
            )
            for label, system in ((label, systems[label]) for label in shown)
        }
        blocks[name] = sheets.block(case, clips, sheets.title_of(case, records, shown))
    for file, names in chosen.items():
        write_png(out / file, sheets.tile([blocks[name] for name in names], columns=columns))


def _time(
    out: Path, studio: Studio, systems: dict[str, Any], main: str | None, config: NanoBenchConfig
) -> dict[str, dict[str, float]]:
    """Seconds per clip by stage on this device, with those of other devices so far."""
    seconds = timing.time_stages(studio, None if main is None else systems[main])
    if main is not None:
        seconds[main] = sum(seconds[name] for name in ("encode", "denoise", "decode"))
        seconds["of it per frame"] = seconds[main] / TARGET_FRAMES
    return timing.keep(out / "timing.json", timing.hardware(config.device), seconds)


def _write_report(
    out: Path,
    cast: Path,
    config: NanoBenchConfig,
    records: Sequence[evaluate.Record],
    main: str | None,
    timed: dict[str, dict[str, float]],
    about: Mapping[str, Any],
) -> Path:
    notes = notes_of(config, about)
    if main is None:
        notes += " Rows of nano are absent: there were no weights."
    goals = goals_table(motion_goals(records, main or "", config.seed))
    extra = [("Goals", goals), ("Seconds per clip", timing.timing_table(timed)), ("Notes", notes)]
    if main is not None and config.skip_rows:
        plain = {n: _row(n) for n in config.step_counts}
        skipped = skips.read(out / skips.FILE)
        compared = skips.table(records, config.skip_rows, plain, skipped, config.seed)
        extra.insert(0, ("Blocks skipped", compared))
    text = report(
        out / "results.jsonl",
        config.command("nano", cast),
        timing.hardware(config.device),
        config.seed,
        baseline="copy",
        extra=extra,
    )
    write_text(out / "report.md", text)
    return out / "report.md"
