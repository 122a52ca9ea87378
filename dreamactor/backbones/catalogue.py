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
Family = Literal["nano", "wan", "hunyuan"]
"""Which module reads a backbone's weights."""
Expert = Literal["high", "low"]
"""Of a backbone of two transformers: the one at and above a noise level, and the one below it."""
Mode = Literal["full", "one-way", "one-way-aligned"]
"""Who sees whom on the canvas (`backbones.incontext`); weights are trained in one mode."""
Injection = Literal["canvas", "overlaid", "temporal", "channel", "cross-attention"]
"""How the driver comes in (`backbones.injection`); weights are trained in one way."""
Storage = Literal["auto", "float8"]
"""What the weights of a large transformer's layers wait in until they compute."""
Cache = Literal["none", "device", "host"]
"""Where the context of the one-way modes is kept from step to step: nowhere, where the network
runs, or in the host's memory, from which it is streamed."""
CacheDtype = Literal["auto", "bfloat16", "int8"]
"""What it is kept in; auto is as the network computes it."""
CacheHolds = Literal["keys", "states"]
"""What is kept: keys and values, or the states they are made of, which is half of that and costs
two projections of them a step."""
SIZE = re.compile(r"(\d+)x(\d+)")
BLOCKS_GIB, REST_GIB = 1.5, 0.5
"""Group offload: two blocks of 14 billion parameters, and what of one transformer is in no block,
in bfloat16."""


@dataclass(frozen=True)
class Keeping:
    """How the context of the one-way modes is kept."""

    place: Cache = "device"
    dtype: CacheDtype = "auto"
    holds: CacheHolds = "keys"


@dataclass(frozen=True)
class Options:
    """How a backbone is run; but for the cache and compiled blocks nano has one way."""

    dtype: Dtype = "auto"
    offload: Offload = "none"
    size: str | None = None
    """WIDTHxHEIGHT of one half in pixels; None takes the backbone's own."""
    frames: int | None = None
    """Frames of one segment, 4 * k + 1; None takes the backbone's own."""
    lora: tuple[str, ...] = ()
    """Low-rank layers besides the adapter, on Wan: FILE or FILE@SCALE; for a backbone of two
    transformers HIGH,LOW or HIGH,LOW@SCALE, or one file that holds both."""
    cache: Cache | None = None
    """Of weights in a one-way mode, which alone have something to keep; None takes device there."""
    cache_dtype: CacheDtype = "auto"
    cache_holds: CacheHolds = "keys"
    compile: bool = False
    """Compile the transformers' blocks, at their first pass (`backbones.compiled`)."""
    storage: Storage = "auto"
    """What a transformer's layers wait in: auto is `dtype`, float8 (e4m3, sign and 7 bits) takes
    half of bfloat16's memory, and each layer is brought to `dtype` when it computes."""

    def __post_init__(self) -> None:
        """Check every value by itself.

        Raises:
            ConfigError: One that cannot work.
        """
        object.__setattr__(self, "lora", tuple(self.lora or ()))
        choices = {
            "dtype": Dtype, "offload": Offload, "cache": Cache,
            "cache_dtype": CacheDtype, "cache_holds": CacheHolds, "storage": Storage,
        }  # fmt: skip
        for name, choice in choices.items():
            words, value = get_args(choice), getattr(self, name)
            if value not in words and not (name == "cache" and value is None):
                raise ConfigError(f"{name}={value!r}: want {', '.join(words)}")
        if self.size is not None and not SIZE.fullmatch(self.size):
            raise ConfigError(f"size={self.size!r}: want WIDTHxHEIGHT, such as 832x480")
        if self.frames is not None and self.frames < 1:
            raise ConfigError(f"frames={self.frames}: want 4 * k + 1, such as 81")

    @property
    def keeping(self) -> Keeping:
        """How a context is kept, if there is one."""
        return Keeping(self.cache or "device", self.cache_dtype, self.cache_holds)

    @property
    def half(self) -> tuple[int, int] | None:
        """(height, width), if stated."""
        found = SIZE.fullmatch(self.size or "")
        return (int(found[2]), int(found[1])) if found else None


@dataclass(frozen=True)
class Shape:
    """Of a transformer: what memory and time of a training follow from."""

    layers: int
    width: int
    """Channels of a token."""
    ffn: int
    """Channels within a feed-forward layer."""


