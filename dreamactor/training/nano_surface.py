"""Teach nano's autoencoder where on the body cells lie: `dreamactor train nano-surface`.

A network of its own (`backbones.nano_surface`) learns the world's exact spots from single frames,
seen through `training.views`, at whole and at half size. The rest of the autoencoder stays as it
is; the weights that are written hold both. Time-boxed and resumable; one process a GPU.

Legend: B pictures, H x W pixels, h = H / 8, w = W / 8.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamactor.backbones.layers import Block
from dreamactor.backbones.nano import load_vae
from dreamactor.backbones.nano_surface import SURFACE_CHANNELS, Surface, SurfaceNet
from dreamactor.backbones.nano_vae import NanoVAE
from dreamactor.backbones.weights import save_weights
from dreamactor.conditioning.framing import to_picture
from dreamactor.image import write_png
from dreamactor.runs import RunFolder, generator
from dreamactor.training.frames import FramePool
from dreamactor.training.loop import Loop, LoopConfig, Worker, compile_blocks, identity, workers
from dreamactor.training.nano_vae import load_stills
from dreamactor.training.optim import optimisers_for
from dreamactor.training.pool import check_pool
from dreamactor.training.views import surface_views
from dreamactor.training.widen import with_part

WIDTHS = (64, 128, 192, 256)
HALVED_EVERY = 3
"""Steps of which one is at half size, with twice as many pictures."""
CLOSE = 0.1
"""Parts of the body's size within which a spot counts as found."""
ON_SHEET = 8


@dataclass(frozen=True, kw_only=True)
class SurfaceTrainConfig(LoopConfig):
    """Settings of one run."""

    pool: Path
    """Of `dreamactor world pool`, whole clips or short ones."""
    vae: Path
    """The autoencoder that is taught. If it knows surfaces already, it is taught further."""
    stills: Path | None = None
    """A folder of .jpg pictures to stand behind subjects (see scripts/stills.py)."""
    minutes: float = 5.0
    batch: int = 192
    """Pictures a step, over all processes."""
    frames: int = 60_000
    """Frames kept on each GPU at once, 268 kB each."""
    least: int = 1000
    """Frames to start with."""
    of_clip: int = 4
    """Frames taken of each clip."""
    optimiser: str = "muon"
    """muon or adamw."""
    rate: float = 2e-3
    subject_weight: float = 0.5
    """Of the loss of showing the subject."""
    spread: float = 1.4
    """Deviation of the channels in the latents; over 1, noise hides them later than most."""
    consume: bool = False
    """Delete shards once taken in, all but the first, so that renderers go on."""


