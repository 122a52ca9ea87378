"""Self-attention of Wan's blocks, whose tokens also see what they are shown of a context.

Legend: B clips, N tokens, H heads of d channels, D = H d.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dreamactor.backbones.attention import attend, attend_by_frame
from dreamactor.backbones.catalogue import CacheHolds
from dreamactor.backbones.parallel import Spread

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines of positions, (1, N, 1, d) each."""


@dataclass(frozen=True)
class Sight:
    """Where the tokens of a block are and what else they see, in the place of its rotary tables."""

    rotary: Rotary
    seen: tuple[Tensor, ...] = ()
    """Of the context: keys and values (B, N, H, d), or states (B, N, D). None for the context."""
    seen_rotary: Rotary | None = None
    """Positions of states."""
    frames: int = 0
    """Target frames that see the motion of their own time alone; 0 = every token sees all."""
    found: list[Tensor] | None = None
    """Here attention puts its own keys and values, or states."""
    holds: CacheHolds = "keys"
    """Which of the two."""
    spread: Spread | None = None
    """Tokens are those of one process among several; what is seen, and found, has its heads."""


class SightedAttention:
    """Self-attention of a WanTransformerBlock whose tokens also see what a `Sight` shows them."""

    _attention_backend: str | None = None  # diffusers sets both
    _parallel_config = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        rotary_emb: Sight | None = None,
    ) -> Tensor:
        """As of diffusers, with a `Sight` in the place of rotary tables.

        Args:
            attn: Its projections and norms.
            hidden_states: (B, N, D); of several processes, own tokens.
            encoder_hidden_states: There is none.
            attention_mask: There is none.
            rotary_emb: The `Sight`.

        Returns:
            (B, N, D).
        """
        sight = rotary_emb
        assert sight is not None
        key, value = _keys(attn, hidden_states, sight.rotary)
        query = turned(attn.norm_q(attn.to_q(hidden_states)), attn.heads, sight.rotary)
        if sight.spread is not None:
            query, key, value = sight.spread.to_heads(query, key, value)
        if sight.found is not None:
            sight.found.extend((key, value) if sight.holds == "keys" else (hidden_states,))
        # under autocast values alone come in its dtype, as attention will be
        query, key = query.type_as(value), key.type_as(value)
        out = self._look(query, key, value, self._seen(attn, sight, value), sight.frames)
        if sight.spread is not None:
            out = sight.spread.to_tokens(out)
        out = out.flatten(2, 3).type_as(query)
        result: Tensor = attn.to_out[1](attn.to_out[0](out))
        return result

    def _look(
        self, query: Tensor, key: Tensor, value: Tensor, seen: tuple[Tensor, ...], frames: int
    ) -> Tensor:
        if not seen:
            return attend(query, key, value, self._attention_backend)
        if not frames:
            both = [torch.cat(pair, dim=1) for pair in zip((key, value), seen, strict=True)]
            return attend(query, both[0], both[1], self._attention_backend)
        one = query.shape[1] // frames  # the reference's frame comes first
        shared = [
            torch.cat([own, side[:, :one]], dim=1)
            for own, side in zip((key, value), seen, strict=True)
        ]
        motion = (seen[0][:, one:], seen[1][:, one:])
        backend = self._attention_backend
        return attend_by_frame(query, (shared[0], shared[1]), motion, frames, backend)

    @staticmethod
    def _seen(attn: Any, sight: Sight, like: Tensor) -> tuple[Tensor, ...]:
        """Keys and values of the context, if there is one."""
        seen = sight.seen
        if len(seen) == 1:
            assert sight.seen_rotary is not None
            seen = _keys(attn, seen[0], sight.seen_rotary)
        return tuple(part.type_as(like) for part in seen)


def _keys(attn: Any, states: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
    """Keys and values (B, N, H, d) of states (B, N, D)."""
    key = turned(attn.norm_k(attn.to_k(states)), attn.heads, rotary)
    return key, attn.to_v(states).unflatten(2, (attn.heads, -1))


def turned(x: Tensor, heads: int, rotary: Rotary) -> Tensor:
    """(B, N, D) by heads, turned to its positions as diffusers' WanAttnProcessor does it."""
    even, odd = x.unflatten(2, (heads, -1, 2)).unbind(-1)
    cosines, sines = rotary[0][..., 0::2], rotary[1][..., 1::2]
    pairs = [even * cosines - odd * sines, even * sines + odd * cosines]
    return torch.stack(pairs, dim=-1).flatten(3).type_as(x)
