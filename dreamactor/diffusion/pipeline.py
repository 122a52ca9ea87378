"""animate(): the whole inference path, top to bottom.

    driving clip, or its skeleton -> frames at the backbone's rate -> segments
        -> brought to the subject's place, where the backbone wants it -> canvas
        -> latents -> Euler steps -> frames -> the output's rate -> clip and record

Everything streams: besides one picture, and the joints of a clip that drives by its skeleton,
there are never more than a segment's frames in memory.

Legend: B = 1 clip, T frames of a segment (the reference included), F its latent frames, H x W
pixels of one half, h x w latent cells of one half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, Required, TypedDict, Unpack

import torch
from torch import Tensor
from tqdm import tqdm

from dreamactor import manifest, provenance, watermark
from dreamactor.backbones.base import Backbone, Cond, identity
from dreamactor.backbones.catalogue import Cache, CacheDtype, CacheHolds, Dtype, Offload, Storage
from dreamactor.backbones.compiled import is_compiled
from dreamactor.backbones.feature_cache import Tally, check_loaded, parse, skipping
from dreamactor.backbones.load import Variant, check_variant, load_backbone
from dreamactor.backbones.parallel import ALONE, Team
from dreamactor.backbones.presets import LARGE_NAMES, Preset
from dreamactor.conditioning.canvas import build_canvas, motion_half, reference_half
from dreamactor.conditioning.framing import to_half, to_picture
from dreamactor.conditioning.guidance import Texts
from dreamactor.conditioning.placement import Placement, place_frames
from dreamactor.conditioning.pose import PoseEstimator
from dreamactor.diffusion.driving import Window, find_joints, motion_frames
from dreamactor.diffusion.flow import schedule
from dreamactor.diffusion.job import AnimateConfig, Fit, Job, describe, prepare
from dreamactor.diffusion.sampler import Velocity, beside, guided, sample_euler
from dreamactor.diffusion.seams import Seams
from dreamactor.diffusion.segments import GuardChoice, Segment, as_anchor
from dreamactor.diffusion.skeletons import skeleton
from dreamactor.diffusion.task import Task, rate_of, resolve
from dreamactor.diffusion.watch import UNWATCHED, Watch
from dreamactor.errors import ConfigError
from dreamactor.image import Rgb
from dreamactor.interpolate import Interpolation, at_rate
from dreamactor.mllm import Describer
from dreamactor.provenance import Stages, both_or_neither, write_record
from dreamactor.runs import generator
from dreamactor.video import ClipWriter

BASIS = (
    "one encoding, one network pass and one decoding of a whole segment, timed just now; "
    "reading, finding joints, interpolating and writing come on top"
)
Tick = Callable[[], object]
"""Called after every sampling step."""
Placed = Callable[[Placement | None], object]


class Settings(TypedDict, total=False):
    """Keywords of `animate`; what they mean stands in `AnimateConfig`."""

    reference: Required[str | Path]
    driving: Required[str | Path]
    out: Required[str | Path]
    weights: str | Path | None
    variant: Variant
    pose: str | None
    adapter: str | Path | None
    prompt: str | None
    negative: str
    describer: Describer
    preset: Preset | None
    steps: int | None
    guidance: float | None
    guidance_span: str
    seed: int
    fit: Fit
    guard: GuardChoice
    fps: float | None
    interpolate: Interpolation
    audio: bool
    watermark: bool
    manifest: bool
    overwrite: bool
    device: str
    dtype: Dtype
    storage: Storage
    offload: Offload | None
    compile: bool | None
    size: str | None
    frames: int | None
    lora: Sequence[str]
    cache: Cache | None
    cache_dtype: CacheDtype
    cache_holds: CacheHolds
    feature_cache: str
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
    preset = settings.get("preset")
    if preset and not isinstance(backbone, str) and backbone.name in LARGE_NAMES:
        raise ConfigError(
            f"preset={preset}: {backbone.name} is loaded already, and a preset says how; want "
            "Options given to load_backbone, and steps here"
        )
    config = AnimateConfig(backbone=name, **settings)  # type: ignore[arg-type]  # it takes str too
    return run(prepare(config), None if isinstance(backbone, str) else backbone)


def run(
    job: Job,
    backbone: Backbone | None = None,
    estimator: PoseEstimator | None = None,
    watch: Watch = UNWATCHED,
    team: Team = ALONE,
) -> Result:
    """Do a checked job.

    Args:
        job: From `prepare`.
        backbone: Loaded already; None loads the one that the job names.
        estimator: Likewise, of the pose variant.
        watch: Is told how far it is, and may end it.
        team: Of several processes this is the first; the others `assist`.

    Returns:
        As `animate`, which see for errors.
    """
    stages, track, found_by = Stages(watch.stage), None, None
    with stages("load weights"):
        model = _loaded(job, backbone, team)
    if job.config.variant == "pose":
        with stages("find joints"), _quiet_torch(job.config.threads):
            track, found_by = find_joints(job, model.native, estimator)
    with stages("describe"):
        texts = team.agree(describe(job, track))
    driver = None if track is None else skeleton(track, model)
    task = resolve(job, model, texts.prompt, driver)
    basis = _basis(task, model)
    more = () if job.config.sidecar is None else (job.config.sidecar,)
    with both_or_neither(job.config.out, job.config.record, *more) as (clip, record, *beside):
        with _quiet_torch(job.config.threads):
            marker = _marker(task, basis)
            tally = Tally()
            frames, placement = _written(task, model, clip, stages, marker, watch, tally)
        with stages("sign"):
            _sign(task, clip, beside[0] if beside else None, basis)
        facts = _facts(task, clip, frames, stages, basis)
        facts |= {"estimator": found_by, "text": texts.plain(), "placement": placement}
        if (skips := parse(job.config.feature_cache)).on:
            facts |= {"feature_cache": tally.plain(skips)}
        write_record(record, facts)
    return Result(
        job.config.out, job.config.record, frames, job.fps, task.box.size, stages.total, facts
    )


def assist(job: Job, team: Team) -> None:
    """A checked job in a process that does not lead: it samples with the first and writes nothing.

    Args:
        job: As the first has it.
        team: The processes.
    """
    model, track = _loaded(job, None, team), None
    if job.config.variant == "pose":
        with _quiet_torch(job.config.threads):
            track, _ = find_joints(job, model.native, None)
    texts: Texts = team.agree(None)
    driver = None if track is None else skeleton(track, model)
    task = resolve(job, model, texts.prompt, driver)
    with _quiet_torch(job.config.threads):
        for _ in generate(task, model, Stages(), lambda: None):
            pass


def _loaded(job: Job, backbone: Backbone | None, team: Team = ALONE) -> Backbone:
    """The backbone of a job, if it can do what is asked, spread over the processes."""
    config = job.config
    if team.count > 1:
        from dreamactor.backbones.stacking import mode_in
        from dreamactor.backbones.wan import check_spread

        mode = "full" if config.adapter is None else mode_in(config.adapter)
        check_spread(config.backbone, mode, team)  # before it is loaded, which takes minutes
    if backbone is not None and config.adapter is not None:
        raise ConfigError(
            f"adapter={config.adapter}: the backbone is loaded already; want the adapter given "
            "to load_backbone"
        )
    if backbone is not None and bool(config.compile) != is_compiled(backbone):
        is_, want = ("", "without") if is_compiled(backbone) else ("not ", "with")
        raise ConfigError(
            f"compile={str(bool(config.compile)).lower()}: the backbone is loaded already, and "
            f"{is_}compiled; want it loaded {want} Options(compile=True)"
        )
    model = backbone or load_backbone(
        config.backbone, config.weights, config.device, config.adapter, config.options
    )
    check_variant(model, config.variant)
    check_loaded(parse(config.feature_cache), model, config.steps or model.native.steps, team.count)
    if team.count > 1:
        from dreamactor.backbones.wan import Wan, spread

        assert isinstance(model, Wan)
        spread(model, team)
    return model


def generate(
    task: Task,
    backbone: Backbone,
    stages: Stages,
    tick: Tick,
    placed: Placed = lambda _: None,
    tally: Tally | None = None,
) -> Iterator[Rgb]:
    """The subject's frames at the backbone's rate, one by one, those of the lead among them.

    Args:
        task: What to do.
        backbone: The model.
        stages: Where times are added.
        tick: Called after every sampling step.
        placed: Called once, with where the driver belongs.
        tally: Counts blocks, if some are skipped.

    Returns:
        Iterator of `task.native_frames` pictures (H, W, 3) uint8 of a half.
    """
    device = task.job.config.device
    reference = to_half(task.reference)[None].to(device)  # (1, 3, H, W)
    text = backbone.encode_text([task.prompt])  # (1, L, D)
    unsaid = backbone.encode_text([task.job.config.negative]) if task.guides else text
    skips, tally = parse(task.job.config.feature_cache), tally or Tally()
    window = Window(stages.each("decode", motion_frames(task, backbone.native)))
    seams = Seams(task.guard, backbone.native.overlap)
    segments = [as_anchor(segment, task.guard) for segment in task.segments]
    for segment, following in zip(segments, [*segments[1:], None], strict=True):
        driving = window.halves(segment.driving(task.native_frames)).to(device)
        if segment.index == 0:
            with stages("place driver"):
                placement = backbone.place(reference, driving)
            placed(placement)
        if placement is not None:
            driving = place_frames(driving, placement)
        with stages("encode latents"):
            canvas = build_canvas(reference, driving, backbone.grid, seams.shown(segment))
            cond = backbone.encode(canvas, text)
        with stages("denoise"):
            other = replace(cond, text=unsaid, branch="uncond")
            with skipping(skips, backbone, task.steps, tally):
                latents = denoise(task, segment, backbone, cond, other, tick)
        del cond, other  # its context goes before the next one comes
        with stages("decode latents"):
            clip = backbone.decode(latents)  # (1, 3, T, H, W)
        yield from map(to_picture, seams.join(clip, segment, following)[0].unbind(1))


def denoise(
    task: Task, segment: Segment, backbone: Backbone, cond: Cond, uncond: Cond, tick: Tick
) -> Tensor:
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
        uncond: The same with the text that guidance leads away from.
        tick: Called after every step.

    Returns:
        (1, C, F, h, w).
    """
    known, motion = reference_half(cond.latents), motion_half(cond.latents)  # (1, C, F, h, w)
    draws = generator(task.job.config.seed, "noise/segment", segment.index)
    noise = torch.randn(known.shape, generator=draws).to(known)

    def toward(cond: Cond) -> Velocity:
        return beside(lambda x, sigma: backbone.velocity(x, sigma, cond), motion)

    sigmas = schedule(task.steps, backbone.native.shift)
    pull = task.guidance if task.guides else 1.0
    velocity = guided(toward(cond), toward(uncond), pull, sigmas[list(task.guided_steps)])

    def counted(x: Tensor, sigma: Tensor) -> Tensor:
        predicted = velocity(x, sigma)
        tick()
        return predicted

    latents = sample_euler(counted, noise, sigmas)
    shown = backbone.grid.frames(1 + segment.shown)
    return torch.cat([known[:, :, :shown], latents[:, :, shown:]], dim=2)


