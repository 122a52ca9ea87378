"""Backbones by name; nothing heavy is imported before one is asked for."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from dreamactor.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from dreamactor.backbones.base import Backbone

BACKBONES = ("nano",)
"""Names that `load_backbone` knows."""


def check_backbone(name: str) -> str:
    """Return `name`, or say which one was meant.

    Raises:
        ConfigError: There is no backbone of that name.
    """
    if name not in BACKBONES:
        near = difflib.get_close_matches(name, BACKBONES, 1, 0.0)[0]
        raise ConfigError(
            f"backbone={name!r}: no such backbone, nearest is {near}; known: {', '.join(BACKBONES)}"
        )
    return name


def load_backbone(name: str, weights: Path | None = None, device: str = "cpu") -> Backbone:
    """A backbone with its weights.

    Args:
        name: One of BACKBONES.
        weights: Folder of its weights; None takes those that ship with the package.
        device: Where it runs: "cpu", "cuda" or "cuda:1".

    Raises:
        ConfigError: An unknown name, or a device that is not there.
        WeightsError: Weights are missing, damaged, or belong to another model.
    """
    check_backbone(name)
    import torch

    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={device}: torch sees no CUDA device here; want cpu")
    from dreamactor.backbones.nano import DATA, load_nano

    folder = weights or DATA
    try:
        return load_nano(folder, device)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{folder}: weights do not fit {name}: {first}") from error
