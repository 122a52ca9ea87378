"""What every training script shares: processes, the time budget, steps, averages, resuming."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dreamactor.backbones.parallel import all_or_none
from dreamactor.runs import RunFolder, plain
from dreamactor.training.state import load_state, put_back, read_out, save_state

LOG_EVERY = 100
"""Steps between lines of the log."""
LOOK_EVERY = 20
"""Steps between looks at the clock and at the pool, when all processes agree on what is next."""

STALL = timedelta(minutes=3)
"""How long processes wait for each other before they give up."""


@dataclass(frozen=True)
class Worker:
    """This process among all that train together (torchrun starts one a GPU)."""

    rank: int
    count: int
    device: torch.device
    began: float = field(default_factory=time.monotonic)
    """On the monotonic clock; pauses count from here."""

    @property
    def leads(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    @property
    def on_gpu(self) -> bool:
        """Whether it computes on a GPU (and so in bfloat16 where that is safe)."""
        return self.device.type == "cuda"

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a tensor over all processes."""
        if self.count > 1:
            dist.all_reduce(value)
            value = value / self.count
        return value

    def agree(self, flag: bool) -> bool:
        """Process 0's opinion, so that all act at the same step."""
        if self.count == 1:
            return flag
        value = torch.tensor([int(flag)], device=self.device)
        dist.broadcast(value, 0)
        return bool(value.item())

    def share(self, value: float) -> float:
        """Process 0's number, for all: clocks differ, and weights must not."""
        if self.count == 1:
            return value
        shared = torch.tensor([value], device=self.device, dtype=torch.float64)
        dist.broadcast(shared, 0)
        return float(shared.item())

    def autocast(self) -> torch.autocast:
        """bfloat16 on a GPU; float32 on a CPU, where autocast is far slower."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.on_gpu)

    def together(self, module: nn.Module) -> nn.Module:
        """The module, with its gradients averaged over all processes."""
        if self.count == 1:
            return module
        ids = [self.device] if self.on_gpu else None
        return DistributedDataParallel(
            module, device_ids=ids, gradient_as_bucket_view=True, broadcast_buffers=False
        )


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two runs the same run: JSON values of a config, less how it is carried out."""
    return {k: v for k, v in plain(config).items() if k not in ("pause_minutes", "compile")}


@contextmanager
def workers(device: str = "auto") -> Iterator[Worker]:
    """Join the processes that torchrun started, or be the only one."""
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", 0))
    on_gpu = device != "cpu" and torch.cuda.is_available()
    place = torch.device("cpu")
    if on_gpu:  # what needs no words with the others may have several processes a GPU
        place = torch.device("cuda", local % torch.cuda.device_count())
        torch.cuda.set_device(place)
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
        torch._dynamo.config.recompile_limit = 64  # the default falls back to eager silently
        torch._dynamo.config.suppress_errors = True  # a slow run is better than none
    if count == 1:
        yield Worker(rank, count, place)
        return
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=STALL)
    with all_or_none():
        yield Worker(rank, count, place)
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
        """0 at the start, 1 when the time is up; a budget of nothing is up at once."""
        return min(1.0, self.elapsed / self.seconds) if self.seconds > 0 else 1.0

    def ended(self, began: float, pause_minutes: float) -> bool:
        """Whether the time is up, or that of this process, which began then (monotonic clock)."""
        return self.fraction >= 1 or time.monotonic() - began >= 60 * pause_minutes


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


@contextmanager
def signalled() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, in the place of what it did before."""
    told = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: told.set())
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)


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


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Settings that all trainers of nano's networks have; each adds its own, and other defaults."""

    pool: Path
    """Of whole clips (`dreamactor world pool`)."""
    minutes: float
    """Time budget of training."""
    rate: float
    """Highest learning rate."""
    warmup: int = 100
    """Steps until the rate is whole."""
    decay_from: float = 0.3
    """Share of the time after which the rate falls to 0."""
    average: float = 0.998
    """Decay of the average of the weights, which is what is written."""
    pause_minutes: float = math.inf
    """Stop after so many minutes, to be resumed by the same command."""
    compile: bool = True
    """Compile blocks, on a GPU; the first step pays for it."""
    seed: int = 0
    """Of all draws."""


def compile_blocks(model: nn.Module, kind: type[nn.Module]) -> None:
    """Compile the repeated blocks of a network, which are alike, each by itself."""
    for module in model.modules():
        if isinstance(module, kind):
            module.compile(dynamic=False)


