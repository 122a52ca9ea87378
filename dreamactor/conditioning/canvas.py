"""The in-context canvas: reference half left, motion half right, and a mask of what is shown.

Legend: B clips, T pixel frames, F = (T - 1) / stride_t + 1 latent frames, H x W pixels of one
half, h x w latent cells of one half. Pixels are in [-1, 1]; what is hidden is 0, mid-grey.

Canvas C and mask M of the paper (arXiv 2601.21716, section 3), with I the reference, D the
driving clip and | concatenation along width:

    C[0] = I | D[0]      M[0] = 1 | 1
    C[t] = 0 | D[t]      M[t] = 0 | 1      t > 0

Ours, for clips longer than one segment: frames that were already generated may be shown on the
reference half after frame 0, with mask 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dreamactor.errors import ShapeError

VERSION = 1
"""Layout version, written into weights; weights of another version refuse to load."""


@dataclass(frozen=True)
class LatentGrid:
    """Geometry of a causal video autoencoder: frame 0 alone, then runs of `stride_t` frames."""

    stride_t: int
    """Pixel frames per latent frame."""
    stride_s: int
    """Pixels per latent cell, both ways."""
    channels: int
    """Channels of the latents."""

    def frames(self, pixel_frames: int) -> int:
        """Latent frames of a clip of `pixel_frames` = stride_t * k + 1 frames."""
        if pixel_frames < 1 or (pixel_frames - 1) % self.stride_t:
            nearest = max(0, round((pixel_frames - 1) / self.stride_t)) * self.stride_t + 1
            raise ShapeError(
                f"{pixel_frames} frames: want {self.stride_t} * k + 1, nearest is {nearest}"
            )
        return (pixel_frames - 1) // self.stride_t + 1


@dataclass(frozen=True)
class Canvas:
    """What the backbone is shown."""

    pixels: Tensor
    """(B, 3, T, H, 2W) in [-1, 1]; hidden pixels are 0."""
    mask: Tensor
    """(B, 1, T, h, 2w) in {0, 1} on latent cells; 1 = shown."""
    motion: bool = True
    """Whether there is a motion half; without one all of it is the reference half, w cells wide."""

    @property
    def shown(self) -> int:
        """Frames shown on the reference half, counted from frame 0."""
        left = self.mask[0, 0, :, 0, 0]
        return int(left.sum().item())


def build_canvas(
    reference: Tensor, driving: Tensor, grid: LatentGrid, generated: Tensor | None = None
) -> Canvas:
    """Lay a reference and a driving clip side by side.

    Args:
        reference: (B, 3, H, W) in [-1, 1].
        driving: (B, 3, T, H, W) in [-1, 1], T = stride_t * k + 1.
        grid: Latent geometry of the backbone.
        generated: (B, 3, n, H, W) frames that already exist, shown on the reference half at
            frames 1 to n; n must be a multiple of stride_t and less than T.

    Returns:
        The canvas and its mask.

    Raises:
        ShapeError: Sizes disagree, or a frame count does not fit the latent grid.
    """
    batch, _, frames, height, width = driving.shape
    if reference.shape != (batch, 3, height, width):
        raise ShapeError(
            f"reference of shape {tuple(reference.shape)}: want {(batch, 3, height, width)}, "
            "the driving clip's"
        )
    grid.frames(frames)
    count = 0 if generated is None else generated.shape[2]
    if count % grid.stride_t or count >= frames:
        raise ShapeError(
            f"{count} generated frames of {frames}: want a multiple of {grid.stride_t} below T"
        )
    left = torch.zeros_like(driving)
    left[:, :, 0] = reference
    if generated is not None:
        left[:, :, 1 : 1 + count] = generated
    h, w = height // grid.stride_s, width // grid.stride_s
    mask = driving.new_zeros(batch, 1, frames, h, 2 * w)
    mask[..., w:] = 1
    mask[:, :, : 1 + count, :, :w] = 1
    return Canvas(torch.cat([left, driving], dim=-1), mask)


def first_frame(reference: Tensor, frames: int, grid: LatentGrid) -> Canvas:
    """What an image-to-video model is shown that knows no canvas: a picture, then nothing.

    Args:
        reference: (B, 3, H, W) in [-1, 1].
        frames: T = stride_t * k + 1.
        grid: Latent geometry of the backbone.
    """
    grid.frames(frames)
    batch, _, height, width = reference.shape
    pixels = reference.new_zeros(batch, 3, frames, height, width)
    pixels[:, :, 0] = reference
    h, w = height // grid.stride_s, width // grid.stride_s
    mask = reference.new_zeros(batch, 1, frames, h, w)
    mask[:, :, 0] = 1
    return Canvas(pixels, mask, motion=False)


def fold_mask(mask: Tensor, grid: LatentGrid) -> Tensor:  # (B, 1, T, h, w)
    """Fold a per-frame mask onto the latent time axis of a causal autoencoder.

    Frame 0 is repeated until it fills a run of its own; then every run of `stride_t` frames
    becomes the channels of one latent frame. This is what Wan's image-to-video transformers read.

    Args:
        mask: (B, 1, T, h, w) in {0, 1}; T counts pixel frames, h and w latent cells.
        grid: Latent geometry; only `stride_t` is read.

    Returns:
        (B, stride_t, F, h, w); dtype and device of `mask`.

    Raises:
        ShapeError: The channel axis is not 1, or T is not stride_t * k + 1.

    Source:
        diffusers 0.42.1, WanImageToVideoPipeline.prepare_latents; equal to it bit for bit
        (tests/test_canvas.py::test_fold_mask_equals_diffusers).
    """
    if mask.shape[1] != 1:
        raise ShapeError(f"mask of shape {tuple(mask.shape)}: want one channel")
    grid.frames(mask.shape[2])
    first = mask[:, :, :1].expand(-1, -1, grid.stride_t, -1, -1)
    runs = torch.cat([first, mask[:, :, 1:]], dim=2)  # (B, 1, F * stride_t, h, w)
    return runs.unflatten(2, (-1, grid.stride_t))[:, 0].transpose(1, 2)


def reference_half(x: Tensor) -> Tensor:
    """The left half along width."""
    return x[..., : x.shape[-1] // 2]


def motion_half(x: Tensor) -> Tensor:
    """The right half along width."""
    return x[..., x.shape[-1] // 2 :]
