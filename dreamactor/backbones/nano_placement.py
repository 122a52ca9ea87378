"""Finds where a driver belongs: the part of nano that brings it to the subject's place and size.

A small transformer has no notion of places but its rotary ones, so it finds "the same spot of the
body, elsewhere and of another size" hardly at all, and "the same place on the other half" at once
(docs/training.md). This network reads the spots of bodies (`backbones.nano_surface`) of a reference
and of one driving frame as points that it chooses itself, and names the scale and shift of the
whole clip (`conditioning.placement`).

Legend: B pairs, T frames, h x w cells (32).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamactor.backbones.layers import Stage
from dreamactor.backbones.nano_surface import AXES
from dreamactor.conditioning.placement import Placement

POINTS = 40
WIDTH = 48
DEEPEST = 8
"""Cells of a cell of the coarsest grid."""
MOST = math.log(5)
"""Of the logarithm of scales."""
LEAST_SEEN = 0.004
"""Part of a picture that its subject covers at least; of less nothing is said."""


class PlacementNet(nn.Module):
    """Spots of a reference and of a driving frame to the logarithm of the scale, and the shift.

    The first points are taught to be joints (`training.nano_placement`), the rest are free.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4 * (AXES + 1), WIDTH, 3, padding=1)
        self.fine = Stage(WIDTH, 1, mix=False)
        self.down1 = nn.Conv2d(4 * WIDTH, 2 * WIDTH, 1)
        self.middle = Stage(2 * WIDTH, 1, mix=False)
        self.down2 = nn.Conv2d(8 * WIDTH, 2 * WIDTH, 1)
        self.coarse = Stage(2 * WIDTH, 2, mix=False)
        self.up = nn.Conv2d(2 * WIDTH, 8 * WIDTH, 1)
        self.points = nn.Conv2d(2 * WIDTH, POINTS, 1)
        last = nn.Linear(384, 3)
        nn.init.zeros_(last.weight)
        self.judge = nn.Sequential(
            nn.Linear(2 * 3 * POINTS, 384), nn.SiLU(), nn.Linear(384, 384), nn.SiLU(), last
        )

    def forward(self, reference: Tensor, driver: Tensor) -> tuple[Tensor, Tensor]:
        """Of what `SurfaceNet.told` says of pictures.

        Args:
            reference: (B, 4, h, w).
            driver: Likewise.

        Returns:
            (B, 3) log scale and shift, and (2, B, POINTS, 2) the points that were found in either.
        """
        seen = self.seen(torch.cat([reference, driver])).unflatten(0, (2, -1))
        points = seen[..., : 2 * POINTS].unflatten(-1, (2, POINTS)).transpose(-1, -2)
        return self.judged(seen[0], seen[1]), points

    def seen(self, told: Tensor) -> Tensor:
        """Points of pictures (N, 4, h, w): (N, 3 * POINTS), where each is and how surely."""
        height, width = told.shape[2:]
        x = F.pad(told, (0, -width % DEEPEST, 0, -height % DEEPEST))
        x = F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)
        x = self.fine(self.stem(x), 1)
        middle = self.middle(self.down1(F.pixel_unshuffle(x, 2)), 1)
        x = self.coarse(self.down2(F.pixel_unshuffle(middle, 2)), 1)
        x = middle + F.pixel_shuffle(self.up(x), 2)
        scores = self.points(x).float()  # a quarter of the cells each way
        rows, columns = (
            (torch.arange(n, device=scores.device) + 0.5) * 8 / side - 1
            for n, side in zip(scores.shape[-2:], (height, width), strict=True)
        )
        share = scores.flatten(2).softmax(dim=-1).view_as(scores)
        across = (share.sum(dim=2) * columns).sum(dim=-1)
        down = (share.sum(dim=3) * rows).sum(dim=-1)
        sure = scores.flatten(2).logsumexp(dim=-1) / 4
        return torch.cat([across, down, sure.tanh()], dim=1)

    def judged(self, reference: Tensor, driver: Tensor) -> Tensor:
        """Points of both (B, 3 * POINTS) -> (B, 3)."""
        found: Tensor = self.judge(torch.cat([reference, driver], dim=1))
        return found


def as_placement(found: Tensor) -> Placement:
    """What the network says (B, 3) as a placement."""
    return Placement(found[:, 0].clamp(-MOST, MOST).exp(), found[:, 1:])


def place(network: PlacementNet, reference: Tensor, driver: Tensor) -> Placement:
    """The one placement of each clip: the mean of what its frames say.

    Args:
        network: Of placements.
        reference: (B, 4, h, w) as `SurfaceNet.told`.
        driver: (B, T, 4, h, w) likewise.

    Returns:
        Of B clips. Where either picture shows next to no subject, the driver stays as it is.
    """
    count, frames = driver.shape[:2]
    seen = network.seen(torch.cat([reference, driver.flatten(0, 1)]))
    of_reference = seen[:count].repeat_interleave(frames, dim=0)
    found = network.judged(of_reference, seen[count:]).unflatten(0, (count, frames))
    covered = driver[:, :, AXES].mean(dim=(2, 3)) > LEAST_SEEN  # (B, T)
    covered = covered & (reference[:, AXES].mean(dim=(1, 2)) > LEAST_SEEN)[:, None]
    weight = covered[..., None].to(found)
    mean = (found * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)
    return as_placement(mean)
