"""A job with all that the backbone settles: sizes, rates, defaults, and the plan of segments."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from dreamactor.backbones.base import Backbone, Native
from dreamactor.conditioning.framing import fit_soft
from dreamactor.conditioning.skeleton import PoseTrack
from dreamactor.diffusion.job import Job
from dreamactor.diffusion.segments import Guard, Segment, guard_of, plan
from dreamactor.diffusion.skeletons import lead_of
from dreamactor.diffusion.span import in_span, parse_span
from dreamactor.errors import ConfigError
from dreamactor.image import Box, Rgb
from dreamactor.interpolate import frames_needed


@dataclass(frozen=True)
class Task:
    """What is to be done, to the last number."""

    job: Job
    backbone: str
    steps: int
    guidance: float
    reference: Rgb
    """(H, W, 3) fitted into one half."""
    box: Box
    """Part of the half that shows the reference and becomes the output; even sides."""
    lead: int
    """Frames at the beginning that are generated and cut: empty ones of the pose variant."""
    native_frames: int
    """Frames to generate, at the backbone's rate, those of the lead among them."""
    segments: list[Segment]
    prompt: str
    """What the result shows; empty means none."""
    skeleton: PoseTrack | None
    """What drives the pose variant, on `native_frames` frames of a half."""

    @property
    def guides(self) -> bool:
        """Whether there is a prompt to pull toward, or a negative one to lead away from."""
        said = self.prompt.strip() or self.job.config.negative.strip()
        return bool(said) and self.guidance != 1

    @property
    def guard(self) -> Guard:
        """What is done against drift."""
        return guard_of(self.job.config.guard, len(self.segments))

    @property
    def guided_steps(self) -> range:
        """Those in which guidance works, if there is any."""
        return in_span(self.steps, parse_span(self.job.config.guidance_span))

    def plain(self) -> dict[str, Any]:
        """The resolved settings, for JSON."""
        config = self.job.config
        settings = replace(
            config,
            steps=self.steps,
            guidance=self.guidance,
            guard=self.guard,
            fps=float(self.job.fps),
            pose=config.estimator if config.variant == "pose" else None,
        )
        return {**settings.plain(), "backbone": self.backbone}


def resolve(
    job: Job, backbone: Backbone, prompt: str | None = None, skeleton: PoseTrack | None = None
) -> Task:
    """Settle what depends on the backbone.

    Args:
        job: From `prepare`.
        backbone: The model.
        prompt: From `describe`; None takes the one that was given, or none.
        skeleton: What drives the pose variant; a plan alone can do without.

    Raises:
        ConfigError: Guidance would work in no step.
    """
    native, config = backbone.native, job.config
    steps = config.steps or native.steps
    if not in_span(steps, parse_span(config.guidance_span)):
        raise ConfigError(
            f"guidance_span={config.guidance_span}: none of {steps} steps begins in it; want a "
            "wider one"
        )
    reference, box = fit_soft(job.reference, (native.height, native.width), config.fit)
    lead = lead_of(backbone) if config.variant == "pose" else 0
    count = lead + native_frames(job, native)
    return Task(
        job=job,
        backbone=backbone.name,
        steps=steps,
        guidance=native.guidance if config.guidance is None else config.guidance,
        reference=reference,
        box=_even(box, (native.height, native.width)),
        lead=lead,
        native_frames=count,
        segments=plan(count, native, backbone.grid),
        prompt=(config.prompt or "") if prompt is None else prompt,
        skeleton=skeleton,
    )


def rate_of(native: Native) -> Fraction:
    """The backbone's frames a second."""
    return Fraction(native.fps).limit_denominator(1001)


def native_frames(job: Job, native: Native) -> int:
    """Frames at the backbone's rate that the driving clip gives."""
    return frames_needed(job.count, job.fps, rate_of(native))


def _even(box: Box, size: tuple[int, int]) -> Box:
    """The box with even sides: the last row or column goes; of a line of pixels, two stay."""
    height, width = max(2, box.height // 2 * 2), max(2, box.width // 2 * 2)
    return Box(min(box.top, size[0] - height), min(box.left, size[1] - width), height, width)
