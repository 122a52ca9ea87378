"""What a stage of the recipe is: its settings, the network that it starts from, what a step sees.

Legend: B examples of a step, C latent channels, F latent frames, h x w cells of one half.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, cast

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from dreamactor.backbones.base import Cond, Trainee
from dreamactor.backbones.catalogue import CATALOGUE, Expert, Injection, Mode
from dreamactor.backbones.incontext import mode_of, set_mode
from dreamactor.backbones.injection import BESIDE, INJECTS
from dreamactor.backbones.load import Variant, check_backbone
from dreamactor.backbones.lora import AdapterInfo, Sampling, attach, load_adapter, read_info
from dreamactor.backbones.nano import DATA
from dreamactor.diffusion.flow import MotionHalf, sample_sigma
from dreamactor.errors import ConfigError
from dreamactor.provenance import sha256
from dreamactor.runs import generator, seed_of
from dreamactor.training.cache import Cache, CacheHeader
from dreamactor.training.examples import Draws, check_motion

UNSAID: dict[str, object] = {
    "task": "animate", "variant": "rgb", "lead": None, "motion": "clean", "attention": "full",
    "placed": False,
}  # fmt: skip
"""What weights of nano were trained for where their header does not say."""


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Settings of one run. Defaults are the paper's where it has any; docs/recipe.md has nano's."""

    cache: Path
    """Examples (`dreamactor train cache`)."""
    base: Path
    """Weights of the transformer that stays frozen: a file of nano's; of a large backbone the
    folder of all its weights, or its hub id."""
    start: Path | None = None
    """Adapter to start from; None = one that changes nothing yet."""
    backbone: str = "nano"
    """Whose transformer learns (`dreamactor backbones`)."""
    expert: Expert | None = None
    """Of a backbone of two transformers the one that learns, at its own noise levels."""
    targets: Literal["ff", "attention", "full"] = "ff"
    """ff (the paper), attention, or full: no adapter, every weight learns."""
    attention: Mode | None = None
    """Who sees whom on the canvas (`backbones.incontext`). None takes that of `start`; without,
    one-way-aligned, whose steps cost a third (docs/fast.md), or full, which is the paper's, where a
    backbone has no other, motion is not clean or the driver does not come in by the canvas."""
    injection: Injection = "canvas"
    """How the driver comes in (`backbones.injection`): the canvas, which is the paper's, or one of
    the ways that it is compared with, on nano. That of `start` has to be the same."""
    keeps_mode: ClassVar[bool] = False
    """Whether weights that are not told otherwise go on in the mode that they are in."""
    sampling: ClassVar[Sampling | None] = None
    """Steps and shift of the only schedule that the result is for."""
    rank: int = 256
    """Of the low-rank layers."""
    steps: int = 50_000
    """Updates of the weights."""
    minutes: float = math.inf
    """Stop after so many minutes, if that comes before all steps."""
    pause_minutes: float = math.inf
    """This process stops so many minutes after it began, to be resumed by the same command."""
    batch: int = 2
    """Examples a step, over all processes."""
    at_once: int | None = None
    """Of them those that one process has in memory at once; the others of its share follow, and
    their gradients add up. None takes all of nano's, and one of a large backbone's."""
    rate: float = 5e-5
    """Highest learning rate."""
    weight_decay: float = 0.01
    """AdamW's."""
    warmup: int = 100
    """Steps in which the rate rises; the paper does not say."""
    decay_from: float = 1.0
    """Share of the run from which on the rate falls to 0; 1 = constant. Where the run ends by
    minutes it falls by the clock, and then only another clock could repeat it exactly."""
    average: float = 0.998
    """Decay of the average of the weights, which is what is written."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    motion: MotionHalf = "clean"
    """What noise and loss do to the motion half (`diffusion.flow.MotionHalf`)."""
    shift: float = 6.0
    """Of the noise levels (`diffusion.flow.shifted`)."""
    pure: float = 0.3
    """Share of examples that are all noise."""
    continued: float = 0.0
    """Share of examples that show four generated frames besides the reference, as the second
    segment of a long clip does."""
    continued_noise: float = 0.15
    """Most noise on those frames."""
    no_text: float = 0.1
    """Share of examples without text, for guidance on text."""
    subject_weight: float = 3.0
    """Extra weight of cells that the subject covers, where the cache knows it."""
    precision: Literal["bf16", "float32"] = "bf16"
    """On a GPU; a CPU always takes float32."""
    checkpoint: bool = True
    """Compute activations twice rather than keep them."""
    compile: bool = False
    """Compile the transformer's blocks; the first step pays for it."""
    held: int = 6
    """Examples at the start of the cache that are not trained on, for sheets and their numbers;
    an even number, 4 or more, for one's driver is swapped for another's."""
    vae: Path = DATA / "vae.safetensors"
    """nano's autoencoder, that of the cache, for sheets."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    look_every: int = 1000
    """Steps between sheets of samples, at which weights are written too."""
    save_minutes: float = 2.0
    """Minutes between states; the same command goes on from the last one."""
    seed: int = 0
    """Of the adapter's first weights, the order of examples and all draws."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "log_every", "look_every", "warmup", "held", "rank"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: want 1 or more")
        if self.at_once is not None and self.at_once < 1:
            raise ConfigError(f"at_once={self.at_once}: want 1 or more")
        for name in ("decay_from", "average", "pure", "continued", "no_text"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)}: want 0 to 1")
        if self.look_every % self.log_every:
            near = max(1, round(self.look_every / self.log_every)) * self.log_every
            raise ConfigError(
                f"look_every={self.look_every}: want a multiple of log_every={self.log_every}, "
                f"nearest is {near}"
            )
        if self.targets == "full" and self.start is not None:
            raise ConfigError("targets=full has no adapter: want base=FILE to start from, no start")
        if self.injection != "canvas":
            _check_injection(self)