def _basis(task: Task, backbone: Backbone) -> dict[str, Any]:
    """What is known of the result before it is made, as the record and the manifest say it."""
    config = task.job.config
    basis = {
        "settings": task.plain(),
        "inputs": {
            "reference": {"sha256": provenance.sha256(config.reference)},
            "driving": {"sha256": provenance.sha256(config.driving)},
        },
        "backbone": identity(backbone),
        "versions": provenance.versions(),
    }
    said = provenance.identity_of({**basis, "prompt": task.prompt})
    mark = {"version": watermark.VERSION, "identity": said} if config.watermark else None
    return {**basis, "marks": {"watermark": mark, "c2pa": {"where": None, "why": "not asked for"}}}


def _marker(task: Task, basis: dict[str, Any]) -> watermark.Marker | None:
    mark = basis["marks"]["watermark"]
    return None if mark is None else watermark.Marker(mark["identity"], task.box.size)


def _sign(task: Task, clip: Path, beside: Path | None, basis: dict[str, Any]) -> None:
    """Give the clip its manifest, if one is wanted, and note what became of it."""
    if task.job.config.manifest:
        basis["marks"]["c2pa"] = manifest.sign(clip, beside, basis)


def _written(
    task: Task,
    backbone: Backbone,
    path: Path,
    stages: Stages,
    marker: watermark.Marker | None,
    watch: Watch,
    tally: Tally,
) -> tuple[int, dict[str, Any] | None]:
    """Generate, mark and write the clip; the number of frames, and where the driver was brought."""
    job, config = task.job, task.job.config
    writer = ClipWriter(
        path, job.fps, task.box.size, audio_from=config.driving if config.audio else None
    )
    total = task.steps * len(task.segments)
    found: list[Placement | None] = []
    watch.plan(total)
    with tqdm(total=total, unit="step", disable=None, leave=False) as bar, writer:

        def tick() -> None:
            bar.update()
            watch.step()

        made = generate(task, backbone, stages, tick, found.append, tally)
        native = islice(made, task.lead, None)
        cut = _seen(map(task.box.cut, native), watch)
        rate = rate_of(backbone.native)
        frames = at_rate(cut, rate, job.fps, job.count, config.interpolate)
        for frame in stages.each("interpolate", frames):
            if marker is not None:
                with stages("mark"):
                    frame = marker.mark(frame)
            with stages("write"):
                writer.write(frame)
    placement = None if found[0] is None else found[0].plain()[0]
    return writer.frames, placement


