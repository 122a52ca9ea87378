"""What the middle of the network knows, read off its tokens while it trains.

After representation alignment (Yu et al. 2024, arXiv 2410.06940), with truth of the world in the
place of another network's features. The readers are thrown away once training is over.

Legend: B pairs or clips, F latent frames, rows x columns tokens of one half, n halves (2; 1 for a
clip by itself), N = F rows n columns, S frames of a latent frame (4), J = 17 joints.

In the one-way modes a block runs twice, over the context and then over the target
(`backbones.incontext`); what is read of both is put together on the canvas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamactor.backbones.incontext import join
from dreamactor.backbones.layers import STRIDE_T
from dreamactor.backbones.sight import Sight, turned
from dreamactor.conditioning.skeleton import JOINTS
from dreamactor.training.guide import Look

DRIVEN, FETCHED, POSED = 4 / 12, 7 / 12, 8 / 12
"""How far up the network the driver is looked at; the reference is looked at; joints and spots are
read, when those of the target should be known too."""
GUIDED = 2
"""Heads that are shown where to look."""
SPOTS = STRIDE_T * 4 * 4  # of a token: 2 x 2 cells, three axes and whether there is a spot


class Read(NamedTuple):
    """A prediction, and what was read on the way."""

    latents: Tensor
    """(B, C, F, h, n w)."""
    spots: Tensor
    """(B, F, rows, n columns, S * 4 * 4) of all cells of a token (`training.guide.spot_loss`)."""
    joints: Tensor
    """(B, F, rows, n columns, S * J) scores (`training.poses`)."""
    driver: Look
    """Of the block that should look at the driver."""
    reference: Look
    """Of the block that should look at the reference."""


class _Given(NamedTuple):
    """What a block was called with."""

    tokens: Tensor
    """(B, N, width) of the canvas, or of its context or target."""
    time: Tensor
    """(B, 6, width) embedded timestep."""
    rotary: tuple[Tensor, Tensor]
    """Cosines and sines of their positions."""


class Reader(nn.Module):
    """A transformer with readers before three of its blocks.

    Args:
        transformer: diffusers' WanTransformer3DModel.
        width: Channels of its tokens.
        halves: n, side by side, the first of which is generated.
    """

    def __init__(self, transformer: nn.Module, width: int, halves: int = 2) -> None:
        super().__init__()
        self.transformer = transformer
        self.halves = halves
        self.spots = nn.Linear(width, SPOTS)
        self.joints = nn.Linear(width, STRIDE_T * len(JOINTS))
        self._given: dict[float, list[_Given]] = {}
        self._reading = False  # else the transformer runs for somebody else
        for depth in (DRIVEN, FETCHED, POSED):
            self._block(depth).register_forward_pre_hook(self._tap(depth))

    def forward(self, x: Tensor, timestep: Tensor, text: Tensor) -> Read:
        """Predict latents from the network's input (B, 2C + 4, F, h, n w)."""
        self._reading = True
        latents: Tensor = self.transformer(
            hidden_states=x, timestep=timestep, encoder_hidden_states=text, return_dict=False
        )[0]
        self._reading = False
        shape = _tokens_of(x)
        driver, reference = (self._look(depth, shape) for depth in (DRIVEN, FETCHED))
        posed = self._tokens(POSED, shape)
        self._given.clear()
        return Read(latents, self.spots(posed), self.joints(posed), driver, reference)

    def _block(self, depth: float) -> Any:
        blocks: Any = self.transformer.blocks
        return blocks[_below(blocks, depth)]

    def _tokens(self, depth: float, shape: tuple[int, int, int]) -> Tensor:
        """(B, F, rows, n columns, width) what a block is given, normalised."""
        tokens = _laid([given.tokens for given in self._given[depth]], shape).float()
        return F.layer_norm(tokens, tokens.shape[-1:]).unflatten(1, shape)

    def _look(self, depth: float, shape: tuple[int, int, int]) -> Look:
        """What the first heads of a block compare."""
        sides = [compared(self._block(depth), *given) for given in self._given[depth]]
        query, key = (_laid(list(parts), shape) for parts in zip(*sides, strict=True))
        heads = query.shape[2]
        query, key = (side[:, :, : min(GUIDED, heads)].transpose(1, 2) for side in (query, key))
        left = query.unflatten(2, shape)[:, :, 1:, :, : shape[2] // self.halves]
        return Look(left.flatten(3, 4), key)

    def _tap(self, depth: float) -> Callable[[nn.Module, Any], None]:
        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def keep(block: nn.Module, given: tuple[Any, ...]) -> None:
            if not self._reading:
                return
            tokens, _, time, sight = given
            rotary = sight.rotary if isinstance(sight, Sight) else sight
            self._given.setdefault(depth, []).append(_Given(tokens, time, rotary))

        return cast(Callable[[nn.Module, Any], None], keep)


def _tokens_of(x: Tensor) -> tuple[int, int, int]:
    """(F, rows, n columns) of the network's input, in 2 x 2 patches."""
    return x.shape[2], x.shape[3] // 2, x.shape[4] // 2


def _laid(parts: list[Tensor], shape: tuple[int, int, int]) -> Tensor:
    """(B, N, ...) of the canvas: as it is, or of the context and the target."""
    if len(parts) == 1:
        return parts[0]
    context, target = parts
    return join(target, context, shape)


def _below(blocks: nn.ModuleList, depth: float) -> int:
    """How many blocks lie below one that far up."""
    return min(len(blocks) - 1, round(len(blocks) * depth))


def compared(
    block: Any, tokens: Tensor, time: Tensor, rotary: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Queries and keys of a WanTransformerBlock's self-attention, as the block makes them.

    Args:
        block: diffusers' WanTransformerBlock.
        tokens: (B, N, width) that the block is given.
        time: (B, 6, width) embedded timestep.
        rotary: cosines and sines of the positions, (1, N, 1, D) each.

    Returns:
        Both (B, N, heads, D).
    """
    shift, scale = (block.scale_shift_table + time.float()).chunk(6, dim=1)[:2]
    x = (block.norm1(tokens.float()) * (1 + scale) + shift).type_as(tokens)
    attention = block.attn1
    query, key = attention.norm_q(attention.to_q(x)), attention.norm_k(attention.to_k(x))
    return turned(query, attention.heads, rotary), turned(key, attention.heads, rotary)
