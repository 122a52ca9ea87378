"""A loss on decoded predictions, for the last part of nano's training.

The mean of all pictures that could be right is blurred, and squared errors of latents ask for
nothing else. Here predicted and true latents are decoded, and the decoded pictures compared as
pictures: L1, local contrast and a perceptual distance.

Legend: B pairs, C latent channels, F latent frames, h x w cells of one half, T = 4 (F - 1) + 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dreamactor.backbones.nano_vae import NanoVAE
from dreamactor.bench.perceptual import Perceptual
from dreamactor.training.nano_vae import contrast_loss, frames_of
from dreamactor.training.preview import on_pixels

WINDOW = 16
"""Cells of a side of the part that is decoded."""
SEEN = 2
"""Frames of each clip that the perceptual network looks at."""
CONTRAST, PERCEPTUAL = 0.5, 0.5
"""Weights beside L1."""


class PictureLoss(nn.Module):
    """Distance of decoded predictions from decoded targets around the subject.

    Args:
        vae: Autoencoder, frozen.
        perceptual: Frozen.
    """

    def __init__(self, vae: NanoVAE, perceptual: Perceptual) -> None:
        super().__init__()
        self.vae, self.perceptual = vae, perceptual

    def forward(
        self, predicted: Tensor, target: Tensor, subject: Tensor, draws: torch.Generator
    ) -> Tensor:
        """Mean over all clips; scalar.

        Args:
            predicted: (B, C, F, h, w) latents; a gradient reaches all frames but the first.
            target: Same shape.
            subject: (B, 1, F, h, w) in [0, 1].
            draws: Where windows lie and which frames are looked at.
        """
        whole = torch.cat([target[:, :, :1], predicted[:, :, 1:].to(target.dtype)], dim=2)
        corners = window_corners(subject, draws)
        clip = self.vae.frames(window(whole, corners)).float()
        with torch.no_grad():
            truth = self.vae.frames(window(target, corners)).float()
        mask = on_pixels(window(subject, corners))
        clip, truth, mask = clip[:, :, 1:], truth[:, :, 1:], mask[:, :, 1:]  # frame 0 is given
        near = ((clip - truth).abs() * (1 + 2 * mask)).mean()
        seen = torch.randint(clip.shape[2], (len(clip), SEEN), generator=draws).to(clip.device)
        felt = self.perceptual(frames_of(clip, seen), frames_of(truth, seen)).mean()
        return near + CONTRAST * contrast_loss(clip, truth, mask) + PERCEPTUAL * felt


def window_corners(subject: Tensor, draws: torch.Generator) -> Tensor:
    """Top left cells (B, 2) of windows about a random cell of each subject.

    Args:
        subject: (B, 1, F, h, w) in [0, 1].
        draws: On the CPU.
    """
    height, width = subject.shape[-2:]
    seen = subject[:, 0, 1:].amax(dim=1).flatten(1).cpu() + 1e-6  # (B, h * w)
    cell = torch.multinomial(seen, 1, generator=draws)[:, 0]
    corner = torch.stack([cell // width, cell % width], dim=-1) - WINDOW // 2
    most = torch.tensor([max(0, height - WINDOW), max(0, width - WINDOW)])
    return corner.clamp_min(0).minimum(most)


def window(x: Tensor, corners: Tensor) -> Tensor:
    """Windows of WINDOW cells a side: (B, C, F, h, w) -> (B, C, F, WINDOW, WINDOW).

    A half that is no larger than a window comes back whole.
    """
    parts = [
        clip[:, :, top : top + WINDOW, left : left + WINDOW]
        for clip, (top, left) in zip(x, corners.tolist(), strict=True)
    ]
    return torch.stack(parts)