@dataclass
class Loop:
    """The steps of one run, until its time is up; killed and repeated, it goes on.

    Its state is written every `save_minutes` and at the end, with whatever `export` writes
    beside it.
    """

    folder: RunFolder
    worker: Worker
    model: nn.Module
    optimisers: list[torch.optim.Optimizer]
    average: Average
    minutes: float
    warmup: int
    decay_from: float
    export: Callable[[int], None]
    """Called on process 0 with the number of steps done, after each state."""
    pause_minutes: float = math.inf
    """This process stops so many minutes after it began, to be resumed by the same command."""
    save_minutes: float = 2.0

    def __post_init__(self) -> None:
        self.peaks = [[group["lr"] for group in o.param_groups] for o in self.optimisers]
        self.step = 0
        self.fraction = 0.0
        """Of the time budget, as process 0 saw it at the last look; the same for all."""
        self.budget = Budget(60 * self.minutes)
        if (found := load_state(self.folder.state)) is not None:
            put_back(found[0], *self._changing)
            self.step = found[1]["step"]
            self.budget = Budget(60 * self.minutes, spent=found[1]["seconds"])
        self.fraction = self.worker.share(self.budget.fraction)

    @classmethod
    def of(
        cls,
        config: LoopConfig,
        folder: RunFolder,
        worker: Worker,
        model: nn.Module,
        optimisers: list[torch.optim.Optimizer],
        export: Callable[[int], None],
    ) -> Loop:
        """The steps that a trainer's settings ask for."""
        return cls(
            folder,
            worker,
            model,
            optimisers,
            Average(model, config.average),
            config.minutes,
            config.warmup,
            config.decay_from,
            export,
            config.pause_minutes,
        )

    @property
    def _changing(self) -> tuple[Any, ...]:
        """All that changes in a step, as `training.state` takes it."""
        return self.model.state_dict(keep_vars=True), self.average.state, *self.optimisers

    def run(self, losses: Callable[[int], dict[str, Tensor]], look: Callable[[], None]) -> None:
        """Train.

        Args:
            losses: For a step, named scalars; "total" is minimised, all are logged.
            look: Called every LOOK_EVERY steps, before the step.

        SIGTERM, which `timeout` and batch systems send before they kill, pauses it.
        """
        self.budget.started = time.monotonic()  # waiting for the pool is not training
        with signalled() as told:
            self._steps(losses, look, told)
        self.save()

    def _steps(
        self,
        losses: Callable[[int], dict[str, Tensor]],
        look: Callable[[], None],
        told: threading.Event,
    ) -> None:
        sums: dict[str, Tensor] = {}
        count, saved, looked = 0, time.monotonic(), 0.0
        while True:
            if self.step % LOOK_EVERY == 0:
                if self.worker.agree(self._ended() or told.is_set()):
                    return
                self.fraction = self.worker.share(self.budget.fraction)
                before = time.monotonic()
                look()
                looked += time.monotonic() - before
                if self.worker.agree(time.monotonic() - saved > 60 * self.save_minutes):
                    self.save()
                    saved = time.monotonic()
            values = losses(self.step)
            self._update(values["total"])
            for name, value in values.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach()
            self.step += 1
            count += 1
            if self.step % LOG_EVERY == 0:
                self._log({name: value / count for name, value in sums.items()}, looked)
                sums, count, looked = {}, 0, 0.0

    def _ended(self) -> bool:
        return self.budget.ended(self.worker.began, self.pause_minutes)

    def _update(self, total: Tensor) -> None:
        factor = learning_rate(self.fraction, self.step, self.warmup, self.decay_from)
        for optimiser, peaks in zip(self.optimisers, self.peaks, strict=True):
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            optimiser.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.average.update(self.model, self.step)

    def _log(self, means: dict[str, Tensor], looked: float) -> None:
        """Means since the last line, and the seconds of them that went into looks."""
        numbers = {name: float(self.worker.mean(value)) for name, value in means.items()}
        if not self.worker.leads:
            return
        seconds = round(self.budget.elapsed, 1)
        self.folder.log(step=self.step, seconds=seconds, looks=round(looked, 2), **numbers)
        text = " ".join(f"{name} {value:.4f}" for name, value in numbers.items())
        left = max(0.0, self.budget.seconds - seconds)
        print(f"step {self.step} {seconds:.0f} s (ETA {left:.0f} s) {text}", file=sys.stderr)  # noqa: T201

    def save(self) -> None:
        """State and export, by process 0 while the others wait."""
        if self.worker.leads:
            facts = {"step": self.step, "seconds": self.budget.elapsed}
            save_state(self.folder.state, read_out(*self._changing), facts)
            self.export(self.step)
        self.worker.agree(True)
