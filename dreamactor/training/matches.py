"""A third loss while nano trains: where on the reference each spot of the target is to be seen.

A subject is copied spot by spot: a hand that moved must be fetched from where the reference shows
it. The world knows which spot of a body each cell shows (`world.render.Renderer.surface`), so for
cells of the target it knows the reference's cell that shows the same. Features of a middle block
are asked for it: those of the target's tokens seek, those of the reference's tokens offer, and the
right cell should answer loudest. Attention above that block then finds what it has to copy.
Nothing of this is needed or kept once training is over.

Legend: B pairs, F latent frames of which the first is the reference's, S frames of a latent frame
(4), T = S (F - 1) driven frames, h x w cells of one half, n = h w, rows x columns tokens of one
half (2 x 2 cells each), D features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NOWHERE = -100
"""Label of a cell whose spot the reference does not show."""
NEAR = 1.5
"""Spots count as the same within so many steps from one cell of the reference to the next."""
PICKED = 64
"""Cells of a latent frame that are asked about."""
FAR = 1e4  # metres; further than anything


def matching_cells(surface: Tensor) -> Tensor:
    """The reference's cell that shows what a cell of the target shows.

    Args:
        surface: (B, T + 1, h, w, 3) metres, the reference first; NaN where there is no subject.

    Returns:
        (B, T, h, w) int64, row * w + column, or NOWHERE.
    """
    return torch.stack([_matching_cells(clip.float()) for clip in surface])


def _matching_cells(surface: Tensor) -> Tensor:
    reference, target = surface[0], surface[1:]
    across, down = reference.diff(dim=1), reference.diff(dim=0)
    steps = torch.cat([across.norm(dim=-1).flatten(), down.norm(dim=-1).flatten()])
    shown = reference.isfinite().all(dim=-1, keepdim=True)
    offers = torch.where(shown, reference, FAR).flatten(0, 1)  # (n, 3)
    seeks = target.nan_to_num(nan=-FAR).flatten(0, 2)  # (T n, 3)
    # torch.cdist by products is too coarse in TF32, and its exact form takes milliseconds a clip
    apart = sum((seeks[:, None, k] - offers[None, :, k]).square() for k in range(3))
    nearest, cell = torch.as_tensor(apart).min(dim=1)
    same = nearest.sqrt() < NEAR * steps.nanmedian().nan_to_num(nan=0.0)
    return torch.where(same, cell, NOWHERE).view(target.shape[:-1])


def match_loss(seek: Tensor, offer: Tensor, match: Tensor, draws: torch.Generator) -> Tensor:
    """Cross-entropy of the reference's cell that shows the same spot, among all of its cells.

    Args:
        seek: (B, F - 1, rows, columns, S * 4 * D) of the target's tokens.
        offer: (B, rows, columns, 4 * D) of the reference's tokens.
        match: (B, T, h, w) as from `matching_cells`.
        draws: Which cells are asked about.

    Returns:
        Scalar, the mean over PICKED cells of each latent frame that have a match (or fewer where
        there are not so many); 0 if there are none.
    """
    frames = seek.shape[1]
    within = match.shape[1] // frames
    offers = offer.unflatten(-1, (2, 2, -1)).permute(0, 1, 3, 2, 4, 5).flatten(1, 4)  # (B, n, D)
    seeks = seek.unflatten(-1, (within, 2, 2, -1)).permute(0, 1, 4, 2, 5, 3, 6, 7)
    seeks = seeks.flatten(2, 6)  # (B, F - 1, S n, D)
    labels = match.view(len(match), frames, -1)  # (B, F - 1, S n)
    local = torch.Generator(seek.device)
    local.manual_seed(int(torch.randint(2**62, (1,), generator=draws)))
    chance = torch.rand(labels.shape, generator=local, device=seek.device)
    chosen = (chance + (labels != NOWHERE)).topk(min(PICKED, labels.shape[-1]), dim=-1).indices
    labels = labels.gather(-1, chosen)
    seeks = seeks.gather(2, chosen.unsqueeze(-1).expand(-1, -1, -1, seeks.shape[-1]))
    scores = torch.einsum("bfkd,bnd->bfkn", seeks.float(), offers.float())
    scores = scores / seeks.shape[-1] ** 0.5
    total = F.cross_entropy(
        scores.flatten(0, 2), labels.flatten(), ignore_index=NOWHERE, reduction="sum"
    )
    return total / (labels != NOWHERE).sum().clamp_min(1)
