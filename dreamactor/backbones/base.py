"""The seam between the method and an image-to-video model.

Legend: B clips, C latent channels, F latent frames, h x 2w latent cells of the canvas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from dreamactor.backbones.catalogue import Options
from dreamactor.backbones.load import Variant
from dreamactor.conditioning.canvas import Canvas, LatentGrid
from dreamactor.conditioning.placement import Placement
from dreamactor.errors import ConfigError

if TYPE_CHECKING:
    from diffusers import ModelMixin

    from dreamactor.backbones.incontext import Context

TOKEN = 16
"""Pixels of a token's side: 8 a latent cell and 2 cells for Wan, 16 and 1 for HunyuanVideo-1.5."""


@dataclass(frozen=True)
class Cond:
    """A canvas as a backbone reads it."""

    latents: Tensor
    """(B, C, F, h, 2w) latents of the canvas; hidden cells as the backbone was trained."""
    mask: Tensor
    """(B, stride_t, F, h, 2w), folded; 1 = shown."""
    text: Tensor
    """(B, L, D) token states, as from `encode_text`."""
    image: Tensor | None = None
    """(B, N, E) states of an image encoder that sees the reference, where a backbone has one."""
    context: Context | None = None
    """What a one-way mode keeps of latents, mask and image from step to step; text may change."""
    branch: str = "cond"
    """Of guidance: each has its own state in a feature cache."""


@dataclass(frozen=True)
class Native:
    """The sizes a backbone works at."""

    height: int
    """Pixels of one half."""
    width: int
    fps: float
    """Frames a second that its motion was learnt at."""
    frames: int
    """Frames of one segment, stride_t * k + 1, the reference frame included."""
    overlap: int
    """Generated frames shown again to the next segment; a multiple of stride_t."""
    steps: int
    """Default sampling steps."""
    shift: float
    """Schedule shift that goes with them (see `diffusion.flow.shifted`)."""
    guidance: float
    """Default classifier-free guidance on text; 1 = off."""


def sized(native: Native, options: Options) -> Native:
    """The sizes of a large model, with those that the options name instead.

    Raises:
        ConfigError: A size that its tokens do not divide, or too few frames.
    """
    height, width = options.half or (native.height, native.width)
    if height % TOKEN or width % TOKEN:
        nearest = [max(TOKEN, round(side / TOKEN) * TOKEN) for side in (width, height)]
        raise ConfigError(
            f"size={width}x{height}: want multiples of {TOKEN}, nearest is {nearest[0]}x"
            f"{nearest[1]}"
        )
    frames = options.frames or native.frames
    least = native.overlap + 5
    if frames < least or frames % 4 != 1:
        nearest_frames = max(least, round((frames - 1) / 4) * 4 + 1)
        raise ConfigError(
            f"frames={frames}: want 4 * k + 1, {least} or more, nearest is {nearest_frames}"
        )
    return replace(native, height=height, width=width, frames=frames)


class Encoder(Protocol):
    """What of a backbone is computed before its transformer: all that a cache of examples takes."""

    name: str
    grid: LatentGrid
    native: Native
    weights: dict[str, str]
    """File name -> sha256 of every weight file in use."""

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Token states (B, L, D) of the prompts; an empty prompt means no text."""
        ...

    def encode(self, canvas: Canvas, text: Tensor) -> Cond:
        """Latents of a canvas, normalised, with the folded mask."""
        ...


class Backbone(Encoder, Protocol):
    """An image-to-video model that can read the canvas."""

    variant: Variant
    """What it was trained to be driven by."""
    lead: int
    """Frames of the canvas that showed no skeleton in training (`lora.AdapterInfo`); 0 with rgb."""
    adapter: dict[str, Any] | None
    """sha256 and header of the adapter that was merged in, if one was."""

    def place(self, reference: Tensor, driving: Tensor) -> Placement | None:
        """Where a driver belongs before it comes onto the canvas; None = where it is.

        Args:
            reference: (B, 3, H, W) in [-1, 1].
            driving: (B, 3, T, H, W), the first frames of the clip.
        """
        ...

    def velocity(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """Noise - latents at x (B, C, F, h, 2w), sigma scalar or (B,)."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Frames (B, 3, T, H, W) in [-1, 1] of latents (B, C, F, h, w)."""
        ...


def identity(backbone: Backbone) -> dict[str, Any]:
    """Which weights are at work, for JSON."""
    return {"name": backbone.name, "weights": backbone.weights, "adapter": backbone.adapter}


Predict = Callable[[nn.Module, Tensor, Tensor, Cond], Tensor]
"""(transformer, x (B, C, F, h, 2w), sigma (B,), condition) -> latents, at the shape of x. All that
a trainer asks of a network; one that predicts the velocity gives x - sigma velocity."""


@dataclass(frozen=True)
class Trainee:
    """A transformer that can be trained, and how it is asked."""

    name: str
    """Of the backbone."""
    transformer: ModelMixin
    predict: Predict
    grid: LatentGrid
    weights: str
    """sha256 of the file it came from."""
    header: dict[str, Any]
    """What that file says of itself."""
    vae: str = ""
    """sha256 of the autoencoder that lies in the same folder; "" where it is a file of its own."""
    part: str = ""
    """Folder of the transformer, which is how its layers' names begin in an adapter; "" = not."""
    levels: tuple[float, float] = (0.0, 1.0)
    """Noise levels that it is asked at; of two experts each has its own."""
