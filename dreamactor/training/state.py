"""The state of a run, from which it goes on exactly: safetensors, no pickle.

One file, written whole or not at all, so that a kill at any moment leaves the last one. Tensors
are whole in it, however many processes share them: a run may go on with another number.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from dreamactor.errors import WeightsError
from dreamactor.image import atomic

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of a parameter."""


def whole(value: Tensor) -> Tensor:
    """A copy on the CPU; of a sharded tensor all of it, so every process must ask."""
    full = value.detach()
    if isinstance(full, DTensor):
        full = full.full_tensor()
    return full.cpu().clone().contiguous()


def placed(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor where and how another one lies: on its device, sharded as it is."""
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value.to(like.device)


def read_out(
    params: dict[str, nn.Parameter], average: dict[str, Tensor], optimiser: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """All that changes in a step, by name: weights, averages and the optimiser's moments."""
    out = {}
    for name, param in params.items():
        out[f"weight/{name}"] = whole(param)
        out[f"average/{name}"] = whole(average[name])
        for moment in MOMENTS:
            if moment in optimiser.state[param]:
                out[f"{moment}/{name}"] = whole(optimiser.state[param][moment])
    return out


@torch.no_grad()
def put_back(
    state: dict[str, Tensor],
    params: dict[str, nn.Parameter],
    average: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
) -> None:
    """Undo `read_out`.

    Raises:
        WeightsError: The state is of other parameters.
    """
    names = {name.partition("/")[2] for name in state}
    if names != params.keys():
        raise WeightsError(
            f"the state has {len(names)} parameters, here are {len(params)}; is it of this run?"
        )
    for name, param in params.items():
        param.copy_(placed(state[f"weight/{name}"], param))
        average[name].copy_(placed(state[f"average/{name}"], param))
        if f"step/{name}" in state:
            optimiser.state[param] = {
                "step": state[f"step/{name}"],  # AdamW keeps it on the CPU
                **{m: placed(state[f"{m}/{name}"], param) for m in MOMENTS[1:]},
            }


def save_state(path: Path, state: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write a state and JSON values beside it, whole or not at all."""
    with atomic(path) as hidden:
        save_file(state, hidden, {"facts": json.dumps(facts)})


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The last state, tensors on the CPU; None if there is none yet.

    Raises:
        WeightsError: The file is damaged.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, KeyError) as error:
        raise WeightsError(f"{path}: not the state of a run ({error}); delete it") from error
