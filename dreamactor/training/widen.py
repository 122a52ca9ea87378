"""Let a transformer learn more latent channels than it was trained on, knowing what it knew."""

from __future__ import annotations

from dataclasses import replace

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from dreamactor.backbones.layers import STRIDE_T
from dreamactor.backbones.nano import NanoConfig
from dreamactor.errors import ConfigError

CELLS = 4  # of a token


def widened(
    transformer: WanTransformer3DModel, shape: NanoConfig, channels: int
) -> tuple[WanTransformer3DModel, NanoConfig]:
    """The transformer for more channels: it ignores the new ones, and predicts 0 for them.

    Args:
        transformer: As `NanoConfig.build` makes it.
        shape: Its own.
        channels: Of the latents to come; those it knows come first.

    Returns:
        The transformer and its shape; the same ones if the channels are as many.

    Raises:
        ConfigError: There are fewer channels than it knows.
    """
    known = shape.latent_channels
    if channels == known:
        return transformer, shape
    if channels < known:
        raise ConfigError(
            f"start: a transformer of {known} latent channels, the vae has {channels}"
        )
    wide = replace(shape, latent_channels=channels)
    out = wide.build()
    state: dict[str, Tensor] = dict(transformer.state_dict())
    places = torch.cat([torch.arange(known), channels + torch.arange(STRIDE_T)])
    places = torch.cat([places, channels + STRIDE_T + torch.arange(known)])
    embedding = torch.zeros_like(out.patch_embedding.weight)  # (width, 2C + 4, 1, 2, 2)
    embedding[:, places] = state["patch_embedding.weight"].to(embedding)
    state["patch_embedding.weight"] = embedding
    for name in ("proj_out.weight", "proj_out.bias"):  # of each cell all channels, one by one
        old = state[name].unflatten(0, (CELLS, known))
        new = old.new_zeros((CELLS, channels, *old.shape[2:]))
        new[:, :known] = old
        state[name] = new.flatten(0, 1)
    out.load_state_dict(state)
    return out, wide
