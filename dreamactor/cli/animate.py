"""From a picture and a clip: animate, describe, and the demo of both."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from dreamactor.cli.options import AsJson, Describer, LocalDevice, end_on_sigterm


def animate(
    reference: Annotated[Path, typer.Option(help="Picture of the subject.")],
    driving: Annotated[Path, typer.Option(help="Clip whose motion the subject does.")],
    out: Annotated[Path, typer.Option(help="Clip to write: mp4, mov, mkv, webm or gif.")],
    backbone: Annotated[str, typer.Option(help="Which model.")] = "nano",
    weights: Annotated[
        Path | None, typer.Option(help="Folder of other weights, or hub id of large ones.")
    ] = None,
    variant: Annotated[str, typer.Option(help="rgb: the clip drives; pose: its skeleton.")] = "rgb",
    pose: Annotated[
        str | None, typer.Option(help="Finds joints: keypoints (default), mediapipe or rtmlib.")
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="Low-rank layers for the model.")] = None,
    prompt: Annotated[
        str | None, typer.Option(help='What the result shows; "" none, default described.')
    ] = None,
    negative: Annotated[str, typer.Option(help="What guidance leads away from.")] = "",
    describer: Describer = "auto",
    preset: Annotated[
        str | None, typer.Option(help="Settings: quality, balanced, fast or low-memory.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Pull of the prompt; 1 = off.")] = None,
    guidance_span: Annotated[
        str, typer.Option(help="Share of the steps in which it works, FROM:TO.")
    ] = "0:1",
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    fit: Annotated[str, typer.Option(help="letterbox shows all, crop fills.")] = "letterbox",
    guard: Annotated[
        str, typer.Option(help="Against drift of long clips: auto, none, statistics or anchor.")
    ] = "auto",
    fps: Annotated[float | None, typer.Option(help="Output rate; default the clip's.")] = None,
    interpolate: Annotated[str, typer.Option(help="Frames between: flow or nearest.")] = "flow",
    audio: Annotated[bool, typer.Option(help="Carry the driving clip's sound over.")] = True,
    watermark: Annotated[bool, typer.Option(help="Mark the frames invisibly.")] = True,
    manifest: Annotated[bool, typer.Option(help="Sign what made the clip, by C2PA.")] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT and its record.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Large: auto, float32 or bfloat16.")] = "auto",
    storage: Annotated[
        str, typer.Option(help="Large: layers wait in dtype (auto), or in float8, half as large.")
    ] = "auto",
    offload: Annotated[
        str | None, typer.Option(help="Large: none, model or group wait in the host's memory.")
    ] = None,
    compile: Annotated[
        bool | None,
        typer.Option("--compile", help="Compile blocks: on a GPU quicker, but for the first step."),
    ] = None,
    size: Annotated[str | None, typer.Option(help="Large: half, such as 832x480.")] = None,
    frames: Annotated[int | None, typer.Option(help="Large: frames of a segment.")] = None,
    lora: Annotated[
        list[str] | None, typer.Option(help="Wan: more low-rank layers, FILE[@SCALE].")
    ] = None,
    cache: Annotated[
        str | None, typer.Option(help="One-way weights: keep the context; none, device or host.")
    ] = None,
    cache_dtype: Annotated[
        str, typer.Option(help="One-way weights: kept in auto, bfloat16 or int8.")
    ] = "auto",
    cache_holds: Annotated[
        str, typer.Option(help="One-way weights: keep keys (and values), or states.")
    ] = "keys",
    feature_cache: Annotated[
        str,
        typer.Option(
            help="Skip blocks that hardly changed: none, first-block[:SHARE], magcache[:ERROR]."
        ),
    ] = "none",
    threads: Annotated[int, typer.Option(help="CPU threads; the result depends on it.")] = 4,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan, write nothing.")
    ] = False,
) -> None:
    """Animate the subject of a picture with the motion of a clip."""
    stated = {name: value for name, value in locals().items() if name != "dry_run"}
    end_on_sigterm()
    from dreamactor.backbones.catalogue import CATALOGUE
    from dreamactor.diffusion import job

    prepared = job.prepare(job.AnimateConfig(**stated))
    logging.basicConfig(format="%(message)s")
    logging.getLogger("dreamactor.backbones").setLevel(logging.INFO)  # sizes of what will be kept
    from dreamactor.diffusion import pipeline

    if preset is not None:
        meant = prepared.config.choice.words(prepared.config.cache)
        print(f"preset {preset}: {meant}", file=sys.stderr)
    if dry_run:
        print(json.dumps(pipeline.preview(prepared), indent=1))
        return
    if adapter is None and CATALOGUE[backbone].hub:
        note = (
            f"note: {backbone} without an --adapter does not know the canvas; want one of its own"
        )
        print(note, file=sys.stderr)
    from dreamactor.backbones.parallel import together

    with together(device) as team:
        if not team.leads:
            pipeline.assist(prepared, team)
            return
        result = pipeline.run(prepared, team=team)
    height, width = result.size
    print(f"{result.out}: {result.frames} frames of {width} x {height}, {result.seconds:.0f} s")
    if manifest and result.facts["marks"]["c2pa"]["where"] is None:
        print(f"note: no C2PA manifest: {result.facts['marks']['c2pa']['why']}", file=sys.stderr)


def describe(
    reference: Annotated[Path, typer.Option(help="Picture of the subject.")],
    driving: Annotated[Path, typer.Option(help="Clip whose motion the subject shall do.")],
    describer: Describer = "auto",
    device: LocalDevice = "cpu",
    as_json: AsJson = False,
) -> None:
    """Say what moves, who shall move, and both in the prompt that `animate` takes."""
    end_on_sigterm()
    from dreamactor.conditioning.guidance import describe_files
    from dreamactor.mllm import choose

    texts = describe_files(reference, driving, choose(describer, device))
    if as_json:
        print(json.dumps(texts.plain(), indent=1, ensure_ascii=False))
        return
    for kind, source in texts.sources.items():
        print(f"{kind:12}{getattr(texts, kind)}  ({source})")


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("demo_out"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Do everything again, whatever is there.")
    ] = False,
) -> None:
    """Animate the examples that ship with the package; the same command goes on."""
    end_on_sigterm()
    from dreamactor.demo import play

    play(out, overwrite, say=lambda line: print(line, flush=True))
