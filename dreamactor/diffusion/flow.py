"""Rectified flow on the canvas: schedule, noising and the loss on the generated half.

Legend: B clips, C channels, F latent frames, h x 2w latent cells (reference half left; without a
motion half, h x w).
sigma goes from 1 (noise) to 0 (latents); x = (1 - sigma) latents + sigma noise. A network predicts
the velocity, noise - latents, or the latents, from which the velocity follows.

The paper does not say how noise and loss treat the motion half. `MotionHalf` is that choice:
"clean" leaves it without noise and out of the loss; "noised" treats it like the reference half,
with a small weight in the loss; "none" has no motion half, as an image-to-video model that knows
no canvas.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dreamactor.conditioning.canvas import motion_half, reference_half

MotionHalf = Literal["clean", "noised", "none"]
MOTION_WEIGHT = 0.1  # of the motion half's loss when noised: it sees the clean driver
LEAST_SIGMA = 0.3
"""Below this noise level errors of predicted latents weigh no more: they can hardly be seen."""


def shifted(u: Tensor, shift: float) -> Tensor:
    """Spend more of the schedule on high noise: u -> shift u / (1 + (shift - 1) u).

    Source: Esser et al. 2024 (arXiv 2403.03206), section 5.3.2.
    """
    return shift * u / (1 + (shift - 1) * u)


def schedule(steps: int, shift: float) -> Tensor:
    """Noise levels of a sampler: (steps + 1,) float32 from 1 down to 0."""
    return shifted(torch.linspace(1, 0, steps + 1), shift)


def sample_sigma(u: Tensor, shift: float, levels: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Training noise levels from standard normal draws: logit-normal, then shifted.

    Args:
        u: (B,) standard normal draws.
        shift: As in `shifted`.
        levels: Lowest and highest level; within them the distribution keeps its shape.

    Returns:
        (B,) in (0, 1), and between `levels`.
    """
    if levels == (0.0, 1.0):
        return shifted(torch.sigmoid(u), shift)
    ends = torch.tensor(levels, dtype=torch.float64)
    low, high = torch.special.ndtr(torch.logit(ends / (shift - (shift - 1) * ends)))
    share = low + (high - low) * torch.special.ndtr(u.double())
    level = shifted(torch.sigmoid(torch.special.ndtri(share)), shift).to(u.dtype)
    return level.clamp(*levels)


def halves(motion: MotionHalf) -> int:
    """How many halves stand side by side."""
    return 1 if motion == "none" else 2


def generated(x: Tensor, motion: MotionHalf) -> Tensor:
    """What is to be generated: the reference half, or all there is without a motion half."""
    return x if motion == "none" else reference_half(x)


def add_noise(latents: Tensor, noise: Tensor, sigma: Tensor, motion: MotionHalf) -> Tensor:
    """The network's noisy input at `sigma`.

    Args:
        latents: (B, C, F, h, 2w) latents of the finished canvas.
        noise: Same shape, standard normal.
        sigma: (B,) noise level of each clip.
        motion: What happens to the motion half.

    Returns:
        (B, C, F, h, 2w).
    """
    level = sigma.view(-1, 1, 1, 1, 1).to(latents.dtype)
    x = torch.lerp(latents, noise, level)
    if motion != "clean":
        return x
    return torch.cat([reference_half(x), motion_half(latents)], dim=-1)


def flow_loss(
    predicted: Tensor, latents: Tensor, sigma: Tensor, weight: Tensor, motion: MotionHalf
) -> Tensor:
    """Squared error of the velocity that predicted latents imply, per clip.

    The velocity of a prediction is (x - predicted) / sigma, so its error is that of the latents
    over sigma; below LEAST_SIGMA the divisor stays.

    Args:
        predicted: (B, C, F, h, 2w).
        latents: Same shape, the finished canvas.
        sigma: (B,) noise level of each clip.
        weight: (B, 1 or C, F, h, w) weight of what is to be generated; its scale is divided out.
        motion: Whether the motion half counts (with MOTION_WEIGHT).

    Returns:
        (B,) float32.
    """
    level = sigma.float().clamp_min(LEAST_SIGMA).view(-1, 1, 1, 1, 1)
    error = ((predicted.float() - latents.float()) / level).square()
    weight = weight.float()
    wanted = generated(error, motion)
    left = (wanted * weight).mean(dim=(1, 2, 3, 4)) / weight.mean(dim=(1, 2, 3, 4))
    if motion != "noised":
        return left
    return left + MOTION_WEIGHT * motion_half(error).mean(dim=(1, 2, 3, 4))
