"""`dreamactor bench variants`: pose, end-to-end and oracle on the same held-out pairs.

What the recipe makes (docs/recipe.md): adapters of one base, against the model that was trained on
true pairs of the world, and against the copy of the reference; and any other adapters of that base,
each a row. Rows NAME@SEED are one training by several seeds (`seeds`). Rows of several runs go into
one report by `bench join`. A folder is a run, and the same command resumes it:

    results.jsonl   every metric of every clip of every system
    contact.png     12 cases: reference, driving, truth and all variants
    seesaw.png      identity against motion error, a point a row
    worst.png       the 5 cases on which the last variant has its lowest PSNR
    report.md       tables with intervals, goals
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamactor.bench import evaluate, seesaw, stats, timing
from dreamactor.bench.baselines import copy_reference
from dreamactor.bench.cases import Source, Studio
from dreamactor.bench.evaluate import Record
from dreamactor.bench.goals import Goal, goals_table
from dreamactor.bench.motion import ON_SHEET, draw_sheets
from dreamactor.bench.pointing import Pointing
from dreamactor.bench.report import report, values
from dreamactor.bench.seeds import over_seeds, row_of, seeds_of
from dreamactor.bench.settings import BenchConfig, notes_of, notes_on_joints, open_folder
from dreamactor.config import check_least
from dreamactor.errors import ConfigError
from dreamactor.runs import write_text

if TYPE_CHECKING:
    from dreamactor.backbones.base import Backbone
    from dreamactor.conditioning.pose import PoseEstimator

COPY, POSE, RGB, ORACLE = "copy", "pose", "end-to-end", "oracle"
"""Rows of the table."""


@dataclass(frozen=True)
class VariantsBenchConfig(BenchConfig):
    """Settings of one `bench variants`; `weights` is the folder of the base."""

    pose: Path | None = None
    """Adapter of the pose variant; None = no such row."""
    keypoints: Path | None = None
    """Weights of the network that finds joints: skeletons of the pose variant, and those of
    `joints`; None takes those that ship."""
    rgb: Path | None = None
    """Adapter of the end-to-end variant; None = no such row."""
    oracle: Path | None = None
    """Folder of a model trained on true pairs; None takes the one that ships."""
    others: str = ""
    """More rows, NAME:PATH with commas between: adapters of the base, or folders of weights that
    were trained in full. Their files say what drives them. NAME@SEED is a seed of a row."""
    exact: bool = False
    """Rows of the pose variant once more, named "NAME, exact", by the driver's true skeletons."""
    compare: bool = True
    """Also measure the copy of the reference and the oracle."""
    captions: bool = False
    """Tell all networks who does what in the target, in the world's own words."""
    steps: int = 4
    """Sampling steps of all."""
    joints: int = 8
    """Frames of a clip in which joints are looked for; 0 leaves AKD and PCK out."""
    identity: bool = True
    """Also hold the colours against the reference's."""

    def __post_init__(self) -> None:
        """As of `BenchConfig`; and there is a variant."""
        super().__post_init__()
        check_least(self, {"steps": 1, "joints": 0})
        if not self.variants:
            raise ConfigError("no pose, rgb or others: want at least one adapter")

    @cached_property
    def variants(self) -> dict[str, Path]:
        """Adapters, and folders of weights, by the names of their rows.

        Raises:
            ConfigError: A row has no name or no file, or the name of another one or of its seeds.
        """
        named = {POSE: self.pose, RGB: self.rgb}
        found = {name: path for name, path in named.items() if path is not None}
        for word in filter(None, self.others.split(",")):
            name, _, path = word.strip().partition(":")
            if not name or not path:
                raise ConfigError(f"others={word.strip()!r}: want NAME:PATH, such as rank16:a.st")
            if name in {*found, COPY, ORACLE}:
                raise ConfigError(f"others={word.strip()!r}: there is a row {name!r}; rename it")
            found[name] = Path(path)
        seeds_of([*found, COPY, ORACLE, evaluate.TRUTH])
        return found


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
    from dreamactor.backbones.load import load_estimator

    with Studio(Source(cast, config.seed, config.size), config.processes) as studio:
        config.check_device()
        joints = cache(lambda: load_estimator("keypoints", config.keypoints, config.device))
        systems, weights = _systems(config, joints)
        perceptual = config.load_perceptual()
        pointing = Pointing(joints(), config.joints) if config.joints else None
        path = open_folder(out) / "results.jsonl"
        about = {**studio.about, "weights": weights, "steps": config.steps}
        if config.captions:
            about["captions"] = True
        options = evaluate.Options(
            lpips_frames=config.lpips or None, identity=config.identity, about=about
        )
        records, names, fresh = studio.measure(path, systems, config, perceptual, options, pointing)
        shown = [name for name in systems if name != COPY]
        if fresh or not (out / "contact.png").is_file():
            main = RGB if RGB in systems else shown[0]
            draw_sheets(out, studio, systems, shown, main, records, names[:ON_SHEET], columns=3)
    notes = notes_of(config, about)
    if pointing is not None:
        notes += f" {notes_on_joints(pointing.about)}"
    text = report(
        path,
        config.command("variants", cast),
        timing.hardware(config.device),
        config.seed,
        baseline=row_of(shown[0]),
        extra=[
            *seesaw.section(out, records, config.seed),
            ("Goals", goals_table(variant_goals(over_seeds(records), config.seed))),
            ("Notes", notes),
        ],
    )
    write_text(out / "report.md", text)
    return out / "report.md"


def _systems(
    config: VariantsBenchConfig, joints: Callable[[], PoseEstimator]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Systems by name, and the sha256 of all weights that they rest on."""
    from dreamactor.backbones.load import load_backbone
    from dreamactor.bench.systems import Animation
    from dreamactor.provenance import sha256

    systems: dict[str, Any] = {COPY: copy_reference} if config.compare else {}
    weights: dict[str, str] = {}

    def add(name: str, folder: Path | None, adapter: Path | None) -> Backbone:
        backbone = load_backbone("nano", folder, config.device, adapter)
        posed = backbone.variant == "pose"
        if posed:
            (weights["keypoints"],) = joints().weights.values()
        for row, exact in {name: False, exactly(name): True}.items():
            if not exact or (posed and config.exact):
                systems[row] = Animation(
                    backbone,
                    config.steps,
                    config.seed,
                    config.device,
                    estimator=joints() if posed else None,
                    exact=exact,
                    captions=config.captions,
                )
        return backbone

    for name, path in config.variants.items():
        if path.is_dir():
            own = add(name, path, None).weights
            weights |= {f"{name} {file}": digest for file, digest in own.items()}
        else:
            weights |= add(name, config.weights, path).weights
            weights[f"{name} adapter"] = sha256(path)
    if config.compare:
        own = add(ORACLE, config.oracle, None).weights
        weights |= {f"{ORACLE} {file}": digest for file, digest in own.items()}
    return systems, weights


def exactly(name: str) -> str:
    """The row that is driven by true skeletons.

    Example:
        >>> exactly("pose"), exactly("full@1")
        ('pose, exact', 'full, exact@1')
    """
    row = row_of(name)
    return f"{row}, exact{name.removeprefix(row)}"


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
    best = POSE if not psnr(exactly(POSE), "animal") else exactly(POSE)
    animals = stats.NONE
    if psnr(RGB, "animal").keys() & psnr(best, "animal").keys():
        animals = stats.paired_difference(psnr(RGB, "animal"), psnr(best, "animal"), seed)
    goals.append(
        Goal(f"PSNR of end-to-end minus that of {best}", "animals", animals, low=0, unit=" dB")
    )
    return goals
