"""Weights and caches of a stage at tiny size."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from dreamactor.backbones.load import Variant
from dreamactor.backbones.nano import NanoConfig
from dreamactor.backbones.nano_vae import NanoVAE, NanoVAEConfig
from dreamactor.backbones.weights import save_weights
from dreamactor.training.cache import CacheHeader, open_cache, shard_path, write_examples

TINY = NanoVAEConfig(4, (8, 8, 8), (1, 1, 1), (8, 8, 8, 8), (1, 1, 1, 1))
SHAPE = NanoConfig(2, 1, 16, 32, 4)


def write_files(folder: Path, tasks: Iterable[Variant], std: float, **header: object) -> Path:
    """vae, base, and a cache of each stage whose target can be told from the driver.

    Args:
        folder: Where to.
        tasks: Stages.
        std: Of the last layer's weights.
        header: Of the base, besides what every one has.
    """
    torch.manual_seed(0)
    vae = save_weights(
        folder / "vae.safetensors",
        NanoVAE(TINY).state_dict(),
        {"model": "nano-vae", "config": vars(TINY)},
    )
    base = SHAPE.build()
    torch.nn.init.normal_(base.proj_out.weight, std=std)
    known = {"model": "nano", "config": vars(SHAPE), "canvas": 1, "predicts": "latents"}
    save_weights(folder / "base.safetensors", base.state_dict(), known | header)
    for task in tasks:
        settings = {"lead": 1 / 3} if task == "pose" else {}
        open_cache(folder / task, CacheHeader(task, "nano", vae, 12.0, settings))
        for shard in range(2):
            motion = torch.randn(6, 4, 3, 4, 4)
            tensors = {"target": -motion, "motion": motion, "text": torch.randn(6, 2, 384)}
            keys = [f"{shard}/{k}" for k in range(6)]
            write_examples(shard_path(folder / task, shard), keys, tensors)
    return folder
