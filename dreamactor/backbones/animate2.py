"""Wan-Animate-2's transformer, called as diffusers' modular pipeline calls it, to be timed.

Once a segment it goes over the driving clip, and every block's keys and values are kept, before
they are turned to their positions. At every step the clip, with the reference as one latent frame
more, sees itself, and of the driving clip each frame sees the one of its own time.

Legend as of `backbones.shapes`; tensors are those of its `inputs_of`, one clip.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache
from torch import Tensor

from dreamactor.backbones.context_cache import cache_bytes
from dreamactor.backbones.layers import STRIDE_S, STRIDE_T

SKIPPED = 9
"""The block that the unconditional branch of guidance leaves out."""


def extract(transformer: Any, given: Mapping[str, Tensor]) -> WanAnimate2KVCache:
    """The pass over the driving clip.

    Args:
        transformer: diffusers'.
        given: driving_latents (1, C, F, h, w), driving_condition (1, C + 4, F, h, w), driving_text
            (1, L, channels), driving_image (1, tokens, channels) where the network reads one, and
            timestep (1,), which does not count.

    Returns:
        Keys and values of every block, (1, F m, H, d) each.
    """
    latents = given["driving_latents"]
    grid = _grid(latents)
    cache = WanAnimate2KVCache(len(transformer.blocks))
    transformer(
        list(latents),
        timestep=given["timestep"].to(latents.dtype),
        encoder_hidden_states=list(given["driving_text"]),
        encoder_hidden_states_image=given.get("driving_image"),
        condition_latents=list(given["driving_condition"]),
        kv_cache=cache,
        kv_cache_mode="extract",
        seq_len=int(grid.prod()),
        offset_grid_sizes=grid,
    )
    return cache


def predict(
    transformer: Any,
    cache: WanAnimate2KVCache,
    given: Mapping[str, Tensor],
    unconditional: bool = False,
) -> Tensor:
    """A pass of a step.

    Args:
        transformer: diffusers'.
        cache: Of `extract`.
        given: latents (1, C, F + 1, h, w), condition (1, C + 4, F + 1, h, w), timestep, text and
            image as above, and driving_latents for their shape.
        unconditional: Whether it is the branch that guidance leads away from.

    Returns:
        (C, F + 1, h, w).
    """
    grid = _grid(given["driving_latents"])
    frames, rows, columns = given["driving_latents"].shape[2:]
    found: Tensor = transformer(
        list(given["latents"]),
        timestep=given["timestep"],
        encoder_hidden_states=list(given["text"]),
        encoder_hidden_states_image=given.get("image"),
        condition_latents=list(given["condition"]),
        kv_cache=cache,
        kv_cache_mode="cached",
        seq_len=(frames + 1) * int(grid[0, 1:].prod()),
        reference_grid_sizes=grid,
        origin_len=STRIDE_T * (frames - 1) + 1,
        origin_area=[STRIDE_S * rows, STRIDE_S * columns],
        is_uncondtion=unconditional,
    ).sample[0]
    return found


def _grid(latents: Tensor) -> Tensor:
    """(1, 3) on the CPU: frames, and rows and columns of tokens."""
    frames, rows, columns = latents.shape[2:]
    return torch.tensor([[frames, rows // 2, columns // 2]])


def predicted_bytes(transformer: Any, given: Mapping[str, Tensor]) -> int:
    """Size of what `extract` will keep."""
    config, latents = transformer.config, given["driving_latents"]
    head = config.dim // config.num_heads
    tokens = int(_grid(latents).prod())
    return cache_bytes(len(transformer.blocks), tokens, config.dim, head, latents.dtype)


def held_bytes(cache: WanAnimate2KVCache) -> int:
    """Size of what `extract` kept."""
    pairs = [layer.get() for layer in cache.layer_caches]
    return sum(part.nbytes for pair in pairs for part in pair)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Flex attention and the making of its mask without a compiler, for trials on the CPU.

    The whole matrix of scores is then in memory.
    """
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without", UserWarning)
        yield
