"""What there is to know of a backbone before its weights are opened; nothing heavy is imported.

Numbers of parameters are those of the published configurations
(`tests/test_backbones.py::test_parameters_are_those_of_the_published_shapes` builds them on the
meta device); bytes follow from them. Room for activations was measured on one H100 with random
weights, or is stated as unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from dreamactor.errors import ConfigError

GIB = 1 << 30
Dtype = Literal["auto", "float32", "bfloat16"]
"""Of the large networks; auto is bfloat16 on a GPU and float32 on the CPU."""
Offload = Literal["none", "model", "group"]
"""What waits in the memory of the host: nothing, all networks but the one at work, or all blocks
but those at work."""
SIZE = re.compile(r"(\d+)x(\d+)")
FULL_PRECISION = ("vae", "image_encoder")
"""Parts that stay in float32, as in the examples of diffusers: both are small."""
BLOCK_GIB = 2.0
"""Group offload: two blocks of 14 billion parameters and what is not in a block, in bfloat16."""


@dataclass(frozen=True)
class Options:
    """How a large backbone is run; nano has one way."""

    dtype: Dtype = "auto"
    offload: Offload = "none"
    size: str | None = None
    """WIDTHxHEIGHT of one half in pixels; None takes the backbone's own."""
    frames: int | None = None
    """Frames of one segment, 4 * k + 1; None takes the backbone's own."""
    lora: tuple[str, ...] = ()
    """Low-rank layers besides the adapter: FILE or FILE@SCALE; for a backbone of two transformers
    HIGH,LOW or HIGH,LOW@SCALE, or one file that holds both."""

    def __post_init__(self) -> None:
        """Check every value by itself.

        Raises:
            ConfigError: One that cannot work.
        """
        object.__setattr__(self, "lora", tuple(self.lora or ()))
        for name, words in (("dtype", get_args(Dtype)), ("offload", get_args(Offload))):
            if getattr(self, name) not in words:
                raise ConfigError(f"{name}={getattr(self, name)!r}: want {', '.join(words)}")
        if self.size is not None and not SIZE.fullmatch(self.size):
            raise ConfigError(f"size={self.size!r}: want WIDTHxHEIGHT, such as 832x480")
        if self.frames is not None and self.frames < 1:
            raise ConfigError(f"frames={self.frames}: want 4 * k + 1, such as 81")

    @property
    def half(self) -> tuple[int, int] | None:
        """(height, width), if stated."""
        found = SIZE.fullmatch(self.size or "")
        return (int(found[2]), int(found[1])) if found else None


@dataclass(frozen=True)
class Entry:
    """A backbone that can be named."""

    name: str
    hub: str
    """Id of its published weights in diffusers format; empty for those that ship."""
    licence: str
    parts: dict[str, int]
    """Folder -> parameters."""
    native: dict[str, Any] = field(default_factory=dict)
    """Fields of `base.Native`; nano's stand in its weights folder."""
    boundary: float | None = None
    """Noise level at and above which `transformer` predicts; below it is `transformer_2`."""
    activations: float | None = None
    """GiB beside the weights for one network pass over the canvas; None is not measured."""
    tested: str = ""
    """What is known to hold, and what is not."""

    @property
    def experts(self) -> tuple[str, ...]:
        """Folders of its transformers."""
        return tuple(part for part in self.parts if part.startswith("transformer"))

    def bytes_of(self, part: str, dtype: Dtype = "bfloat16") -> int:
        """Size of a part's weights."""
        wide = dtype == "float32" or part in FULL_PRECISION or not self.hub
        return self.parts[part] * (4 if wide else 2)

    def needs(self, offload: Offload, dtype: Dtype = "bfloat16") -> float:
        """GiB on the device that runs it: weights that are there at once, and activations."""
        weights = {part: self.bytes_of(part, dtype) / GIB for part in self.parts}
        room, vae = self.activations or 0.0, weights["vae"]
        if offload == "none":
            return sum(weights.values()) + room
        if offload == "group":
            wide = 2 if dtype == "float32" else 1
            return min(BLOCK_GIB * wide, sum(weights.values())) + vae + room
        # the text encoder has gone before the transformer comes
        return max(*weights.values(), max(weights[part] for part in self.experts) + vae + room)


