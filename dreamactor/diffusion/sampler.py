"""ODE samplers as pure functions: (velocity, noise, sigmas) -> latents."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from dreamactor.conditioning.canvas import reference_half

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x, sigma ()) -> noise - latents, at the shape of x."""


def sample_euler(velocity: Velocity, noise: Tensor, sigmas: Tensor) -> Tensor:
    """Euler steps along the flow; exact where the flow is straight.

    Args:
        velocity: Predicts noise - latents at (x, sigma).
        noise: Any shape, standard normal.
        sigmas: (steps + 1,) from 1 down to 0.

    Returns:
        Latents, shape and dtype of `noise`; float32 between steps.
    """
    x = noise.float()
    for sigma, sigma_next in pairwise(sigmas):
        x = x + (sigma_next - sigma) * velocity(x.to(noise.dtype), sigma).float()
    return x.to(noise.dtype)


def beside(velocity: Velocity, motion: Tensor) -> Velocity:
    """The velocity of the reference half alone, while the motion half stays clean.

    Args:
        velocity: Of the whole canvas, at (B, C, F, h, 2w).
        motion: (B, C, F, h, w) the driver's latents, shown at every step as in training.

    Returns:
        Velocity at (B, C, F, h, w).
    """

    def of_reference(x: Tensor, sigma: Tensor) -> Tensor:
        both = torch.cat([x, motion], dim=-1)  # (B, C, F, h, 2w)
        return reference_half(velocity(both, sigma))

    return of_reference


def guided(
    cond: Velocity, uncond: Velocity, guidance: float, levels: Tensor | None = None
) -> Velocity:
    """Classifier-free guidance: uncond + guidance (cond - uncond); 1 means cond alone.

    Args:
        cond: With the prompt.
        uncond: With what it leads away from.
        guidance: How far.
        levels: Noise levels at which it does, as the sampler names them; None = all. At the others
            there is one pass, of cond.

    Source: Ho and Salimans 2022 (arXiv 2207.12598); Kynkäänniemi et al. 2024 (arXiv 2404.07724).
    """
    if guidance == 1.0:
        return cond

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        if levels is not None and not (levels == sigma).any():
            return cond(x, sigma)
        base = uncond(x, sigma)
        return base + guidance * (cond(x, sigma) - base)

    return velocity
