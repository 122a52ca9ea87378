"""Takes to cached examples, `dreamactor train cache`: what is frozen is computed once.

The same command goes on where it was killed, shard by shard; torchrun spreads shards over GPUs.
Bodies are drawn and changed by draws that are keyed by the take, so an example is the same in
any shard, process or run.

Legend: B takes encoded at once, T frames, H x W pixels, F latent frames, h x w cells.
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dreamactor.backbones.base import Cond, Encoder, Native
from dreamactor.backbones.catalogue import CATALOGUE, Options
from dreamactor.backbones.folder import digest_of
from dreamactor.backbones.headers import read_manifest
from dreamactor.backbones.layers import STRIDE_S, STRIDE_T
from dreamactor.backbones.load import Variant, check_backbone, load_encoder
from dreamactor.backbones.nano import DATA, Nano, load_vae
from dreamactor.backbones.nano_vae import NanoVAE
from dreamactor.conditioning.augment import AugmentConfig, augment, hide_lead
from dreamactor.conditioning.canvas import (
    Canvas,
    LatentGrid,
    build_canvas,
    first_frame,
    fold_mask,
    motion_half,
    reference_half,
)
from dreamactor.conditioning.placement import place_frames
from dreamactor.conditioning.skeleton import SEEN, Frames, draw
from dreamactor.conditioning.text import TextEncoder
from dreamactor.config import check_least
from dreamactor.errors import ConfigError
from dreamactor.provenance import sha256
from dreamactor.runs import plain, seed_of
from dreamactor.training.cache import (
    CacheHeader,
    check_copies,
    joined,
    open_cache,
    shard_path,
    write_examples,
    write_silence,
)
from dreamactor.training.latents import on_cells
from dreamactor.training.loop import Worker, workers
from dreamactor.training.takes import Clips, Pool, Reference, Source, Take, Triplets

AT_ONCE = 8  # takes of nano; of a large backbone one
SIZE = re.compile(r"(\d+)(?:x(\d+))?")
PLACES = ("pool", "clips", "triplets", "weights", "vae", "text", "limit", "minutes")
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
    backbone: str = "nano"
    """Whose autoencoder, text and image encoders make the examples."""
    weights: Path | None = None
    """Of a large backbone: folder or hub id; None looks into the hub's cache."""
    lead: float | None = None
    """Seconds at the start of each clip without a skeleton; None takes 1, which is the paper's,
    or 1/3 for nano, whose clips are 1.4 s long."""
    draws: int = 1
    """Differently changed skeletons of each clip."""
    trunk: bool = True
    """Draw spine, pelvis and tail where they are known."""
    placed: bool = False
    """Bring drivers to where the subject stands, as `animate` does with nano's weights that learnt
    from such (those that ship); of nano and the RGB stage alone."""
    estimator: str = "keypoints"
    """Of skeletons in clips: keypoints, mediapipe or rtmlib."""
    frames: int | None = None
    """T of takes from clips and triplets, 4 k + 1; pools have theirs, and None takes the
    backbone's."""
    size: str | None = None
    """WIDTHxHEIGHT of a half in pixels, or one number for both, likewise; clips are
    letterboxed."""
    vae: Path = DATA / "vae.safetensors"
    """nano's autoencoder."""
    text: Path | None = None
    """Folder of nano's text encoder; None takes the PyPI package's."""
    limit: int = 1_000_000
    """Shards at most."""
    minutes: float = math.inf
    """Begin no further shard after so many minutes; the same command goes on."""
    seed: int = 0
    """Of changed skeletons and other draws."""

    def __post_init__(self) -> None:
        super().__post_init__()
        entry = CATALOGUE[check_backbone(self.backbone)]
        check_least(self, {"draws": 1, "limit": 1, "minutes": 0})
        if self.placed and entry.hub:
            raise ConfigError(f"placed=true: only for nano, {self.backbone} has its drivers as is")
        if self.lead is not None and self.lead < 0:
            raise ConfigError(f"lead={self.lead}: want 0 or more")
        if self.frames is not None and (self.frames < 5 or self.frames % STRIDE_T != 1):
            raise ConfigError(f"frames={self.frames}: want 4 k + 1, 5 or more, such as 17")
        if self.half is not None and (any(side % 16 for side in self.half) or not all(self.half)):
            raise ConfigError(f"size={self.size}: want a multiple of 16")

    @property
    def half(self) -> tuple[int, int] | None:
        """(H, W), if stated.

        Raises:
            ConfigError: It is not a size.
        """
        if self.size is None:
            return None
        if not (found := SIZE.fullmatch(str(self.size))):
            raise ConfigError(f"size={self.size}: want WIDTHxHEIGHT, such as 832x480")
        return int(found[2] or found[1]), int(found[1])

    def check_source(self, task: Variant) -> None:
        """Refuse what cannot teach a stage.

        Raises:
            ConfigError: Not one source, or not one for this stage.
        """
        given = [n for n in ("pool", "clips", "triplets") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ConfigError(f"sources {given or 'none'}: want one of pool, clips and triplets")
        if given[0] == {"rgb": "clips", "pose": "triplets"}[task]:
            other = "pool or triplets" if task == "rgb" else "pool or clips"
            raise ConfigError(f"{given[0]} cannot teach {task}: want {other}")
        if self.placed and task != "rgb":
            raise ConfigError(f"placed=true: only for rgb, a skeleton of {task} stays where it is")

    def source(self, task: Variant, native: Native, device: str) -> Source:
        """Where takes come from, at the sizes and the rate of a backbone.

        Raises:
            ConfigError: There is nothing.
        """
        self.check_source(task)
        half, fps, frames = (native.height, native.width), native.fps, native.frames
        if self.pool:
            return Pool(self.pool, task, self.reference)
        if self.clips:
            from dreamactor.backbones.load import load_estimator

            found = load_estimator(self.estimator, device=device)
            return Clips(self.clips, found, frames, fps, half)
        assert self.triplets is not None
        return Triplets(self.triplets, frames, fps, half)


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
        config.check_source(task)
        self.task, self.out, self.worker = task, out, worker
        self.encoder = _encoder(config, worker)
        native = self.encoder.native
        if config.placed and not self._vae.config.placed:
            raise ConfigError(f"placed=true: {config.vae} knows no placements; want one that does")
        self.source = config.source(task, native, str(worker.device))
        self.groups = self.source.groups()[: config.limit]
        self.large = bool(CATALOGUE[config.backbone].hub)
        self.lead = (1.0 if self.large else 1 / 3) if config.lead is None else config.lead
        self.config = replace(
            config, lead=self.lead, size=f"{native.width}x{native.height}", frames=native.frames
        )
        settings = {f.name: getattr(self.config, f.name) for f in fields(config)}
        made = {k: v for k, v in plain(settings).items() if k not in PLACES} | self.source.about
        if not config.placed:
            del made["placed"]  # caches from before there were others can go on
        vae = digest_of(self.encoder.weights, "vae")
        header = CacheHeader(task, self.encoder.name, vae, self.source.fps, made)
        open_cache(out, header, worker.leads)

    def fill(self) -> str:
        """All shards of this process that are not there."""
        made = left_out = 0
        if self.large and self.worker.leads:
            with torch.no_grad():
                write_silence(self.out, self.encoder.encode_text([""])[0])
        for group in self.groups[self.worker.rank :: self.worker.count]:
            path = shard_path(self.out, group)
            if path.is_file():
                continue
            if made and time.monotonic() - self.worker.began > 60 * self.config.minutes:
                break
            keys: list[str] = []
            parts: list[dict[str, Tensor]] = []
            items = self._driven(group)
            while some := list(islice(items, 1 if self.large else AT_ONCE)):
                shown = [item for item in some if item[1] is not None]
                left_out += len(some) - len(shown)
                if shown:
                    keys += [key for key, _, _ in shown]
                    parts.append(self._encode([(take, d) for _, d, take in shown if d is not None]))
            if parts:
                whole = {n: joined([p[n] for p in parts]) for n in parts[0]}
                write_examples(path, keys, whole, self.config.placed)
                made += len(keys)
                print(f"shard {group}: {len(keys)} examples", file=sys.stderr)  # noqa: T201
        note = f", {left_out} takes left out, in which no joint was found" if left_out else ""
        return f"{self.out}: {made} new examples of {self.task}{note}"

    @property
    def _vae(self) -> NanoVAE:
        """Of nano alone."""
        assert isinstance(self.encoder, _NanoEncoder)
        return self.encoder.vae

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
        track = hide_lead(track, self.lead)
        if not (track.confidence >= SEEN).any():
            return None
        return draw(track, trunk=config.trunk)

    @torch.no_grad()
    def _encode(self, takes: list[tuple[Take, Frames]]) -> dict[str, Tensor]:
        device, encoder = self.worker.device, self.encoder
        clip, driving = (
            _clips(frames, device)
            for frames in ([take.target for take, _ in takes], [frames for _, frames in takes])
        )
        shot = driving
        if self.config.placed:
            driving = place_frames(driving, self._vae.place(clip[:, :, 0], driving))
        text = encoder.encode_text([take.caption for take, _ in takes])
        out = examples_of(encoder, clip, driving, text)
        if self.config.placed:
            with self.worker.autocast():
                unplaced = self._vae.encode(shot)
            check_copies([take.key for take, _ in takes], out["target"], unplaced)
        subjects = [take.subject for take, _ in takes if take.subject is not None]
        if len(subjects) == len(takes) and encoder.grid.stride_s == STRIDE_S:
            mask = torch.from_numpy(np.stack(subjects)).to(device).unsqueeze(1)
            out["subject"] = on_cells(mask.float() / 255)
        return {name: value.cpu() for name, value in out.items()}


def examples_of(encoder: Encoder, clip: Tensor, driving: Tensor, text: Tensor) -> dict[str, Tensor]:
    """Takes as a backbone reads them, by way of canvases that it encodes.

    Args:
        encoder: Of the backbone.
        clip: (B, 3, T, H, W) in [-1, 1]: the reference, then what is to be generated.
        driving: Same shape, the driving signal.
        text: (B, L, D) of `encode_text`.

    Returns:
        Tensors of a shard, as `training.cache` names them.
    """
    first, rest = clip[:, :, 0], clip[:, :, 1:]
    cond = encoder.encode(build_canvas(first, driving, encoder.grid, generated=rest), text)
    out = {"target": reference_half(cond.latents), "motion": motion_half(cond.latents)}
    out["text"] = text
    if cond.image is not None:
        out["image"] = cond.image
    if CATALOGUE[encoder.name].encodes_hidden:
        alone = first_frame(first, clip.shape[2], encoder.grid)
        out["canvas"] = encoder.encode(alone, text).latents
    return out


class _NanoEncoder:
    """nano's frozen parts by themselves, which are files of their own and may be new."""

    name = Nano.name

    def __init__(self, config: CacheConfig, worker: Worker) -> None:
        self.vae: NanoVAE = load_vae(config.vae).to(worker.device).eval().requires_grad_(False)
        self.weights = {"vae.safetensors": sha256(config.vae)}
        self.grid = LatentGrid(STRIDE_T, STRIDE_S, self.vae.config.channels)
        own = Native(**read_manifest(DATA)["native"])
        height, width = config.half or (own.height, own.width)
        frames = config.frames or own.frames
        self.native = replace(own, height=height, width=width, frames=frames)
        self._folder, self._worker = config.text, worker
        self._text: TextEncoder | None = None

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Token states (B, L, D)."""
        if self._text is None:
            self._text = TextEncoder(self._folder, self._worker.device)
        return self._text(prompts)

    def encode(self, canvas: Canvas, text: Tensor) -> Cond:
        """Latents of a canvas of which everything is shown."""
        halves = reference_half(canvas.pixels), motion_half(canvas.pixels)
        with self._worker.autocast():
            latents = torch.cat([self.vae.encode(half) for half in halves], dim=-1)
        return Cond(latents, fold_mask(canvas.mask, self.grid), text)


def _encoder(config: CacheConfig, worker: Worker) -> Encoder:
    """What makes examples of a backbone."""
    if not CATALOGUE[config.backbone].hub:
        return _NanoEncoder(config, worker)
    half = config.half
    size = None if half is None else f"{half[1]}x{half[0]}"
    options = Options(size=size, frames=config.frames)
    return load_encoder(config.backbone, config.weights, str(worker.device), options)


def _clips(clips: list[Frames], device: torch.device) -> Tensor:
    """Frames of B takes as (B, 3, T, H, W) in [-1, 1]."""
    pixels = torch.from_numpy(np.stack(clips)).to(device)
    return pixels.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