_TEXT, _CLIP, _VAE = 5_680_910_336, 630_766_080, 126_892_531  # umt5-xxl, CLIP ViT-H, Wan 2.1's
_SHARED = {"text_encoder": _TEXT, "vae": _VAE}
_EQUAL = "tiny random ones equal diffusers' pipeline in float32; published weights not run here"


def _native(height: int, width: int, steps: int, shift: float, guidance: float) -> dict[str, Any]:
    """81 frames at 16 a second, one run of four shown again: what Wan 2.1 and 2.2 learnt at 14B."""
    lengths = {"fps": 16.0, "frames": 81, "overlap": 4}
    sampling = {"steps": steps, "shift": shift, "guidance": guidance}
    return {"height": height, "width": width, **lengths, **sampling}


# steps, shift and guidance: generate.py and configs of Wan-Video/Wan2.1 and Wan2.2, and
# examples/wan2.1_fun/predict_i2v.py of VideoX-Fun. activations: one bfloat16 pass over 65,520
# tokens peaked at 37.6 GiB with 30.5 GiB of weights (14B, eager, one H100).
CATALOGUE = {
    entry.name: entry
    for entry in (
        Entry(
            "nano",
            "",
            "Apache-2.0, art CC BY-SA 3.0",
            {"transformer": 30_084_672, "vae": 8_873_196},
            activations=0.3,
            tested="trained and measured here (docs/results.md); ships with the package",
        ),
        Entry(
            "wan2.1-i2v-14b-480p",
            "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
            "Apache-2.0",
            {"transformer": 16_394_878_784, "image_encoder": _CLIP, **_SHARED},
            _native(480, 832, 40, 3.0, 5.0),
            activations=7.1,
            tested=_EQUAL,
        ),
        Entry(
            "wan2.1-i2v-14b-720p",
            "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers",
            "Apache-2.0",
            {"transformer": 16_394_878_784, "image_encoder": _CLIP, **_SHARED},
            _native(720, 1280, 40, 5.0, 5.0),
            activations=16.4,  # 7.1 by the tokens, 2.3 times as many
            tested=_EQUAL,
        ),
        Entry(
            "wan2.2-i2v-a14b",
            "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
            "Apache-2.0",
            {"transformer": 14_288_901_184, "transformer_2": 14_288_901_184, **_SHARED},
            _native(480, 832, 40, 5.0, 3.5),
            boundary=0.9,
            activations=7.1,
            tested=_EQUAL,
        ),
        Entry(
            "wan2.1-fun-1.3b-inp",
            "engineerA314/Wan2.1-Fun-V1.1-1.3B-InP-Diffusers",
            "Apache-2.0",
            {"transformer": 1_564_428_608, "image_encoder": _CLIP, **_SHARED},
            _native(480, 832, 50, 3.0, 6.0),
            activations=2.1,  # 7.1 by the width, 1536 of 5120
            tested=_EQUAL,
        ),
    )
}
"""Every backbone by its name."""


def table() -> Iterator[str]:
    """Lines for `dreamactor backbones`: sizes, memory, licence and what is tested."""
    heads: tuple[Offload, ...] = get_args(Offload)
    yield f"{'backbone':22}{'parameters':>11}{'on disk':>9}{'half, frames':>20}   GPU memory, GiB"
    yield f"{'':22}{'billions':>11}{'GB':>9}{'':>20}" + "".join(f"{h:>8}" for h in heads)
    for entry in CATALOGUE.values():
        numbers = sum(entry.parts.values())
        size = sum(map(entry.bytes_of, entry.parts))
        native = entry.native
        half = (
            f"{native['width']}x{native['height']}, {native['frames']}" if native else "256x256, 17"
        )
        needs = "".join(f"{entry.needs(h):8.1f}" for h in heads) if entry.hub else f"{'CPU':>8}"
        yield f"{entry.name:22}{numbers / 1e9:11.2f}{size / 1e9:9.1f}{half:>20}{needs}"
    yield ""
    for entry in CATALOGUE.values():
        yield entry.name
        if entry.hub:
            yield f"    weights  {entry.hub}, or a folder of it: --weights"
        yield f"    licence  {entry.licence}"
        yield f"    tested   {entry.tested}"
    yield ""
    yield "GPU memory: weights in bfloat16 (image encoder and autoencoder in float32) by --offload,"
    yield "with room for one pass over the canvas at the half above: measured on one H100 for 14B"
    yield "at 832x480, scaled from that for the others; decoding was not measured, nor --offload."
