"""nano: the embedded model, diffusers' Wan transformer in a small configuration.

It reads the canvas exactly as Wan's image-to-video models do: 48 noise channels, 4 mask
channels, 48 canvas channels, 2W wide. Hidden cells of the canvas are 0 in the normalised
latents. The motion half carries the driver's latents in the noise channels too (no noise
there; see `diffusion.flow.MotionHalf`). Before it learns the canvas it may be trained as an
ordinary image-to-video model, on the reference half alone: its task is "video" then.

Unlike Wan's own weights it predicts the latents, not the velocity: a token holds 192 numbers of
noise, which a network of 384 channels would otherwise have to carry through to its output
(Li and He 2025, arXiv 2511.13720).

Legend: B clips, C = 48, T = 4k + 1 frames, F = k + 1, h x 2w latent cells of the canvas.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from dreamactor.backbones import incontext
from dreamactor.backbones.base import Cond, Native, Trainee
from dreamactor.backbones.catalogue import Keeping
from dreamactor.backbones.headers import NANO, check_model, read_header, read_manifest
from dreamactor.backbones.layers import STRIDE_S, STRIDE_T
from dreamactor.backbones.load import Variant, check_lead
from dreamactor.backbones.nano_vae import NanoVAE, NanoVAEConfig
from dreamactor.backbones.weights import load_weights
from dreamactor.conditioning import canvas as canvas_module
from dreamactor.conditioning.canvas import (
    Canvas,
    LatentGrid,
    fold_mask,
    motion_half,
    reference_half,
)
from dreamactor.conditioning.placement import Placement
from dreamactor.conditioning.text import WIDTH, TextEncoder
from dreamactor.errors import ConfigError, WeightsError
from dreamactor.provenance import sha256

DATA = NANO
TIMESTEPS = 1000  # Wan's transformers read sigma * 1000
PREDICTS = "latents"  # in the header of weight files
Task = Literal["animate", "video"]
"""What a transformer has learnt, in the header too: the canvas, or clips by themselves."""


@dataclass(frozen=True)
class NanoConfig:
    """Shape of the transformer."""

    layers: int = 12
    heads: int = 6
    head_dim: int = 64
    ffn: int = 1536
    latent_channels: int = 48

    def build(self) -> WanTransformer3DModel:
        """The transformer with fresh weights; its output starts at zero."""
        transformer = WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=self.heads,
            attention_head_dim=self.head_dim,
            in_channels=2 * self.latent_channels + STRIDE_T,
            out_channels=self.latent_channels,
            text_dim=WIDTH,
            freq_dim=256,
            ffn_dim=self.ffn,
            num_layers=self.layers,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
        )
        nn.init.zeros_(transformer.proj_out.weight)
        nn.init.zeros_(transformer.proj_out.bias)
        return transformer


def transformer_input(x: Tensor, cond: Cond) -> Tensor:
    """Channels in Wan's order: noise, mask, canvas; (B, 2C + 4, F, h, 2w)."""
    return torch.cat([x, cond.mask.to(x.dtype), cond.latents.to(x.dtype)], dim=1)


