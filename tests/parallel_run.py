"""Passes of a tiny network in teams of two and four processes of a CPU.

Four processes, forked when all is imported, which takes longer than their work; every one also
makes each pass by itself. What they find goes to a JSON file.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dreamactor.backbones.catalogue import Keeping
from dreamactor.backbones.incontext import (
    Context,
    predict,
    predicted_bytes,
    set_mode,
    set_parallel,
)
from dreamactor.backbones.parallel import Team, together
from dreamactor.backbones.shapes import NETWORKS, Size, build, inputs_of

CPU = torch.device("cpu")
NETWORK = replace(NETWORKS["tiny"], heads=4)
SIZE = Size(48, 48, 13)
"""Three target frames of nine tokens: 27 and, of the context, 45 are not shared out evenly."""
EVEN = Size(64, 32, 13)


def network(mode: str, layers: int = 2) -> Any:
    torch.manual_seed(0)
    transformer = build(replace(NETWORK, layers=layers), "wan", CPU, torch.float32)
    set_mode(transformer, mode)  # type: ignore[arg-type]
    return transformer


def asked(size: Size, seed: int = 0, halves: int = 2) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    given = inputs_of(NETWORK, size, "wan", halves, CPU, torch.float32)
    more = inputs_of(NETWORK, size, "wan", halves, CPU, torch.float32)
    return {name: torch.cat([part, more[name]]) for name, part in given.items()}  # two clips


def of_a_team(team: Team) -> list[dict[str, Any]]:
    """Of every mode and way of keeping: the largest difference from a process by itself, bytes."""
    rows = []
    for mode in ("one-way", "one-way-aligned"):
        alone, spread = network(mode), network(mode)
        set_parallel(spread, team)
        for dtype in (None, "auto", "int8"):
            ways = [None if dtype is None else Context(Keeping("device", dtype)) for _ in range(2)]
            row: dict[str, Any] = {"team": team.count, "mode": mode, "dtype": dtype}
            differ = []
            for seed in (1, 2):  # the second time by what was kept the first
                given, canvas = asked(SIZE, seed), asked(SIZE)
                given["hidden_states"][:, 4:] = canvas["hidden_states"][:, 4:]
                given["encoder_hidden_states_image"] = canvas["encoder_hidden_states_image"]
                wanted = predict(alone, ways[0], **given)
                found = predict(spread, ways[1], **given)
                differ.append(float((wanted - found).abs().max()))
            row["apart"], row["sum"] = max(differ), float(found.double().sum())
            if dtype is not None:
                row["held"] = [way._cache.bytes for way in ways]
                keeping = Keeping("device", dtype)
                row["foreseen"] = predicted_bytes(spread, given["hidden_states"], keeping)
            rows.append(row)
    return rows


def compiled(team: Team) -> dict[str, Any]:
    """A block whose exchanges are part of its graph, for there may be no break in it."""
    alone, spread = network("one-way-aligned", 1), network("one-way-aligned", 1)
    set_parallel(spread, team)
    spread.blocks[0].compile(dynamic=False, backend="aot_eager", fullgraph=True)
    given = asked(SIZE)
    differ = predict(alone, None, **given) - predict(spread, None, **given)
    return {"apart": float(differ.abs().max())}


def by_diffusers(team: Team) -> list[dict[str, Any]]:
    """Likewise in mode full and on a half alone, with as many tokens for each and not."""
    rows = []
    # diffusers asks for the number of accelerators, and divides by it
    torch.accelerator.device_count = lambda: team.count
    for size, even in ((SIZE, False), (EVEN, True)):
        for halves in (1, 2):
            alone, spread = network("full"), network("full")
            set_parallel(spread, team, even)
            given = asked(size, halves=halves)
            differ = predict(alone, None, **given) - predict(spread, None, **given)
            rows.append({"even": even, "halves": halves, "apart": float(differ.abs().max())})
    return rows


@torch.inference_mode()
def work(rank: int, path: Path, port: int) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 4, "MASTER_PORT": port}
    os.environ.update(
        {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "localhost"}
    )
    with together("cpu") as team:
        pairs = [dist.new_group(ranks) for ranks in ([0, 1], [2, 3])]
        pair = Team(rank % 2, 2, pairs[rank // 2].group_name)
        found = {"one-way": of_a_team(pair) + of_a_team(team), "full": by_diffusers(team)}
        if rank < 2:
            found["compiled"] = [compiled(pair)]
        everyone = team.everyone(found)
        if team.leads:
            path.write_text(json.dumps(everyone))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    torch.multiprocessing.start_processes(
        work, (Path(sys.argv[1]), port), nprocs=4, start_method="fork"
    )
