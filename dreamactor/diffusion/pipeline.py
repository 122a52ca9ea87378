"""animate(): the whole inference path, top to bottom.

    driving clip -> frames at the backbone's rate -> segments -> canvas -> latents
        -> Euler steps -> frames -> the output's rate -> clip and record

Everything streams: besides one picture there are never more than a segment's frames in memory.

Legend: B = 1 clip, T frames of a segment (the reference included), F its latent frames, H x W
pixels of one half, h x w latent cells of one half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, Required, TypedDict, Unpack

import torch
from torch import Tensor
from tqdm import tqdm

from dreamactor import provenance
from dreamactor.backbones.base import Backbone, Cond
from dreamactor.backbones.load import load_backbone
from dreamactor.conditioning.canvas import build_canvas, motion_half, reference_half
from dreamactor.conditioning.framing import fit_soft, to_half, to_picture
from dreamactor.diffusion.flow import schedule
from dreamactor.diffusion.job import AnimateConfig, Fit, Job, describe, prepare
from dreamactor.diffusion.sampler import Velocity, beside, guided, sample_euler
from dreamactor.diffusion.segments import Segment, plan
from dreamactor.image import Box, Rgb
from dreamactor.interpolate import Interpolation, at_rate, frames_needed
from dreamactor.mllm import Describer
from dreamactor.provenance import Stages, both_or_neither, write_record
from dreamactor.runs import generator
from dreamactor.video import ClipWriter, iter_frames, resample

BASIS = (
    "one encoding, one network pass and one decoding of a whole segment, timed just now; "
    "reading, interpolating and writing come on top"
)
Tick = Callable[[], object]
"""Called after every sampling step."""


class Settings(TypedDict, total=False):
    """Keywords of `animate`; what they mean stands in `AnimateConfig`."""

    reference: Required[str | Path]
    driving: Required[str | Path]
    out: Required[str | Path]
    weights: str | Path | None
    prompt: str | None
    describer: Describer
    steps: int | None
    guidance: float | None
    seed: int
    fit: Fit
    fps: float | None
    interpolate: Interpolation
    audio: bool
    overwrite: bool
    device: str
    threads: int


@dataclass(frozen=True)
class Result:
    """What `animate` made."""

    out: Path
    """The clip."""
    record: Path
    """Its record, JSON."""
    frames: int
    """Frames of the clip."""
    fps: Fraction
    """Frames a second."""
    size: tuple[int, int]
    """(height, width) in pixels."""
    seconds: float
    """From the check of the inputs to the finished files, loading of weights included."""
    facts: dict[str, Any]
    """What the record says."""


def animate(*, backbone: str | Backbone = "nano", **settings: Unpack[Settings]) -> Result:
    """Animate the subject of a picture with the motion of a clip.

    Args:
        backbone: Name of a model, or one that is loaded already (for many clips in a row).
        **settings: Fields of `AnimateConfig`; reference, driving and out are needed.

    Returns:
        Where the clip and its record are, and what they hold.

    Raises:
        ConfigError: A setting cannot work.
        MediaError: An input cannot be read or an output not written.
        WeightsError: The model's weights are missing or damaged.

    Example:
        >>> import dreamactor
        >>> dreamactor.animate(reference="fox.png", driving="dance.mp4", out="fox_dance.mp4")
    """
    name = backbone if isinstance(backbone, str) else "nano"
    config = AnimateConfig(backbone=name, **settings)  # type: ignore[arg-type]  # it takes str too
    return run(prepare(config), None if isinstance(backbone, str) else backbone)


def run(job: Job, backbone: Backbone | None = None) -> Result:
    """Do a checked job.

    Args:
        job: From `prepare`.
        backbone: Loaded already; None loads the one that the job names.

    Returns:
        As `animate`, which see for errors.
    """
    stages = Stages()
    with stages("describe"):
        texts = describe(job)
    with stages("load weights"):
        model = backbone or load_backbone(
            job.config.backbone, job.config.weights, job.config.device
        )
    task = resolve(job, model, texts.prompt)
    with both_or_neither(job.config.out, job.config.record) as (clip, record):
        with _quiet_torch(job.config.threads):
            frames = _written(task, model, clip, stages)
        facts = {**_facts(task, model, clip, frames, stages), "text": texts.plain()}
        write_record(record, facts)
    return Result(
        job.config.out, job.config.record, frames, job.fps, task.box.size, stages.total, facts
    )


@dataclass(frozen=True)
class Task:
    """A job with all that the backbone settles."""

    job: Job
    backbone: str
    steps: int
    guidance: float
    reference: Rgb
    """(H, W, 3) fitted into one half."""
    box: Box
    """Part of the half that shows the reference and becomes the output; even sides."""
    native_frames: int
    """Frames to generate, at the backbone's rate."""
    segments: list[Segment]
    prompt: str
    """What the result shows; empty means none, and guidance would change nothing then."""

    @property
    def silent(self) -> bool:
        """Whether there is no prompt."""
        return not self.prompt.strip()

    def plain(self) -> dict[str, Any]:
        """The resolved settings, for JSON."""
        settings = replace(
            self.job.config, steps=self.steps, guidance=self.guidance, fps=float(self.job.fps)
        )
        return {**settings.plain(), "backbone": self.backbone}


