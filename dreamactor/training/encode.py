"""Takes to cached examples, `dreamactor train cache`: what is frozen is computed once.

The same command goes on where it was killed, shard by shard; torchrun spreads shards over GPUs.
Bodies are drawn and changed by draws that are keyed by the take, so an example is the same in
any shard, process or run.

Legend: B takes encoded at once, T frames, H x W pixels, F latent frames, h x w cells.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dreamactor.backbones.layers import STRIDE_T
from dreamactor.backbones.load import Variant
from dreamactor.backbones.nano import DATA, Nano, load_vae
from dreamactor.backbones.nano_vae import NanoVAE
from dreamactor.conditioning.augment import AugmentConfig, augment, hide_lead
from dreamactor.conditioning.skeleton import SEEN, Frames, draw
from dreamactor.conditioning.text import TextEncoder
from dreamactor.config import check_least
from dreamactor.errors import ConfigError
from dreamactor.provenance import sha256
from dreamactor.runs import plain, seed_of
from dreamactor.training.cache import CacheHeader, open_cache, shard_path, write_examples
from dreamactor.training.latents import on_cells
from dreamactor.training.loop import Worker, workers
from dreamactor.training.takes import Clips, Pool, Reference, Source, Take, Triplets
from dreamactor.world.pairs import FPS

AT_ONCE = 8  # takes
PLACES = ("pool", "clips", "triplets", "vae", "text", "limit", "minutes")
"""Settings that do not say what an example is: where things lie, and how many are wanted."""


@dataclass(frozen=True, kw_only=True)
class CacheConfig(AugmentConfig):
    """What a cache is made of. One of pool, clips and triplets is the source."""

    pool: Path | None = None
    """Of whole clips (`dreamactor world pool`); either stage."""
    clips: Path | None = None
    """Folder of clips, for the pose stage; CLIP.txt beside CLIP.mp4 is its caption."""
    triplets: Path | None = None
    """triplets.jsonl of `dreamactor bootstrap triplets`, for the RGB stage."""
    reference: Reference = "first"
    """Of pools: the clip's first frame, as in the paper, or a picture in another pose."""
    lead: float = 1 / 3
    """Seconds at the start of each clip without a skeleton. The paper hides 1; a clip of nano is
    1.4 s long, of which 1/3 s leaves three quarters."""
    draws: int = 1
    """Differently changed skeletons of each clip."""
    trunk: bool = True
    """Draw spine, pelvis and tail where they are known."""
    estimator: str = "keypoints"
    """Of skeletons in clips: keypoints, mediapipe or rtmlib."""
    frames: int = 17
    """T of takes from clips and triplets, 4 k + 1; pools have theirs."""
    size: int = 256
    """Pixels of a side, likewise; clips are letterboxed."""
    vae: Path = DATA / "vae.safetensors"
    text: Path | None = None
    """Folder of the text encoder; None takes the PyPI package's."""
    limit: int = 1_000_000
    """Shards at most."""
    minutes: float = math.inf
    """Begin no further shard after so many minutes; the same command goes on."""
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, {"lead": 0, "draws": 1, "size": 16, "limit": 1, "minutes": 0})
        if self.frames < 5 or self.frames % STRIDE_T != 1:
            raise ConfigError(f"frames={self.frames}: want 4 k + 1, 5 or more, such as 17")
        if self.size % 16:
            raise ConfigError(f"size={self.size}: want a multiple of 16")

    def source(self, task: Variant, device: str) -> Source:
        """Where takes come from.

        Raises:
            ConfigError: Not one source, or not one for this stage.
        """
        given = [n for n in ("pool", "clips", "triplets") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ConfigError(f"sources {given or 'none'}: want one of pool, clips and triplets")
        if self.pool:
            return Pool(self.pool, task, self.reference)
        if self.clips and task == "pose":
            from dreamactor.backbones.load import load_estimator

            found = load_estimator(self.estimator, device=device)
            return Clips(self.clips, found, self.frames, FPS, self.size)
        if self.triplets and task == "rgb":
            return Triplets(self.triplets, self.frames, FPS, self.size)
        other = "pool or triplets" if task == "rgb" else "pool or clips"
        raise ConfigError(f"{given[0]} cannot teach {task}: want {other}")


def fill_cache(config: CacheConfig, task: Variant, out: Path, device: str = "auto") -> str:
    """Make the examples of a stage; a line that sums up.

    Raises:
        ConfigError: Settings that cannot work, or a driving clip that is its target.
    """
    with workers(device) as worker:
        return _Filler(config, task, out, worker).fill()


class _Filler:
    """One process at work on its share of the shards."""

    def __init__(self, config: CacheConfig, task: Variant, out: Path, worker: Worker) -> None:
        self.config, self.task, self.out, self.worker = config, task, out, worker
        self.source = config.source(task, str(worker.device))
        self.groups = self.source.groups()[: config.limit]
        self.vae: NanoVAE = load_vae(config.vae).to(worker.device).eval().requires_grad_(False)
        self.encoder: TextEncoder | None = None
        settings = {f.name: getattr(config, f.name) for f in fields(config)}
        made = {k: v for k, v in plain(settings).items() if k not in PLACES}
        header = CacheHeader(task, Nano.name, sha256(config.vae), self.source.fps, made)
        open_cache(out, header, worker.leads)

    def fill(self) -> str:
        """All shards of this process that are not there."""
        made = left_out = 0
        for group in self.groups[self.worker.rank :: self.worker.count]:
            path = shard_path(self.out, group)
            if path.is_file():
                continue
            if made and time.monotonic() - self.worker.began > 60 * self.config.minutes:
                break
            keys: list[str] = []
            parts: list[dict[str, Tensor]] = []
            items = self._driven(group)
            while some := list(islice(items, AT_ONCE)):
                shown = [item for item in some if item[1] is not None]
                left_out += len(some) - len(shown)
                if shown:
                    keys += [key for key, _, _ in shown]
                    parts.append(self._encode([(take, d) for _, d, take in shown if d is not None]))
            if parts:
                write_examples(path, keys, {n: torch.cat([p[n] for p in parts]) for n in parts[0]})
                made += len(keys)
                print(f"shard {group}: {len(keys)} examples", file=sys.stderr)  # noqa: T201
        note = f", {left_out} takes left out, in which no joint was found" if left_out else ""
        return f"{self.out}: {made} new examples of {self.task}{note}"

    def _driven(self, group: int) -> Iterator[tuple[str, Frames | None, Take]]:
        """(key, driving signal or None where there is nothing to see, take) of a group."""
        for take in self.source.takes(group):
            if self.task == "rgb":
                yield take.key, take.driving, take
                continue
            for number in range(self.config.draws):
                key = f"{take.key}/{number}"
                yield key, self._skeleton(take, key), take

    def _skeleton(self, take: Take, key: str) -> Frames | None:
        config, track = self.config, take.track
        assert track is not None
        track = augment(track, config, config.seed, item=seed_of(0, key, 0))
        track = hide_lead(track, config.lead)
        if not (track.confidence >= SEEN).any():
            return None
        return draw(track, trunk=config.trunk)

    @torch.no_grad()
    def _encode(self, takes: list[tuple[Take, Frames]]) -> dict[str, Tensor]:
        device = self.worker.device
        with self.worker.autocast():
            target = self.vae.encode(_clips([take.target for take, _ in takes], device))
            motion = self.vae.encode(_clips([driving for _, driving in takes], device))
        captions = [take.caption for take, _ in takes]
        if self.encoder is None:
            self.encoder = TextEncoder(self.config.text, device)
        out = {"target": target, "motion": motion, "text": self.encoder(captions)}
        subjects = [take.subject for take, _ in takes if take.subject is not None]
        if len(subjects) == len(takes):
            mask = torch.from_numpy(np.stack(subjects)).to(device).unsqueeze(1)
            out["subject"] = on_cells(mask.float() / 255)
        return {name: value.float().cpu() for name, value in out.items()}


def _clips(clips: list[Frames], device: torch.device) -> Tensor:
    """Frames of B takes as (B, 3, T, H, W) in [-1, 1]."""
    pixels = torch.from_numpy(np.stack(clips)).to(device)
    return pixels.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
