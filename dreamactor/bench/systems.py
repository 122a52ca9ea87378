"""Trained models as systems of the bench: a backbone, and nano's autoencoder alone.

Legend: B cases, T frames of what drives (16 of a case, and the empty ones before a
skeleton), H x W pixels of one half, C latent channels, F latent frames, h x w latent cells of one
half.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamactor.backbones.base import Backbone, Cond
from dreamactor.backbones.feature_cache import (
    NOTHING,
    FeatureCache,
    Tally,
    check_loaded,
    skipping,
)
from dreamactor.backbones.load import check_variant
from dreamactor.backbones.nano_vae import NanoVAE
from dreamactor.bench.evaluate import Case
from dreamactor.conditioning.canvas import build_canvas, motion_half, reference_half
from dreamactor.conditioning.framing import to_half, to_picture
from dreamactor.conditioning.placement import Placement, place_frames
from dreamactor.conditioning.pose import PoseEstimator
from dreamactor.conditioning.skeleton import draw
from dreamactor.diffusion.flow import schedule
from dreamactor.diffusion.sampler import Velocity, beside, guided, sample_euler
from dreamactor.diffusion.segments import Segment, plan
from dreamactor.diffusion.skeletons import lead_of, skeleton
from dreamactor.diffusion.span import in_span
from dreamactor.errors import ConfigError
from dreamactor.provenance import Stages
from dreamactor.runs import generator
from dreamactor.world.tracks import track_of

Clip = NDArray[np.uint8]


class Animation:
    """A backbone on cases, as `diffusion.pipeline.generate` runs it.

    Case i gets the noise of `dreamactor animate --seed SEED+i`, whatever batch it is in
    (tests/test_bench.py holds the result against the pipeline's).

    Args:
        backbone: The model, on its device.
        steps: Sampling steps.
        seed: Of the noise.
        device: Where the backbone is.
        before: Show the driver's frame before the first one beside the reference, as training
            does. The pipeline has none there and shows the first twice.
        estimator: Finds the skeletons that drive a backbone of the pose variant; None lets the
            clips themselves drive.
        exact: The pose variant is driven by the driver's true joints, which the cases know, not by
            those that the estimator finds.
        captions: Tell the backbone who does what in each case; else the text is empty.
        skips: Which blocks are skipped.
        told: Called with the cases of each batch and how many blocks were, if some may be.
        guidance: On the caption, away from no text; 1 = off. Without `captions` both are the same.
        span: Share of the steps in which it works.
    """

    def __init__(
        self,
        backbone: Backbone,
        steps: int,
        seed: int = 0,
        device: str = "cpu",
        before: bool = False,
        estimator: PoseEstimator | None = None,
        exact: bool = False,
        captions: bool = False,
        skips: FeatureCache = NOTHING,
        told: Callable[[Sequence[Case], Tally], object] = lambda _, __: None,
        guidance: float = 1.0,
        span: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        check_loaded(skips, backbone, steps)
        self.skips, self.told = skips, told
        self.guidance, self.span = guidance, span
        self.backbone, self.steps, self.seed = backbone, steps, seed
        self.device, self.before = torch.device(device), before
        self.estimator, self.exact, self.captions = estimator, exact, captions
        self.lead = 0 if estimator is None else lead_of(backbone)
        check_variant(backbone, "rgb" if estimator is None else "pose")

    def animate(self, cases: Sequence[Case], stages: Stages | None = None) -> list[Clip]:
        """Clips (16, H, W, 3) of the cases; what each stage takes is added to `stages`."""
        native, clock, tally = self.backbone.native, stages or Stages(), Tally()
        height, width = cases[0].mask.shape[1:]
        if (height, width) != (native.height, native.width):
            raise ConfigError(
                f"cases of {height} x {width} pixels: want {native.height} x {native.width}, "
                f"the size of {self.backbone.name}; set size={native.height}"
            )
        reference = torch.stack([to_half(case.reference) for case in cases]).to(self.device)
        with torch.inference_mode():
            if self.estimator is not None:
                with clock("find joints"):
                    driving = torch.stack([_halves(self._skeletons(case)) for case in cases])
            else:
                driving = torch.stack([_halves(case.driving) for case in cases])
            made: Tensor | None = None  # (B, 3, frames so far, H, W)
            placement: Placement | None = None
            for segment in plan(driving.shape[2], native, self.backbone.grid):
                with clock("encode"):
                    beside = self._beside(cases, driving, segment)
                    if segment.index == 0:
                        placement = self.backbone.place(reference, beside)
                    if placement is not None:
                        beside = place_frames(beside, placement)
                    cond = self._encode(cases, reference, beside, made)
                    self._wait()
                with clock("denoise"), skipping(self.skips, self.backbone, self.steps, tally):
                    latents = self._denoise(cond, segment, [case.index for case in cases])
                    self._wait()
                with clock("decode"):
                    clip = self.backbone.decode(latents)  # (B, 3, 1 + shown + new + rest, H, W)
                    clip = clip[:, :, 1 + segment.shown : 1 + segment.shown + segment.new]
                    made = clip if made is None else torch.cat([made, clip], dim=2)
                    self._wait()
        assert made is not None
        if self.skips.on:
            self.told(cases, tally)
        return [to_picture(clip) for clip in made[:, :, self.lead :]]

    def _skeletons(self, case: Case) -> Clip:
        """What drives in place of a clip: (T, H, W, 3), empty frames first."""
        assert self.estimator is not None
        fps = self.backbone.native.fps
        if not self.exact:
            track = self.estimator(case.driving, fps)
        elif case.driver is not None:
            _, height, width = case.mask.shape
            track = track_of([case.driver], (height, width), fps)
        else:
            raise ConfigError(f"case {case.name!r} does not know its driver's joints")
        return draw(skeleton(track, self.backbone))

    def _beside(self, cases: Sequence[Case], driving: Tensor, segment: Segment) -> Tensor:
        """What of the driving clips (B, 3, T, H, W) stands beside a segment, on the device."""
        beside = driving[:, :, segment.driving(driving.shape[2])]
        if self.before and segment.index == 0:
            for clip, case in zip(beside, cases, strict=True):
                if case.before is None:
                    raise ConfigError(f"case {case.name!r} has no frame before its driving clip")
                clip[:, 0] = to_half(case.before)
        return beside.to(self.device)

    def _encode(
        self, cases: Sequence[Case], reference: Tensor, beside: Tensor, made: Tensor | None
    ) -> Cond:
        past = None if made is None else made[:, :, -self.backbone.native.overlap :]
        canvas = build_canvas(reference, beside, self.backbone.grid, past)
        prompts = [case.caption if self.captions else "" for case in cases]
        return self.backbone.encode(canvas, self.backbone.encode_text(prompts))

    def _denoise(self, cond: Cond, segment: Segment, indices: Sequence[int]) -> Tensor:
        """Latents (B, C, F, h, w) of the reference half."""
        known, motion = reference_half(cond.latents), motion_half(cond.latents)
        noise = torch.stack(
            [
                torch.randn(
                    known.shape[1:], generator=generator(self.seed + i, NOISE, segment.index)
                )
                for i in indices
            ]
        )

        def toward(cond: Cond) -> Velocity:
            return beside(lambda x, sigma: self.backbone.velocity(x, sigma, cond), motion)

        velocity, sigmas = toward(cond), schedule(self.steps, self.backbone.native.shift)
        if self.guidance != 1:
            unsaid = self.backbone.encode_text([""] * len(known)).to(cond.text)
            other = toward(replace(cond, text=unsaid, branch="uncond"))
            levels = sigmas[list(in_span(self.steps, self.span))]
            velocity = guided(velocity, other, self.guidance, levels)
        latents = sample_euler(velocity, noise.to(known), sigmas)
        shown = self.backbone.grid.frames(1 + segment.shown)
        return torch.cat([known[:, :, :shown], latents[:, :, shown:]], dim=2)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


NOISE = "noise/segment"  # the stream that diffusion.pipeline.denoise draws from


class Reconstruction:
    """The autoencoder alone on reference and truth: the best that any sampler could reach.

    Args:
        vae: On its device.
        device: Where it is.
    """

    def __init__(self, vae: NanoVAE, device: str = "cpu") -> None:
        self.vae, self.device = vae.eval(), torch.device(device)

    def animate(self, cases: Sequence[Case]) -> list[Clip]:
        """Clips (T, H, W, 3): the truth, encoded and decoded behind the reference."""
        clips = [np.concatenate([case.reference[None], case.truth]) for case in cases]
        return [clip[1:] for clip in self(clips)]

    def __call__(self, clips: Sequence[Clip]) -> list[Clip]:
        """Encode and decode clips (4k + 1, H, W, 3) of one shape, frame 0 included."""
        x = torch.stack([_halves(clip) for clip in clips]).to(self.device)  # (B, 3, T, H, W)
        with torch.inference_mode():
            return [to_picture(clip) for clip in self.vae.decode(self.vae.encode(x))]


def _halves(clip: Clip) -> Tensor:
    """(T, H, W, 3) uint8 to (3, T, H, W) in [-1, 1]."""
    return torch.stack([to_half(frame) for frame in clip], dim=1)
