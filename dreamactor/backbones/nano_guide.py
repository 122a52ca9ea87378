"""Frames drawn with what frame 0 shows at the same spots of the body.

What a subject looks like is on frame 0, the reference; the other frames say where on the body each
cell lies (`backbones.nano_surface`). So the decoder need not be told every stitch by latents that
were generated: at three resolutions it fetches its own features of frame 0 from the place that
shows the same spot, and how alike the spots are, and learns what to make of them.

Legend: B clips, T = 4k + 1 frames, F = k + 1 latent frames, h x w latent cells, C channels of a
stage, y x x its cells.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamactor.backbones.layers import STRIDE_T, out_of_runs
from dreamactor.backbones.nano_surface import AXES

ALIKE = 0.05
"""Parts of the body's size by which spots of the same place differ."""
SURE = 0.2
"""Least certainty of a subject by which spots are divided."""


class Places(NamedTuple):
    """Where frame 0 shows what the cells of all frames show."""

    at: Tensor
    """(B, T, 2, h, w), x and y in [-1, 1] from edge to edge."""
    alike: Tensor
    """(B, T, 1, h, w) in [0, 1]: how alike the spots there are; 0 where there is no subject."""


def by_frame(told: Tensor) -> tuple[Tensor, Tensor]:
    """Undo `SurfaceNet.latents`, of any values that were generated.

    Args:
        told: (B, 16, F, h, w), not normalised.

    Returns:
        Spots (B, T, 3, h, w) and how surely there is a subject (B, T, 1, h, w) in [0, 1].
    """
    runs = told.unflatten(1, (STRIDE_T, AXES + 1)).permute(0, 3, 1, 2, 4, 5)  # (B, F, 4, 4, h, w)
    frames = out_of_runs(runs).float()
    sure = frames[:, :, AXES:].clamp(0, 1)
    return frames[:, :, :AXES] / sure.clamp_min(SURE), sure


@torch.no_grad()
def find_places(spots: Tensor, sure: Tensor) -> Places:
    """Where frame 0 shows the spots of all frames: the mean of its cells, weighed by likeness.

    Args:
        spots: (B, T, 3, h, w) in parts of the body's size.
        sure: (B, T, 1, h, w).
    """
    with torch.autocast(spots.device.type, enabled=False):
        clips = [_places(*clip) for clip in zip(spots.float(), sure.float(), strict=True)]
    return Places(*(torch.stack(part) for part in zip(*clips, strict=True)))


def _places(spots: Tensor, sure: Tensor) -> tuple[Tensor, Tensor]:
    """Of one clip."""
    height, width = spots.shape[-2:]
    rows = (torch.arange(height, device=spots.device) + 0.5) / height * 2 - 1
    columns = (torch.arange(width, device=spots.device) + 0.5) / width * 2 - 1
    where = torch.stack(torch.meshgrid(columns, rows, indexing="xy")).flatten(1).T  # (n, 2)
    seeks, offers = spots.flatten(2).mT, spots[0].flatten(1).T  # (T, n, 3), (n, 3)
    apart = sum((seeks[..., None, k] - offers[:, k]).square() for k in range(AXES))  # (T, n, n)
    scores = sure[0].flatten().clamp_min(1e-6).log() - torch.as_tensor(apart) / (2 * ALIKE**2)
    at = scores.softmax(dim=-1) @ where  # (T, n, 2)
    alike = scores.amax(dim=-1).exp().unflatten(1, (1, height, width)) * sure
    return at.mT.unflatten(2, (height, width)), alike


class Fetch(nn.Module):
    """Adds to the features of each frame those that frame 0 has at the same spot; at first, 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.take = nn.Conv2d(channels + 1, channels, 1)
        nn.init.zeros_(self.take.weight)
        assert self.take.bias is not None
        nn.init.zeros_(self.take.bias)

    def forward(self, x: Tensor, places: Places) -> Tensor:  # (B * T, C, y, x) likewise
        """One exchange."""
        frames, size = places.at.shape[1], x.shape[-2:]
        grid, alike = (
            F.interpolate(part.flatten(0, 1), size, mode="bilinear", align_corners=False)
            for part in places
        )
        first = x.unflatten(0, (-1, frames))[:, :1].expand(-1, frames, -1, -1, -1).flatten(0, 1)
        fetched = F.grid_sample(
            first.float(), grid.permute(0, 2, 3, 1), padding_mode="border", align_corners=False
        )
        known = torch.cat([fetched * alike, alike], dim=1).to(x.dtype)
        out: Tensor = x + self.take(known.contiguous(memory_format=torch.channels_last))
        return out
