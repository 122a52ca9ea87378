"""Wan's image-to-video models: Wan 2.1 (14B at 480p and 720p), Wan 2.2 A14B, Wan 2.1 Fun 1.3B.

All of them read 36 channels, noise | mask | canvas as nano does, and predict the velocity. The
networks are those of diffusers' `WanImageToVideoPipeline`, whose methods do the work here. What is
particular to them:

    hidden pixels   0, mid-grey, and encoded with the rest: the canvas is hidden before the
                    autoencoder, not after it
    mask            four channels a latent frame, one for each of its pixel frames; 1 = shown
    latents         (z - mean) / std, per channel, of the posterior's mode
    text            UMT5 states, 512 of them; an empty prompt has states of its own
    image           CLIP states of the reference, where the transformer reads them (2.1, not 2.2)
    timestep        sigma * 1000
    experts         Wan 2.2 has two transformers: one at and above a noise level, one below it

Each half of the canvas is encoded by itself, as the reference half is decoded by itself.

Legend: B clips, C = 16, T = 4k + 1 frames, F = k + 1, h x 2w latent cells of the canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan_i2v import retrieve_latents
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionModel, UMT5EncoderModel

from dreamactor.backbones import incontext
from dreamactor.backbones.base import Cond, Native, sized
from dreamactor.backbones.catalogue import CATALOGUE, Keeping, Mode, Options
from dreamactor.backbones.feature_cache import at_work
from dreamactor.backbones.folder import dtype_of, fingerprints, open_pipeline, place, store
from dreamactor.backbones.load import Variant
from dreamactor.backbones.nano import TIMESTEPS, transformer_input
from dreamactor.backbones.parallel import Team, check_keeping
from dreamactor.conditioning.canvas import (
    Canvas,
    LatentGrid,
    fold_mask,
    motion_half,
    reference_half,
)
from dreamactor.conditioning.framing import to_picture
from dreamactor.errors import ConfigError, WeightsError

TOKENS = 512  # of a prompt; the attention of diffusers counts on it where there are CLIP states
MODELS = {
    "transformer": WanTransformer3DModel,
    "transformer_2": WanTransformer3DModel,
    "text_encoder": UMT5EncoderModel,
    "image_encoder": CLIPVisionModel,
    "vae": AutoencoderKLWan,
}


class Wan:
    """One of Wan's image-to-video models.

    Args:
        name: In the catalogue.
        pipe: Its networks.
        native: Sizes and defaults.
        device: Where it runs.
        dtype: Of the transformers.
        weights: File name -> sha256, for the record.
        keeping: How the context is kept, where the mode of its transformers has one.
    """

    def __init__(
        self,
        name: str,
        pipe: WanImageToVideoPipeline,
        native: Native,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        weights: dict[str, str] | None = None,
        keeping: Keeping = Keeping(),  # noqa: B008  # frozen
    ) -> None:
        self.name = name
        self.keeping = keeping
        self._silence: Tensor | None = None
        self.pipe = pipe
        self.native = self.own = native
        self.device = torch.device(device)
        self.dtype = dtype
        self.weights = weights or {}
        self.variant: Variant = "rgb"
        self.lead = 0
        self.adapter: dict[str, Any] | None = None
        self.compiled = False
        self.scales: dict[str, float] = {}
        self.boundary: float | None = pipe.config.boundary_ratio
        config = pipe.vae.config
        self.grid = LatentGrid(
            config.scale_factor_temporal, config.scale_factor_spatial, config.z_dim
        )
        for module in pipe.components.values():
            if isinstance(module, torch.nn.Module):
                module.eval().requires_grad_(False)

    @property
    def experts(self) -> dict[str, WanTransformer3DModel]:
        """Its transformers, by the names of their folders."""
        both = {"transformer": self.pipe.transformer, "transformer_2": self.pipe.transformer_2}
        return {name: module for name, module in both.items() if module is not None}

    @property
    def mode(self) -> Mode:
        """Who sees whom in its transformers."""
        return incontext.mode_of(self.pipe.transformer)

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """UMT5's token states (B, 512, D); behind the end of a prompt they are 0."""
        states: Tensor = self.pipe.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=False,
            max_sequence_length=TOKENS,
            device=self.device,
        )[0]
        return states.to(self.dtype)

    def encode(self, canvas: Canvas, text: Tensor) -> Cond:
        """Latents of both halves, the folded mask, and CLIP's states of the reference."""
        both = (reference_half, motion_half) if canvas.motion else (_all,)
        latents = torch.cat([self._latents(half(canvas.pixels)) for half in both], dim=-1)
        image = None
        if self.pipe.image_encoder is not None:
            image = self._image(both[0](canvas.pixels)[:, :, 0])
        cond = Cond(latents, fold_mask(canvas.mask, self.grid).to(latents), text, image)
        inputs = self._inputs(latents, latents.new_zeros(len(latents)), cond)
        first = self.pipe.transformer  # at work at first, if there are two
        context = incontext.keep(first, self.keeping, self._silent(), **inputs)
        return replace(cond, context=context)

    def place(self, reference: Tensor, driving: Tensor) -> None:
        """Drivers stay as they are."""

    def velocity(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """One forward pass of the expert for this noise level; (B, C, F, h, 2w)."""
        t = (sigma.to(x.device, torch.float32) * TIMESTEPS).expand(len(x))
        if self.boundary is None:
            return self._pass(self.pipe.transformer, x, t, cond)
        high = t >= self.boundary * TIMESTEPS
        if high.all():
            return self._pass(self.pipe.transformer, x, t, cond)
        if not high.any():
            return self._pass(self.pipe.transformer_2, x, t, cond)
        assert not at_work(self.pipe.transformer), "a feature cache counts clips by their place"
        out = torch.empty_like(x, dtype=self.dtype)
        for rows, expert in ((high, self.pipe.transformer), (~high, self.pipe.transformer_2)):
            out[rows] = self._pass(expert, x[rows], t[rows], _rows(cond, rows))
        return out

    def decode(self, latents: Tensor) -> Tensor:
        """Frames (B, 3, T, H, W) in [-1, 1]."""
        vae = self.pipe.vae
        mean, scale = self._statistics(latents)
        return vae.decode((latents / scale + mean).to(vae.dtype), return_dict=False)[0]

    def _pass(self, expert: WanTransformer3DModel, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        inputs = self._inputs(x, t, cond)
        return incontext.predict(expert, cond.context, self._silent(), cond.branch, **inputs)

    def _inputs(self, x: Tensor, t: Tensor, cond: Cond) -> dict[str, Any]:
        """What a transformer is called with."""
        return {
            "hidden_states": transformer_input(x, cond).to(self.dtype),
            "timestep": t,
            "encoder_hidden_states": cond.text.to(self.dtype),
            "encoder_hidden_states_image": None
            if cond.image is None
            else cond.image.to(self.dtype),
        }

    def _silent(self) -> Tensor | None:
        """States of the empty prompt, which the context reads in the one-way modes."""
        if self.mode != "full" and self._silence is None:
            self._silence = self.encode_text([""])
        return self._silence

    def _latents(self, clip: Tensor) -> Tensor:
        """Normalised latents (B, C, F, h, w) of a clip (B, 3, T, H, W), in float32."""
        encoded = self.pipe.vae.encode(clip.to(self.pipe.vae.dtype))
        latents = retrieve_latents(encoded, sample_mode="argmax").float()
        mean, scale = self._statistics(latents)
        return (latents - mean) * scale

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and 1 / deviation of each channel of the autoencoder, (1, C, 1, 1, 1)."""
        config = self.pipe.vae.config
        mean = torch.tensor(config.latents_mean).view(1, -1, 1, 1, 1)
        deviation = torch.tensor(config.latents_std).view(1, -1, 1, 1, 1)
        return mean.to(like), 1 / deviation.to(like)

    def _image(self, pictures: Tensor) -> Tensor:
        """CLIP's token states (B, L, D) of pictures (B, 3, H, W)."""
        images = [Image.fromarray(to_picture(picture)) for picture in pictures]
        states: Tensor = self.pipe.encode_image(images, self.device)
        return states.to(self.dtype)


def load_wan(
    name: str,
    source: Path | None,
    device: str = "cpu",
    options: Options | None = None,
    mode: Mode = "full",
) -> Wan:
    """A model from a folder in diffusers format.

    Args:
        name: In the catalogue.
        source: The folder, or a hub id; None looks for the published one in the hub's cache.
        device: Where it runs.
        options: Precision, offload, cache, and other sizes than its own.
        mode: Of attention, as its adapter was trained.

    Raises:
        ConfigError: An option that cannot be.
        WeightsError: Files are missing, damaged, or of another model.
    """
    options = options or Options()
    if mode != "full" and (options.cache, options.offload) == ("none", "group"):
        raise ConfigError(
            f"cache=none: with attention {mode} and offload=group blocks would come twice a step; "
            "want cache device or host"
        )
    entry = CATALOGUE[name]
    dtype = dtype_of(options.dtype, device)
    folder, pipe = open_pipeline(entry, source, WanImageToVideoPipeline, MODELS, dtype)
    _check_layout(name, folder, pipe)
    native = sized(Native(**entry.native), options)
    digests = fingerprints(folder, entry.parts)
    model = Wan(name, pipe, native, device, dtype, digests, options.keeping)
    for expert in model.experts.values():
        incontext.set_mode(expert, mode)
    if entry.boundary is not None and model.boundary is None:
        model.boundary = entry.boundary
    store(model.experts.values(), options.storage, dtype)
    place(pipe, device, options.offload)
    return model


def spread(model: Wan, team: Team) -> None:
    """Have several processes sample together with a model that each of them loaded.

    Raises:
        ConfigError: It is in mode full, or cannot be shared out among so many.
    """
    check_spread(model.name, model.mode, team)
    check_keeping(model.keeping, team.count)
    for expert in model.experts.values():
        incontext.set_parallel(expert, team)


def check_spread(name: str, mode: Mode, team: Team) -> None:
    """Refuse to sample in several processes what is not Wan in a one-way mode.

    Raises:
        ConfigError: It is not.
    """
    if team.count > 1 and (CATALOGUE[name].family != "wan" or mode == "full"):
        raise ConfigError(
            f"{team.count} processes: {name} samples in one here; several want Wan with an adapter "
            "of a one-way mode"
        )


def _check_layout(name: str, folder: Path, pipe: WanImageToVideoPipeline) -> None:
    """Refuse a model that reads other channels, or has other parts, than its name says."""
    entry, config = CATALOGUE[name], pipe.transformer.config
    wanted = 2 * pipe.vae.config.z_dim + pipe.vae.config.scale_factor_temporal
    found = {
        f"{config.in_channels} input channels": config.in_channels == wanted,
        "two transformers" if pipe.transformer_2 is not None else "one transformer": (
            pipe.transformer_2 is not None
        )
        == (len(entry.experts) == 2),
        "an image encoder" if config.image_dim is not None else "no image encoder": (
            config.image_dim is not None
        )
        == ("image_encoder" in entry.parts),
        "timesteps of its own for every token": not pipe.config.expand_timesteps,
    }
    for what, right in found.items():
        if not right:
            raise WeightsError(f"{folder}: a model with {what}; that is not {name}")


def _all(x: Tensor) -> Tensor:
    return x


def _rows(cond: Cond, rows: Tensor) -> Cond:
    """Some clips of a batch; their context, which is kept for all of them, is computed anew."""
    image = None if cond.image is None else cond.image[rows]
    return Cond(cond.latents[rows], cond.mask[rows], cond.text[rows], image)
