"""The state of a run, from which it goes on exactly: safetensors, no pickle.

One file, written whole or not at all, so that a kill at any moment leaves the last one. Tensors
are whole in it, however many processes share them: a run may go on with another number. Every
trainer uses it; what differs is which weights and optimisers there are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from dreamactor.errors import WeightsError
from dreamactor.image import refusals

APART = ("params", "lr")
"""Of a group of an optimiser, what is not one of its options: trainers set the rate every step."""


@dataclass(frozen=True)
class State:
    """All that changes in a step."""

    tensors: dict[str, Tensor]
    """"weight/NAME", "average/NAME" and the optimisers' moments, such as "exp_avg/NAME"."""
    groups: list[list[dict[str, Any]]]
    """Of each group of each optimiser, its options, and the names of its parameters as "params"."""


def whole(value: Tensor) -> Tensor:
    """A copy on the CPU; of a sharded tensor all of it, so every process must ask."""
    full = value.detach()
    if isinstance(full, DTensor):
        full = full.full_tensor()
    return full.to("cpu", copy=True, memory_format=torch.contiguous_format)


def placed(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor where and how another one lies: device, sharding and order in memory."""
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return torch.empty_like(like, dtype=value.dtype, requires_grad=False).copy_(value)


def read_out(
    weights: Mapping[str, Tensor],
    average: Mapping[str, Tensor],
    *optimisers: torch.optim.Optimizer,
) -> State:
    """The state of a run as it is now.

    Args:
        weights: Parameters, and buffers if any, by name.
        average: Of the same names, or of some of them.
        *optimisers: Of these parameters, each of which belongs to one of them at most.
    """
    out = {}
    for name, weight in weights.items():
        out[f"weight/{name}"] = whole(weight)
        if name in average:
            out[f"average/{name}"] = whole(average[name])
        for optimiser in optimisers:
            for moment, value in optimiser.state.get(weight, {}).items():
                if isinstance(value, Tensor):
                    out[f"{moment}/{name}"] = whole(value)
    return State(out, _groups(weights, *optimisers))


@torch.no_grad()
def put_back(
    state: State,
    weights: Mapping[str, Tensor],
    average: Mapping[str, Tensor],
    *optimisers: torch.optim.Optimizer,
) -> None:
    """Undo `read_out`.

    Raises:
        WeightsError: The state is of other parameters, or of other optimisers.
    """
    names = {name.partition("/")[2] for name in state.tensors}
    if names != weights.keys():
        raise WeightsError(
            f"the state has {len(names)} parameters, here are {len(weights)}; is it of this run?"
        )
    here = _groups(weights, *optimisers)
    if [[g["params"] for g in o] for o in state.groups] != [[g["params"] for g in o] for o in here]:
        raise WeightsError("the state's optimisers have other parameters; is it of this run?")
    owners = {}
    for optimiser, saved in zip(optimisers, state.groups, strict=True):
        for group, options in zip(optimiser.param_groups, saved, strict=True):
            owners.update(dict.fromkeys(group["params"], optimiser))
            group.update(
                {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
                | {"params": group["params"]}
            )
    for key, value in state.tensors.items():
        kind, _, name = key.partition("/")
        weight = weights[name]
        if kind == "weight":
            weight.copy_(placed(value, weight))
        elif kind == "average":
            average[name].copy_(placed(value, weight))
        else:  # AdamW keeps its count of steps on the CPU
            owners[weight].state[weight][kind] = value if kind == "step" else placed(value, weight)


def save_state(path: Path, state: State, facts: dict[str, Any]) -> None:
    """Write a state and JSON values beside it, whole or not at all.

    It is not flushed to the disk, since all processes wait for it: a kill is survived, a power
    cut perhaps not. What a kill left of the file is overwritten by the next one.
    """
    hidden = path.with_name(f".{path.name}.part")
    with refusals(path):
        metadata = {"facts": json.dumps(facts), "groups": json.dumps(state.groups)}
        save_file(state.tensors, hidden, metadata)
        hidden.replace(path)


def load_state(path: Path) -> tuple[State, dict[str, Any]] | None:
    """The last state, tensors on the CPU; None if there is none yet.

    Raises:
        WeightsError: The file is damaged.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            facts, groups = (json.loads(file.metadata()[name]) for name in ("facts", "groups"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, KeyError) as error:
        raise WeightsError(f"{path}: not the state of a run ({error}); delete it") from error
    return State(tensors, groups), facts


def _groups(
    weights: Mapping[str, Tensor], *optimisers: torch.optim.Optimizer
) -> list[list[dict[str, Any]]]:
    names = {weight: name for name, weight in weights.items()}
    return [
        [
            {
                **{option: value for option, value in group.items() if option not in APART},
                "params": [names[p] for p in group["params"]],
            }
            for group in optimiser.param_groups
        ]
        for optimiser in optimisers
    ]
