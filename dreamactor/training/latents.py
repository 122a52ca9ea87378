"""True pairs as latents on the device, encoded once from a pool of pixels that may still grow.

Legend: P pairs of a shard, N pairs kept, C latent channels, F = 5 latent frames, h x w cells of
one half (32 at full size, 16 at half size).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamactor.backbones.nano_vae import NanoVAE
from dreamactor.conditioning.text import TextEncoder
from dreamactor.training.loop import Worker
from dreamactor.training.pool import ShardFeed, consume_shard

HELD = 16
"""Pairs of each process that are kept for previews and not trained on."""


@dataclass
class LatentPool:
    """Pairs of this process's share of the shards, the oldest giving way to new ones.

    Each store holds target and motion (N, C, F, h, w), subject (N, 1, F, h, w) in [0, 1],
    joints (N, 34, 17, 2) as in the pool, and text (N, L, D), all in half precision.
    """

    folder: Path
    capacity: int
    vae: NanoVAE
    encoder: TextEncoder
    worker: Worker
    consume: bool
    """Delete shards once encoded."""
    count: int = 0
    full: dict[str, Tensor] = field(default_factory=dict)
    small: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.feed = ShardFeed(self.folder, self.worker.rank, self.worker.count)

    def refresh(self, at_most: int, half: bool, seconds: float = 0.0) -> None:
        """Encode new shards, at half size too while `half`."""
        for _ in range(at_most):
            shard = self.feed.take(seconds)
            if shard is None:
                return
            block = torch.from_numpy(shard.pixels).to(self.worker.device)
            facts = {
                "joints": torch.from_numpy(shard.joints).to(block.device),
                "text": self.encoder(shard.captions),
            }
            self._put(self.full, encode_block(self.vae, block, self.worker) | facts)
            if half:
                small = encode_block(self.vae, halve(block), self.worker)
                self._put(self.small, small | facts)
            self.count += len(block)
            if self.consume:
                consume_shard(self.folder, shard.index)

    def wait(self, pairs: int, half: bool) -> None:
        """Block until there are enough pairs to start with."""
        self.feed.wait(lambda: self.count, pairs, "pairs", lambda: self.refresh(1, half, 1.0))

    def batch(self, draws: torch.Generator, count: int, half: bool) -> dict[str, Tensor]:
        """Random pairs, float32; never those that are held back for `held`."""
        filled = min(self.count, self.capacity)
        return self._take(torch.randint(HELD, filled, (count,), generator=draws), half)

    def held(self, count: int, half: bool) -> dict[str, Tensor]:
        """The first pairs, which are not trained on, float32; at most HELD."""
        return self._take(torch.arange(count), half)

    def _take(self, which: Tensor, half: bool) -> dict[str, Tensor]:
        store = self.small if half else self.full
        return {name: values[which.to(values.device)].float() for name, values in store.items()}

    def _put(self, store: dict[str, Tensor], block: dict[str, Tensor]) -> None:
        places = torch.arange(self.count, self.count + len(block["text"]))
        beyond = (places - HELD) % (self.capacity - HELD) + HELD
        slots = torch.where(places < HELD, places, beyond)
        for name, values in block.items():
            if name not in store:
                shape = (self.capacity, *values.shape[1:])
                store[name] = torch.zeros(shape, dtype=torch.float16, device=values.device)
            store[name][slots.to(values.device)] = values.half()


def halve(block: Tensor) -> Tensor:
    """Half the size by averaging: uint8 (P, 34, H, W, 4) -> (P, 34, H/2, W/2, 4)."""
    x = block.flatten(0, 1).permute(0, 3, 1, 2).float()
    x = F.avg_pool2d(x, 2).round().to(torch.uint8)
    return x.permute(0, 2, 3, 1).unflatten(0, block.shape[:2])


@torch.no_grad()
def encode_block(vae: NanoVAE, block: Tensor, worker: Worker) -> dict[str, Tensor]:
    """Latents of a shard's pairs.

    Args:
        vae: Autoencoder.
        block: uint8 (P, 34, H, W, 4) as `training.pool` lays it out.
        worker: Says in which precision.

    Returns:
        target and motion (P, C, F, h, w), subject (P, 1, F, h, w) in [0, 1].
    """
    target, motion, subject = [], [], []
    for pair in torch.split(block, 4):
        x = pair.permute(0, 4, 1, 2, 3).float()  # (4, 4, 34, H, W)
        rgb = x[:, :3] / 127.5 - 1
        with worker.autocast():
            target.append(vae.encode(rgb[:, :, :17]).float())
            motion.append(vae.encode(rgb[:, :, 17:]).float())
        mask = x[:, 3:, :17] / 255
        first = F.avg_pool3d(mask[:, :, :1], (1, 8, 8))
        rest = F.avg_pool3d(mask[:, :, 1:], (4, 8, 8))
        subject.append(torch.cat([first, rest], dim=2))
    return {
        "target": torch.cat(target),
        "motion": torch.cat(motion),
        "subject": torch.cat(subject),
    }
