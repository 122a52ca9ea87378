"""True pairs as latents on the device, encoded once from a pool of pixels that may still grow.

For a model that knows no canvas the clips of the twins are kept by themselves, not as pairs.

Legend: S twins of a shard, T frames of a clip, P = 2 S pairs of a shard, N pairs kept, C latent
channels, F = T / 4 + 1 latent frames, h x w cells of one half (32 at full size, 16 at half size).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamactor.backbones.layers import STRIDE_S, STRIDE_T
from dreamactor.backbones.nano_vae import NanoVAE
from dreamactor.conditioning.placement import (
    Placement,
    place_cells,
    place_frames,
    place_points,
)
from dreamactor.conditioning.text import TextEncoder
from dreamactor.training.loop import Worker
from dreamactor.training.matches import matching_cells
from dreamactor.training.pool import SHARD, Shard, ShardFeed, consume_shard, ring

HELD = 2 * SHARD
"""Pairs of each process that are kept and not trained on: those of its first shard, so that none
is trained on the other way round."""
PIXELS_AT_ONCE = 8 * 17 * 256**2
"""Pixels of clips encoded at once: many small clips, or few large ones."""
SHARDS_AT_ONCE = 8
AHEAD = 48
"""Shards read ahead: between two looks many short ones are used up."""


@dataclass
class LatentPool:
    """Pairs of this process's share of the shards, the oldest giving way to new ones.

    It holds target and motion (N, C, F, h, w), subject (N, 1, F, h, w) in [0, 1], joints
    (N, 2 T + 2, 17, 2) and surface (N, 2 T + 2, h, w, 3) of reference, target and driver, match
    (N, T, h, w) of the target's cells with the reference's as in `training.matches`, driver_match
    with those of the driver at the same time, and text (N, L, D), in half precision. With an
    autoencoder that is `placed` drivers stand where the subject does, as in `animate`. Both pairs
    of twins are neighbours, at an even place and the next. Of clips it holds target from the frame
    before on, and subject, joints (N, T + 1, 17, 2), surface (N, T + 1, h, w, 3), match and text to
    it.
    """

    folder: Path
    capacity: int
    vae: NanoVAE
    encoder: TextEncoder
    worker: Worker
    consume: bool
    """Delete shards once encoded, all but the first, so that `held` stays the same on resuming."""
    half: bool = False
    """Encode pictures of half the size."""
    alone: bool = False
    """Keep the clips of the twins by themselves."""
    pixels: bool = False
    """Keep pixels (N, T + 1, H, W, 4) of reference and target, in 0 to 255, in the place of joints,
    surface and matches."""
    count: int = 0
    store: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.feed = ShardFeed(self.folder, self.worker.rank, self.worker.count, AHEAD)

    def refresh(self, pairs: float, seconds: float = 0.0) -> None:
        """Encode new shards, until there are so many more pairs or no shard is ready."""
        wanted = self.count + pairs
        while self.count < wanted:
            missing = math.ceil((wanted - self.count) / (2 * SHARD))
            shards = self._shards(min(missing, SHARDS_AT_ONCE), seconds)
            if not shards:
                return
            self._encode(shards)

    def _shards(self, most: int, seconds: float) -> list[Shard]:
        """Those that are ready; the first may be waited for."""
        shards: list[Shard] = []
        while len(shards) < most and (shard := self.feed.take(0 if shards else seconds)):
            shards.append(shard)
        return shards

    def _encode(self, shards: list[Shard]) -> None:
        device = self.worker.device
        block = torch.cat([torch.from_numpy(shard.pixels).to(device) for shard in shards])
        captions = [text for shard in shards for both in shard.captions for text in both]
        placed = self.vae.config.placed and not self.alone
        placement = placements(self.vae, block, self.worker) if placed else None
        if self.half:
            block = halve(block)
        spare = shards[1:] if self.count == 0 else shards
        if self.pixels:
            clips = torch.cat([block[:, :, :1], block[:, :, 2:]], dim=2).flatten(0, 1)
            kept = {**encode_block(self.vae, block, self.worker, placement), "pixels": clips}
        elif self.alone:
            kept = encode_clips(self.vae, block[:, :, 1:].flatten(0, 1), self.worker)
            kept |= self._known(shards)
        else:
            kept = encode_block(self.vae, block, self.worker, placement)
            kept |= self._known(shards, placement)
        self._put({**kept, "text": self.encoder(captions)})
        if self.consume:
            for shard in spare:
                consume_shard(self.folder, shard.index)

    def _known(self, shards: list[Shard], placement: Placement | None = None) -> dict[str, Tensor]:
        """What guides ask for; half precision holds integers up to 2048."""
        device = self.worker.device
        joints = torch.cat([torch.from_numpy(shard.joints).to(device) for shard in shards])
        surface = torch.cat([torch.from_numpy(shard.surface).to(device) for shard in shards])
        if self.half:
            surface = surface[..., ::2, ::2, :]
        if self.alone:
            own = {"joints": joints, "surface": surface}
            before, after = surface[:, :, 1:2].flatten(0, 1), surface[:, :, 2:].flatten(0, 1)
            known = {name: x[:, :, 1:].flatten(0, 1) for name, x in own.items()}
            return known | {"match": matching_cells(after, before)}
        count = surface.shape[2] - 1  # frames of a reference and its target
        joints, surface = of_pairs(joints), of_pairs(surface)
        if placement is not None:
            joints[:, count:] = place_points(joints[:, count:], placement)
            surface[:, count:] = place_cells(surface[:, count:], placement)
        reference, target, driver = surface.tensor_split((1, count), dim=1)
        return {
            "joints": joints,
            "surface": surface,
            "match": matching_cells(target, reference),
            "driver_match": matching_cells(target, driver[:, 1:]),
        }

    def wait(self, pairs: int) -> None:
        """Block until there are enough pairs to start with."""
        self.feed.wait(
            lambda: self.count, pairs, "pairs", lambda: self.refresh(pairs - self.count, 1.0)
        )

    def close(self) -> None:
        """Read no more."""
        self.feed.close()

    def batch(self, draws: torch.Generator, count: int) -> dict[str, Tensor]:
        """Random pairs, float32; never those that are held back for `held`.

        Args:
            draws: Which.
            count: B.
        """
        filled = min(self.count, self.capacity)
        return self._take(torch.randint(HELD, filled, (count,), generator=draws))

    def held(self, count: int) -> dict[str, Tensor]:
        """Pairs that are not trained on, one of each of the twins, float32; at most HELD / 2."""
        return self._take(2 * torch.arange(count))

    def _take(self, which: Tensor) -> dict[str, Tensor]:
        """Pairs as float32."""
        return {name: x[which.to(x.device)].float() for name, x in self.store.items()}

    def _put(self, block: dict[str, Tensor]) -> None:
        slots = ring(self.count, len(block["text"]), self.capacity, HELD)
        for name, values in block.items():
            if name not in self.store:
                shape = (self.capacity, *values.shape[1:])
                self.store[name] = torch.zeros(shape, dtype=torch.float16, device=values.device)
            self.store[name][slots.to(values.device)] = values.half()
        self.count += len(slots)


def halve(block: Tensor) -> Tensor:
    """Half the size by averaging: uint8 (..., H, W, 4) -> (..., H/2, W/2, 4)."""
    x = block.flatten(0, -4).permute(0, 3, 1, 2).float()
    x = F.avg_pool2d(x, 2).round().to(torch.uint8)
    return x.permute(0, 2, 3, 1).unflatten(0, block.shape[:-3])


def of_pairs(truth: Tensor) -> Tensor:
    """What is known of both pairs of each of the twins, one after the other.

    Args:
        truth: (S, 2, T + 2, ...) as in the pool.

    Returns:
        (2 S, 2 T + 2, ...): reference, target, and the driver from the frame before on.
    """
    own = torch.cat([truth[:, :, :1], truth[:, :, 2:]], dim=2)  # (S, 2, T + 1, ...)
    return torch.cat([own, truth[:, :, 1:].flip(1)], dim=2).flatten(0, 1)


def on_cells(mask: Tensor) -> Tensor:
    """Share of each latent cell that is covered: (B, 1, T, H, W) -> (B, 1, F, h, w)."""
    first = F.avg_pool3d(mask[:, :, :1], (1, STRIDE_S, STRIDE_S))
    rest = F.avg_pool3d(mask[:, :, 1:], (STRIDE_T, STRIDE_S, STRIDE_S))
    return torch.cat([first, rest], dim=2)


@torch.no_grad()
def placements(vae: NanoVAE, block: Tensor, worker: Worker) -> Placement:
    """Where the driver of each pair belongs, as `animate` finds it.

    Args:
        vae: Autoencoder that is `placed`.
        block: uint8 (S, 2, T + 2, H, W, 4) as `training.pool` lays it out.
        worker: Says in which precision.

    Returns:
        Of 2 S pairs, one after the other.
    """
    found = []
    pairs = torch.cat([block[:, :, :1], block[:, :, 1:].flip(1)], dim=2).flatten(0, 1)
    for few in pairs[..., :3].split(at_once(pairs)):
        x = few.permute(0, 4, 1, 2, 3).float() / 127.5 - 1  # (b, 3, T + 2, H, W)
        with worker.autocast():
            found.append(vae.place(x[:, :, 0], x[:, :, 1:]))
    return Placement(*(torch.cat(part).float() for part in zip(*found, strict=True)))


def encode_block(
    vae: NanoVAE, block: Tensor, worker: Worker, placement: Placement | None = None
) -> dict[str, Tensor]:
    """Latents of both pairs of each of the twins, one after the other.

    Args:
        vae: Autoencoder.
        block: uint8 (S, 2, T + 2, H, W, 4) as `training.pool` lays it out.
        worker: Says in which precision.
        placement: Where drivers belong; None = where they are.

    Returns:
        target and motion (2 S, C, F, h, w), subject (2 S, 1, F, h, w) in [0, 1].
    """
    behind = torch.cat([block[:, :, :1], block[:, :, 2:]], dim=2)  # the frames behind a reference
    drivers = block[:, :, 1:].flip(1).flatten(0, 1)
    motion = encode_clips(vae, drivers, worker, placement)["target"]
    return {**encode_clips(vae, behind.flatten(0, 1), worker), "motion": motion}


@torch.no_grad()
def encode_clips(
    vae: NanoVAE, clips: Tensor, worker: Worker, placement: Placement | None = None
) -> dict[str, Tensor]:
    """Latents of clips, and where the subject is.

    Args:
        vae: Autoencoder.
        clips: uint8 (B, T + 1, H, W, 4); channel 3 is the subject's mask.
        worker: Says in which precision.
        placement: Where they are brought first; the subject is told as it was.

    Returns:
        target (B, C, F, h, w), subject (B, 1, F, h, w) in [0, 1].
    """
    target, subject = [], []
    step = at_once(clips)
    for few in (slice(start, start + step) for start in range(0, len(clips), step)):
        x = clips[few].permute(0, 4, 1, 2, 3).float()  # (b, 4, T + 1, H, W)
        shown = x[:, :3] / 127.5 - 1
        if placement is not None:
            shown = place_frames(shown, placement.of(few))
        with worker.autocast():
            target.append(vae.encode(shown).float())
        subject.append(on_cells(x[:, 3:] / 255))
    return {"target": torch.cat(target), "subject": torch.cat(subject)}


def at_once(clips: Tensor) -> int:
    """How many clips (B, T, H, W, 4) are encoded at once."""
    frames, height, width = clips.shape[1:4]
    return max(1, PIXELS_AT_ONCE // (frames * height * width))