def _check_injection(config: AdaptConfig) -> None:
    """Refuse what does not go with another way than the canvas.

    Raises:
        ConfigError: Names it, and what does.
    """
    known: dict[str, tuple[str | None, ...]] = {
        "backbone": INJECTS, "motion": ("clean",), "targets": ("ff", "attention"),
    }  # fmt: skip
    if config.injection not in BESIDE:
        known["attention"] = ("full", None)
    for name, words in known.items():
        if (value := getattr(config, name)) not in words:
            raise ConfigError(
                f"injection={config.injection} {name}={value}: want {name}={words[0]}, or "
                "injection=canvas"
            )


@dataclass(frozen=True, kw_only=True)
class RgbConfig(AdaptConfig):
    """Settings of the second stage, which has to say where it starts."""

    start: Path | None = field()
    """The pose stage's adapter; start=none to go without."""


def share_of(config: AdaptConfig, processes: int) -> tuple[int, int]:
    """Examples of a step that each process has, and how many of them at once.

    Raises:
        ConfigError: They cannot be shared out evenly.
    """
    if config.batch % processes:
        near = -(-config.batch // processes) * processes
        raise ConfigError(
            f"batch={config.batch} over {processes} processes: want a multiple, such as {near}"
        )
    mine = config.batch // processes
    at_once = config.at_once or (1 if CATALOGUE[check_backbone(config.backbone)].hub else mine)
    if mine % min(at_once, mine):
        raise ConfigError(
            f"at_once={at_once}: each of {processes} processes has {mine} examples a step; want "
            "a part of that"
        )
    return mine, min(at_once, mine)


def check_fit(config: AdaptConfig, variant: Variant, cache: Cache, trainee: Trainee) -> None:
    """Refuse examples of another stage, backbone or autoencoder, and what a backbone cannot do.

    Raises:
        ConfigError: Says what they are and what was wanted.
    """
    entry = CATALOGUE[trainee.name]
    if entry.hub and config.targets == "full":
        raise ConfigError(f"targets=full: only nano; {trainee.name} wants targets=ff")
    if entry.hub and config.precision != "bf16":
        raise ConfigError(f"precision={config.precision}: {trainee.name} wants bf16")
    if entry.encodes_hidden and config.continued:
        raise ConfigError(
            f"continued={config.continued}: {trainee.name} hides pixels before its autoencoder, "
            "and a cache does not hold them; want continued=0"
        )
    header, where = cache.header, config.cache
    if header.task != variant:
        raise ConfigError(f"{where}: examples of {header.task}, want {variant}")
    if header.backbone != trainee.name or cache.shape[0] != trainee.grid.channels:
        raise ConfigError(
            f"{where}: latents of {header.backbone} with {cache.shape[0]} channels, "
            f"want {trainee.name}'s {trainee.grid.channels}"
        )
    given = f"base={config.base}" if trainee.vae else f"vae={config.vae}"
    if (found := trainee.vae or sha256(config.vae)) != header.vae:
        raise ConfigError(
            f"{given}: autoencoder of sha256 {found[:12]}..., the cache was made with "
            f"{header.vae[:12]}...; name that one"
        )
    whole, known = config.targets == "full", trainee.header
    needs = bool(known.get("placed")) and whole and variant == "rgb"
    if needs != (has := cache.placed):
        words = {True: "brought to the subject first", False: "where they were shot"}
        raise ConfigError(
            f"{where}: its drivers stand {words[has]}, those of the weights {words[needs]}; want "
            f"a cache made with placed={str(needs).lower()}"
        )
    if whole and config.sampling is not None:
        driven = {"task": "animate", "variant": variant, "lead": header.lead}
        for name, wanted in driven.items():
            if (have := known.get(name, UNSAID[name])) != wanted:
                raise ConfigError(
                    f"base={config.base}: its {name} is {have}, the cache's {wanted}; want weights "
                    "that were trained on such a cache"
                )
    if len(cache) <= config.held:
        raise ConfigError(f"{where}: {len(cache)} examples, want more than held={config.held}")


def mode_for(config: AdaptConfig, trainee: Trainee) -> Mode:
    """The mode of attention of a run.

    Raises:
        ConfigError: The backbone or the motion half cannot have the one that is asked for.
        WeightsError: The adapter to start from is damaged.
    """
    if config.injection not in BESIDE:
        return "full"
    able = CATALOGUE[trainee.name].modes
    wanted = config.attention
    if wanted is None and config.start is not None:
        wanted = read_info(config.start).attention
    if wanted is None and config.keeps_mode:
        wanted = trainee.header.get("attention", "full")
    if wanted is None:
        aligned = "one-way-aligned" in able and config.motion == "clean"
        return "one-way-aligned" if aligned else "full"
    if wanted not in able:
        raise ConfigError(f"attention={wanted}: {trainee.name} has only {', '.join(able)}")
    check_motion(wanted, config.motion)
    return wanted


def check_shards(mode: Mode, sharded: bool) -> None:
    """Refuse to shard what FSDP2 cannot.

    Raises:
        ConfigError: A one-way mode: a block is called twice a pass and called back twice, and FSDP2
            frees its weights after the first.
    """
    if sharded and mode != "full":
        raise ConfigError(
            f"attention {mode}: cannot be sharded; want full, or whole copies "
            "(configs/accelerate/ddp.yaml)"
        )


def in_mode(trainee: Trainee, mode: Mode, silence: Tensor | None = None) -> Trainee:
    """A trainee that attends in a mode.

    Args:
        trainee: Its transformer is changed in place.
        mode: Of attention.
        silence: (L, D) of the empty prompt; None = zeros.

    Returns:
        One whose predictions of what is given, in a one-way mode, are what is given.
    """
    if isinstance(trainee.transformer, WanTransformer3DModel):
        set_mode(trainee.transformer, mode)
    if mode == "full":
        return trainee

    def predict(transformer: nn.Module, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        quiet = None if silence is None else silence.unsqueeze(0).to(x)
        ask = cast(nn.Module, partial(transformer, silence=quiet))
        found, half = trainee.predict(ask, x, sigma, cond), x.shape[-1] // 2
        given = cond.latents.to(found)
        target = torch.cat([given[:, :, :1, :, :half], found[:, :, 1:, :, :half]], dim=2)
        return torch.cat([target, given[..., half:]], dim=-1)

    return replace(trainee, predict=predict)


def prepare(
    trainee: Trainee, config: AdaptConfig, header: CacheHeader, digest: str
) -> AdapterInfo | None:
    """Freeze the transformer and attach a fresh or known adapter; None with targets=full.

    Args:
        trainee: The network; changed in place.
        config: Of the run.
        header: Of the cache: what drives, and from which frame on.
        digest: Hash of the settings, for the adapter's header.

    Raises:
        ConfigError: The adapter to start from has another rank or place.
        WeightsError: It belongs to another backbone, or is damaged.
    """
    transformer = trainee.transformer
    if config.targets == "full":
        transformer.requires_grad_(True)
        return None
    info = AdapterInfo(
        header.task,
        trainee.name,
        trainee.weights,
        config.rank,
        config.targets,
        config=digest,
        lead=header.lead,
        attention=mode_of(transformer),
        injection=config.injection,
        sampling=config.sampling,
    )
    if config.start is None:
        torch.manual_seed(config.seed)  # the same in every process
        attach(transformer, info)
        return info
    found = load_adapter(transformer, config.start, trainee.name, trainee.weights, trainee.part)
    same: tuple[str, ...] = ("rank", "targets", "attention", "injection")
    if config.sampling is not None:  # the second stage may start from what skeletons drive
        same += ("variant", "lead")
    if differs := [name for name in same if getattr(found, name) != getattr(info, name)]:
        old, new = (" ".join(f"{n}={getattr(i, n)}" for n in differs) for i in (found, info))
        raise ConfigError(f"{config.start}: {old}, here {new}; want the same")
    return info


def order(seed: int, examples: int, first: int, count: int) -> list[int]:
    """Which examples the samples first, first + 1, ... are: each once, then each once again.

    Args:
        seed: Of the run.
        examples: How many there are.
        first: Number of a sample, counted from the start of the run.
        count: How many samples.
    """
    places = range(first, first + count)
    tables = {
        epoch: torch.randperm(examples, generator=generator(seed, "order", epoch)).tolist()
        for epoch in {k // examples for k in places}
    }
    return [tables[k // examples][k % examples] for k in places]


def draw(
    config: AdaptConfig,
    target: Tensor,
    samples: list[int],
    levels: tuple[float, float] = (0.0, 1.0),
    key: str = "adapt",
) -> Draws:
    """The randomness of some samples, each from its number alone.

    Args:
        config: Of the run.
        target: (B, C, F, h, w) latents; noise is made where they are.
        samples: Their numbers.
        levels: Noise levels that the network is asked at (`Trainee.levels`).
        key: Another one draws independently.
    """
    rows, pure = [], config.pure if levels[1] == 1 else 0.0
    for sample, latents in zip(samples, target, strict=True):
        small = generator(config.seed, key, sample)
        large = torch.Generator(target.device)
        large.manual_seed(seed_of(config.seed, f"{key}/noise", sample))
        channels, _, height, width = latents.shape
        u = torch.rand(4, generator=small)
        level = sample_sigma(torch.randn(1, generator=small), config.shift, levels)[0]
        noise = torch.randn((*latents.shape[:-1], 2 * width), generator=large, device=target.device)
        past = torch.randn((channels, height, width), generator=large, device=target.device)
        rows.append((noise, torch.where(u[0] < pure, 1.0, level), past, u))
    noise, sigma, past, u = (
        torch.stack(column).to(target.device) for column in zip(*rows, strict=True)
    )
    return Draws(
        noise=noise,
        sigma=sigma,
        continued=(u[:, 1] < config.continued) & (target.shape[2] > 2),
        jitter=u[:, 2].square() * config.continued_noise,
        jitter_noise=past,
        silent=u[:, 3] < config.no_text,
    )