@dataclass(frozen=True)
class Entry:
    """A backbone that can be named."""

    name: str
    hub: str
    """Id of its published weights in diffusers format; empty for those that ship."""
    licence: str
    parts: dict[str, int]
    """Folder -> parameters."""
    family: Family
    shape: Shape
    small: tuple[str, ...] = ()
    """Folders without weights: tokenizers, scheduler and the like."""
    full_precision: tuple[str, ...] = ()
    """Parts that stay in float32, as in the examples of diffusers."""
    pipeline: str = ""
    """Class that model_index.json of the published weights names, if that is known."""
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

    @property
    def encodes_hidden(self) -> bool:
        """Whether hidden pixels go through the autoencoder, as grey; elsewhere latents are 0."""
        return self.family == "wan"

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Of attention, that it can be in."""
        return ("full",) if self.family == "hunyuan" else get_args(Mode)

    def expert(self, which: Expert | None) -> str:
        """Folder of a transformer.

        Args:
            which: Has to be said where there are two, and only there.

        Raises:
            ConfigError: It is missing, or out of place.
        """
        if len(self.experts) == 1 and which is None:
            return self.experts[0]
        if len(self.experts) == 1:
            raise ConfigError(f"expert={which}: {self.name} has one transformer; leave it out")
        if which is None:
            raise ConfigError(f"{self.name} has two transformers: want expert=high or expert=low")
        return self.experts[("high", "low").index(which)]

    def levels(self, which: Expert | None) -> tuple[float, float]:
        """Noise levels that a transformer is asked at."""
        if self.boundary is None or which is None:
            return 0.0, 1.0
        return (self.boundary, 1.0) if which == "high" else (0.0, self.boundary)

    def bytes_of(self, part: str, dtype: Dtype = "bfloat16") -> int:
        """Size of a part's weights."""
        wide = dtype == "float32" or part in self.full_precision or not self.hub
        return self.parts[part] * (4 if wide else 2)

    def needs(
        self, offload: Offload, dtype: Dtype = "bfloat16", storage: Storage = "auto"
    ) -> float:
        """GiB on the device that runs it: weights that are there at once, and activations."""
        weights = {part: self.bytes_of(part, dtype) / GIB for part in self.parts}
        if storage == "float8":  # but for norms and embeddings, which are small
            weights |= {part: self.parts[part] / GIB for part in self.experts}
        room, vae = self.activations or 0.0, weights["vae"]
        if offload == "none":
            return sum(weights.values()) + room
        if offload == "group":
            wide = 2 if dtype == "float32" else 1
            there = (BLOCKS_GIB + REST_GIB * len(self.experts)) * wide
            return min(there, sum(weights.values())) + vae + room
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


_14B, _1B = Shape(40, 5120, 13824), Shape(30, 1536, 8960)


def _wan(name: str, hub: str, parts: dict[str, int], shape: Shape = _14B, **more: Any) -> Entry:
    """What Wan's models have in common; those of 2.1 see the reference through CLIP."""
    small = ("tokenizer", "scheduler", *(["image_processor"] * ("image_encoder" in parts)))
    return Entry(
        name,
        hub,
        "Apache-2.0",
        parts,
        "wan",
        shape,
        small,
        full_precision=("vae", "image_encoder"),
        tested=_EQUAL,
        **more,
    )


def _hunyuan(height: int, width: int, shift: float, activations: float) -> Entry:
    """HunyuanVideo-1.5. Sizes, shift and guidance are those that the published folder leads to.

    Frames, their rate and steps are diffusers' defaults and those of its example; the overlap is
    ours. In float32 transformer and autoencoder add up to the 54.2 GB of the published folder with
    the other parts in bfloat16; that it is these two is inferred from the sum.
    """
    return Entry(
        f"hunyuanvideo-1.5-{height}p-i2v",
        f"hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-{height}p_i2v",
        "Tencent Hunyuan Community Licence: read where it applies",
        {
            "transformer": 8_326_608_160,
            "text_encoder": 7_070_619_136,  # Qwen2.5-VL 7B, language part
            "text_encoder_2": 219_314_944,  # ByT5 small with the tokens of glyphs
            "image_encoder": 428_225_600,  # SigLIP so400m at 384
            "vae": 1_260_634_115,
        },
        "hunyuan",
        Shape(54, 2048, 8192),
        ("tokenizer", "tokenizer_2", "scheduler", "guider", "feature_extractor"),
        pipeline="HunyuanVideo15ImageToVideoPipeline",
        native={
            "height": height, "width": width, "fps": 24.0, "frames": 121, "overlap": 4,
            "steps": 50, "shift": shift, "guidance": 6.0,
        },
        activations=activations,
        tested=_EQUAL,
    )  # fmt: skip


