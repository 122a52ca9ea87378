"""Tells clips from samples by their latents, at any noise level: the adversarial part of `distill`.

Legend: B examples, C latent channels, F latent frames, h x w cells of one half.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (96, 192, 384)
FREQUENCIES = 16


class Discriminator(nn.Module):
    """A small network of convolutions over patches: noisy latents beside what was given.

    It sees latents with noise on them, so that real and generated ones overlap and its gradient
    says something from the first step on.

    Args:
        channels: C.
        widths: Of its stages; each halves height and width.
    """

    def __init__(self, channels: int, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        self.enter = nn.Conv3d(3 * channels, widths[0], 3, padding=1)
        self.level = nn.Linear(2 * FREQUENCIES, widths[0])
        stages: list[nn.Module] = []
        for before, width in zip(widths, (*widths[1:], widths[-1]), strict=True):
            stages += [
                nn.Conv3d(before, width, (3, 4, 4), stride=(1, 2, 2), padding=1),
                nn.GroupNorm(8, width),
                nn.SiLU(),
            ]
        self.stages = nn.Sequential(*stages)
        self.leave = nn.Conv3d(widths[-1], 1, 1)

    def forward(self, x: Tensor, sigma: Tensor, motion: Tensor, reference: Tensor) -> Tensor:
        """How real each patch looks, (B, 1, F, h', w'); any number.

        Args:
            x: (B, C, F, h, w) noisy latents of the reference half.
            sigma: (B,) their noise level.
            motion: (B, C, F, h, w) of the driver.
            reference: (B, C, h, w).
        """
        given = torch.cat([x, motion, reference.unsqueeze(2).expand_as(x)], dim=1)
        powers = torch.arange(FREQUENCIES, device=x.device) / FREQUENCIES
        angles = sigma.unsqueeze(1) * 2 * math.pi * 64**powers  # (B, FREQUENCIES)
        level = self.level(torch.cat([angles.sin(), angles.cos()], dim=1))
        inner = F.silu(self.enter(given) + level[:, :, None, None, None])
        found: Tensor = self.leave(self.stages(inner))
        return found
