"""`dreamactor bench`: measure models, suites, judges and metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dreamactor.cli.options import Results, Settings, end_on_sigterm, listing, parsed
from dreamactor.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Measure: tables with intervals, goals, pictures.")

HeldOut = Annotated[Path, typer.Option(help="Cast pack with a test split.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what it takes.")]


@app.command("nano", cls=listing("dreamactor.bench.motion:NanoBenchConfig"))
def bench_nano(cast: HeldOut, out: Results, settings: Settings = None) -> None:
    """Motion transfer on held-out pairs, against the truth and the classical baselines."""
    end_on_sigterm()
    from dreamactor.bench.motion import NanoBenchConfig, bench_nano

    print(bench_nano(cast, out, parsed(NanoBenchConfig, settings)))


@app.command("variants", cls=listing("dreamactor.bench.variants:VariantsBenchConfig"))
def bench_variants(cast: HeldOut, out: Results, settings: Settings = None) -> None:
    """Adapters of both stages against the model that was trained on true pairs."""
    end_on_sigterm()
    from dreamactor.bench.variants import VariantsBenchConfig, bench_variants

    print(bench_variants(cast, out, parsed(VariantsBenchConfig, settings)))


@app.command("join")
def bench_join(
    folders: Annotated[list[Path], typer.Argument(help="Runs of `bench variants`.")],
    out: Annotated[Path, typer.Option(help="Folder of the report and its plot.")],
    baseline: Annotated[
        str | None, typer.Option(help="Row that all others are compared with, pair by pair.")
    ] = None,
) -> None:
    """One report of rows that were measured in several runs on the same pairs."""
    from dreamactor.bench.join import join_runs

    print(join_runs(folders, out, baseline))


@app.command("vae", cls=listing("dreamactor.bench.reconstruction:VAEBenchConfig"))
def bench_vae(cast: HeldOut, out: Results, settings: Settings = None) -> None:
    """What nano's autoencoder keeps of held-out clips, photographs and films."""
    end_on_sigterm()
    from dreamactor.bench.reconstruction import VAEBenchConfig, bench_vae

    print(bench_vae(cast, out, parsed(VAEBenchConfig, settings)))


@app.command("pose", cls=listing("dreamactor.bench.poses:PoseBenchConfig"))
def bench_pose(cast: HeldOut, out: Results, settings: Settings = None) -> None:
    """How well pose estimators find the joints of held-out characters."""
    end_on_sigterm()
    from dreamactor.bench.poses import PoseBenchConfig, bench_pose

    print(bench_pose(cast, out, parsed(PoseBenchConfig, settings)))


@app.command("metrics", cls=listing("dreamactor.bench.validation:MetricsBenchConfig"))
def bench_metrics(cast: HeldOut, out: Results, settings: Settings = None) -> None:
    """What the metrics are worth: known damage, and rank correlation with the true error."""
    end_on_sigterm()
    from dreamactor.bench.validation import MetricsBenchConfig, bench_metrics

    print(bench_metrics(cast, out, parsed(MetricsBenchConfig, settings)))


@app.command("speed", cls=listing("dreamactor.bench.speed_config:SpeedConfig"))
def bench_speed(out: Results, settings: Settings = None) -> None:
    """Seconds and memory of a step by mode, against plain image-to-video and Wan-Animate."""
    end_on_sigterm()
    from dreamactor.backbones.folder import quiet

    with quiet():
        from dreamactor.bench.speed import bench_speed
        from dreamactor.bench.speed_config import SpeedConfig

    print(bench_speed(out, parsed(SpeedConfig, settings)))


@app.command("training", cls=listing("dreamactor.training.measure:TrainingBenchConfig"))
def bench_training(
    out: Annotated[Path, typer.Option(help="Folder of the rows; other settings add to it.")],
    settings: Settings = None,
) -> None:
    """Seconds, memory and losses of a training step with random weights, on one GPU or several."""
    end_on_sigterm()
    from dreamactor.backbones.folder import quiet

    with quiet():
        from dreamactor.training.measure import TrainingBenchConfig, bench_training

    print(bench_training(out, parsed(TrainingBenchConfig, settings)))


@app.command("long", cls=listing("dreamactor.bench.long:LongConfig"))
def bench_long(cast: HeldOut, out: Results, settings: Settings = None) -> None:
    """How far colours, identity and sharpness drift over a minute, with and without guards."""
    end_on_sigterm()
    from dreamactor.bench.long import LongConfig, bench_long

    print(bench_long(cast, out, parsed(LongConfig, settings)))