def _seen(pictures: Iterable[Rgb], watch: Watch) -> Iterator[Rgb]:
    for picture in pictures:
        watch.frame(picture)
        yield picture


def preview(job: Job, backbone: Backbone | None = None) -> dict[str, Any]:
    """What would be done and about how long it would take; writes nothing.

    The estimate rests on one encoding, one network pass and one decoding of a whole segment,
    timed here and now; reading, interpolating and writing come on top.
    """
    backbone = _loaded(job, backbone)
    task = resolve(job, backbone, "described when it runs" if job.config.prompt is None else None)
    native, device = backbone.native, task.job.config.device
    stages = Stages()
    half = torch.zeros(1, 3, native.frames, native.height, native.width, device=device)
    text = backbone.encode_text([""])
    with _quiet_torch(task.job.config.threads):
        canvas = build_canvas(half[:, :, 0], half, backbone.grid)
        if task.job.config.compile:
            with stages("compile"):
                cond = backbone.encode(canvas, text)
                backbone.velocity(cond.latents, torch.tensor(1.0), cond)
        with stages("encode"):
            cond = backbone.encode(canvas, text)
        with stages("step"):
            x = backbone.velocity(cond.latents, torch.tensor(1.0), cond)
        with stages("decode"):
            backbone.decode(reference_half(x))
    passes = task.steps + (len(task.guided_steps) if task.guides else 0)
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
        "backbone": identity(backbone),
        "generated_frames": task.native_frames,
        "lead_frames": task.lead,
        "segments": [vars(segment) for segment in task.segments],
        "estimated_seconds": round(whole * share + stages.seconds.get("compile", 0), 1),
        "estimate_basis": f"compiling blocks, and {BASIS}" if task.job.config.compile else BASIS,
    }


def _facts(
    task: Task, clip: Path, frames: int, stages: Stages, basis: dict[str, Any]
) -> dict[str, Any]:
    """What the record says; see docs/conventions.md."""
    job = task.job
    seconds = {name: round(spent, 3) for name, spent in stages.seconds.items()}
    busy = sum(seconds.get(name, 0) for name in ("encode latents", "denoise", "decode latents"))
    return {
        "synthetic": True,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        **basis,
        "output": {
            "sha256": provenance.sha256(clip),
            "frames": frames,
            "fps": str(job.fps),
            "height": task.box.height,
            "width": task.box.width,
        },
        "generated_frames": task.native_frames,
        "lead_frames": task.lead,
        "segments": len(task.segments),
        "seconds": {**seconds, "total": round(stages.total, 3)},
        "seconds_per_generated_frame": round(busy / task.native_frames, 4),
        "peak_memory_mib": round(provenance.peak_memory(), 1),
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
