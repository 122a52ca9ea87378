"""Transformers of published shapes with random weights, to be timed.

Neither time nor memory hangs on what weights are. They are made where they run, in the dtype they
run in, so 14 billion float32 numbers are nowhere.

Legend: C latent channels, F latent frames, h x w latent cells of a half; m tokens of a half's
frame, each 2 x 2 cells of Wan's and one of HunyuanVideo-1.5's; T = 4 (F - 1) + 1 pixel frames; D
channels of a token.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from diffusers import (
    HunyuanVideo15Transformer3DModel,
    WanAnimate2Transformer3DModel,
    WanAnimateTransformer3DModel,
    WanTransformer3DModel,
)
from torch import Tensor

from dreamactor.backbones.base import TOKEN
from dreamactor.backbones.catalogue import CATALOGUE, Shape
from dreamactor.backbones.layers import STRIDE_S, STRIDE_T
from dreamactor.conditioning.canvas import LatentGrid
from dreamactor.errors import ConfigError

Kind = Literal["wan", "wan-animate", "wan-animate-2"]
"""diffusers' `WanTransformer3DModel`, which all our modes and image-to-video run on, or its
`WanAnimateTransformer3DModel` or `WanAnimate2Transformer3DModel`."""
PATCH = 2
CLIP = 1280
"""Channels of a picture's tokens; Wan-Animate-2 reads no others."""
SIZE = re.compile(r"(\d+)x(\d+)x(\d+)")


