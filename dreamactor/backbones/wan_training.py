"""What training takes of Wan's models: the frozen parts that make examples, and one transformer.

Wan 2.2 has two transformers, and each learns in a run of its own, at its own noise levels: both
at once and what training adds do not fit one GPU of 80 GB.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import WanImageToVideoPipeline
from torch import Tensor, nn

from dreamactor.backbones.base import Cond, Native, Trainee, sized
from dreamactor.backbones.catalogue import CATALOGUE, Expert, Options
from dreamactor.backbones.folder import (
    check_folder,
    digest_of,
    dtype_of,
    find_folder,
    fingerprints,
    open_pipeline,
    place,
    read_config,
    read_model,
)
from dreamactor.backbones.nano import TIMESTEPS, transformer_input
from dreamactor.backbones.wan import MODELS, Wan
from dreamactor.conditioning.canvas import LatentGrid
from dreamactor.errors import WeightsError


def predict(transformer: nn.Module, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
    """Latents (B, C, F, h, 2w), as a trainer asks for them; the transformer gives the velocity.

    Args:
        transformer: Of Wan, or a wrapper around it.
        x: (B, C, F, h, 2w); its number format is the network's, or autocast's to change.
        sigma: (B,).
        cond: The canvas, with `image` where the transformer reads it.
    """
    velocity: Tensor = transformer(
        hidden_states=transformer_input(x, cond),
        timestep=sigma.to(x.device, torch.float32) * TIMESTEPS,
        encoder_hidden_states=cond.text.to(x),
        encoder_hidden_states_image=None if cond.image is None else cond.image.to(x),
        return_dict=False,
    )[0]
    return x - sigma.view(-1, 1, 1, 1, 1).to(x) * velocity


def load_encoder(name: str, source: Path | None, device: str, options: Options) -> Wan:
    """A model without its transformers.

    Args:
        name: In the catalogue.
        source: As in `find_folder`.
        device: Where it runs.
        options: Precision, and other sizes than its own.

    Raises:
        ConfigError: An option that cannot be.
        WeightsError: Files are missing, damaged, or of another model.
    """
    entry = CATALOGUE[name]
    dtype = dtype_of(options.dtype, device)
    folder, pipe = open_pipeline(
        entry, source, WanImageToVideoPipeline, MODELS, dtype, without=entry.experts
    )
    parts = [part for part in entry.parts if part not in entry.experts]
    native = sized(Native(**entry.native), options)
    place(pipe, device, options.offload)
    return Wan(name, pipe, native, device, dtype, fingerprints(folder, parts))


def load_trainee(name: str, source: Path, expert: Expert | None = None) -> Trainee:
    """One transformer, in bfloat16 where there is a GPU; adapters on it are float32.

    Args:
        name: In the catalogue.
        source: As in `find_folder`.
        expert: Which of two.

    Raises:
        ConfigError: An expert that it does not have.
        WeightsError: Files are missing, damaged, or of another model.
    """
    entry = CATALOGUE[name]
    part = entry.expert(expert)
    folder = find_folder(entry, source)
    check_folder(entry, folder)
    config, vae = read_config(folder, part), read_config(folder, "vae")
    grid = LatentGrid(vae.scale_factor_temporal, vae.scale_factor_spatial, vae.z_dim)
    wanted = 2 * grid.channels + grid.stride_t
    sees = config.get("image_dim") is not None
    if config.in_channels != wanted or sees != ("image_encoder" in entry.parts):
        raise WeightsError(
            f"{folder}: a model with {config.in_channels} input channels and "
            f"{'an' if sees else 'no'} image encoder; that is not {name}"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    transformer = read_model(folder, part, MODELS[part], dtype_of("auto", device))
    digests = fingerprints(folder, [part, "vae"])
    return Trainee(
        name,
        transformer,
        predict,
        grid,
        digest_of(digests, part),
        {"model": name, "config": dict(transformer.config)},
        vae=digest_of(digests, "vae"),
        part=part,
        levels=entry.levels(expert),
    )
