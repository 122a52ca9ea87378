"""Let a network learn more than it was trained on, knowing what it knew.

A transformer gets more latent channels, an autoencoder more parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from dreamactor.backbones.layers import STRIDE_T
from dreamactor.backbones.nano import NanoConfig
from dreamactor.backbones.nano_surface import SurfaceNet
from dreamactor.backbones.nano_vae import NanoVAE
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


def with_part(vae: NanoVAE, part: Mapping[str, Tensor], **config: Any) -> NanoVAE:
    """A copy of an autoencoder that differs in its config and in some of its values.

    Args:
        vae: What it has besides stays the same.
        part: Values in the place of its own; what neither has stays as it is made.
        **config: Fields of `NanoVAEConfig`.
    """
    whole = NanoVAE(replace(vae.config, **config)).to(vae.latent_mean.device)
    whole.load_state_dict({**whole.state_dict(), **vae.state_dict(), **part})
    return whole.requires_grad_(False)


def surface_of(vae: NanoVAE) -> SurfaceNet:
    """What an autoencoder sees surfaces with.

    Raises:
        ConfigError: It sees none.
    """
    if vae.surface is None:
        raise ConfigError(
            "vae: knows no surfaces; teach it them first, by `dreamactor train nano-surface`"
        )
    return vae.surface
