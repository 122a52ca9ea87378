"""Both stages of the recipe: an adapter on a frozen transformer, from a cache of examples.

`dreamactor train pose` and `dreamactor train rgb`; and `dreamactor train distill`, whose steps are
others (`training.distill`). Carried by accelerate: one GPU, several (DDP)
or sharded (FSDP2), by its own config files (configs/accelerate/). Which examples a step sees, and
their noise, depend on the step alone: neither a crash nor the number of processes changes the
losses.

Legend: C latent channels of one half.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from dreamactor.backbones.base import Cond
from dreamactor.backbones.catalogue import CATALOGUE
from dreamactor.backbones.incontext import mode_of
from dreamactor.backbones.load import Variant, load_trainee
from dreamactor.backbones.lora import adapter_state, save_adapter
from dreamactor.backbones.nano import load_vae
from dreamactor.backbones.weights import save_weights
from dreamactor.conditioning.framing import to_picture
from dreamactor.errors import ConfigError, DreamActorError
from dreamactor.image import write_png
from dreamactor.provenance import sha256
from dreamactor.runs import RunFolder
from dreamactor.training.cache import SHARE, Cache
from dreamactor.training.distill import DistillConfig, Distiller, check_student
from dreamactor.training.learner import Learner, Learning
from dreamactor.training.looks import held_numbers
from dreamactor.training.loop import Budget, identity, learning_rate, signalled
from dreamactor.training.preview import Preview
from dreamactor.training.stage import (
    AdaptConfig,
    check_fit,
    check_shards,
    draw,
    in_mode,
    mode_for,
    order,
    prepare,
    share_of,
)
from dreamactor.training.state import load_state, put_back, read_out, save_state, whole

BEFORE = -1
"""A step, and a sample, before all others."""


def train_adapter(config: AdaptConfig, variant: Variant, run: Path) -> Path:
    """Train until steps or time are up; the same call goes on after a crash.

    Returns:
        adapter.safetensors in the run folder, or transformer.safetensors with targets=full:
        averaged weights in half precision.
    """
    return _Run(config, variant, run).train()


class _Run:
    """One training run."""

    def __init__(self, config: AdaptConfig, variant: Variant, run: Path) -> None:
        self.config, self.began = config, time.monotonic()
        on_gpu = torch.cuda.is_available()
        precision = "bf16" if on_gpu and config.precision == "bf16" else "no"
        self.accelerator = Accelerator(cpu=not on_gpu, mixed_precision=precision)
        self.device, self.leads = self.accelerator.device, self.accelerator.is_main_process
        share_of(config, self.accelerator.num_processes)  # a fault is told before weights are read
        self.cache = Cache(config.cache)
        trainee = load_trainee(config.backbone, config.base, config.expert)
        check_fit(config, variant, self.cache, trainee)
        mode = mode_for(config, trainee)
        check_shards(mode, self.accelerator.is_fsdp2)
        if isinstance(config, DistillConfig) and self.accelerator.is_fsdp2:
            raise ConfigError("distill: cannot be sharded; want whole copies, as of torchrun")
        settings = identity(asdict(config))
        if config.injection == "canvas":
            del settings["injection"]  # runs from before there were others can go on
        if isinstance(config, DistillConfig):
            if config.student is None:
                del settings["student"]  # likewise
            else:
                check_student(config.student, trainee)
                settings["student"] = sha256(config.student)
        known = {
            **settings,
            "variant": variant,
            "examples": self.cache.digest,
            "weights": trainee.weights,
            "started_from": sha256(config.start) if config.start else None,
        }
        digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]
        self.trainee = in_mode(trainee, mode, self.cache.silence)
        self.info = prepare(trainee, config, self.cache.header, digest)
        self.folder = RunFolder.open(run, known, self.leads)  # last: a fault leaves no folder
        self._wrap()
        if self.device.type == "cuda":
            memory = torch.cuda.get_device_properties(self.device).total_memory
            self.cache.keep(self.device, SHARE * memory)
        self._restore()

    def _wrap(self) -> None:
        """Hand the network over to accelerate."""
        config, accelerator = self.config, self.accelerator
        self.learner: Learning
        if isinstance(config, DistillConfig):
            shape = self.cache.shape
            self.learner = Distiller(self.trainee, config, accelerator, self.info, shape)
        else:
            self.learner = Learner(self.trainee, config, accelerator)
        self.model = self.learner.model
        self.params, self.average = self.learner.params, self.learner.average
        self.preview: Preview | None = None
        if not CATALOGUE[config.backbone].hub:  # the autoencoder of a large one stays where it is
            vae = load_vae(config.vae).to(self.device).eval().requires_grad_(False)
            self.preview = Preview(self._network, vae, config.motion, *config.sampling or ())

    def _restore(self) -> None:
        self.step, spent = 0, 0.0
        found = load_state(self.folder.state)
        if found is not None:
            put_back(found[0], *self.learner.changing)
            self.step, spent = found[1]["step"], found[1]["seconds"]
        if self.leads:
            self.folder.forget(self.step if found else BEFORE)
        self.budget = Budget(60 * self.config.minutes, spent)
        log = self.folder.path / "tensorboard"
        self.board = SummaryWriter(log, purge_step=self.step + 1) if self.leads else None

    # ---- steps ----------------------------------------------------------------------------

    def train(self) -> Path:
        """All steps, or those until the time is up; SIGTERM pauses as `pause_minutes` does."""
        config, saved = self.config, time.monotonic()
        if self.step == 0:
            self._look()
        self.budget.started = time.monotonic()  # getting ready is not training
        with signalled() as told, ThreadPoolExecutor(1, initializer=self._at_home) as reader:
            ahead = reader.submit(self._read, self.step)
            while self.step < config.steps and not self._agree(told.is_set() or self._ended()):
                total = torch.zeros((), device=self.device)
                count = min(config.log_every, config.steps - self.step)
                for _ in range(count):
                    batch = ahead.result()
                    ahead = reader.submit(self._read, self.step + 1)
                    total += self._update(batch)
                self._log(total / count)
                if self.step % config.look_every == 0:
                    self._look()
                if self._agree(time.monotonic() - saved > 60 * config.save_minutes):
                    self._save()
                    saved = time.monotonic()
        self._save()
        if self.step % config.look_every:
            self._look()
        if self.board is not None:
            self.board.close()
        self.accelerator.end_training()
        return self.file

    def _at_home(self) -> None:
        """A new thread is at the first GPU, whichever its process has."""
        if self.device.type == "cuda" and self.device.index is not None:
            torch.cuda.set_device(self.device)

    def _read(self, step: int) -> dict[str, Tensor]:
        held, samples = self.config.held, self.learner.samples(step)
        chosen = order(self.config.seed, len(self.cache) - held, samples[0], len(samples))
        return self.cache.batch([held + k for k in chosen], self.device)

    def _update(self, batch: dict[str, Tensor]) -> Tensor:
        """One step; its loss on this process."""
        config = self.config
        self.rate = config.rate * learning_rate(
            self._fraction(), self.step, config.warmup, config.decay_from
        )
        loss = self.learner.update(batch, self.step, self.rate)
        self.step += 1
        return loss

    def _ended(self) -> bool:
        """Whether the time of the run, or of this process, is up."""
        return self.budget.ended(self.began, self.config.pause_minutes)

    def _fraction(self) -> float:
        """How much of the run is over."""
        if self.config.decay_from >= 1:
            return 0.0
        by_steps = self.step / self.config.steps
        if math.isinf(self.config.minutes):
            return by_steps
        return max(by_steps, self._share(self.budget.fraction))

    # ---- what is written ------------------------------------------------------------------

    def _log(self, loss: Tensor) -> None:
        mean = self._mean(loss)
        facts = {name: self._mean(value) for name, value in self.learner.facts.items()}
        if not math.isfinite(mean):
            raise DreamActorError(
                f"{self.folder.path}: the loss is {mean} at step {self.step}; "
                f"want a lower rate than {self.config.rate:g}"
            )
        if self.board is None:
            return
        seconds = round(self.budget.elapsed, 1)
        values = {"loss": mean, "rate": self.rate, **facts}
        self.folder.log(step=self.step, seconds=seconds, **values)
        for name, value in values.items():
            self.board.add_scalar(name, value, self.step)
        print(f"step {self.step} {seconds:.0f} s loss {mean:.4f}", file=sys.stderr)  # noqa: T201

    def _look(self) -> None:
        """Write the averaged weights, and what they make of the held examples."""
        own = {name: p.detach().clone() for name, p in self.params.items()}
        self.learner.wear(self.average)
        # every other one first: neighbours are often twins, and the next one's driver is swapped in
        held = sorted(range(self.config.held), key=lambda k: (k % 2, k))
        batch = self.cache.batch(held, self.device)
        drawn = draw(self.config, batch["target"], [BEFORE - k for k in range(self.config.held)])
        drawn = replace(drawn, continued=torch.zeros_like(drawn.continued))
        self.model.eval()
        sheet = None
        with torch.compiler.set_stance("force_eager"):
            if self.preview is None:
                ask = partial(self.trainee.predict, self.model)
                found = held_numbers(ask, batch, drawn, self.config.motion, self.trainee.levels)
            else:
                found = self.preview.numbers(batch, drawn)
                sheet = to_picture(self.preview.sheet(batch, drawn))
        self.model.train()
        self.learner.wear(own)
        weights = {name: whole(value) for name, value in self.average.items()}
        if self.board is None:
            return
        numbers = {name: round(float(value), 4) for name, value in found.items()}
        trained = sum(p.numel() for p in self.params.values())
        self.folder.log(step=self.step, trained=trained, **numbers)
        for name, value in numbers.items():
            self.board.add_scalar(f"held/{name}", value, self.step)
        if sheet is not None:
            write_png(self.folder.path / "samples" / f"{self.step:06d}.png", sheet)
            self.board.add_image("held", sheet, self.step, dataformats="HWC")
        self._write(weights)

    @property
    def file(self) -> Path:
        """The weights that a run is for."""
        kind = "transformer" if self.info is None else "adapter"
        return self.folder.path / f"{kind}.safetensors"

    def _write(self, weights: dict[str, Tensor]) -> None:
        if self.info is None:
            cache = self.cache.header
            header: dict[str, object] = {"task": "animate", "variant": cache.task}
            header |= {"lead": cache.lead, "steps": self.step, "motion": self.config.motion}
            header["attention"] = mode_of(self.trainee.transformer)
            header["sampling"] = self.config.sampling  # not that of the weights before
            save_weights(self.file, weights, {**self.trainee.header, **header})
            return
        state = adapter_state(self.trainee.transformer, weights)
        save_adapter(self.file, state, self.info, self.trainee.part)

    def _save(self) -> None:
        state = read_out(*self.learner.changing)
        facts = {"step": self.step, "seconds": self.budget.elapsed}
        if self.leads:
            save_state(self.folder.state, state, facts)

    # ---- processes ------------------------------------------------------------------------

    def _share(self, value: float) -> float:
        """Process 0's number, for all: clocks differ, and steps must not."""
        if self.accelerator.num_processes == 1:
            return value
        shared: Tensor = broadcast(torch.tensor([value], device=self.device, dtype=torch.float64))
        return float(shared.item())

    def _mean(self, value: Tensor) -> float:
        """Over all processes, of one number each."""
        return float(self.accelerator.reduce(whole(value).to(self.device), "mean"))

    def _agree(self, flag: bool) -> bool:
        return bool(self._share(float(flag)))

    def _network(self, x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        """The network as `training.preview` asks it."""
        channels = self.trainee.grid.channels
        noisy, mask, latents = x.split((channels, x.shape[1] - 2 * channels, channels), dim=1)
        cond = Cond(latents, mask, text)
        return self.trainee.predict(self.model, noisy, sigma, cond).float()