def resolve(job: Job, backbone: Backbone, prompt: str | None = None) -> Task:
    """Settle what depends on the backbone: sizes, rates, defaults and the plan.

    Args:
        job: From `prepare`.
        backbone: The model.
        prompt: From `describe`; None takes the one that was given, or none.
    """
    native, config = backbone.native, job.config
    reference, box = fit_soft(job.reference, (native.height, native.width), config.fit)
    count = frames_needed(job.count, job.fps, _rate(native.fps))
    return Task(
        job=job,
        backbone=backbone.name,
        steps=config.steps or native.steps,
        guidance=native.guidance if config.guidance is None else config.guidance,
        reference=reference,
        box=_even(box, (native.height, native.width)),
        native_frames=count,
        segments=plan(count, native, backbone.grid),
        prompt=(job.config.prompt or "") if prompt is None else prompt,
    )


def generate(task: Task, backbone: Backbone, stages: Stages, tick: Tick) -> Iterator[Rgb]:
    """The subject's frames at the backbone's rate, one by one.

    Args:
        task: What to do.
        backbone: The model.
        stages: Where times are added.
        tick: Called after every sampling step.

    Returns:
        Iterator of `task.native_frames` pictures (H, W, 3) uint8 of a half.
    """
    device, overlap = task.job.config.device, backbone.native.overlap
    reference = to_half(task.reference)[None].to(device)  # (1, 3, H, W)
    text = backbone.encode_text([task.prompt])  # (1, L, D)
    window = _Window(_driving(task, backbone, stages))
    past: Tensor | None = None  # (1, 3, overlap, H, W)
    for segment in task.segments:
        driving = window.halves(segment.driving(task.native_frames)).to(device)
        with stages("encode latents"):
            cond = backbone.encode(build_canvas(reference, driving, backbone.grid, past), text)
        with stages("denoise"):
            latents = denoise(task, segment, backbone, cond, tick)
        with stages("decode latents"):
            clip = backbone.decode(latents)  # (1, 3, T, H, W)
        kept = clip[:, :, 1 + segment.shown : 1 + segment.shown + segment.new]
        # the place for more care at seams: here both sides of one are at hand
        if overlap:
            past = (kept if past is None else torch.cat([past, kept], dim=2))[:, :, -overlap:]
        yield from map(to_picture, kept[0].unbind(1))


def denoise(task: Task, segment: Segment, backbone: Backbone, cond: Cond, tick: Tick) -> Tensor:
    """Latents of the reference half of one segment.

    The state is the reference half alone: the motion half of the noise channels carries the
    driver's latents at every step, as in training (`MotionHalf` "clean"). Latent frames that are
    shown are generated too, and then replaced by what was shown, so that the decoder's causal
    memory starts from it.

    Args:
        task: Steps, guidance and seed.
        segment: Its number picks the noise.
        backbone: The model.
        cond: The encoded canvas.
        tick: Called after every step.

    Returns:
        (1, C, F, h, w).
    """
    known, motion = reference_half(cond.latents), motion_half(cond.latents)  # (1, C, F, h, w)
    draws = generator(task.job.config.seed, "noise/segment", segment.index)
    noise = torch.randn(known.shape, generator=draws).to(known)

    def toward(cond: Cond) -> Velocity:
        return beside(lambda x, sigma: backbone.velocity(x, sigma, cond), motion)

    said, unsaid = toward(cond), toward(replace(cond, text=torch.zeros_like(cond.text)))
    velocity = guided(said, unsaid, 1.0 if task.silent else task.guidance)

    def counted(x: Tensor, sigma: Tensor) -> Tensor:
        predicted = velocity(x, sigma)
        tick()
        return predicted

    latents = sample_euler(counted, noise, schedule(task.steps, backbone.native.shift))
    shown = backbone.grid.frames(1 + segment.shown)
    return torch.cat([known[:, :, :shown], latents[:, :, shown:]], dim=2)


class _Window:
    """The driving frames around one segment, fitted; older ones are let go."""

    def __init__(self, frames: Iterator[Rgb]) -> None:
        self._frames = frames
        self._halves: dict[int, Tensor] = {}
        self._next = 0

    def halves(self, numbers: list[int]) -> Tensor:
        """(1, 3, T, H, W) of these frames; numbers never go back by more than one segment."""
        self._halves = {k: half for k, half in self._halves.items() if k >= min(numbers)}
        while self._next <= max(numbers):
            self._halves[self._next] = to_half(next(self._frames))
            self._next += 1
        return torch.stack([self._halves[k] for k in numbers], dim=1)[None]


