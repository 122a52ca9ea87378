"""`dreamactor bench variants`: pose, end-to-end and oracle on the same held-out pairs.

What the recipe makes (docs/recipe.md): adapters of one base, against the model that was trained on
true pairs of the world, and against the copy of the reference. A folder is a run, and the same
command resumes it:

    results.jsonl   every metric of every clip of every system
    contact.png     12 cases: reference, driving, truth and all variants
    worst.png       the 5 cases on which the last variant has its lowest PSNR
    report.md       tables with intervals, goals
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamactor.bench import evaluate, stats, timing
from dreamactor.bench.baselines import copy_reference
from dreamactor.bench.cases import Source, Studio
from dreamactor.bench.evaluate import Record
from dreamactor.bench.goals import Goal, goals_table
from dreamactor.bench.motion import ON_SHEET, draw_sheets
from dreamactor.bench.report import report, values
from dreamactor.bench.settings import BenchConfig, notes_of, open_folder
from dreamactor.config import check_least
from dreamactor.errors import ConfigError
from dreamactor.runs import write_text

COPY, POSE, RGB, ORACLE = "copy", "pose", "end-to-end", "oracle"
"""Rows of the table."""


@dataclass(frozen=True)
class VariantsBenchConfig(BenchConfig):
    """Settings of one `bench variants`; `weights` is the folder of the base."""

    pose: Path | None = None
    """Adapter of the pose variant; None = no such row."""
    keypoints: Path | None = None
    """Weights of the network that finds its skeletons; None takes those that ship."""
    rgb: Path | None = None
    """Adapter of the end-to-end variant; None = no such row."""
    oracle: Path | None = None
    """Folder of a model trained on true pairs; None takes the one that ships."""
    steps: int = 4
    """Sampling steps of all."""

    def __post_init__(self) -> None:
        """As of `BenchConfig`; and there is a variant."""
        super().__post_init__()
        check_least(self, {"steps": 1})
        if self.pose is None and self.rgb is None:
            raise ConfigError("neither pose nor rgb: want an adapter of one of them, or of both")


def bench_variants(cast: Path, out: Path, config: VariantsBenchConfig) -> Path:
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
        WeightsError: Weights cannot be loaded, or an adapter belongs to others.
    """
    with Studio(Source(cast, config.seed, config.size), config.processes) as studio:
        config.check_device()
        (systems, weights), perceptual = _systems(config), config.load_perceptual()
        path = open_folder(out) / "results.jsonl"
        about = {**studio.about, "weights": weights, "steps": config.steps}
        options = evaluate.Options(lpips_frames=config.lpips or None, about=about)
        records, names, fresh = studio.measure(path, systems, config, perceptual, options)
        shown = [name for name in (POSE, RGB, ORACLE) if name in systems]
        if fresh or not (out / "contact.png").is_file():
            main = RGB if RGB in systems else POSE
            draw_sheets(out, studio, systems, shown, main, records, names[:ON_SHEET], columns=3)
    text = report(
        path,
        config.command("variants", cast),
        timing.hardware(config.device),
        config.seed,
        baseline=shown[0],
        extra=[
            ("Goals", goals_table(variant_goals(records, config.seed))),
            ("Notes", notes_of(config, about)),
        ],
    )
    write_text(out / "report.md", text)
    return out / "report.md"


def _systems(config: VariantsBenchConfig) -> tuple[dict[str, Any], dict[str, str]]:
    """Systems by name, and the sha256 of all weights that they rest on."""
    from dreamactor.backbones.keypoints import DATA, Keypoints, load_network
    from dreamactor.backbones.load import load_backbone
    from dreamactor.bench.systems import Animation
    from dreamactor.provenance import sha256

    systems: dict[str, Any] = {COPY: copy_reference}
    weights: dict[str, str] = {}
    files = {POSE: config.pose, RGB: config.rgb}
    for name, adapter in files.items():
        if adapter is None:
            continue
        backbone = load_backbone("nano", config.weights, config.device, adapter)
        estimator = None
        if name == POSE:
            path = config.keypoints or DATA
            estimator = Keypoints(load_network(path), config.device)
            weights["keypoints"] = sha256(path)
        systems[name] = Animation(
            backbone, config.steps, config.seed, config.device, estimator=estimator
        )
        weights |= {**backbone.weights, f"{name} adapter": sha256(adapter)}
    oracle = load_backbone("nano", config.oracle, config.device)
    systems[ORACLE] = Animation(oracle, config.steps, config.seed, config.device)
    weights |= {f"{ORACLE} {file}": digest for file, digest in oracle.weights.items()}
    return systems, weights


def variant_goals(records: Sequence[Record], seed: int = 0) -> list[Goal]:
    """What the end-to-end variant is to reach; none where one of the three was not measured.

    Args:
        records: Of one results file.
        seed: Of the bootstrap.
    """

    def psnr(system: str, domain: str) -> dict[str, float]:
        return values(records, system, "psnr", domain=domain)

    if {POSE, RGB, ORACLE} - {record.system for record in records}:
        return []
    goals = []
    pose, rgb, oracle = (psnr(name, "human") for name in (POSE, RGB, ORACLE))
    gained, there = ({k: x[k] - pose[k] for k in x.keys() & pose.keys()} for x in (rgb, oracle))
    share = stats.paired_ratio(gained, there, seed)
    if there and sum(there.values()) <= 0:
        share = stats.NONE  # the oracle gains nothing, so there is no gap to close
    name = "end-to-end's part of what the oracle gains over pose, PSNR"
    goals.append(Goal(name, "humans", share, low=0.8))
    animals = stats.NONE
    if psnr(RGB, "animal").keys() & psnr(POSE, "animal").keys():
        animals = stats.paired_difference(psnr(RGB, "animal"), psnr(POSE, "animal"), seed)
    goals.append(
        Goal("PSNR of end-to-end minus that of pose", "animals", animals, low=0, unit=" dB")
    )
    return goals
