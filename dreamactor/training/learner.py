"""A network that learns, and what one step does to it: `train pose|rgb`, and what measures them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from dreamactor.backbones.base import Trainee
from dreamactor.diffusion.flow import flow_loss
from dreamactor.training.examples import lay_out
from dreamactor.training.stage import AdaptConfig, draw, share_of


class Learning(ABC):
    """What every run has, whatever its steps are: weights that learn, and their average."""

    config: AdaptConfig
    accelerator: Accelerator
    model: nn.Module
    """Asked for previews."""
    params: dict[str, nn.Parameter]
    """What the run is for."""
    average: dict[str, Tensor]
    """Of the same names."""
    mine: int
    """Examples of a step on this process."""
    facts: dict[str, Tensor]
    """Of the last step, for the log."""

    @property
    @abstractmethod
    def changing(self) -> tuple[Any, ...]:
        """All that changes in a step: weights, averages and optimisers, for `training.state`."""

    @abstractmethod
    def update(self, batch: dict[str, Tensor], step: int, rate: float) -> Tensor:
        """One step; its loss on this process.

        Args:
            batch: Examples of `samples(step)`, as from `Cache.batch`.
            step: Its number.
            rate: Of learning.
        """

    def samples(self, step: int) -> list[int]:
        """Numbers of this process's samples of a step."""
        first = step * self.config.batch + self.accelerator.process_index * self.mine
        return list(range(first, first + self.mine))

    @torch.no_grad()
    def follow(self, updates: int) -> None:
        """Move the averages towards the weights; faster in the beginning."""
        decay = min(self.config.average, (1 + updates) / (10 + updates))
        for name, param in self.params.items():
            self.average[name].lerp_(param.detach(), 1 - decay)

    @torch.no_grad()
    def wear(self, weights: dict[str, Tensor]) -> None:
        """Take other values of what is trained."""
        for name, param in self.params.items():
            param.copy_(weights[name])


class Learner(Learning):
    """A trainee in accelerate's hands, its optimiser, and the average of its weights.

    Args:
        trainee: With its adapter; its transformer is changed in place.
        config: Of the run.
        accelerator: Of this process.
    """

    def __init__(self, trainee: Trainee, config: AdaptConfig, accelerator: Accelerator) -> None:
        self.trainee, self.config, self.accelerator = trainee, config, accelerator
        self.mine, self.at_once = share_of(config, accelerator.num_processes)
        transformer = trainee.transformer
        if config.checkpoint:
            transformer.enable_gradient_checkpointing()
        trained = [p for p in transformer.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(trained, config.rate, weight_decay=config.weight_decay)
        if config.compile:
            transformer.compile_repeated_blocks(dynamic=False)
        plugin = getattr(accelerator.state, "fsdp_plugin", None)
        if plugin is not None:
            _compute_as_unsharded(transformer, plugin, accelerator)
        self.model, self.stepper = accelerator.prepare(transformer, optimiser)
        self.optimiser: torch.optim.Optimizer = self.stepper.optimizer
        inner = accelerator.unwrap_model(self.model)
        self.params = {name: p for name, p in inner.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.params.items()}
        self.facts = {"norm": torch.zeros(())}  # of the gradient, before it was clipped

    @property
    def changing(self) -> tuple[Any, ...]:
        """As `Learning` says."""
        return self.params, self.average, self.optimiser

    def update(self, batch: dict[str, Tensor], step: int, rate: float) -> Tensor:
        """As `Learning` says."""
        samples, device = self.samples(step), self.accelerator.device
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.stepper.zero_grad()
        total = torch.zeros((), device=device)
        for start in range(0, self.mine, self.at_once):
            part = slice(start, start + self.at_once)
            last = part.stop == self.mine
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                some = {name: value[part].to(device) for name, value in batch.items()}
                loss = self._loss(some, samples[part]) * self.at_once / self.mine
                self.accelerator.backward(loss)
            total += loss.detach()
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.facts = {"norm": norm}
        self.stepper.step()
        self.follow(step)
        return total

    def _loss(self, batch: dict[str, Tensor], samples: list[int]) -> Tensor:
        """Of some examples, on average."""
        config = self.config
        drawn = draw(config, batch["target"], samples, self.trainee.levels)
        made = lay_out(batch, drawn, config.motion)
        predicted = self.trainee.predict(self.model, made.x, drawn.sigma, made.cond)
        weight = (1 + config.subject_weight * batch["subject"]) * (1 - 0.9 * made.shown)
        return flow_loss(predicted, made.latents, drawn.sigma, weight, config.motion).mean()


def _compute_as_unsharded(transformer: nn.Module, plugin: Any, accelerator: Accelerator) -> None:
    """Have FSDP2 shard weights as they are, and autocast say what is computed in bfloat16.

    Left alone, accelerate has FSDP2 cast all weights and inputs to bfloat16, where the timestep
    724.3 is 724, and an adapter of float32 sums its gradients with 8 bits.
    """
    plugin.mixed_precision_policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    half = accelerator.mixed_precision == "bf16"
    computed = torch.autocast(accelerator.device.type, torch.bfloat16, enabled=half)
    transformer.forward = computed(transformer.forward)
