"""Distillation of an animator to few sampling steps, by matching distributions.

The student is the sampler's network at the few noise levels of a short schedule. What it draws is
held against the teacher, not clip by clip but as a distribution: noise is put onto it, and where
teacher and *score*, a network that follows what the student draws, foresee other latents from
there, the student's are moved from the score's towards the teacher's. So the student learns to
draw in few steps what the teacher draws in many, and not their mean. A discriminator that has seen
true clips can pull too (`adversary`), past what the teacher is able to.

Source: Yin et al. 2024, "Improved Distribution Matching Distillation" (arXiv 2405.14867): two time
scales, samples of the student's own schedule, an adversarial loss on noisy latents. Here the score
moves are taken on the generated half of the canvas, the sampler stays Euler's, and the
discriminator is a network of its own.

Legend: B examples, C latent channels, F latent frames, h x w cells of one half.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from dreamactor.backbones.base import Cond, Trainee
from dreamactor.backbones.compiled import expect_graphs
from dreamactor.backbones.headers import read_header
from dreamactor.backbones.load import load_trainee
from dreamactor.backbones.lora import AdapterInfo, Sampling
from dreamactor.conditioning.canvas import motion_half, reference_half
from dreamactor.diffusion.flow import flow_loss, schedule
from dreamactor.errors import ConfigError
from dreamactor.runs import generator
from dreamactor.training.discriminator import WIDTHS, Discriminator
from dreamactor.training.examples import Laid, lay_out
from dreamactor.training.learner import Learning
from dreamactor.training.stage import UNSAID, AdaptConfig, draw, share_of
from dreamactor.training.trio import Role, Trio

LEVELS = (0.02, 0.98)
"""Noise levels at which scores are compared: nearer to the ends they say nothing."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig(AdaptConfig):
    """Settings of a distillation. Steps are updates of the score; the student has fewer."""

    start: Path | None = field()
    """The adapter that is distilled; start=none with targets=full distils weights of nano."""
    student: Path | None = None
    """With targets=full, what an earlier run has distilled of the same weights: the student goes on
    from there, and its score begins as the teacher."""
    sampling_steps: int = 4
    """Of the student."""
    sampling_shift: float = 2.0
    """Of the student's schedule (`diffusion.flow.schedule`)."""
    guidance: float = 1.0
    """Of the teacher on text; the student needs none afterwards."""
    score_steps: int = 5
    """Updates of the score for one of the student."""
    score_rate: float | None = None
    """Of the score and the discriminator; None takes that of the student."""
    adversary: float = 0.0
    """Pull of the discriminator, in parts of the teacher's; 0 = there is none."""
    pure: float = 0.0
    """Share of examples that are all noise, where there is nothing to compare."""
    rate: float = 1e-5
    keeps_mode: ClassVar[bool] = True

    @property
    def sampling(self) -> Sampling:  # type: ignore[override]
        """Of the student."""
        return self.sampling_steps, self.sampling_shift

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sampling_steps", "score_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: want 1 or more")
        if self.sampling_shift < 1:
            raise ConfigError(f"sampling_shift={self.sampling_shift}: want 1 or more")
        if self.adversary < 0:
            raise ConfigError(f"adversary={self.adversary}: want 0 or more")
        if self.motion != "clean":
            raise ConfigError(f"motion={self.motion}: want clean to distil")
        if self.injection != "canvas":
            raise ConfigError(f"injection={self.injection}: want canvas to distil")
        if self.expert is not None:
            raise ConfigError(
                f"expert={self.expert}: one of two transformers cannot walk a schedule by itself; "
                "want a backbone of one"
            )
        if self.student is not None and self.targets != "full":
            raise ConfigError(f"student={self.student} targets={self.targets}: want targets=full")
        if self.start is None and self.targets != "full":
            raise ConfigError(
                f"start=none targets={self.targets}: want start=ADAPTER, or targets=full for "
                "weights of nano"
            )