@app.command("run", cls=listing("dreamactor.bench.suite_run:RunConfig"))
def bench_run(
    suite: Annotated[Path, typer.Option(help="Suite: folder with suite.json.")],
    system: Annotated[
        str,
        typer.Option(
            help="nano or another backbone; copy, driving or warp; a folder of clips; or a "
            "command with {reference}, {driving} and {out} in it."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Run folder; systems add up, the same command goes on.")
    ],
    settings: Settings = None,
    name: Annotated[str | None, typer.Option(help="Of the system in tables.")] = None,
) -> None:
    """Let a system do a suite's cases, measure its clips, and write a report of all systems."""
    end_on_sigterm()
    from dreamactor.bench.suite_run import RunConfig, bench_run

    print(bench_run(suite, system, out, name, parsed(RunConfig, settings)))


@app.command("judge", cls=listing("dreamactor.bench.judge:JudgeConfig"))
def bench_judge(
    suite: Annotated[Path, typer.Option(help="Folder of a suite.")],
    clips: Annotated[Path, typer.Option(help="Results: CLIPS/SYSTEM/CASE.mp4.")],
    out: Annotated[Path, typer.Option(help="Folder of the scores; the same command goes on.")],
    settings: Settings = None,
    dry_run: DryRun = False,
) -> None:
    """Score clips from 1 to 5 by the model that DREAMACTOR_MLLM_* name, as Video-Bench does."""
    end_on_sigterm()
    from dreamactor.bench.judge import JudgeConfig, judge_suite

    config = parsed(JudgeConfig, settings)
    print(judge_suite(suite, clips, out, config, dry_run=dry_run, say=print))


@app.command("calibrate", cls=listing("dreamactor.bench.calibration:CalibrateConfig"))
def bench_calibrate(
    suite: Annotated[Path, typer.Option(help="Folder of a suite with truths.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command goes on.")],
    settings: Settings = None,
    dry_run: DryRun = False,
) -> None:
    """Hold a judge against truths that were damaged: may it be trusted, and for what?"""
    end_on_sigterm()
    from dreamactor.bench.calibration import CalibrateConfig, calibrate

    config = parsed(CalibrateConfig, settings)
    print(calibrate(suite, out, config, dry_run=dry_run, say=print))


@app.command("world", cls=listing("dreamactor.bench.world_suite:WorldSuiteConfig"))
def bench_world(
    cast: HeldOut,
    out: Annotated[Path, typer.Option(help="Folder of the suite; the same command goes on.")],
    settings: Settings = None,
) -> None:
    """Draw AW Bench World: clips, references and truths of the held-out cast, as a suite."""
    end_on_sigterm()
    from dreamactor.bench.world_suite import WorldSuiteConfig, build_suite

    digest = build_suite(cast, out, parsed(WorldSuiteConfig, settings))
    print(f"{out}: sha256 of the manifest {digest}")


@app.command("validate")
def bench_validate(suite: Annotated[Path, typer.Argument(help="Folder of a suite.")]) -> None:
    """Look at every file of a suite; print each fault, and what the suite covers."""
    from dreamactor.bench.coverage import coverage
    from dreamactor.bench.manifest import digest_of, load_suite
    from dreamactor.bench.validate import faults_of

    found = load_suite(suite)
    faults = list(faults_of(found))
    for fault in faults:
        print(fault)
    print(coverage(found))
    if faults:
        raise ConfigError(f"{suite}: {len(faults)} faults, listed above")
    print(f"{suite}: no fault; sha256 of the manifest {digest_of(suite)}")


@app.command("report")
def bench_report(
    out: Annotated[Path, typer.Option(help="Page to write, such as docs/results.md.")],
    nano: Annotated[Path | None, typer.Option(help="Folder of a `bench nano`.")] = None,
    vae: Annotated[Path | None, typer.Option(help="Folder of a `bench vae`.")] = None,
    pose: Annotated[Path | None, typer.Option(help="Folder of a `bench pose`.")] = None,
    long: Annotated[Path | None, typer.Option(help="Folder of a `bench long`.")] = None,
) -> None:
    """Put the reports of finished runs on one page."""
    from dreamactor.bench.page import results_page

    print(results_page(out, {"nano": nano, "vae": vae, "pose": pose, "long": long}))
