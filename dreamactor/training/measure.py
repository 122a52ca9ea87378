"""`dreamactor bench training`: what a step of the recipe costs, with random weights.

The step is the trainer's own (`training.learner`): an adapter on frozen feed-forward layers,
accelerate, AdamW, clipping, averages. In the cache's place come random latents and text, made
before the clock starts; in the weights' place random ones, made where they run, by every process
by itself. Started by accelerate or torchrun it measures several processes, whole copies (DDP) or
shards (FSDP2).

A folder collects rows of any settings and numbers of processes:

    results.jsonl   a row a line: settings, machine, versions, seconds, losses
    report.md       tables of all of them

A row that is there is not measured again, unless it failed.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from dreamactor import __version__
from dreamactor.backbones.catalogue import CATALOGUE, GIB, Mode
from dreamactor.backbones.shapes import Size, nearest_of
from dreamactor.bench.kernels import ceiling, seconds
from dreamactor.bench.settings import open_folder
from dreamactor.bench.speed import FULL
from dreamactor.bench.timing import hardware
from dreamactor.config import check_least
from dreamactor.errors import ConfigError, DreamActorError
from dreamactor.runs import generator
from dreamactor.training.cache import CacheHeader
from dreamactor.training.learner import Learner
from dreamactor.training.measure_report import Row, add, read
from dreamactor.training.plan import adapter_size, memory, step_seconds, tokens_of
from dreamactor.training.shapes import RANDOM, SHAPES, Shape
from dreamactor.training.stage import AdaptConfig, check_shards, prepare, share_of

NOWHERE = Path("random")


@dataclass(frozen=True)
class TrainingBenchConfig:
    """Settings of one `bench training`: one row."""

    shape: str = "wan-14b"
    """Of the transformer: wan-14b, wan-1.3b, nano, hunyuan-1.5, tiny or tiny-hunyuan."""
    layers: int = 0
    """Blocks, to try it in short; 0 = those of the shape."""
    size: str = "832x480x49"
    """WIDTHxHEIGHTxFRAMES of one half."""
    rank: int = 256
    """Of the adapter, on feed-forward layers."""
    mode: Mode = "full"
    """Of attention (`backbones.incontext`); hunyuan-1.5 has only full."""
    batch: int = 1
    """Examples a step, over all processes."""
    at_once: int = 1
    """Of its share, those that a process has in memory at once."""
    steps: int = 4
    """That are timed; the median counts."""
    warmup: int = 1
    """Steps before them. Their losses are kept too."""
    checkpoint: bool = True
    """Compute activations twice rather than keep them."""
    compile: bool = False
    """Compile each block; the first step pays for it."""
    precision: Literal["bf16", "float32"] = "bf16"
    """On a GPU, of frozen weights and of what is computed; the adapter is float32 always, and so
    is all of it on a CPU."""
    rate: float = 5e-5
    """Of learning, the same in all steps."""
    seed: int = 0
    """Of weights, latents and noise."""
    device: Literal["cuda", "cpu"] = "cuda"
    """Which GPU a process has is said by what starts it."""

    def __post_init__(self) -> None:
        """Check every value by itself.

        Raises:
            ConfigError: One that cannot work.
        """
        if self.shape not in SHAPES:
            raise ConfigError(nearest_of("shape", self.shape, SHAPES))
        able = CATALOGUE[self.built.backbone].modes
        if self.mode not in able:
            raise ConfigError(f"mode={self.mode}: {self.shape} has only {', '.join(able)}")
        least = dict.fromkeys(("rank", "batch", "at_once", "steps"), 1)
        check_least(self, {"layers": 0, "warmup": 0, "rate": 0, **least})
        _ = self.canvas

    @cached_property
    def built(self) -> Shape:
        """What is built."""
        found = SHAPES[self.shape]
        layers = self.layers or found.network.layers
        return replace(found, network=replace(found.network, layers=layers))

    @cached_property
    def canvas(self) -> Size:
        """`size`, of one half."""
        return Size.parse(self.size)

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of frozen weights."""
        half = self.device == "cuda" and self.precision == "bf16"
        return torch.bfloat16 if half else torch.float32

    @property
    def recipe(self) -> AdaptConfig:
        """The same for the trainer."""
        same = ("rank", "batch", "at_once", "checkpoint", "compile", "precision", "rate", "seed")
        return AdaptConfig(
            cache=NOWHERE,
            base=NOWHERE,
            backbone=self.built.backbone,
            attention=self.mode,
            **{name: getattr(self, name) for name in same},
        )

    @property
    def command(self) -> str:
        """What repeats it."""
        words = ["bench training --out FOLDER"]
        for f in fields(self):
            value = getattr(self, f.name)
            if value != f.default:
                words.append(f"{f.name}={str(value).lower() if f.type == 'bool' else value}")
        return " ".join(words)