@dataclass(frozen=True)
class Blocks:
    """Those of a transformer of any kind."""

    layers: int
    heads: int
    head: int
    """Channels of a head."""
    ffn: int
    """Channels within a feed-forward layer."""

    @property
    def width(self) -> int:
        """D."""
        return self.heads * self.head

    @property
    def shape(self) -> Shape:
        """As the catalogue has it."""
        return Shape(self.layers, self.width, self.ffn)

    @classmethod
    def of(cls, backbone: str, head: int, **more: Any) -> Self:
        """Those of a backbone of the catalogue."""
        shape = CATALOGUE[backbone].shape
        return cls(shape.layers, shape.width // head, head, shape.ffn, **more)


@dataclass(frozen=True)
class Network(Blocks):
    """Shape of a transformer of Wan's kind, and of what it reads."""

    channels: int = 16
    """C."""
    text: tuple[int, int] = (512, 4096)
    """Tokens of the prompt and their channels."""
    image: tuple[int, int] | None = (257, CLIP)
    """Tokens of the reference's picture and their channels."""
    every: int = 5
    """Wan-Animate: blocks from one look at the face to the next."""
    face: int = 512
    """Wan-Animate: pixels of a side of the face."""
    face_channels: dict[int, int] = field(
        default_factory=lambda: {
            4: 512, 8: 512, 16: 512, 32: 512, 64: 256, 128: 128, 256: 64, 512: 32,
        }
    )  # fmt: skip
    """Wan-Animate: channels of its motion encoder at each size of a side."""

    @property
    def grid(self) -> LatentGrid:
        """Of its autoencoder."""
        return LatentGrid(STRIDE_T, STRIDE_S, self.channels)


@dataclass(frozen=True)
class JointNetwork(Blocks):
    """Shape of a transformer of HunyuanVideo-1.5's kind, and of what it reads.

    Video, picture and text see each other in every block.
    """

    channels: int = 32
    """C."""
    words: tuple[int, int] = (128, 3584)
    """Tokens of the prompt by Qwen2.5-VL, and their channels. A caption has as many as it needs; so
    many are a paragraph's."""
    glyphs: tuple[int, int] = (0, 1472)
    """Likewise by ByT5, of what the prompt has in quotes."""
    image: tuple[int, int] = (729, 1152)
    """Tokens of the reference's picture by SigLIP and their channels."""
    refiners: int = 2
    """Blocks that the prompt goes through by itself."""
    rope: tuple[int, int, int] = (16, 56, 56)
    """Channels of a head that are turned by time, row and column."""

    @property
    def grid(self) -> LatentGrid:
        """Of its autoencoder; a latent cell is a token."""
        return LatentGrid(STRIDE_T, TOKEN, self.channels)

    @property
    def beside(self) -> int:
        """Tokens beside the video's."""
        return self.words[0] + self.glyphs[0] + self.image[0]


NETWORKS = {
    "wan-14b": Network.of("wan2.1-i2v-14b-480p", 128),
    "wan-1.3b": Network.of("wan2.1-fun-1.3b-inp", 128),
    "nano": Network.of("nano", 64, channels=64, text=(32, 384), image=None, every=4),
    "tiny": Network(
        2, 2, 12, 32, channels=4, text=(512, 8), image=(3, CLIP), every=1, face=16,
        face_channels={4: 4, 8: 6, 16: 5},
    ),
}  # fmt: skip
"""By name: Wan2.1-I2V-14B (Wan2.2-Animate-14B has the same blocks), Wan2.1-Fun-1.3B-InP, nano, and
one for tests."""
JOINT_NETWORKS = {
    "hunyuan-1.5": JointNetwork.of("hunyuanvideo-1.5-480p-i2v", 128),
    "tiny-hunyuan": JointNetwork(
        2, 2, 16, 96, channels=4, words=(5, 16), glyphs=(3, 12), image=(3, 16), refiners=1,
        rope=(4, 6, 6),
    ),
}  # fmt: skip
"""Likewise: HunyuanVideo-1.5, and one for tests."""


@dataclass(frozen=True)
class Size:
    """A clip: one half of the canvas."""

    width: int
    height: int
    frames: int
    """Pixel frames, T."""

    @classmethod
    def parse(cls, text: str) -> Size:
        """From WIDTHxHEIGHTxFRAMES.

        Raises:
            ConfigError: Not of that form, or not of whole tokens and runs of frames.
        """
        found = SIZE.fullmatch(text)
        if found is None:
            raise ConfigError(f"size {text!r}: want WIDTHxHEIGHTxFRAMES, such as 832x480x81")
        size = cls(*map(int, found.groups()))
        width, height = (max(1, round(n / TOKEN)) * TOKEN for n in (size.width, size.height))
        runs = max(1, round((size.frames - 1) / STRIDE_T))
        nearest = cls(width, height, STRIDE_T * runs + 1)
        if size != nearest:
            raise ConfigError(
                f"size {text}: want multiples of {TOKEN} and {STRIDE_T} * k + 1 frames, "
                f"nearest is {nearest}"
            )
        return size

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.frames}"

    def latents(self, grid: LatentGrid) -> tuple[int, int, int]:
        """(F, h, w) of an autoencoder."""
        return self.latent_frames, self.height // grid.stride_s, self.width // grid.stride_s

    @property
    def latent_frames(self) -> int:
        """F: all autoencoders here have one stride over time."""
        return (self.frames - 1) // STRIDE_T + 1

    @property
    def frame_tokens(self) -> int:
        """Tokens of a frame, m."""
        return (self.height // TOKEN) * (self.width // TOKEN)


def _made_of(network: Network, kind: Kind) -> tuple[type[Any], dict[str, Any]]:
    """The class of a kind and what it is made with."""
    width, channels = network.width, 2 * network.channels + STRIDE_T
    if kind == "wan-animate-2":
        assert network.image is None or network.image[1] == CLIP
        return WanAnimate2Transformer3DModel, {
            "text_len": network.text[0], "text_dim": network.text[1], "in_dim": channels,
            "out_dim": network.channels, "dim": width, "num_heads": network.heads,
            "ffn_dim": network.ffn, "num_layers": network.layers,
            "use_img_emb": network.image is not None,
        }  # fmt: skip
    shape = {
        "num_attention_heads": network.heads, "attention_head_dim": network.head,
        "in_channels": channels, "out_channels": network.channels,
        "text_dim": network.text[1], "ffn_dim": network.ffn, "num_layers": network.layers,
        "image_dim": network.image and network.image[1],
        "added_kv_proj_dim": network.image and width,
    }  # fmt: skip
    if kind == "wan":
        return WanTransformer3DModel, shape
    return WanAnimateTransformer3DModel, shape | {
        "latent_channels": network.channels, "motion_encoder_size": network.face,
        "motion_encoder_channel_sizes": {str(k): v for k, v in network.face_channels.items()},
        "inject_face_latents_blocks": network.every,
    }  # fmt: skip


def build(network: Network, kind: Kind, device: torch.device, dtype: torch.dtype) -> Any:
    """A transformer of Wan's kind with random weights, made on its device.

    What diffusers keeps in float32 when it loads weights is in float32 here too.
    """
    return _random(*_made_of(network, kind), device, dtype)


def build_joint(
    network: JointNetwork, device: torch.device, dtype: torch.dtype
) -> HunyuanVideo15Transformer3DModel:
    """The same of HunyuanVideo-1.5's kind."""
    shape = {
        "in_channels": 2 * network.channels + 1, "out_channels": network.channels,
        "num_attention_heads": network.heads, "attention_head_dim": network.head,
        "num_layers": network.layers, "num_refiner_layers": network.refiners,
        "mlp_ratio": network.ffn / network.width, "text_embed_dim": network.words[1],
        "text_embed_2_dim": network.glyphs[1], "image_embed_dim": network.image[1],
        "rope_axes_dim": network.rope,
    }  # fmt: skip
    return _random(HunyuanVideo15Transformer3DModel, shape, device, dtype)


def _random(
    made: type[Any], shape: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            transformer = made(**shape).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    kept = set(made._keep_in_fp32_modules or ())
    for name, parameter in transformer.named_parameters():
        if kept & set(name.split(".")):
            parameter.data = parameter.data.float()
    return transformer


def inputs_of(
    network: Network, size: Size, kind: Kind, halves: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Random ones of a pass.

    Args:
        network: Shape.
        size: Of a half.
        kind: Whose pass.
        halves: 1 a clip by itself, 2 the whole canvas.
        device: Where.
        dtype: Of all but the timestep.

    Returns:
        Arguments of the transformer's forward; for wan-animate-2 those of `animate2`.
    """
    frames, rows, columns = size.latents(network.grid)
    extra = kind == "wan-animate"  # the reference is a latent frame more

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    if kind == "wan-animate-2":
        return _driven(network, size, random) | {"timestep": torch.full((1,), 500.0, device=device)}
    given = {
        "hidden_states": random(
            1, 2 * network.channels + STRIDE_T, frames + extra, rows, halves * columns
        ),
        "timestep": torch.full((1,), 500.0, device=device),
        "encoder_hidden_states": random(1, *network.text),
    }
    if network.image is not None:
        given["encoder_hidden_states_image"] = random(1, *network.image)
    if kind == "wan-animate":
        given["pose_hidden_states"] = random(1, network.channels, frames, rows, columns)
        given["face_pixel_values"] = random(1, 3, size.frames, network.face, network.face)
    return given


def _driven(network: Network, size: Size, random: Callable[..., Tensor]) -> dict[str, Tensor]:
    """A segment of Wan-Animate-2: the clip, the reference's frame before it, and its driving clip.

    Each has latents, what is given of them with its mask, text and picture.
    """
    frames, rows, columns = size.latents(network.grid)
    found = {}
    for name, count in {"": frames + 1, "driving_": frames}.items():
        found[f"{name}latents"] = random(1, network.channels, count, rows, columns)
        found[f"{name}condition"] = random(1, STRIDE_T + network.channels, count, rows, columns)
        found[f"{name}text"] = random(1, *network.text)
        if network.image is not None:
            found[f"{name}image"] = random(1, *network.image)
    return found


def nearest_of(name: str, given: str, known: Iterable[str]) -> str:
    """A message that a word is none of those known, with the one that it comes nearest to."""
    known = list(known)
    near = difflib.get_close_matches(given, known, 1, cutoff=0.0)[0]
    return f"{name} {given!r}: want one of {', '.join(known)}; nearest is {near}"