def predict(transformer: nn.Module, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
    """The transformer's prediction of the latents at x (B, C, F, h, 2w), sigma (B,)."""
    inputs = inputs_of(x, sigma, cond)
    return incontext.predict(transformer, cond.context, branch=cond.branch, **inputs)


def inputs_of(x: Tensor, sigma: Tensor, cond: Cond) -> dict[str, Tensor]:
    """What the transformer is called with."""
    return {
        "hidden_states": transformer_input(x, cond),
        "timestep": sigma.to(x.device, torch.float32) * TIMESTEPS,
        "encoder_hidden_states": cond.text.to(x.dtype),
    }


def velocity_of(latents: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """The velocity of a prediction of the latents, (x - latents) / sigma.

    Args:
        latents: (B, C, F, h, 2w) prediction.
        x: Same shape, the noisy input (1 - sigma) latents + sigma noise.
        sigma: Scalar or (B,), over 0.
    """
    return (x - latents) / sigma.view(-1, 1, 1, 1, 1).to(x)


class Nano:
    """The embedded backbone.

    Args:
        vae: Autoencoder.
        transformer: As `NanoConfig.build` makes it.
        text: Token states of prompts; only needed by `encode_text`.
        native: Sizes and defaults of these weights.
        weights: File name -> sha256, for the record.
        variant: What the transformer was trained to be driven by.
        lead: Frames without a skeleton at the start, as in training.
        keeping: How the context is kept, where the transformer's mode has one.
        placed: Whether the transformer has learnt from drivers that were brought to the subject's
            place and size.
        magnitudes: Ratios of these weights for `feature_cache`, if they are known.
    """

    name = "nano"

    def __init__(
        self,
        vae: NanoVAE,
        transformer: WanTransformer3DModel,
        native: Native,
        text: TextEncoder | None = None,
        weights: dict[str, str] | None = None,
        variant: Variant = "rgb",
        lead: int = 0,
        keeping: Keeping = Keeping(),  # noqa: B008  # frozen
        placed: bool = False,
        magnitudes: Sequence[float] | None = None,
    ) -> None:
        assert vae.config.placed or not placed
        self.placed, self.magnitudes = placed, magnitudes
        self.vae = vae.eval().requires_grad_(False)
        self.transformer = transformer.eval().requires_grad_(False)
        self.native = native
        self.weights = weights or {}
        self.variant = variant
        self.lead = lead
        self.keeping = keeping
        self.adapter: dict[str, Any] | None = None
        self.compiled = False
        self.grid = LatentGrid(STRIDE_T, STRIDE_S, vae.config.channels)
        self._text = text

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Token states (B, 32, 384); the text encoder loads when a prompt is not empty."""
        if not any(prompt.strip() for prompt in prompts):
            from dreamactor.conditioning.text import TOKENS

            return torch.zeros(len(prompts), TOKENS, WIDTH, device=self._device)
        if self._text is None:
            self._text = TextEncoder(device=self._device)
        return self._text(prompts)

    def place(self, reference: Tensor, driving: Tensor) -> Placement | None:
        """Where the driver of a clip belongs, from its first frames; skeletons stay as they are.

        So do the drivers of adapters, which learn from caches of clips as they are.
        """
        if not self.placed or self.variant != "rgb" or self.adapter is not None:
            return None
        return self.vae.place(reference, driving)

    def encode(self, canvas: Canvas, text: Tensor) -> Cond:
        """Encode each half by itself; only the shown beginning of the reference half is encoded."""
        assert canvas.motion
        shown = canvas.shown
        motion = self.vae.encode(motion_half(canvas.pixels))
        latents = torch.zeros_like(motion)
        first = self.vae.encode(reference_half(canvas.pixels)[:, :, :shown])
        latents[:, :, : first.shape[2]] = first
        both = torch.cat([latents, motion], dim=-1)
        cond = Cond(both, fold_mask(canvas.mask, self.grid), text)
        inputs = inputs_of(both, both.new_zeros(len(both)), cond)
        return replace(cond, context=incontext.keep(self.transformer, self.keeping, **inputs))

    def velocity(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """One forward pass; (B, C, F, h, 2w)."""
        return velocity_of(predict(self.transformer, x, sigma.expand(len(x)), cond), x, sigma)

    def decode(self, latents: Tensor) -> Tensor:
        """Frames (B, 3, T, H, W) in [-1, 1]."""
        return self.vae.decode(latents)

    @property
    def _device(self) -> torch.device:
        return self.vae.latent_mean.device


def load_vae(path: Path, digest: str | None = None) -> NanoVAE:
    """The autoencoder of a weight file."""
    state, header = load_weights(path, digest)
    check_header(path, header, "nano-vae")
    config: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in header["config"].items()
    }
    vae = NanoVAE(NanoVAEConfig(**config))
    vae.load_state_dict(state)
    return vae


def load_transformer(
    path: Path, digest: str | None = None, task: Task | None = None
) -> tuple[WanTransformer3DModel, NanoConfig]:
    """The transformer of a weight file in the mode of attention that it names, and its shape.

    Args:
        path: The file.
        digest: Its sha256, if that is known.
        task: What it must have learnt; None takes any.

    Raises:
        WeightsError: It is missing, damaged, or of another model, task or mode.
    """
    state, header = load_weights(path, digest)
    check_header(path, header, "nano")
    if task is not None:
        check_task(path, header, task)
    shape = NanoConfig(**header["config"])
    transformer = shape.build()
    transformer.load_state_dict(state)
    incontext.set_mode(transformer, incontext.check_mode(path, header))
    return transformer, shape


def load_trainee(path: Path) -> Trainee:
    """The transformer of a weight file, to be trained; in the mode that the file names."""
    transformer, shape = load_transformer(path)
    grid = LatentGrid(STRIDE_T, STRIDE_S, shape.latent_channels)
    return Trainee(Nano.name, transformer, predict, grid, sha256(path), load_weights(path)[1])


def load_nano(
    folder: Path = DATA,
    device: str | torch.device = "cpu",
    task: Task | None = "animate",
    keeping: Keeping = Keeping(),  # noqa: B008  # frozen
) -> Nano:
    """The embedded model, or one that `dreamactor train nano` exported to a folder.

    Args:
        folder: Holds manifest.json (file name -> sha256, native sizes) and the weight files.
        device: Where it runs, in float32.
        task: What its transformer must have been trained for; None takes any, to be adapted.
        keeping: As in `Nano`. The mode of attention is the one that its weights name.

    Raises:
        WeightsError: A file is missing, has another hash, or belongs to another model.
    """
    manifest = read_manifest(folder)
    files: dict[str, str] = manifest["files"]
    vae = load_vae(folder / "vae.safetensors", files["vae.safetensors"])
    path = folder / "transformer.safetensors"
    transformer, _ = load_transformer(path, files[path.name], task)
    header = read_header(path)
    variant, lead = header.get("variant", "rgb"), header.get("lead")
    if variant not in get_args(Variant):
        raise WeightsError(f"{path}: driven by {variant!r}, want {' or '.join(get_args(Variant))}")
    try:
        check_lead(variant, lead)
    except ConfigError as error:
        raise WeightsError(f"{path}: {error}") from error
    native = Native(**manifest["native"])
    placed = bool(header.get("placed", False))
    if placed and not vae.config.placed:
        raise WeightsError(
            f"{path}: learnt from placed drivers, but vae.safetensors beside it knows no "
            "placements; want the autoencoder that it was trained with"
        )
    return Nano(
        vae.to(device),
        transformer.to(device),
        native,
        weights=files,
        variant=variant,
        lead=lead or 0,
        keeping=keeping,
        placed=placed,
        magnitudes=_read_magnitudes(folder, files[path.name]),
    )


def _read_magnitudes(folder: Path, transformer: str) -> list[float] | None:
    """Ratios of magnitudes.json, as scripts/magnitudes.py makes it, if they are these weights'."""
    path = folder / "magnitudes.json"
    if not path.is_file():
        return None
    try:
        stated = json.loads(path.read_text())
        ratios = [float(ratio) for ratio in stated["ratios"]]
    except (ValueError, TypeError, KeyError) as error:
        raise WeightsError(f"{path}: no ratios of magnitudes ({error}); delete it") from error
    return ratios if stated.get("transformer") == transformer else None


def check_header(path: Path, header: dict[str, Any], kind: str) -> None:
    """Refuse weights of another model, canvas version or, of a transformer, prediction.

    Raises:
        WeightsError: Says what the file holds and what was wanted.
    """
    check_model(path, header, kind)
    if header.get("canvas", canvas_module.VERSION) != canvas_module.VERSION:
        raise WeightsError(
            f"{path}: canvas version {header['canvas']}, this program reads {canvas_module.VERSION}"
        )
    found = header.get("predicts", "velocity")
    if kind == "nano" and found != PREDICTS:
        raise WeightsError(f"{path}: weights that predict {found}, want {PREDICTS}; train anew")


def check_task(path: Path, header: dict[str, Any], task: Task) -> None:
    """Refuse weights that have learnt something else; older ones do not name it and animate.

    Raises:
        WeightsError: Says what they have learnt, and which command teaches what was wanted.
    """
    found = header.get("task", "animate")
    if found != task:
        verb = {"animate": f"nano start={path}", "video": "nano-base"}[task]
        raise WeightsError(
            f"{path}: weights of the task {found!r}, want {task!r}; make them with "
            f"`dreamactor train {verb}`"
        )
