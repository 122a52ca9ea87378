"""Where on the body each cell lies: the latent channels of nano that say it.

Pixels alone teach a small transformer slowly what a body is (docs/log.md): most of a latent is
colour. So its autoencoder has channels beside those of the picture, computed from the frames by
a network of its own: the spot of the subject's body that a cell shows, in its bind pose and in
parts of its size, and whether it shows the subject at all. People, animals and toons have the
same spots, so driver, reference and target are told in one language; and as the transformer
generates these channels with the others, it says where a limb goes before it says how it looks.
After aligned latents (Yao et al. 2025, arXiv 2501.01423) and joint generation of features (Kouzelis
et al. 2025, arXiv 2504.16064), with truth of the world in the place of another network's features.

Legend: N frames, B clips, T = 4k + 1 frames, F = k + 1 latent frames, H x W pixels, h = H / 8,
w = W / 8, S frames of a latent frame (4).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamactor.backbones.layers import STRIDE_S, STRIDE_T, ChannelNorm, Stage, in_runs

DEEPEST = 32
"""Pixels of a cell of the coarsest grid."""
AXES = 3
SURFACE_CHANNELS = STRIDE_T * (AXES + 1)


class Surface(NamedTuple):
    """What a network says of frames."""

    spots: Tensor
    """(N, 3, h, w) in parts of the body's size, x to the body's left, y up, z ahead."""
    subject: Tensor
    """(N, 1, h, w) logits of showing the subject."""


class SurfaceNet(nn.Module):
    """Frames to spots of bodies: a pyramid down to 1/32 of the size and back up to 1/8.

    Args:
        widths: Channels at 1/4, 1/8, 1/16 and 1/32.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.widths = widths
        quarter, eighth, sixteenth, deepest = widths
        self.stem = nn.Conv2d(3 * 16, quarter, 3, padding=1)
        self.quarter = Stage(quarter, 1, mix=False)
        self.down1 = nn.Conv2d(4 * quarter, eighth, 1)
        self.eighth = Stage(eighth, 2, mix=False)
        self.down2 = nn.Conv2d(4 * eighth, sixteenth, 1)
        self.sixteenth = Stage(sixteenth, 2, mix=False)
        self.down3 = nn.Conv2d(4 * sixteenth, deepest, 1)
        self.deepest = Stage(deepest, 2, mix=False)
        self.up1 = nn.Conv2d(deepest, 4 * sixteenth, 1)
        self.sixteenth_up = Stage(sixteenth, 1, mix=False)
        self.up2 = nn.Conv2d(sixteenth, 4 * eighth, 1)
        self.eighth_up = Stage(eighth, 2, mix=False)
        self.norm = ChannelNorm(eighth)
        self.out = nn.Conv2d(eighth, AXES + 1, 1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, frames: Tensor) -> Surface:
        """What frames (N, 3, H, W) in [-1, 1] show; H and W multiples of 8."""
        height, width = frames.shape[2:]
        missing = (0, -width % DEEPEST, 0, -height % DEEPEST)
        x = F.pad(frames, missing, mode="replicate") if any(missing) else frames
        x = F.pixel_unshuffle(x, 4).contiguous(memory_format=torch.channels_last)
        x = self.quarter(self.stem(x), 1)
        eighth = self.eighth(self.down1(F.pixel_unshuffle(x, 2)), 1)
        sixteenth = self.sixteenth(self.down2(F.pixel_unshuffle(eighth, 2)), 1)
        x = self.deepest(self.down3(F.pixel_unshuffle(sixteenth, 2)), 1)
        x = self.sixteenth_up(sixteenth + F.pixel_shuffle(self.up1(x), 2), 1)
        x = self.eighth_up(eighth + F.pixel_shuffle(self.up2(x), 2), 1)
        x = self.out(self.norm(x))[..., : height // STRIDE_S, : width // STRIDE_S]
        return Surface(x[:, :AXES], x[:, AXES:])

    def latents(self, clip: Tensor) -> Tensor:
        """The channels of a clip, not normalised.

        Args:
            clip: (B, 3, T, H, W) in [-1, 1].

        Returns:
            (B, 4 S, F, h, w): of each of a latent frame's S frames the spot, 0 where there is no
            subject, and how surely there is one, in [0, 1]. Frame 0 fills a latent frame.
        """
        frames = self.told(clip.transpose(1, 2).flatten(0, 1))  # (B * T, 4, h, w)
        return in_runs(frames.unflatten(0, (len(clip), -1))).flatten(2, 3).transpose(1, 2)

    def told(self, frames: Tensor) -> Tensor:
        """What frames show, in one.

        Args:
            frames: (N, 3, H, W) in [-1, 1].

        Returns:
            (N, 4, h, w): the spot, 0 where there is no subject, and how surely there is one.
        """
        found = self(frames)
        sure = found.subject.sigmoid()
        return torch.cat([found.spots * sure, sure], dim=1)
