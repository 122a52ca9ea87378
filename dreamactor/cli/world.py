"""`dreamactor world`: packs, pairs and pools of the synthetic world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dreamactor.cli.options import Replace, Settings, end_on_sigterm, listing, parsed

app = typer.Typer(no_args_is_help=True, help="The synthetic world: characters with truth.")

MINI = Path(__file__).parents[1] / "data" / "mini.castpack"  # ships with the package
Pack = Annotated[Path, typer.Option(help="Cast pack.")]
Split = Annotated[str, typer.Option(help="train, validation or test.")]
Seed = Annotated[int, typer.Option(help="Seed.")]
Renderers = Annotated[int, typer.Option(help="Renderers at work.")]


@app.command("build")
def world_build(
    source: Annotated[Path, typer.Option(help="0 A.D.: public.zip, game folder or .deb.")],
    out: Annotated[Path, typer.Option(help="Cast pack to write.")],
    mini: Annotated[bool, typer.Option("--mini", help="Only the few that ship.")] = False,
    overwrite: Replace = False,
) -> None:
    """Compile a cast pack from the art of the game 0 A.D."""
    end_on_sigterm()
    from dreamactor.image import check_output
    from dreamactor.world.cast import summary
    from dreamactor.world.compile import build_cast

    check_output(out, overwrite)
    cast = build_cast(source, out, mini=mini, say=print)
    print(summary(cast))
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, sha256 {cast.digest}")


@app.command("sample")
def world_sample(
    out: Annotated[Path, typer.Option(help="Folder to write; see OUT/sheet.png.")],
    cast: Pack = MINI,
    split: Split = "test",
    count: Annotated[int, typer.Option(help="Pairs.")] = 4,
    seed: Seed = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files.")] = False,
) -> None:
    """Draw pairs: the same motion by two characters, as clips and on one sheet."""
    end_on_sigterm()
    from dreamactor.world.cast import load_cast
    from dreamactor.world.samples import write_samples

    pairs = write_samples(load_cast(cast), out, split, count, seed, overwrite=overwrite)
    for index, pair in enumerate(pairs):
        print(f"{out / str(index)}: {pair.caption}")
    print(out / "sheet.png")


@app.command("bench")
def world_bench(
    cast: Pack = MINI,
    processes: Renderers = 2,
    seconds: Annotated[float, typer.Option(help="Time for each measurement.")] = 10.0,
) -> None:
    """Measure clips a second: 16 frames of 256 x 256 with mask and joints."""
    from dreamactor.world.speed import measure

    for number in sorted({1, processes}):
        speed = measure(cast, number, seconds)
        many = "process" if number == 1 else "processes"
        print(f"{speed.rate:.2f} clips/s in {number} {many} on {speed.driver}")


@app.command("pool")
def world_pool(
    cast: Pack,
    out: Annotated[Path, typer.Option(help="Folder of the pool; the same command goes on.")],
    shards: Annotated[int, typer.Option(help="Shards of 32 pairs to make.")] = 100,
    processes: Renderers = 2,
    minutes: Annotated[float, typer.Option(help="Time budget.")] = 10.0,
    gpus: Annotated[int, typer.Option(help="EGL devices to spread over.")] = 1,
    first_gpu: Annotated[int, typer.Option(help="The first of them.")] = 0,
    room: Annotated[int, typer.Option(help="Shards that may lie there at once.")] = 1_000_000,
    split: Split = "train",
    seed: Seed = 0,
    frames: Annotated[int, typer.Option(help="Frames of a clip: 16, or 4 to start with.")] = 16,
    size: Annotated[int, typer.Option(help="Pixels of a side.")] = 256,
    plural: Annotated[
        float, typer.Option(help="Share with several subjects, or half a body for a whole one.")
    ] = 0.0,
) -> None:
    """Render pairs to disk for training."""
    from dreamactor.training.pool import PoolConfig, fill

    config = PoolConfig(cast, split, seed, size, frames, plural=plural)
    print(fill(out, config, range(shards), processes, minutes, gpus, room, first_gpu))


@app.command("export", cls=listing("dreamactor.world.export:ExportConfig"))
def world_export(
    cast: Pack,
    out: Annotated[Path, typer.Option(help="Folder to write; the same command goes on.")],
    settings: Settings = None,
) -> None:
    """Write clips of the world as plain folders, to train and judge other models on."""
    end_on_sigterm()
    from dreamactor.world.export import ExportConfig, export_world

    export_world(cast, out, parsed(ExportConfig, settings))
