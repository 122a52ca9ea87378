"""Layers that nano's autoencoder and its network of surfaces are made of.

Legend: N frames, B clips, C channels, h x w cells; T = 4k + 1 frames, F = k + 1 latent frames.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE_T = 4
STRIDE_S = 8


class ChannelNorm(nn.Module):
    """RMS norm over channels at each pixel, then SiLU; nothing is shared between pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:  # (N, C, h, w)
        """Normalise and activate."""
        weight = self.weight.to(x.dtype)
        y = F.rms_norm(x.permute(0, 2, 3, 1), weight.shape, weight, 1e-6)
        return F.silu(y).permute(0, 3, 1, 2)


class CausalMix(nn.Module):
    """Mix each frame with the two before it, pixel by pixel; before frame 0 stands frame 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3 * channels, channels, 1)

    def forward(self, x: Tensor, frames: int) -> Tensor:  # (B * frames, C, h, w)
        """Apply each tap to all frames: stacking three frames first takes longer than the taps."""
        before2, before, now = (
            F.conv2d(x, weight).unflatten(0, (-1, frames))
            for weight in self.conv.weight.chunk(3, dim=1)
        )
        assert self.conv.bias is not None
        out = now + self.conv.bias.view(-1, 1, 1)
        out[:, 1:] += before[:, :-1]
        out[:, :1] += before[:, :1]
        out[:, 2:] += before2[:, :-2]
        out[:, :2] += before2[:, :1]
        return out.flatten(0, 1)


class Block(nn.Module):
    """Residual block: 3x3, causal mix (if `mix`), 3x3."""

    def __init__(self, channels: int, mix: bool) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = ChannelNorm(channels) if mix else None
        self.mix = CausalMix(channels) if mix else None
        self.norm3 = ChannelNorm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, frames: int) -> Tensor:  # (B * frames, C, h, w)
        """One residual step."""
        y: Tensor = self.conv1(self.norm1(x))
        if self.mix is not None and self.norm2 is not None:
            y = y + self.mix(self.norm2(y), frames)
        return x + self.conv2(self.norm3(y))


class Stage(nn.Module):
    """Some blocks of one width."""

    def __init__(self, channels: int, depth: int, mix: bool = True) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(channels, mix) for _ in range(depth)])

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """All blocks in turn."""
        for block in self.blocks:
            x = block(x, frames)
        return x


def in_runs(frames: Tensor) -> Tensor:
    """Frames by the latent frame they belong to; frame 0 fills one of its own.

    Args:
        frames: (B, T, ...).

    Returns:
        (B, F, 4, ...).
    """
    first = frames[:, :1].expand(-1, STRIDE_T, *[-1] * (frames.ndim - 2))
    return torch.cat([first, frames[:, 1:]], dim=1).unflatten(1, (-1, STRIDE_T))


def out_of_runs(runs: Tensor) -> Tensor:
    """Undo `in_runs`: (B, F, 4, ...) -> (B, T, ...); of the first run only the last is kept."""
    return runs.flatten(1, 2)[:, STRIDE_T - 1 :]
