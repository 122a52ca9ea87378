"""Settings of `bench speed`, which says what they are for."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any, Literal

import torch

from dreamactor import __version__
from dreamactor.backbones.shapes import NETWORKS, Network, Size, nearest_of
from dreamactor.bench.timing import hardware
from dreamactor.bench.ways import ANIMATE, ANIMATE_2, MODES, Way
from dreamactor.config import check_device, check_least
from dreamactor.errors import ConfigError


@dataclass(frozen=True)
class SpeedConfig:
    """Settings of one `bench speed`."""

    shape: str = "wan-14b"
    """Of the transformers: wan-14b, wan-1.3b, nano or tiny; `bench training` has HunyuanVideo-1.5's
    too."""
    layers: int = 0
    """Blocks, to try it in short; 0 = those of the shape."""
    sizes: str = "832x480x81,1280x720x81"
    """WIDTHxHEIGHTxFRAMES of one half, with commas between."""
    modes: str = ",".join(MODES)
    """Ways, with commas between: MODE, or MODE:WORD+WORD (docs/fast.md)."""
    steps: int = 40
    """Of a clip: its seconds are so many steps and what is done once a segment."""
    guidance: int = 1
    """Passes of a step: 1, or 2 with a branch that guidance leads away from."""
    repeats: int = 3
    """Turns that are timed; the median counts."""
    warmup: int = 1
    """Turns before them."""
    segments: int = 0
    """Besides, so many whole segments in turn, each with its context filled anew and `steps`
    steps, to see whether time or memory grows; 0 = none."""
    device: str = "cuda"
    """cuda, cuda:N or cpu."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of network and clip; auto is bfloat16 on a GPU and float32 on the CPU."""
    compile: bool = False
    """Compile each block of every way; the first turn pays for it."""
    minutes: float = 60.0
    """No row begins after them; the same command goes on."""
    seed: int = 0
    """Of weights and inputs."""

    def __post_init__(self) -> None:
        """Check every value by itself.

        Raises:
            ConfigError: One that cannot work.
        """
        if self.shape not in NETWORKS:
            raise ConfigError(nearest_of("shape", self.shape, NETWORKS))
        least = {"layers": 0, "steps": 1, "guidance": 1, "repeats": 1, "warmup": 0, "segments": 0,
                 "minutes": 0}  # fmt: skip
        check_least(self, least)
        if self.guidance > 2:
            raise ConfigError(f"guidance={self.guidance}: want 1 or 2 passes a step, nearest is 2")
        check_device(self.device)
        _ = self.all_sizes, self.ways
        every = self.network.every
        if self.network.layers % every and any(way.mode == ANIMATE for way in self.ways):
            near = max(1, round(self.network.layers / every)) * every
            raise ConfigError(
                f"layers={self.layers}: {ANIMATE} wants a multiple of {every}, nearest is {near}"
            )

    @cached_property
    def network(self) -> Network:
        """What is built."""
        found = NETWORKS[self.shape]
        return replace(found, layers=self.layers or found.layers)

    @cached_property
    def all_sizes(self) -> list[Size]:
        """Those of `sizes`, each once."""
        return list(dict.fromkeys(Size.parse(word.strip()) for word in self.sizes.split(",")))

    @cached_property
    def ways(self) -> list[Way]:
        """Those of `modes`, each once."""
        return list(dict.fromkeys(Way.parse(word.strip()) for word in self.modes.split(",")))

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype`, with its default."""
        wide = self.dtype == "float32" or (self.dtype == "auto" and self.device == "cpu")
        return torch.float32 if wide else torch.bfloat16

    @property
    def command(self) -> str:
        """What repeats the run."""
        words = ["dreamactor bench speed --out FOLDER"]
        for f in fields(self):
            value = getattr(self, f.name)
            if value != f.default:
                words.append(f"{f.name}={str(value).lower() if f.type == 'bool' else value}")
        return " ".join(words)

    def compiles(self, way: Way) -> bool:
        """Whether a way's blocks are compiled."""
        needed = way.mode == ANIMATE_2 and self.device != "cpu"
        return self.compile or way.compiled or needed

    def identity(self) -> dict[str, Any]:
        """What two rows must have in common to stand in one file."""
        named = ("shape", "layers", "guidance", "repeats", "warmup", "compile", "seed")
        return {
            **{name: getattr(self, name) for name in named},
            "segments": f"{self.segments} of {self.steps} steps" if self.segments else "none",
            "dtype": str(self.torch_dtype).removeprefix("torch."),
            "hardware": hardware(self.device),
            "versions": {
                "dreamactor": __version__,
                "torch": str(torch.__version__),
                "cuda": torch.version.cuda,
                "diffusers": version("diffusers"),
            },
        }
