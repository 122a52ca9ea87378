"""What the canvas's context is to the blocks of a transformer, kept from step to step.

Of every block the keys (normalised, and turned to their positions) and values of the tokens that
targets see, or the states that both are projected from. As computed, in bfloat16, or in 8 bits; in
the memory of the device, or in the host's, from where the next block's come while one computes.

Legend: B clips, N tokens, H heads of d channels, D = H d.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from dreamactor.backbones.catalogue import GIB, CacheHolds, Keeping
from dreamactor.backbones.weights import dequantise_rows, quantise_rows

log = logging.getLogger(__name__)


def cache_bytes(
    blocks: int,
    tokens: int,
    width: int,
    head: int,
    dtype: torch.dtype,
    holds: CacheHolds = "keys",
    batch: int = 1,
) -> int:
    """Size of a cache.

    Args:
        blocks: Of the transformer.
        tokens: That targets see of the context (`incontext.seen_tokens`).
        width: D.
        head: d; in 8 bits every head of a token has a scale of its own, in float32.
        dtype: What it is kept in.
        holds: What is kept.
        batch: B.

    Example:
        >>> cache_bytes(40, 34320, 5120, 128, torch.bfloat16) / 2**30  # Wan 14B, 832x480x81
        26.18...
    """
    numbers = blocks * (2 if holds == "keys" else 1) * batch * tokens * width
    scales = numbers // head * 4 if dtype == torch.int8 else 0
    return numbers * dtype.itemsize + scales


class ContextCache:
    """The context of one canvas in every block of one transformer.

    Args:
        keeping: Where and how.
        dtype: As the network computes, and as blocks are given back.
        head: d, channels that share a scale in 8 bits.
        device: Where the network runs.
    """

    def __init__(
        self, keeping: Keeping, dtype: torch.dtype, head: int, device: torch.device
    ) -> None:
        self.keeping, self.dtype, self.head, self.device = keeping, dtype, head, device
        self._blocks: list[tuple[Tensor, ...]] = []
        self._ahead: dict[int, tuple[Tensor, ...]] = {}
        streamed = keeping.place == "host" and device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if streamed else None

    @property
    def bytes(self) -> int:
        """What is kept by now."""
        return sum(part.nbytes for block in self._blocks for part in block)

    def put(self, tensors: Sequence[Tensor]) -> None:
        """Keep what the next block has: tensors of any shape whose last axes count D."""
        packed = tuple(part for tensor in tensors for part in self._pack(tensor.detach()))
        if self.keeping.place == "host":
            packed = tuple(self._to_host(part) for part in packed)
        self._blocks.append(packed)

    def get(self, block: int) -> tuple[Tensor, ...]:
        """What `put` was given for a block, on the device."""
        packed = self._blocks[block] if self.keeping.place == "device" else self._fetch(block)
        if self.keeping.dtype != "int8":
            return tuple(part.to(self.dtype) for part in packed)
        pairs = zip(packed[::2], packed[1::2], strict=True)
        return tuple(self._unpack(levels, scale) for levels, scale in pairs)

    def of_clip(self, clip: int) -> OneClip:
        """What of it is one clip's, to be read."""
        return OneClip(self, clip)

    def _pack(self, tensor: Tensor) -> tuple[Tensor, ...]:
        if self.keeping.dtype == "int8":
            levels, scale = quantise_rows(tensor.reshape(-1, self.head))
            return levels.view(tensor.shape), scale
        kept = kept_dtype(self.keeping, self.dtype)
        # a copy: else what is left out of it would stay in memory too
        return (tensor.to(kept, copy=True, memory_format=torch.contiguous_format),)

    def _unpack(self, levels: Tensor, scale: Tensor) -> Tensor:
        rows = dequantise_rows(levels.view(-1, self.head), scale)
        return rows.view(levels.shape).to(self.dtype)

    def _to_host(self, part: Tensor) -> Tensor:
        host = torch.empty(part.shape, dtype=part.dtype, pin_memory=self._stream is not None)
        return host.copy_(part)

    def _fetch(self, block: int) -> tuple[Tensor, ...]:
        """A block's from the host, and on CUDA a start on the next one's."""
        if self._stream is None:
            return self._start(block)
        compute = torch.cuda.current_stream(self.device)
        ready = self._ahead.pop(block) if block in self._ahead else self._start(block)
        compute.wait_stream(self._stream)
        for part in ready:
            part.record_stream(compute)
        following = (block + 1) % len(self._blocks)
        self._ahead = {following: self._start(following)}
        return ready

    def _start(self, block: int) -> tuple[Tensor, ...]:
        with torch.cuda.stream(self._stream):  # of None, this does nothing
            return tuple(part.to(self.device, non_blocking=True) for part in self._blocks[block])


class OneClip:
    """One clip's part of the context of several."""

    def __init__(self, cache: ContextCache, clip: int) -> None:
        self._cache, self._clip = cache, clip

    def get(self, block: int) -> tuple[Tensor, ...]:
        """As of `ContextCache`, (1, ...)."""
        return tuple(part[self._clip : self._clip + 1] for part in self._cache.get(block))


def kept_dtype(keeping: Keeping, dtype: torch.dtype) -> torch.dtype:
    """What numbers are kept in, where the network computes in `dtype`."""
    return {"auto": dtype, "bfloat16": torch.bfloat16, "int8": torch.int8}[keeping.dtype]


@cache  # once for all segments
def announce(size: int, keeping: Keeping) -> None:
    """Say how large a cache of `size` bytes will be, before there is one; nano's is small."""
    kind = "keys and values" if keeping.holds == "keys" else "states"
    where = "the host's memory" if keeping.place == "host" else "the device's memory"
    amount = f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / (1 << 20):.1f} MiB"
    level = logging.INFO if size >= GIB else logging.DEBUG
    log.log(level, "context cache: %s take %s of %s", kind, amount, where)