class Distiller(Learning):
    """A student, its teacher and its score, their optimisers, and the student's average.

    Args:
        trainee: With the adapter that is distilled; its transformer becomes the student.
        config: Of the run.
        accelerator: Of this process.
        info: Of the adapter; None = all weights learn.
        shape: (C, F, h, w) of the examples.
    """

    config: DistillConfig

    def __init__(
        self,
        trainee: Trainee,
        config: DistillConfig,
        accelerator: Accelerator,
        info: AdapterInfo | None,
        shape: tuple[int, ...],
    ) -> None:
        self.trainee, self.config, self.accelerator = trainee, config, accelerator
        self.mine, self.at_once = share_of(config, accelerator.num_processes)
        device = accelerator.device
        self.trio = Trio(trainee, info)
        if config.student is not None:
            found = load_trainee(trainee.name, config.student)
            trainee.transformer.load_state_dict(found.transformer.state_dict())
        if config.compile:
            expect_graphs()
        for network in dict.fromkeys(self.trio.networks.values()):
            if config.checkpoint:
                network.enable_gradient_checkpointing()
            if config.compile:
                network.compile_repeated_blocks(dynamic=False)
            # not wrapped, for who is asked changes within a step; gradients are averaged by hand
            accelerator.prepare_model(network, evaluation_mode=True)
        self.model = trainee.transformer
        self.params = self.trio.parameters("student")
        self.score = self.trio.parameters("score")
        self.discriminator: Discriminator | None = None
        if config.adversary:
            depth = min(len(WIDTHS), int(math.log2(min(shape[-2:]))))
            torch.manual_seed(config.seed)  # the same in every process
            self.discriminator = Discriminator(shape[0], WIDTHS[:depth]).to(device)
        told = self.discriminator
        self.judging = {} if told is None else dict(told.named_parameters())
        decay, followers = config.weight_decay, [*self.score.values(), *self.judging.values()]
        self.optimiser = torch.optim.AdamW(self.params.values(), weight_decay=decay)
        self.follower = torch.optim.AdamW(followers, betas=(0.0, 0.999), weight_decay=decay)
        self.average = {name: p.detach().clone() for name, p in self.params.items()}
        self.facts = {"norm": torch.zeros(())}
        self.sigmas = schedule(config.sampling_steps, config.sampling_shift).to(device)

    @property
    def changing(self) -> tuple[Any, ...]:
        """As `Learning` says."""
        others = {"score": self.score, "discriminator": self.judging}
        also = {f"{of}/{name}": p for of, named in others.items() for name, p in named.items()}
        return self.params | also, self.average, self.optimiser, self.follower

    def update(self, batch: dict[str, Tensor], step: int, rate: float) -> Tensor:
        """One step of the score, whose loss it is, and in one of `score_steps` of the student."""
        config, samples, device = self.config, self.samples(step), self.accelerator.device
        turn = step % config.score_steps == 0
        other = rate if config.score_rate is None else rate / config.rate * config.score_rate
        for optimiser, speed in ((self.optimiser, rate), (self.follower, other)):
            optimiser.zero_grad()
            for group in optimiser.param_groups:
                group["lr"] = speed
        draws = generator(config.seed, "level", step)
        level = int(torch.randint(config.sampling_steps, (1,), generator=draws))
        sums: dict[str, Tensor] = {}
        for start in range(0, self.mine, self.at_once):
            part = slice(start, start + self.at_once)
            some = {name: value[part].to(device) for name, value in batch.items()}
            for name, value in self._part(some, samples[part], level, turn).items():
                sums[name] = sums.get(name, torch.zeros((), device=device)) + value.detach()
        parts = self.mine // self.at_once
        if turn:
            self.facts["norm"] = self._step(self.optimiser, list(self.params.values()))
        self._step(self.follower, [*self.score.values(), *self.judging.values()])
        if turn:
            self.follow(step // config.score_steps)
        self.facts |= {name: value / parts for name, value in sums.items() if name != "loss"}
        return sums["loss"] / parts

    def wear(self, weights: dict[str, Tensor]) -> None:
        """As `Learning` says; previews ask the network, so the student has to be at work in it."""
        self.trio.switch("student")
        super().wear(weights)

    def _part(
        self, batch: dict[str, Tensor], samples: list[int], level: int, turn: bool
    ) -> dict[str, Tensor]:
        """Gradients of some examples; the score's loss, and what else there is to say."""
        config, share = self.config, self.at_once / self.mine
        drawn = draw(config, batch["target"], samples, self.trainee.levels)
        laid = lay_out(batch, replace(drawn, sigma=torch.ones_like(drawn.sigma)), config.motion)
        hidden = 1 - laid.shown  # (B, 1, F, 1, 1)
        with torch.set_grad_enabled(turn):
            drawing = self._draw(laid, level) * hidden + batch["target"] * laid.shown
        fake = drawing.detach()
        # noise of their own, or the student's would be told apart by it
        again = draw(config, fake, samples, self.trainee.levels, key="distil")
        sigma = again.sigma.clamp(*LEVELS)
        noise = reference_half(again.noise)
        found: dict[str, Tensor] = {}
        if turn:
            pull, found = self._pull(batch, laid, fake, sigma, noise)
            self.trio.switch("student")
            drawing.backward(-pull * share)
        found["loss"] = self._follow(batch, laid, fake, sigma, noise)
        (found["loss"] * share).backward()
        if self.discriminator is not None:
            found["told"] = self._tell(batch, fake, sigma, noise)
            (found["told"] * share).backward()
        return found

    def _draw(self, laid: Laid, level: int) -> Tensor:
        """What the student draws at a level of its schedule, (B, C, F, h, w) latents.

        It comes there by its own steps from noise, as the sampler goes; gradients are of the last.
        """
        motion = motion_half(laid.latents)
        x = reference_half(laid.x)
        with torch.no_grad():
            for sigma, following in pairwise(self.sigmas[: level + 1]):
                latents = self._ask("student", x, sigma.expand(len(x)), motion, laid.cond)
                x = latents + (following / sigma) * (x - latents)
        return self._ask("student", x, self.sigmas[level].expand(len(x)), motion, laid.cond)

    @torch.no_grad()
    def _pull(
        self, batch: dict[str, Tensor], laid: Laid, fake: Tensor, sigma: Tensor, noise: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Where latents (B, C, F, h, w) that the student has drawn should move, and how far."""
        config, hidden = self.config, 1 - laid.shown
        x, motion = _noised(fake, noise, sigma), motion_half(laid.latents)
        real = self._ask("teacher", x, sigma, motion, laid.cond)
        if config.guidance != 1:
            silence = batch.get("silence", torch.zeros_like(laid.cond.text))
            blind = self._ask("teacher", x, sigma, motion, replace(laid.cond, text=silence))
            real = blind + config.guidance * (real - blind)
        own = self._ask("score", x, sigma, motion, laid.cond)
        scale = _mean(((fake - real) * hidden).abs()).clamp_min(1e-6)
        pull = (real - own) * hidden / scale
        found = {"pull": _mean(pull.abs()).mean()}
        if self.discriminator is not None:
            with torch.enable_grad():
                latents = fake.clone().requires_grad_(True)
                told = self._told(batch, latents, sigma, noise)
                unlike = F.softplus(-told).mean(dim=(1, 2, 3, 4)).sum()
                (slope,) = torch.autograd.grad(unlike, latents)
            slope = slope * hidden
            size = _mean(pull.abs()) / _mean(slope.abs()).clamp_min(1e-12)
            pull = pull - config.adversary * size * slope
        return pull / pull[0].numel() / len(pull), found

    def _follow(
        self, batch: dict[str, Tensor], laid: Laid, fake: Tensor, sigma: Tensor, noise: Tensor
    ) -> Tensor:
        """The score's loss: an ordinary step of training, on what the student draws."""
        x, motion = _noised(fake, noise, sigma), motion_half(laid.latents)
        own = self.trio.ask("score", torch.cat([x, motion], dim=-1), sigma, laid.cond)
        weight = (1 + self.config.subject_weight * batch["subject"]) * (1 - laid.shown)
        return flow_loss(own, torch.cat([fake, motion], dim=-1), sigma, weight, "clean").mean()

    def _tell(self, batch: dict[str, Tensor], fake: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        """The discriminator's loss on true clips and drawn ones, at the same noise."""
        real, drawn = (
            self._told(batch, latents, sigma, noise) for latents in (batch["target"], fake)
        )
        return (F.softplus(-real) + F.softplus(drawn)).mean()

    def _told(
        self, batch: dict[str, Tensor], latents: Tensor, sigma: Tensor, noise: Tensor
    ) -> Tensor:
        assert self.discriminator is not None
        x = _noised(latents, noise, sigma)
        with self.accelerator.autocast():
            told: Tensor = self.discriminator(x, sigma, batch["motion"], batch["target"][:, :, 0])
        return told.float()

    def _ask(self, role: Role, x: Tensor, sigma: Tensor, motion: Tensor, cond: Cond) -> Tensor:
        """Latents (B, C, F, h, w) of the generated half."""
        return reference_half(self.trio.ask(role, torch.cat([x, motion], dim=-1), sigma, cond))

    def _step(self, optimiser: torch.optim.Optimizer, params: list[nn.Parameter]) -> Tensor:
        """Average gradients over processes, clip them, and step; their norm."""
        grads = [p.grad for p in params if p.grad is not None]
        if self.accelerator.num_processes > 1:
            flat = torch.cat([grad.flatten() for grad in grads])
            flat = self.accelerator.reduce(flat, "mean")
            for grad, mean in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                grad.copy_(mean.view_as(grad))
        norm = nn.utils.clip_grad_norm_(params, self.config.clip)
        optimiser.step()
        return norm


def check_student(student: Path, trainee: Trainee) -> None:
    """Refuse what no student of a network can be; its numbers are not read.

    Raises:
        ConfigError: Those are weights of another kind.
        WeightsError: They are missing or damaged.
    """
    header = read_header(student)
    for name in ("config", "predicts", *UNSAID):
        old, new = (known.get(name, UNSAID.get(name)) for known in (header, trainee.header))
        if old != new:
            raise ConfigError(f"student={student}: its {name} is {old}, the teacher's {new}")


def _noised(latents: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """(B, C, F, h, w) with noise on it."""
    return torch.lerp(latents, noise, sigma.view(-1, 1, 1, 1, 1))


def _mean(values: Tensor) -> Tensor:
    """Of each example: (B, C, F, h, w) -> (B, 1, 1, 1, 1)."""
    return values.mean(dim=(1, 2, 3, 4), keepdim=True)