# steps, shift and guidance: generate.py and configs of Wan-Video/Wan2.1 and Wan2.2, and
# examples/wan2.1_fun/predict_i2v.py of VideoX-Fun. activations: one bfloat16 pass over 65,520
# tokens peaked at 37.6 GiB with 30.5 GiB of weights (14B, eager, one H100), and at 18.9
# with 15.5 (HunyuanVideo-1.5 without a mask, likewise), which is scaled by tokens.
CATALOGUE = {
    entry.name: entry
    for entry in (
        Entry(
            "nano",
            "",
            "Apache-2.0, art CC BY-SA 3.0",
            {"transformer": 30_158_464, "vae": 16_021_579},
            "nano",
            Shape(12, 384, 1536),
            activations=0.3,
            tested="trained and measured here (docs/results.md); ships with the package",
        ),
        _wan(
            "wan2.1-i2v-14b-480p",
            "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
            {"transformer": 16_394_878_784, "image_encoder": _CLIP, **_SHARED},
            pipeline="WanImageToVideoPipeline",
            native=_native(480, 832, 40, 3.0, 5.0),
            activations=7.1,
        ),
        _wan(
            "wan2.1-i2v-14b-720p",
            "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers",
            {"transformer": 16_394_878_784, "image_encoder": _CLIP, **_SHARED},
            pipeline="WanImageToVideoPipeline",
            native=_native(720, 1280, 40, 5.0, 5.0),
            activations=16.4,  # 7.1 by the tokens, 2.3 times as many
        ),
        _wan(
            "wan2.2-i2v-a14b",
            "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
            {"transformer": 14_288_901_184, "transformer_2": 14_288_901_184, **_SHARED},
            pipeline="WanImageToVideoPipeline",
            native=_native(480, 832, 40, 5.0, 3.5),
            boundary=0.9,
            activations=7.1,
        ),
        _wan(
            "wan2.1-fun-1.3b-inp",
            "engineerA314/Wan2.1-Fun-V1.1-1.3B-InP-Diffusers",
            {"transformer": 1_564_428_608, "image_encoder": _CLIP, **_SHARED},
            _1B,
            native=_native(480, 832, 50, 3.0, 6.0),
            activations=2.1,  # 7.1 by the width, 1536 of 5120
        ),
        _hunyuan(480, 848, 5.0, activations=5.1),
        _hunyuan(720, 1280, 7.0, activations=11.6),
    )
}
"""Every backbone by its name."""


def table() -> Iterator[str]:
    """Lines for `dreamactor backbones`: sizes, memory, licence and what is tested."""
    ways: dict[str, tuple[Offload, Storage]] = {
        "none": ("none", "auto"), "model": ("model", "auto"), "float8": ("model", "float8"),
        "group": ("group", "auto"),
    }  # fmt: skip
    yield f"{'backbone':27}{'parameters':>11}{'on disk':>9}{'half, frames':>20}   GPU memory, GiB"
    yield f"{'':27}{'billions':>11}{'GB':>9}{'':>20}" + "".join(f"{w:>8}" for w in ways)
    for entry in CATALOGUE.values():
        numbers = sum(entry.parts.values())
        size = sum(map(entry.bytes_of, entry.parts))
        native = entry.native
        half = (
            f"{native['width']}x{native['height']}, {native['frames']}" if native else "256x256, 17"
        )
        needs = f"{'CPU':>8}"
        if entry.hub:
            needs = "".join(
                f"{entry.needs(offload, storage=storage):8.1f}"
                for offload, storage in ways.values()
            )
        yield f"{entry.name:27}{numbers / 1e9:11.2f}{size / 1e9:9.1f}{half:>20}{needs}"
    yield ""
    for entry in CATALOGUE.values():
        yield entry.name
        if entry.hub:
            yield f"    weights  {entry.hub}, or its folder: --weights"
        yield f"    licence  {entry.licence}"
        yield f"    tested   {entry.tested}"
    yield ""
    yield "On disk, GPU memory: in bfloat16, but Wan's image encoder and autoencoder in float32."
    yield "GPU memory: by --offload (float8: model, with --storage float8), with room for one pass"
    yield "over the canvas at the half above. It was measured on one H100 at 832x480, 81 (Wan 14B,"
    yield "HunyuanVideo-1.5) and scaled to the others; decoding was not measured, nor --offload."
