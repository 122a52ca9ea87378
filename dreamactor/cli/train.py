"""`dreamactor train`: weights of nano and its parts, adapters of large backbones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dreamactor.cli.options import (
    Describer,
    LocalDevice,
    Replace,
    Settings,
    end_on_sigterm,
    listing,
    parsed,
)

if TYPE_CHECKING:
    from dreamactor.backbones.load import Variant
    from dreamactor.training.stage import AdaptConfig

app = typer.Typer(no_args_is_help=True, help="Train a stage: time-boxed, repeat to resume.")

Dry = Annotated[bool, typer.Option("--dry-run", help="Predict memory and hours; train nothing.")]
RunOut = Annotated[Path, typer.Option(help="Run folder; the same command resumes it.")]


@app.command("nano-vae", cls=listing("dreamactor.training.nano_vae:VAETrainConfig"))
def train_nano_vae(out: RunOut, settings: Settings = None) -> None:
    """Train nano's autoencoder on a pool of pairs."""
    from dreamactor.training.nano_vae import VAETrainConfig, train_nano_vae

    print(train_nano_vae(parsed(VAETrainConfig, settings), out))


@app.command("nano-surface", cls=listing("dreamactor.training.nano_surface:SurfaceTrainConfig"))
def train_nano_surface(out: RunOut, settings: Settings = None) -> None:
    """Teach nano's autoencoder where on the body each cell lies, on a pool of pairs."""
    from dreamactor.training.nano_surface import SurfaceTrainConfig, train_nano_surface

    print(train_nano_surface(parsed(SurfaceTrainConfig, settings), out))


@app.command(
    "nano-placement", cls=listing("dreamactor.training.nano_placement:PlacementTrainConfig")
)
def train_nano_placement(out: RunOut, settings: Settings = None) -> None:
    """Teach nano where a driver belongs beside a reference, on a pool of pairs."""
    from dreamactor.training.nano_placement import PlacementTrainConfig, train_nano_placement

    print(train_nano_placement(parsed(PlacementTrainConfig, settings), out))


@app.command("nano", cls=listing("dreamactor.training.nano:NanoTrainConfig"))
def train_nano(out: RunOut, settings: Settings = None) -> None:
    """Train nano's transformer on a pool of pairs."""
    from dreamactor.training.nano import NanoTrainConfig, train_nano

    print(train_nano(parsed(NanoTrainConfig, settings), out))


@app.command("nano-decoder", cls=listing("dreamactor.training.nano_decoder:DecoderTrainConfig"))
def train_nano_decoder(out: RunOut, settings: Settings = None) -> None:
    """Teach nano's decoder to draw what its transformer generates, by what the reference shows."""
    from dreamactor.training.nano_decoder import DecoderTrainConfig, train_nano_decoder

    print(train_nano_decoder(parsed(DecoderTrainConfig, settings), out))


@app.command("nano-base", cls=listing("dreamactor.training.nano:NanoBaseConfig"))
def train_nano_base(out: RunOut, settings: Settings = None) -> None:
    """Train nano's transformer on single clips first, as an image-to-video model."""
    from dreamactor.training.nano import NanoBaseConfig, train_nano

    print(train_nano(parsed(NanoBaseConfig, settings), out))


@app.command("keypoints", cls=listing("dreamactor.training.keypoints:KeypointTrainConfig"))
def train_keypoints(out: RunOut, settings: Settings = None) -> None:
    """Train the pose estimator of humans and animals on a pool of pairs."""
    from dreamactor.training.keypoints import KeypointTrainConfig, train_keypoints

    print(train_keypoints(parsed(KeypointTrainConfig, settings), out))


@app.command("cache", cls=listing("dreamactor.training.encode:CacheConfig"))
def train_cache(
    task: Annotated[str, typer.Option(help="pose: skeletons drive; rgb: clips do.")],
    out: Annotated[Path, typer.Option(help="Folder of the examples; the same command goes on.")],
    settings: Settings = None,
    device: Annotated[str, typer.Option(help="auto or cpu.")] = "auto",
) -> None:
    """Encode the examples of a stage, from a pool, clips or triplets."""
    from dreamactor.backbones.load import Variant
    from dreamactor.config import parse
    from dreamactor.training.encode import CacheConfig, fill_cache

    checked = parse("task", task, Variant)
    print(fill_cache(parsed(CacheConfig, settings), checked, out, device))