def bench_training(out: Path, config: TrainingBenchConfig) -> Path:
    """Measure a row, unless it is there, and write the report of all rows.

    Called in every process that accelerate or torchrun started.

    Args:
        out: Folder of the rows.
        config: Settings.

    Returns:
        The report.

    Raises:
        ConfigError: There is no such device, the batch cannot be shared out, a one-way mode
            cannot be sharded, or the folder holds something else.
        DreamActorError: Of several processes this one ran out of memory. The row says so.
    """
    on_cpu = config.device == "cpu"
    if not on_cpu and not torch.cuda.is_available():
        raise ConfigError("device=cuda: torch sees no CUDA device here; want cpu")
    precision = "bf16" if config.torch_dtype == torch.bfloat16 else "no"
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=precision)
    share_of(config.recipe, accelerator.num_processes)
    check_shards(config.mode, accelerator.is_fsdp2)
    row = _foreseen(config, accelerator)
    known = read(open_folder(out))
    accelerator.wait_for_everyone()  # nobody adds to the file before all have read it
    if not any(other.key == row.key and not other.failed for other in known):
        row = _attempt(config, accelerator, row)
        if accelerator.is_main_process or row.failed:
            add(out, row)
        if row.failed and accelerator.num_processes > 1:  # the others would wait for this one
            raise DreamActorError(f"process {accelerator.process_index}: {row.failed}")
    elif accelerator.is_main_process:
        add(out, None)
    accelerator.end_training()
    return out / "report.md"


def _foreseen(config: TrainingBenchConfig, accelerator: Accelerator) -> Row:
    """A row before anything was measured: what it is, its operations, and what was predicted."""
    built, size, processes = config.built, config.canvas, accelerator.num_processes
    half = config.torch_dtype == torch.bfloat16

    def count(checkpoint: bool) -> int:
        return config.batch * built.flops(size, config.mode, config.rank, checkpoint)

    row = Row(
        {**asdict(config), "precision": "bf16" if half else "float32"},
        config.command,
        processes,
        bool(accelerator.is_fsdp2),
        hardware(config.device),
        {
            "dreamactor": __version__,
            "torch": str(torch.__version__),
            "cuda": torch.version.cuda or "",
            **{name: version(name) for name in ("accelerate", "peft", "diffusers")},
        },
        flops=count(config.checkpoint),
        flops_once=count(False),
    )
    entry = CATALOGUE[built.backbone]
    if built.network.shape != entry.shape:
        return row  # nothing was measured to predict these from
    mine, at_once = share_of(config.recipe, processes)
    tokens = tokens_of(size.frames, size.height, size.width)
    took = step_seconds(entry, config.recipe, tokens, mine)
    shards = processes if row.sharded else 1
    return replace(
        row,
        foreseen=0.0 if took is None else took,
        peak_foreseen=memory(entry, config.recipe, tokens, at_once, shards).total * GIB,
        trained=adapter_size(entry.shape, config.rank, "ff"),
    )


def _attempt(config: TrainingBenchConfig, accelerator: Accelerator, row: Row) -> Row:
    """The row with what was measured; where memory runs out, with that."""
    try:
        return _measure(config, accelerator, row)
    except RuntimeError as error:
        said = " ".join(str(error).split())
        if not any(words in said for words in FULL):
            raise
        return replace(row, failed=said.partition(" GPU ")[0][:160])


def _measure(config: TrainingBenchConfig, accelerator: Accelerator, row: Row) -> Row:
    device = accelerator.device
    on_gpu = device.type == "cuda"
    at_best = ceiling(device, config.torch_dtype)
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
    learner = learner_of(config, accelerator)
    learner.model.train()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    taken, losses = [], []
    turns = tqdm(
        range(config.warmup + config.steps),
        unit="step",
        disable=None if accelerator.is_main_process else True,
        leave=False,
    )
    for step in turns:
        batch = examples(config.built, config.canvas, config.seed, learner.samples(step))

        def update(batch: dict[str, Tensor] = batch, step: int = step) -> None:
            losses.append(learner.update(batch, step, config.rate))

        taken.append(seconds(update, device))
    peak, held = 0, 0
    if on_gpu:
        peak = torch.cuda.max_memory_allocated(device)
        held = torch.cuda.max_memory_reserved(device)
    means = [float(accelerator.reduce(loss, "mean")) for loss in losses]
    if not all(map(math.isfinite, means)):
        raise DreamActorError(f"losses are {means}; want a lower rate than {config.rate:g}")
    everyone = gather_object([(taken, peak, held, at_best)])
    times, peaks, reserved, ceilings = zip(*everyone, strict=True)
    return replace(
        row,
        seconds=[max(turn) for turn in zip(*times, strict=True)][config.warmup :],
        losses=means,
        peak=max(peaks),
        reserved=max(reserved),
        ceiling=sum(ceilings) / len(ceilings),
        trained=row.trained or sum(p.numel() for p in learner.params.values()),
    )


def learner_of(config: TrainingBenchConfig, accelerator: Accelerator) -> Learner:
    """The trainer's own, of a transformer with random weights."""
    torch.manual_seed(config.seed)  # the same in every process
    trainee = config.built.trainee(config.mode, accelerator.device, config.torch_dtype)
    header = CacheHeader("rgb", trainee.name, RANDOM, 16.0, {})
    prepare(trainee, config.recipe, header, "")
    return Learner(trainee, config.recipe, accelerator)


def examples(shape: Shape, size: Size, seed: int, samples: Sequence[int]) -> dict[str, Tensor]:
    """In the place of `Cache.batch`: random, each from its number alone, float32 on the CPU.

    Args:
        shape: Whose; it says what an example has.
        size: Of a half.
        seed: Of the run.
        samples: Their numbers.
    """
    rows = [shape.example(size, generator(seed, "bench training", sample)) for sample in samples]
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return batch | {"subject": torch.ones_like(batch["target"][:, :1])}
