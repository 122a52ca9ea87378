"""Can an adapter on feed-forward layers learn to look at a canvas's other half? A toy, on a CPU.

    python scripts/positions.py FOLDER base 1200
    python scripts/positions.py FOLDER TARGETS,ATTENTION,INJECTION 1500

Clips are latents of 8 x 8 cells: a body that moves straight on, a limb that turns around it, both
of random colours on a random ground; the driver shows joints alone. The base learns to foresee
single clips from their first frame, which it cannot, for speeds are drawn; then adapters on it
learn with the driver beside (ff,one-way-aligned,overlaid, say). Printed every 500 steps: the mean
loss; what one prediction from noise misses of the subject in 48 clips that were held out, over its
variance; and the same with another clip's driver. Where both are one, the driver is not looked at.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dreamactor.backbones.base import Trainee
from dreamactor.backbones.lora import AdapterInfo, attach
from dreamactor.backbones.nano import NanoConfig, predict
from dreamactor.backbones.weights import load_weights, save_weights
from dreamactor.conditioning.canvas import LatentGrid
from dreamactor.diffusion.flow import MotionHalf, flow_loss, generated, sample_sigma
from dreamactor.training.examples import Draws, lay_out
from dreamactor.training.stage import in_mode

CHANNELS, FRAMES, SIDE, BATCH = 8, 4, 8, 16
SHAPE = NanoConfig(layers=4, heads=4, head_dim=24, ffn=384, latent_channels=CHANNELS)
Batch = dict[str, Tensor]


def examples(count: int, seed: int) -> Batch:
    """Clips, their drivers and where the subject is."""
    draws = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=draws)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws)

    y, x = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    place, speed = rand(count, 2) * 3 + 2.5, randn(count, 2) * 0.6
    angle, spin = rand(count) * 6.28, randn(count) * 0.8
    ground = randn(count, CHANNELS, 1, 1) * 0.5
    coarse = randn(count, CHANNELS, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
    ground = ground + 0.3 * coarse
    colours = torch.randn(2, count, CHANNELS, generator=draws)
    bones = torch.eye(CHANNELS)[:2] * 3

    def blob(at: Tensor, radius: float) -> Tensor:  # (count, 1, SIDE, SIDE)
        away = (y - at[:, 0, None, None]) ** 2 + (x - at[:, 1, None, None]) ** 2
        return torch.exp(-((away / radius**2) ** 2))[:, None]

    clip, driver, subject = [], [], []
    for t in range(FRAMES):
        turned = angle + spin * t
        body = place + speed * t
        limb = body + 1.9 * torch.stack([turned.sin(), turned.cos()], 1)
        frame, joints = ground, -0.3
        for at, radius, colour, bone in zip((body, limb), (1.5, 1.1), colours, bones, strict=True):
            there = blob(at, radius)
            frame = frame * (1 - there) + colour[:, :, None, None] * there
            joints = joints + bone[None, :, None, None] * blob(at, 0.8)
        clip.append(frame)
        driver.append(joints)
        subject.append(torch.maximum(blob(body, 1.5), blob(limb, 1.1)))
    made = {"target": clip, "motion": driver, "subject": subject}
    return {k: torch.stack(v, 2) for k, v in made.items()} | {"text": torch.zeros(count, 2, 384)}


def drawn(batch: Batch, seed: int, motion: MotionHalf, sigma: float | None = None) -> Draws:
    """Noise and its levels; three tenths are all noise."""
    draws, shape = torch.Generator().manual_seed(seed), batch["target"].shape
    count, nothing = shape[0], torch.zeros(shape[0])
    level = sample_sigma(torch.randn(count, generator=draws), 3.0, (0.0, 1.0))
    pure = torch.rand(count, generator=draws) < 0.3
    level = torch.where(pure, torch.ones(()), level)
    noise = torch.randn(*shape[:-1], 2 * SIDE, generator=draws)
    return Draws(
        noise=noise if motion != "none" else noise[..., :SIDE],
        sigma=level if sigma is None else torch.full((count,), sigma),
        continued=nothing.bool(),
        jitter=nothing,
        jitter_noise=torch.zeros(count, CHANNELS, SIDE, SIDE),
        silent=nothing.bool(),
    )


@torch.no_grad()
def missed(trainee: Trainee, batch: Batch, motion: MotionHalf) -> float:
    """Of the subject, in one prediction from noise, over its variance."""
    made = lay_out(batch, found := drawn(batch, 9, motion, sigma=1.0), motion)
    latents = generated(
        trainee.predict(trainee.transformer, made.x, found.sigma, made.cond), motion
    )
    weight, target = batch["subject"] * (1 - made.shown), batch["target"]
    over = {"dim": (2, 3, 4), "keepdim": True}
    mean = (target * weight).sum(**over) / weight.sum(**over)
    error, spread = ((x - target).square() * weight for x in (latents, mean))
    return float(error.sum() / spread.sum())


def train(trainee: Trainee, motion: MotionHalf, steps: int, rate: float) -> None:
    """Whatever of it may learn."""
    params = [p for p in trainee.transformer.parameters() if p.requires_grad]
    optimiser, began = torch.optim.AdamW(params, rate, weight_decay=0.01), time.monotonic()
    held, losses = examples(48, 10**6), []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100) * min(1.0, 2 * (1 - step / steps))
        batch = examples(BATCH, 1 + step)
        made = lay_out(batch, found := drawn(batch, step, motion), motion)
        ask = trainee.predict(trainee.transformer, made.x, found.sigma, made.cond)
        weight = (1 + 3 * batch["subject"]) * (1 - 0.9 * made.shown)
        loss = flow_loss(ask, made.latents, found.sigma, weight, motion).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimiser.step()
        losses.append(loss.detach())
        if (step + 1) % 500 == 0 or step + 1 == steps:
            mean = float(torch.stack(losses[-500:]).mean())
            numbers = [missed(trainee, held, motion)]
            if motion != "none":
                numbers.append(
                    missed(trainee, held | {"motion": held["motion"].roll(1, 0)}, motion)
                )
            took = time.monotonic() - began
            print(
                f"{step + 1} {took:.0f} s loss {mean:.4f}",
                *(f"{n:.3f}" for n in numbers),
                flush=True,
            )


def main() -> None:
    """The base, or an adapter on it."""
    torch.set_num_threads(1)
    folder, what, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    trainee = Trainee("nano", SHAPE.build(), predict, LatentGrid(4, 8, CHANNELS), "0" * 64, {})
    if what == "base":
        train(trainee, "none", steps, 1e-3)
        save_weights(folder / "base.safetensors", trainee.transformer.state_dict(), {})
        return
    targets, mode, injection = what.split(",")
    trainee.transformer.load_state_dict(load_weights(folder / "base.safetensors")[0])
    trainee = in_mode(trainee, mode)
    if targets != "full":
        trainee.transformer.requires_grad_(False)
        info = AdapterInfo("rgb", "nano", "0" * 64, rank=64, attention=mode)
        attach(trainee.transformer, replace(info, targets=targets, injection=injection))
    train(trainee, "clean", steps, 3e-4 if targets == "full" else 1e-3)


if __name__ == "__main__":
    main()