def surface_loss(found: Surface, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """How far off spots are, and the cross-entropy of where there are any.

    Args:
        found: Of B pictures.
        wanted: (B, h, w, 3); NaN = no subject.

    Returns:
        Two scalars: the mean distance in parts of the body's size, over cells that show the
        subject (0 if there are none), and the cross-entropy of showing it.
    """
    seen = wanted.isfinite().all(dim=-1)
    away = found.spots.float().permute(0, 2, 3, 1) - wanted.nan_to_num()
    distance = (away.square().sum(dim=-1) + 1e-6).sqrt()
    entropy = F.binary_cross_entropy_with_logits(found.subject[:, 0].float(), seen.float())
    return (distance * seen).sum() / seen.sum().clamp_min(1), entropy


def train_nano_surface(config: SurfaceTrainConfig, run: Path) -> Path:
    """Train until the time is up; the same call resumes.

    Returns:
        The weight file, vae.safetensors in the run folder: the autoencoder with its surfaces.
    """
    with workers() as worker:
        _Run(config, run, worker).train()
    return run / "vae.safetensors"


class _Run:
    """One training run."""

    def __init__(self, config: SurfaceTrainConfig, run: Path, worker: Worker) -> None:
        self.config, self.worker = config, worker
        check_pool(config.pool)
        self.folder = RunFolder.open(run, identity(asdict(config)), worker.leads)
        self.stills = load_stills(config.stills, worker.device) if config.stills else None
        torch.manual_seed(config.seed)
        self.vae = load_vae(config.vae).to(worker.device).requires_grad_(False)
        network = self.vae.surface or SurfaceNet(WIDTHS)
        self.network = network.to(worker.device).requires_grad_(True)
        self.pool = FramePool(
            config.pool, config.frames, config.of_clip, config.seed, worker, config.consume
        )
        self.pool.wait(config.least)
        self.loop = Loop.of(
            config,
            self.folder,
            worker,
            self.network,
            optimisers_for(self.network, "blocks.", config.optimiser, config.rate, 0.01),
            self._export,
        )
        if config.compile and worker.on_gpu:
            compile_blocks(self.network, Block)
        self.trainee = worker.together(self.network)

    def train(self) -> None:
        """All steps, then the last export."""
        self.loop.run(self._losses, lambda: self.pool.refresh(4))
        self.pool.feed.close()

    def _losses(self, step: int) -> dict[str, Tensor]:
        config = self.config
        draws = generator(config.seed, f"surface/{self.worker.rank}", step)
        halved = step % HALVED_EVERY == HALVED_EVERY - 1
        count = config.batch // self.worker.count * (2 if halved else 1)
        frames = self.pool.batch(draws, count)
        x, wanted = surface_views(frames.pictures, frames.surface, draws, self.stills)
        if halved:
            x, wanted = F.avg_pool2d(x, 2), wanted[:, ::2, ::2]
        with self.worker.autocast():
            found = self.trainee(x)
        spots, subject = surface_loss(found, wanted)
        return {
            "total": spots + config.subject_weight * subject,
            "spots": spots,
            "subject": subject,
        }

    @torch.no_grad()
    def _export(self, step: int) -> None:
        """The autoencoder with averaged surfaces, how they do on held frames, and a sheet."""
        vae = with_surface(self.vae, self.network)
        assert vae.surface is not None
        vae.surface.load_state_dict(self.loop.average.state)
        pictures, _, wanted = self.pool.held()
        x = pictures.permute(0, 3, 1, 2)[:, :3] / 127.5 - 1
        found = _joined([vae.surface(few) for few in x.split(32)])
        normalise_surface(vae, vae.surface.latents(x.unsqueeze(2)), self.config.spread)
        header = {"model": "nano-vae", "config": vae.config.to_dict(), "steps": step}
        save_weights(self.folder.path / "vae.safetensors", vae.state_dict(), header)
        numbers = {f"held_{k}": round(v, 4) for k, v in measured(found, wanted).items()}
        self.folder.log(step=step, **numbers)
        few = slice(None, None, max(1, len(x) // ON_SHEET))
        sheet = surface_sheet(x[few], found.spots[few], found.subject[few], wanted[few])
        write_png(self.folder.path / "samples" / f"{step:06d}.png", to_picture(sheet))


def with_surface(vae: NanoVAE, network: SurfaceNet) -> NanoVAE:
    """A copy of an autoencoder with the surfaces of a network; their statistics are yet unknown."""
    count, more = vae.config.latent_channels, (0, SURFACE_CHANNELS)
    theirs = {f"surface.{k}": v for k, v in network.state_dict().items()}
    theirs["latent_mean"] = F.pad(vae.latent_mean[:count], more)
    theirs["latent_std"] = F.pad(vae.latent_std[:count], more, value=1.0)
    return with_part(vae, theirs, surface_widths=network.widths)


def normalise_surface(vae: NanoVAE, latents: Tensor, spread: float) -> None:
    """Set the statistics of an autoencoder's channels of surfaces.

    Args:
        vae: Changed in place.
        latents: (N, 16, 1, h, w) as `SurfaceNet.latents` gives them, of single frames.
        spread: The deviation that normalised ones shall have.
    """
    axes = latents.unflatten(1, (-1, 4))  # frames of a latent frame have the same statistics
    mean, std = axes.mean(dim=(0, 1, 3, 4, 5)), axes.std(dim=(0, 1, 3, 4, 5))  # (4,)
    first, times = vae.config.latent_channels, axes.shape[1]
    vae.latent_mean[first:] = mean.repeat(times)
    vae.latent_std[first:] = std.repeat(times) / spread


def measured(found: Surface, wanted: Tensor) -> dict[str, float]:
    """How well spots are known: mean distance, share of those found, overlap of the outlines."""
    seen, said = wanted.isfinite().all(dim=-1), found.subject[:, 0] > 0
    distance = (found.spots.permute(0, 2, 3, 1) - wanted.nan_to_num()).norm(dim=-1)[seen]
    return {
        "spots": float(distance.mean()),
        "found": float((distance < CLOSE).float().mean()),
        "overlap": float((seen & said).sum() / (seen | said).sum().clamp_min(1)),
    }


def surface_sheet(x: Tensor, spots: Tensor, subject: Tensor, wanted: Tensor) -> Tensor:
    """Pictures, their true spots and those found, as colours, one below the other.

    Args:
        x: (B, 3, H, W) in [-1, 1].
        spots: (B, 3, h, w).
        subject: (B, 1, h, w) logits.
        wanted: (B, h, w, 3); NaN = no subject.

    Returns:
        (3, 3 H, B W) in [-1, 1].
    """
    truth = wanted.float().permute(0, 3, 1, 2)
    rows = [x]
    for colours in (truth, torch.where(subject > 0, spots, torch.nan)):
        centred = colours - colours.new_tensor([0.0, 0.6, 0.0]).view(1, 3, 1, 1)
        shown = (1.5 * centred).clamp(-1, 1).nan_to_num(nan=-1.0)
        rows.append(F.interpolate(shown, x.shape[-2:], mode="nearest"))
    return torch.cat([torch.cat(list(row), dim=-1) for row in rows], dim=-2)


def _joined(parts: list[Surface]) -> Surface:
    spots, subject = zip(*parts, strict=True)
    return Surface(torch.cat(spots), torch.cat(subject))
