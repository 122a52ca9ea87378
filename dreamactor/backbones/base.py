"""The seam between the method and an image-to-video model.

Legend: B clips, C latent channels, F latent frames, h x 2w latent cells of the canvas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from dreamactor.backbones.load import Variant
from dreamactor.conditioning.canvas import Canvas, LatentGrid

if TYPE_CHECKING:
    from diffusers import ModelMixin


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
    """(B, L, D) token states of the reference, for a backbone that reads them."""


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


class Backbone(Protocol):
    """An image-to-video model that can read the canvas."""

    name: str
    grid: LatentGrid
    native: Native
    weights: dict[str, str]
    """File name -> sha256 of every weight file in use."""
    variant: Variant
    """What it was trained to be driven by."""
    lead: int
    """Frames of the canvas that showed no skeleton in training (`lora.AdapterInfo`); 0 with rgb."""
    adapter: dict[str, Any] | None
    """sha256 and header of the adapter that was merged in, if one was."""

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Token states (B, L, D) of the prompts; an empty prompt means no text."""
        ...

    def encode(self, canvas: Canvas, text: Tensor) -> Cond:
        """Latents of a canvas, normalised, with the folded mask."""
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
