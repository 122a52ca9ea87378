"""Training examples of the transformer: the canvas, its noise and its mask, from latents.

Laid out exactly as `backbones.nano.Nano.encode` and the sampler lay out a canvas at inference
(tests/test_training.py). A clip by itself is laid out as the reference half alone.

Legend: B pairs or clips of a batch, C latent channels, F latent frames (5, or 2), h x w cells of
one half, n halves side by side (2; 1 for clips).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dreamactor.backbones.base import Cond
from dreamactor.backbones.catalogue import Mode
from dreamactor.backbones.nano import transformer_input
from dreamactor.conditioning.canvas import LatentGrid, fold_mask
from dreamactor.diffusion.flow import MotionHalf, add_noise
from dreamactor.errors import ConfigError


@dataclass(frozen=True)
class Draws:
    """The randomness of one batch, made on the CPU from the step alone."""

    noise: Tensor
    sigma: Tensor
    continued: Tensor  # (B,) bool
    jitter: Tensor  # (B,) noise level of the shown generated frames
    jitter_noise: Tensor
    silent: Tensor  # (B,) bool: no text


class Laid(NamedTuple):
    """A canvas laid out for a backbone."""

    x: Tensor
    """(B, C, F, h, 2w) noisy latents."""
    cond: Cond
    latents: Tensor
    """(B, C, F, h, 2w) of the finished canvas."""
    shown: Tensor
    """(B, 1, F, 1, 1) in {0, 1}: latent frames that the reference half shows."""


def check_motion(attention: Mode, motion: MotionHalf) -> None:
    """Refuse noise on what a one-way mode takes as given.

    Raises:
        ConfigError: Says both, and what there is instead.
    """
    if attention != "full" and motion != "clean":
        raise ConfigError(
            f"attention={attention} motion={motion}: the context of a one-way mode is never "
            "noised; want motion=clean, or attention=full"
        )


def example(
    batch: dict[str, Tensor], drawn: Draws, motion: MotionHalf
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A training example from latents.

    Args:
        batch: target and, unless there is no motion half, motion (B, C, F, h, w),
            text (B, L, D).
        drawn: The batch's randomness, on the device.
        motion: How the motion half is treated.

    Returns:
        Network input (B, 2C + 4, F, h, n w), latents and noise (B, C, F, h, n w),
        text (B, L, D), and shown (B, 1, F, 1, 1) in {0, 1}.
    """
    laid = lay_out(batch, drawn, motion)
    x = transformer_input(laid.x, laid.cond)
    return x, laid.latents, drawn.noise, laid.cond.text, laid.shown


def lay_out(batch: dict[str, Tensor], drawn: Draws, motion: MotionHalf) -> Laid:
    """The same for any backbone: its noisy input and its condition apart.

    Args:
        batch: As for `example`; and where the backbone has them, image (B, N, E), silence
            (B, L, D), what stands for no text (zeros without it), and canvas (B, C, F, h, w), the
            reference half as it shows nothing but the reference (latents that are 0 without it).
        drawn: As for `example`.
        motion: Likewise.
    """
    target = batch["target"]
    count, _, frames, height, width = target.shape
    beside = [] if motion == "none" else [batch["motion"]]
    latents = torch.cat([target, *beside], dim=-1)
    shown = torch.zeros(count, 1, frames, 1, 1, device=target.device)
    shown[:, :, 0] = 1
    shown[drawn.continued, :, 1] = 1
    past = torch.lerp(target[:, :, 1], drawn.jitter_noise, drawn.jitter.view(-1, 1, 1, 1))
    visible = torch.cat([target[:, :, :1], past.unsqueeze(2), target[:, :, 2:]], dim=2) * shown
    canvas = torch.cat([batch.get("canvas", visible), *beside], dim=-1)
    pixels = torch.cat([shown[:, :, :1], shown[:, :, 1:].repeat_interleave(4, dim=2)], dim=2)
    left = pixels.expand(-1, -1, -1, height, width)
    sides = [left, *(torch.ones_like(left) for _ in beside)]
    mask = fold_mask(torch.cat(sides, dim=-1), LatentGrid(4, 8, 1))
    x = add_noise(latents, drawn.noise, drawn.sigma, motion)
    silence = batch.get("silence", torch.zeros_like(batch["text"]))
    text = torch.where(drawn.silent.view(-1, 1, 1), silence, batch["text"])
    return Laid(x, Cond(canvas, mask, text, batch.get("image")), latents, shown)
