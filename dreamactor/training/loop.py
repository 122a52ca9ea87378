"""What every training script shares: processes, the time budget, averages of weights."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Worker:
    """This process among all that train together (torchrun starts one a GPU)."""

    rank: int
    count: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a tensor over all processes."""
        if self.count > 1:
            dist.all_reduce(value)
            value = value / self.count
        return value

    def agree(self, flag: bool) -> bool:
        """Process 0's opinion, so that all stop at the same step."""
        if self.count == 1:
            return flag
        value = torch.tensor([int(flag)], device=self.device)
        dist.broadcast(value, 0)
        return bool(value.item())


@contextmanager
def workers(device: str = "auto") -> Iterator[Worker]:
    """Join the processes that torchrun started, or be the only one."""
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", 0))
    on_gpu = device != "cpu" and torch.cuda.is_available()
    place = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(place)
    if count > 1:
        dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Worker(rank, count, place)
    finally:
        if count > 1:
            dist.destroy_process_group()


@dataclass
class Budget:
    """A time box that survives restarts: `spent` seconds came before this process."""

    seconds: float
    spent: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        """Seconds of the run so far, earlier processes included."""
        return self.spent + time.monotonic() - self.started

    @property
    def fraction(self) -> float:
        """0 at the start, 1 when the time is up."""
        return min(1.0, self.elapsed / self.seconds)


def learning_rate(fraction: float, step: int, warmup: int, decay_from: float) -> float:
    """Factor of the peak rate: linear warm-up by steps, linear decay by time to nothing.

    Args:
        fraction: Of the time budget, 0 to 1.
        step: Steps done.
        warmup: Steps of warm-up.
        decay_from: Fraction at which the decay starts.
    """
    decay = min(1.0, (1 - fraction) / (1 - decay_from)) if decay_from < 1 else 1.0
    return min(1.0, (step + 1) / warmup) * max(0.0, decay)


class Average:
    """Exponential moving average of a model's weights."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the current weights; faster in the beginning."""
        decay = min(self.decay, (1 + step) / (10 + step))
        mine, theirs = [], []
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                mine.append(self.state[name])
                theirs.append(value.detach())
            else:
                self.state[name].copy_(value)
        torch._foreach_lerp_(mine, theirs, 1 - decay)
