"""Where a driver belongs: one scale and shift that bring it to the subject's place and size.

A driving clip is framed as it likes, and what is generated stands where the reference does. With
the driver brought there first, a limb of the result lies near where the driver shows it.

Legend: B clips, T frames, H x W pixels. Places on a picture are (x, y) in [-1, 1] from edge to
edge, x right and y down.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Placement(NamedTuple):
    """What is at a place p of the driver's picture belongs at scale * p + shift."""

    scale: Tensor
    """(B,), over 0."""
    shift: Tensor
    """(B, 2)."""

    def of(self, which: Tensor | slice) -> Placement:
        """Of some clips."""
        return Placement(self.scale[which], self.shift[which])

    def plain(self) -> list[dict[str, object]]:
        """JSON values, one a clip."""
        pairs = zip(self.scale.tolist(), self.shift.tolist(), strict=True)
        return [{"scale": round(k, 4), "shift": [round(s, 4) for s in shift]} for k, shift in pairs]


def place_frames(clip: Tensor, placement: Placement) -> Tensor:
    """Bring clips (B, 3, T, H, W) in [-1, 1] to their places; what they do not show is 0, grey."""
    frames = clip.transpose(1, 2).flatten(0, 1)
    grid = _grid(placement, clip.shape[2], *clip.shape[3:])
    moved = F.grid_sample(frames, grid, padding_mode="zeros", align_corners=False)
    return moved.unflatten(0, (-1, clip.shape[2])).transpose(1, 2)


def place_cells(cells: Tensor, placement: Placement) -> Tensor:
    """Likewise values of cells (B, T, h, w, C), each from the nearest; NaN beyond the picture."""
    frames = cells.flatten(0, 1).permute(0, 3, 1, 2).float()
    grid = _grid(placement, *cells.shape[1:4])
    moved = F.grid_sample(frames, grid, mode="nearest", align_corners=False)
    beyond = (grid.abs() > 1).any(dim=-1)  # (B * T, h, w)
    moved = moved.permute(0, 2, 3, 1).masked_fill(beyond[..., None], torch.nan)
    return moved.to(cells.dtype).unflatten(0, cells.shape[:2])


def place_points(points: Tensor, placement: Placement) -> Tensor:
    """Likewise points (B, ..., 2) in parts of the side, from 0 to 1."""
    shape = (-1, *[1] * (points.ndim - 2))
    scale, shift = placement.scale.view(*shape, 1), placement.shift.view(*shape, 2)
    return ((2 * points - 1) * scale + shift + 1) / 2


def _grid(placement: Placement, frames: int, height: int, width: int) -> Tensor:
    """(B * frames, height, width, 2) places of the driver's picture that are shown."""
    rows, columns = (
        (torch.arange(n, device=placement.scale.device) + 0.5) / n * 2 - 1 for n in (height, width)
    )
    at = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)  # (height, width, 2)
    from_ = (at - placement.shift[:, None, None]) / placement.scale[:, None, None, None]
    return from_.repeat_interleave(frames, dim=0)
