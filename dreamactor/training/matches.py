"""Which cell of a picture shows the spot of the body that a cell of the target shows.

The world knows the spot of the bind pose in each cell (`world.pairs.Twins.surfaces`), of all
bodies alike: so cells of the target are matched with those of the reference, the same person, and
with those of the driver, another one in the same pose.

Legend: B pairs, T driven frames, h x w cells of one half.
"""

from __future__ import annotations

import torch
from torch import Tensor

NOWHERE = -100
"""Where the picture does not show the spot."""
NEAR = 1.5
"""Spots count as the same within so many steps from one cell of the picture to the next."""
PAIRS_AT_ONCE = 2**27
"""Pairs of cells compared at once: 1.5 GB."""
FAR = 1e4  # further than any spot of a body


def matching_cells(target: Tensor, shown: Tensor) -> Tensor:
    """The cells of other pictures that show what cells of the target show.

    Args:
        target: (B, T, h, w, 3) spots of the bind pose; NaN where there is no subject.
        shown: (B, T, h, w, 3) a picture for each frame, or (B, 1, h, w, 3) one for all.

    Returns:
        (B, T, h, w) int64, row * w + column, or NOWHERE.
    """
    at_once = max(1, PAIRS_AT_ONCE // (target[0, ..., 0].numel() * shown[0, 0, ..., 0].numel()))
    parts = zip(target.split(at_once), shown.split(at_once), strict=True)
    return torch.cat(
        [_matching_cells(clips.float(), pictures.float()) for clips, pictures in parts]
    )


def _matching_cells(target: Tensor, shown: Tensor) -> Tensor:
    across, down = shown.diff(dim=3), shown.diff(dim=2)
    steps = torch.cat([across.norm(dim=-1).flatten(1), down.norm(dim=-1).flatten(1)], dim=1)
    visible = shown.isfinite().all(dim=-1, keepdim=True)
    offers = torch.where(visible, shown, FAR).flatten(2, 3)  # (B, 1 or T, n, 3)
    seeks = target.nan_to_num(nan=-FAR)
    seeks = seeks.reshape(*shown.shape[:2], -1, 3)  # (B, 1 or T, T n or n, 3)
    # torch.cdist by products is too coarse in TF32, and its exact form takes milliseconds a clip
    apart = sum((seeks[..., :, None, k] - offers[..., None, :, k]).square() for k in range(3))
    nearest, cell = torch.as_tensor(apart).min(dim=-1)
    near = NEAR * steps.nanmedian(dim=1).values.nan_to_num(nan=0.0)
    same = nearest.sqrt() < near[:, None, None]
    return torch.where(same, cell, NOWHERE).view(target.shape[:-1])
