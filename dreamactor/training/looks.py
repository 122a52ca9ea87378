"""What an adapter of a large backbone can do so far, in latents: its autoencoder is not there.

Legend: B examples, C latent channels, F latent frames, h x w cells of one half.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from dreamactor.backbones.base import Cond
from dreamactor.diffusion.flow import MotionHalf, generated
from dreamactor.training.examples import Draws, lay_out
from dreamactor.training.preview import SIGMAS, missed


@torch.no_grad()
def held_numbers(
    ask: Callable[[Tensor, Tensor, Cond], Tensor],
    batch: dict[str, Tensor],
    drawn: Draws,
    motion: MotionHalf,
    levels: tuple[float, float] = (0.0, 1.0),
) -> dict[str, Tensor]:
    """How well the targets are met, one example at a time.

    Args:
        ask: (x (B, C, F, h, 2w), sigma (B,), condition) -> latents at the shape of x.
        batch: As of `training.cache.Cache.batch`.
        drawn: Its randomness; the noise levels are replaced.
        motion: How the motion half is treated.
        levels: Noise levels that the network is asked at.

    Returns:
        missed_S and swapped_S as of `training.preview.Preview.numbers`, at those S that lie within
        `levels`, or else at their highest.
    """
    found = {}
    other = {**batch, "motion": batch["motion"].roll(1, dims=0)}
    for sigma in [s for s in SIGMAS if levels[0] <= s <= levels[1]] or [levels[1]]:
        given = replace(drawn, sigma=torch.full_like(drawn.sigma, sigma))
        for name, seen in (("missed", batch), ("swapped", other)):
            rows = [_predict(ask, seen, given, motion, k) for k in range(len(seen["target"]))]
            found[f"{name}_{sigma:g}"] = missed(torch.cat(rows), batch)
    return found


def _predict(
    ask: Callable[[Tensor, Tensor, Cond], Tensor],
    batch: dict[str, Tensor],
    drawn: Draws,
    motion: MotionHalf,
    k: int,
) -> Tensor:
    """The k-th target (1, C, F, h, w) as foreseen in one pass."""
    row = {name: value[k : k + 1] for name, value in batch.items()}
    mine = Draws(**{name: value[k : k + 1] for name, value in vars(drawn).items()})
    made = lay_out(row, mine, motion)
    return generated(ask(made.x, mine.sigma, made.cond), motion).float()