def _driving(task: Task, backbone: Backbone, stages: Stages) -> Iterator[Rgb]:
    """Driving frames at the backbone's rate, fitted into a half."""
    native, config = backbone.native, task.job.config
    rate = _rate(native.fps)
    with stages("decode"):
        timed = iter_frames(config.driving)
        frames = resample(timed, rate, float(task.native_frames / rate))
    while True:
        with stages("decode"):
            frame = next(frames, None)
            if frame is None:
                return
            fitted, _ = fit_soft(frame, (native.height, native.width), config.fit)
        yield fitted


def _written(task: Task, backbone: Backbone, path: Path, stages: Stages) -> int:
    """Generate and write the clip; the number of frames."""
    job, config = task.job, task.job.config
    writer = ClipWriter(
        path, job.fps, task.box.size, audio_from=config.driving if config.audio else None
    )
    total = task.steps * len(task.segments)
    with tqdm(total=total, unit="step", disable=None, leave=False) as bar, writer:
        native = generate(task, backbone, stages, bar.update)
        cut = (task.box.cut(frame) for frame in native)
        rate = _rate(backbone.native.fps)
        frames = at_rate(cut, rate, job.fps, job.count, config.interpolate)
        while True:
            with stages("interpolate"):
                frame = next(frames, None)
            if frame is None:
                break
            with stages("write"):
                writer.write(frame)
    return writer.frames


def preview(job: Job, backbone: Backbone | None = None) -> dict[str, Any]:
    """What would be done and about how long it would take; writes nothing.

    The estimate rests on one encoding, one network pass and one decoding of a whole segment,
    timed here and now; reading, interpolating and writing come on top.
    """
    backbone = backbone or load_backbone(job.config.backbone, job.config.weights, job.config.device)
    task = resolve(job, backbone, "described when it runs" if job.config.prompt is None else None)
    native, device = backbone.native, task.job.config.device
    stages = Stages()
    half = torch.zeros(1, 3, native.frames, native.height, native.width, device=device)
    text = backbone.encode_text([""])
    with _quiet_torch(task.job.config.threads):
        canvas = build_canvas(half[:, :, 0], half, backbone.grid)
        with stages("encode"):
            cond = backbone.encode(canvas, text)
        with stages("step"):
            x = backbone.velocity(cond.latents, torch.tensor(1.0), cond)
        with stages("decode"):
            backbone.decode(reference_half(x))
    passes = task.steps * (1 if task.silent or task.guidance == 1 else 2)
    whole = stages.seconds["encode"] + stages.seconds["decode"] + passes * stages.seconds["step"]
    share = sum(segment.frames for segment in task.segments) / native.frames
    return {
        "settings": task.plain(),
        "text": {"prompt": task.prompt, "source": job.describer},
        "output": {
            "frames": task.job.count,
            "fps": str(task.job.fps),
            "height": task.box.height,
            "width": task.box.width,
        },
        "backbone": {"name": backbone.name, "weights": backbone.weights},
        "generated_frames": task.native_frames,
        "segments": [vars(segment) for segment in task.segments],
        "estimated_seconds": round(whole * share, 1),
        "estimate_basis": BASIS,
    }


def _facts(
    task: Task, backbone: Backbone, clip: Path, frames: int, stages: Stages
) -> dict[str, Any]:
    """What the record says; see docs/conventions.md."""
    job, config = task.job, task.job.config
    seconds = {name: round(spent, 3) for name, spent in stages.seconds.items()}
    busy = sum(seconds.get(name, 0) for name in ("encode latents", "denoise", "decode latents"))
    return {
        "synthetic": True,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": task.plain(),
        "inputs": {
            "reference": {"sha256": provenance.sha256(config.reference)},
            "driving": {"sha256": provenance.sha256(config.driving)},
        },
        "backbone": {"name": backbone.name, "weights": backbone.weights},
        "output": {
            "sha256": provenance.sha256(clip),
            "frames": frames,
            "fps": str(job.fps),
            "height": task.box.height,
            "width": task.box.width,
        },
        "generated_frames": task.native_frames,
        "segments": len(task.segments),
        "seconds": {**seconds, "total": round(stages.total, 3)},
        "seconds_per_generated_frame": round(busy / task.native_frames, 4),
        "peak_memory_mib": round(provenance.peak_memory(), 1),
        "versions": provenance.versions(),
    }


@contextmanager
def _quiet_torch(threads: int) -> Iterator[None]:
    """No gradients, and a number of threads that is part of the settings."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


def _rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)


def _even(box: Box, size: tuple[int, int]) -> Box:
    """The box with even sides: the last row or column goes; of a line of pixels, two stay."""
    height, width = max(2, box.height // 2 * 2), max(2, box.width // 2 * 2)
    return Box(min(box.top, size[0] - height), min(box.left, size[1] - width), height, width)
