"""`dreamactor bootstrap`: pseudo cross-identity pairs, from clips to triplets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dreamactor.cli.options import (
    Host,
    LocalDevice,
    Port,
    Results,
    Settings,
    end_on_sigterm,
    listing,
    parsed,
)

app = typer.Typer(
    no_args_is_help=True, help="Pseudo cross-identity pairs: make, gate, review, use."
)

GateOf = Annotated[str, typer.Option(help="Whose gate counts.")]


@app.command("pairs", cls=listing("dreamactor.bootstrap.pairs:PairsConfig"))
def bootstrap_pairs(
    out: Annotated[Path, typer.Option(help="Data set; the same command goes on.")],
    sources: Annotated[
        Path | None, typer.Option(help="Folder of clips, with --references.")
    ] = None,
    references: Annotated[Path | None, typer.Option(help="Folder of pictures of others.")] = None,
    cast: Annotated[Path | None, typer.Option(help="Or a cast pack: pairs of the world.")] = None,
    settings: Settings = None,
) -> None:
    """Put the motion of every source clip onto new identities."""
    end_on_sigterm()
    from dreamactor.bootstrap.pairs import PairsConfig, run_pairs

    print(run_pairs(out, sources, references, cast, parsed(PairsConfig, settings)))


@app.command("filter")
def bootstrap_filter(
    data: Annotated[Path, typer.Option(help="Data set of `bootstrap pairs`.")],
    judge: Annotated[
        str, typer.Option(help="measured, or mllm: the model named by DREAMACTOR_MLLM_*.")
    ] = "measured",
    scales: Annotated[Path | None, typer.Option(help="gate.json of `bootstrap calibrate`.")] = None,
    threshold: Annotated[float, typer.Option(help="What the average has to exceed.")] = 4.5,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes of the measured judge; 0 = this one alone.")
    ] = 0,
    device: LocalDevice = "cpu",
) -> None:
    """Score every item, 1 to 5 four times, by what can be measured or a model sees; gate it."""
    end_on_sigterm()
    from dreamactor.bootstrap.judge import run_gate

    print(run_gate(data, judge, scales, threshold, device, workers))


@app.command("review")
def bootstrap_review(
    data: Annotated[Path, typer.Option(help="Data set, gated.")],
    host: Host = "127.0.0.1",
    port: Port = 8765,
    judge: GateOf = "measured",
    everything: Annotated[bool, typer.Option("--all", help="Also what the gate refused.")] = False,
) -> None:
    """Serve the review page: source, reference and result side by side, by keyboard."""
    end_on_sigterm()
    from dreamactor.bootstrap.manifest import DataSet
    from dreamactor.bootstrap.review import agreement_lines, serve

    found = DataSet(data)
    serve(found, None if everything else judge, host, port, lambda line: print(line, flush=True))
    for line in agreement_lines(found):
        print(line)


@app.command("triplets")
def bootstrap_triplets(
    data: Annotated[Path, typer.Option(help="Data set, gated and reviewed.")],
    judge: GateOf = "measured",
    reviewers: Annotated[int, typer.Option(min=1, help="People who must have accepted.")] = 1,
    describer: Annotated[
        str, typer.Option(help="Of targets without a caption: auto or offline, as of animate.")
    ] = "auto",
) -> None:
    """List the training samples: V_o drives, V_src[0] is the reference, V_src the target."""
    from dreamactor.bootstrap.manifest import DataSet
    from dreamactor.bootstrap.review import agreement_lines
    from dreamactor.mllm import choose

    found = DataSet(data)
    path, count = found.write_triplets(judge, reviewers, choose(describer))
    for line in agreement_lines(found):
        print(line)
    print(f"{path}: {count} triplets of {len(found.items())} items")


@app.command("calibrate", cls=listing("dreamactor.bootstrap.calibrate:CalibrateConfig"))
def bootstrap_calibrate(
    cast: Annotated[Path, typer.Option(help="Cast pack with validation and test splits.")],
    out: Results,
    settings: Settings = None,
) -> None:
    """Set the gate's scales on pairs with known faults, and hold it against the truth."""
    end_on_sigterm()
    from dreamactor.bootstrap.calibrate import CalibrateConfig, calibrate

    print(calibrate(cast, out, parsed(CalibrateConfig, settings)))
