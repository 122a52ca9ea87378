"""Trained models as systems of the bench: nano on one segment, and its autoencoder alone.

Legend: B cases, T = 16 frames of a case, H x W pixels of one half, C latent channels, F latent
frames, h x w latent cells of one half.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamactor.backbones.base import Backbone, Cond
from dreamactor.backbones.nano_vae import NanoVAE
from dreamactor.bench.evaluate import Case
from dreamactor.conditioning.canvas import build_canvas, motion_half, reference_half
from dreamactor.conditioning.framing import to_half, to_picture
from dreamactor.diffusion.flow import schedule
from dreamactor.diffusion.sampler import beside, sample_euler
from dreamactor.diffusion.segments import plan
from dreamactor.errors import ConfigError
from dreamactor.provenance import Stages
from dreamactor.runs import generator

Clip = NDArray[np.uint8]


class Animation:
    """A backbone on cases of one segment, as `diffusion.pipeline.generate` does its first one.

    Case i gets the noise of `dreamactor animate --seed SEED+i`, whatever batch it is in
    (tests/test_bench.py holds the result against the pipeline's).

    Args:
        backbone: The model, on its device.
        steps: Sampling steps.
        seed: Of the noise.
        device: Where the backbone is.
        before: Show the driver's frame before the first one beside the reference, as training
            does. The pipeline has none there and shows the first twice.
    """

    def __init__(
        self,
        backbone: Backbone,
        steps: int,
        seed: int = 0,
        device: str = "cpu",
        before: bool = False,
    ) -> None:
        self.backbone, self.steps, self.seed = backbone, steps, seed
        self.device, self.before = torch.device(device), before

    def animate(self, cases: Sequence[Case], stages: Stages | None = None) -> list[Clip]:
        """Clips (T, H, W, 3) of the cases; what each stage takes is added to `stages`."""
        native, clock = self.backbone.native, stages or Stages()
        frames, height, width = cases[0].mask.shape
        if (height, width) != (native.height, native.width):
            raise ConfigError(
                f"cases of {height} x {width} pixels: want {native.height} x {native.width}, "
                f"the size of {self.backbone.name}; set size={native.height}"
            )
        segments = plan(frames, native, self.backbone.grid)
        if len(segments) > 1:
            raise ConfigError(
                f"{frames} frames are {len(segments)} segments of {self.backbone.name}; want one"
            )
        with torch.inference_mode():
            with clock("encode"):
                cond = self._encode(cases, segments[0].driving(frames))
                self._wait()
            with clock("denoise"):
                latents = self._denoise(cond, [case.index for case in cases])
                self._wait()
            with clock("decode"):
                clips = self.backbone.decode(latents)[:, :, 1 : 1 + frames]  # (B, 3, T, H, W)
                self._wait()
        return [to_picture(clip) for clip in clips]

    def _encode(self, cases: Sequence[Case], beside: Sequence[int]) -> Cond:
        driving = torch.stack([_halves(case.driving)[:, list(beside)] for case in cases])
        if self.before:
            for clip, case in zip(driving, cases, strict=True):
                if case.before is None:
                    raise ConfigError(f"case {case.name!r} has no frame before its driving clip")
                clip[:, 0] = to_half(case.before)
        reference = torch.stack([to_half(case.reference) for case in cases])
        canvas = build_canvas(
            reference.to(self.device), driving.to(self.device), self.backbone.grid
        )
        return self.backbone.encode(canvas, self.backbone.encode_text([""] * len(cases)))

    def _denoise(self, cond: Cond, indices: Sequence[int]) -> Tensor:
        """Latents (B, C, F, h, w) of the reference half."""
        known, motion = reference_half(cond.latents), motion_half(cond.latents)
        noise = torch.stack(
            [
                torch.randn(known.shape[1:], generator=generator(self.seed + i, NOISE, 0))
                for i in indices
            ]
        )

        velocity = beside(lambda x, sigma: self.backbone.velocity(x, sigma, cond), motion)
        sigmas = schedule(self.steps, self.backbone.native.shift)
        latents = sample_euler(velocity, noise.to(known), sigmas)
        return torch.cat([known[:, :, :1], latents[:, :, 1:]], dim=2)

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
