"""Weight files: safetensors with a JSON header, halves or 8-bit matrices, checked by hash."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dreamactor.backbones.headers import read_header
from dreamactor.errors import WeightsError
from dreamactor.image import atomic
from dreamactor.provenance import sha256

SCALE = ".scale"
"""Suffix of the row scales that stand beside an 8-bit matrix."""


def quantise_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric 8-bit rounding with one scale per row.

    Args:
        weight: (n, ...) float; a row is everything behind the first axis.

    Returns:
        int8 of the same shape, and (n,) float32 scales.
    """
    rows = weight.float().flatten(1)
    scale = rows.abs().amax(dim=1).clamp_min(1e-12) / 127
    levels = (rows / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
    return levels.view(weight.shape), scale


def dequantise_rows(levels: Tensor, scale: Tensor) -> Tensor:
    """Undo `quantise_rows`: float32 of the shape of `levels`."""
    return levels.float() * scale.float().view(-1, *[1] * (levels.dim() - 1))


def save_weights(
    path: Path, state: Mapping[str, Tensor], header: Mapping[str, Any], eight_bit: bool = False
) -> str:
    """Write a state dict in half precision, whole or not at all.

    Args:
        path: Where to.
        state: Names to tensors.
        header: JSON values that describe the model; kept in the safetensors metadata.
        eight_bit: Store matrices (two axes or more, 16,384 numbers or more) as 8-bit rows.

    Returns:
        sha256 of the file.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        value = value.detach().cpu()
        if eight_bit and value.dim() >= 2 and value.numel() >= 16384:
            tensors[name], tensors[name + SCALE] = quantise_rows(value)
        else:
            tensors[name] = value.half().contiguous() if value.is_floating_point() else value
    with atomic(path) as hidden:  # `save_file` would let nobody else read the file
        metadata = {"dreamactor": json.dumps(dict(header), sort_keys=True)}
        hidden.write_bytes(save(tensors, metadata=metadata))
    return sha256(path)


def load_weights(path: Path, digest: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_weights` wrote, as float32.

    Args:
        path: A safetensors file.
        digest: The sha256 it must have, if known.

    Returns:
        The state dict and the header.

    Raises:
        WeightsError: The file is missing, damaged, of another hash, or not ours.
    """
    if path.is_file() and digest is not None and (found := sha256(path)) != digest:
        raise WeightsError(
            f"{path}: sha256 is {found[:12]}..., want {digest[:12]}...; restore the file, "
            "for a clone with `git checkout`"
        )
    header = read_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            raw = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error
    state = {}
    for name, value in raw.items():
        if name.endswith(SCALE) and name.removesuffix(SCALE) in raw:
            continue
        if value.dtype == torch.int8:
            state[name] = dequantise_rows(value, raw[name + SCALE])
        else:
            state[name] = value.float() if value.is_floating_point() else value
    return state, header
