"""Single frames of rendered clips with what the world knows of them, kept on the device.

Legend: N frames, J = 17 joints, H x W pixels, h = H / 8, w = W / 8.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dreamactor.runs import generator
from dreamactor.training.loop import Worker
from dreamactor.training.pool import SHARD, Shard, ShardFeed, consume_shard, ring


class Frames(NamedTuple):
    """Some of them."""

    pictures: Tensor
    """(N, H, W, 4) uint8; channel 3 is the subject mask."""
    joints: Tensor
    """(N, J, 2) in parts of the side; NaN = not in the picture."""
    surface: Tensor
    """(N, h, w, 3) half precision, spots of the body (`world.pairs.Twins.surfaces`); NaN = none."""


@dataclass
class FramePool:
    """Frames on the device, refreshed from a growing pool of shards, the oldest giving way.

    Those of the first shard of this process are held: they are measured, never trained on.
    """

    folder: Path
    capacity: int
    """Frames kept beside those that are held."""
    of_clip: int
    """Frames taken of each clip."""
    seed: int
    worker: Worker
    consume: bool = False
    """Delete shards once taken in, all but the first, so that renderers go on."""
    count: int = 0
    store: Frames | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.feed = ShardFeed(self.folder, self.worker.rank, self.worker.count)
        self.held_count = 2 * SHARD * self.of_clip

    def refresh(self, at_most: int, seconds: float = 0.0) -> None:
        """Take in new shards of this process's share."""
        for _ in range(at_most):
            shard = self.feed.take(seconds)
            if shard is None:
                return
            frames = self._of(shard)
            room = self.held_count + self.capacity
            if self.store is None:
                self.store = Frames(*(x.new_empty((room, *x.shape[1:])) for x in frames))
            slots = ring(self.count, len(frames.pictures), room, self.held_count)
            slots = slots.to(self.worker.device)
            for kept, new in zip(self.store, frames, strict=True):
                kept[slots] = new
            if self.consume and self.count:
                consume_shard(self.folder, shard.index)
            self.count += len(slots)

    def wait(self, least: int) -> None:
        """Block until there are so many frames beside those that are held."""
        wanted = self.held_count + least
        self.feed.wait(lambda: self.count, wanted, "frames", lambda: self.refresh(1, seconds=1.0))

    def batch(self, draws: torch.Generator, count: int) -> Frames:
        """Random frames, none that are held."""
        filled = min(self.count, self.held_count + self.capacity)
        return self._at(torch.randint(self.held_count, filled, (count,), generator=draws))

    def held(self) -> Frames:
        """Those that are never trained on."""
        return self._at(torch.arange(self.held_count))

    def _at(self, which: Tensor) -> Frames:
        assert self.store is not None
        return Frames(*(x[which.to(x.device)] for x in self.store))

    def _of(self, shard: Shard) -> Frames:
        draws = generator(self.seed, "keypoints/frames", shard.index)
        clips, frames = 2 * SHARD, shard.pixels.shape[2]
        which = torch.rand((clips, frames), generator=draws).argsort(dim=1)
        chosen = np.arange(clips)[:, None], which[:, : self.of_clip].numpy()
        known = (
            truth.reshape(clips, *truth.shape[2:])[chosen]
            for truth in (shard.pixels, shard.joints, shard.surface)
        )
        device = self.worker.device
        return Frames(*(torch.from_numpy(x).flatten(0, 1).to(device) for x in known))
