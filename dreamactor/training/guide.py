"""What else is asked while nano trains: what a token shows, and where attention should look.

To animate a subject, a target's token has to find the driver's token that shows the same spot of
a body at the same time, learn from it which spot that is, and fetch from the reference what this
subject looks like there. From the loss of the latents alone none of the three is learnt until all
are there (docs/training.md), and the world knows them all: `spot_loss` names spots and outlines,
`look_loss` shows some heads of two blocks where to look, after guided attention in speech
synthesis (Tachibana et al. 2017, arXiv 1710.08969), with truth in the place of a diagonal.
Nothing of this is needed or kept once training is over.

Legend: B pairs or clips, F latent frames of which the first is the reference's, S frames of a
latent frame (4), T = S (F - 1) driven frames, rows x columns tokens of one half (2 x 2 cells
each), h x w cells of one half, n halves side by side (2; 1 for a clip by itself), N = F rows n
columns tokens in all, H guided heads, D channels of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamactor.backbones.layers import STRIDE_T
from dreamactor.training.matches import NOWHERE
from dreamactor.training.poses import by_latent_frame

PICKED = 64
"""Tokens of a latent frame that are asked where they look."""


class Look(NamedTuple):
    """What some heads of a block compare."""

    query: Tensor
    """(B, H, F - 1, rows * columns, D) of the target's tokens."""
    key: Tensor
    """(B, H, N, D) of all tokens."""


def reference_tokens(match: Tensor, halves: int) -> Tensor:
    """Places among all tokens of what the reference shows.

    Args:
        match: (B, T, h, w) cells of the reference as from `matching_cells`.
        halves: n.

    Returns:
        (B, F - 1, rows * columns, 4 S) places for each token of the target, or NOWHERE.
    """
    width = match.shape[-1]
    return _by_token(torch.where(match < 0, NOWHERE, _place(match, width, halves)))


def driver_tokens(match: Tensor) -> Tensor:
    """Places among all tokens of what the driver shows at the same time.

    Args:
        match: (B, T, h, w) cells of the driver as from `matching_cells`.

    Returns:
        As from `reference_tokens`.
    """
    frames, height, width = match.shape[1:]
    frame = torch.arange(frames, device=match.device).view(-1, 1, 1) // STRIDE_T + 1
    place = _place(match, width, 2) + width // 2 + frame * (height // 2) * width
    return _by_token(torch.where(match < 0, NOWHERE, place))


def _place(cells: Tensor, width: int, halves: int) -> Tensor:
    """Tokens of the first frame's left half that cells lie in."""
    row, column = cells // width // 2, cells % width // 2
    return row * (halves * (width // 2)) + column


def _by_token(places: Tensor) -> Tensor:
    """(B, T, h, w) -> (B, F - 1, rows * columns, 4 S)."""
    height, width = places.shape[2:]
    split = places.view(len(places), -1, STRIDE_T, height // 2, 2, width // 2, 2)
    return split.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3)


def look_loss(look: Look, places: Tensor, draws: torch.Generator) -> Tensor:
    """Cross-entropy of where attention should look, among all tokens.

    Args:
        look: Of one block.
        places: (B, F - 1, rows * columns, 4 S) as from `reference_tokens` or `driver_tokens`.
        draws: Which tokens are asked.

    Returns:
        Scalar, the mean over up to PICKED tokens of each latent frame that have a place to look
        at; 0 if there are none.
    """
    local = torch.Generator(places.device)
    local.manual_seed(int(torch.randint(2**62, (1,), generator=draws)))
    known = (places != NOWHERE).any(dim=-1)
    chance = torch.rand(known.shape, generator=local, device=places.device)
    chosen = (chance + known).topk(min(PICKED, known.shape[-1]), dim=-1).indices  # (B, F - 1, Q)
    places = places.gather(2, chosen.unsqueeze(-1).expand(-1, -1, -1, places.shape[-1]))
    wide = chosen[:, None, :, :, None].expand(-1, look.query.shape[1], -1, -1, look.query.shape[-1])
    query = look.query.gather(3, wide).flatten(2, 3).float()  # (B, H, Q', D)
    places = places.flatten(1, 2)[:, None].expand(-1, query.shape[1], -1, -1)
    scores = query @ look.key.float().mT / query.shape[-1] ** 0.5  # (B, H, Q', N)
    right = scores.gather(-1, places.clamp_min(0))  # (B, H, Q', 4 S)
    missed = scores.logsumexp(dim=-1, keepdim=True) - right
    seen = places != NOWHERE
    return torch.where(seen, missed, 0).sum() / seen.sum().clamp_min(1)


def spot_loss(found: Tensor, surface: Tensor) -> tuple[Tensor, Tensor]:
    """How far from the truth the spots are that tokens are said to show, and where they are none.

    Args:
        found: (B, F, rows, n columns, S * 4 * 4) of each cell and frame of a token: the spot in
            metres, and the logit of there being one.
        surface: (B, n (T + 1), h, w, 3): reference and target, then driver; NaN = no subject.

    Returns:
        Two scalars: the mean distance along an axis where there is a subject (0 if there is
        none), and the cross-entropy of where there is one.
    """
    frames, rows = found.shape[1:3]
    wanted = by_latent_frame(surface.float(), frames)  # (B, n, F, S, h, w, 3)
    wanted = wanted.unflatten(4, (rows, 2)).unflatten(6, (-1, 2))  # (B, n, F, S, rows, 2, c, 2, 3)
    wanted = wanted.permute(0, 2, 4, 1, 6, 3, 5, 7, 8).flatten(5).flatten(3, 4)
    wanted = wanted.unflatten(-1, (-1, 3))  # (B, F, rows, n columns, S * 4, 3)
    found = found.float().unflatten(-1, (-1, 4))
    seen = wanted.isfinite().all(dim=-1)
    error = torch.where(seen[..., None], found[..., :3] - wanted.nan_to_num(), 0).abs()
    outlines = F.binary_cross_entropy_with_logits(found[..., 3], seen.float())
    return error.sum() / (3 * seen.sum()).clamp_min(1), outlines