@app.command("captions")
def train_captions(
    clips: Annotated[Path, typer.Argument(help="Folder of clips.")],
    describer: Describer = "auto",
    device: LocalDevice = "cpu",
) -> None:
    """Write CLIP.txt beside every clip that has none: what it shows."""
    end_on_sigterm()
    from dreamactor.mllm import choose
    from dreamactor.training.captions import write_captions

    print(write_captions(clips, choose(describer, device)))


@app.command("join")
def train_join(
    high: Annotated[Path, typer.Option(help="adapter.safetensors of expert=high.")],
    low: Annotated[Path, typer.Option(help="adapter.safetensors of expert=low.")],
    out: Annotated[Path, typer.Option(help="Adapter of both, for `animate --adapter`.")],
    overwrite: Replace = False,
) -> None:
    """Make one adapter of those of two experts."""
    from dreamactor.backbones.folder import quiet
    from dreamactor.image import check_output

    with quiet():
        from dreamactor.backbones.stacking import join

    check_output(out, overwrite)
    print(f"{out}: sha256 {join(high, low, out)}")


@app.command("check")
def train_check(cache: Annotated[Path, typer.Argument(help="Folder of examples.")]) -> None:
    """Look at every example of a cache; refuse damage, and drivers that are their targets."""
    from dreamactor.training.cache import check_cache

    print(check_cache(cache))


@app.command("pose", cls=listing("dreamactor.training.stage:AdaptConfig"))
def train_pose(out: RunOut, settings: Settings = None, dry_run: Dry = False) -> None:
    """Stage 1: an adapter that is driven by skeletons."""
    from dreamactor.training.stage import AdaptConfig

    _adapt(parsed(AdaptConfig, settings), "pose", out, dry_run)


@app.command("rgb", cls=listing("dreamactor.training.stage:RgbConfig"))
def train_rgb(out: RunOut, settings: Settings = None, dry_run: Dry = False) -> None:
    """Stage 2: an adapter that is driven by clips, from the pose stage's."""
    from dreamactor.training.stage import RgbConfig

    _adapt(parsed(RgbConfig, settings), "rgb", out, dry_run)


@app.command("distill", cls=listing("dreamactor.training.distill:DistillConfig"))
def train_distill(out: RunOut, settings: Settings = None) -> None:
    """Few sampling steps that draw what many do: of an adapter, or of nano's own weights."""
    from dreamactor.training.adapt import train_adapter
    from dreamactor.training.cache import read_cache_header
    from dreamactor.training.distill import DistillConfig

    config = parsed(DistillConfig, settings)
    print(train_adapter(config, read_cache_header(config.cache).task, out))


def _adapt(config: AdaptConfig, variant: Variant, out: Path, dry_run: bool) -> None:
    """Train an adapter, or say what that would take."""
    if dry_run:
        from dreamactor.training.plan import plan

        print("\n".join(plan(config)))
        return
    from dreamactor.training.adapt import train_adapter

    print(train_adapter(config, variant, out))


@app.command("export")
def train_export(
    vae: Annotated[Path, typer.Option(help="vae.safetensors of a run.")],
    transformer: Annotated[Path, typer.Option(help="transformer.safetensors of a run.")],
    out: Annotated[Path, typer.Option(help="Weights folder, for `animate --weights`.")],
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Default sampling steps; those of a distillation, or 4."),
    ] = None,
    shift: Annotated[
        float | None,
        typer.Option(min=1, help="Shift of the sampler's schedule; likewise, or 3."),
    ] = None,
    size: Annotated[
        int, typer.Option(min=32, help="Pixels of a side that they were trained at.")
    ] = 256,
) -> None:
    """Make a weights folder: matrices and kernels in 8-bit rows."""
    from dreamactor.training.export import export_nano

    written = export_nano(vae, transformer, out, steps, shift, size)
    print(f"{out}: {written / 1e6:.1f} MB")
