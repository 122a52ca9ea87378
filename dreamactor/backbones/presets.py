"""Presets of `animate`: settings that were measured together, by kind of backbone.

What is named by hand goes over a preset, and a preset over the defaults. What each costs and gives
is measured in docs/fast.md, "Presets"; nothing heavy is imported.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from dreamactor.backbones.catalogue import CATALOGUE, Cache, Offload
from dreamactor.backbones.load import check_known
from dreamactor.errors import ConfigError

Preset = Literal["quality", "balanced", "fast", "low-memory"]


@dataclass(frozen=True)
class Choice:
    """What a preset sets; other settings keep their defaults."""

    steps: int | None = None
    """Sampling steps; None = the model's."""
    compile: bool = False
    offload: Offload = "none"
    cache: Cache = "device"
    """Where a context is kept, of weights in a mode that has one."""

    def over(self, steps: int | None, compile: bool | None, offload: Offload | None) -> Choice:
        """With what was named by hand in its place; None is what nobody named.

        Blocks that wait in the host's memory by hand are not compiled by a preset.
        """
        waits = offload or self.offload
        return replace(
            self,
            steps=steps or self.steps,
            compile=self.compile and waits != "group" if compile is None else compile,
            offload=waits,
        )

    def words(self, cache: Cache | None = None) -> str:
        """For people; with where the context is kept, if that is known."""
        steps = "the model's steps" if self.steps is None else f"{self.steps} steps"
        said = {
            "blocks compiled": self.compile,
            f"offload {self.offload}": self.offload != "none",
            f"cache {cache}": cache is not None,
        }
        return ", ".join([steps, *(words for words, holds in said.items() if holds)])


NANO: dict[Preset, Choice] = {
    "quality": Choice(steps=16),
    "balanced": Choice(steps=8),
    "fast": Choice(steps=4),
    "low-memory": Choice(steps=4),  # nothing of nano's that a setting could spare counts
}
LARGE: dict[Preset, Choice] = {
    "quality": Choice(),
    "balanced": Choice(compile=True),
    "fast": Choice(compile=True),  # fewer steps want distilled layers, which go with their number
    "low-memory": Choice(offload="group", cache="host"),
}
LARGE_NAMES = tuple(name for name, entry in CATALOGUE.items() if entry.hub)


def offered(backbone: str, device: str) -> tuple[Preset, ...]:
    """Presets that a backbone can run with on a device."""
    spared = backbone in LARGE_NAMES and device == "cpu"
    return tuple(name for name in get_args(Preset) if not (spared and name == "low-memory"))


def chosen(preset: Preset, backbone: str, device: str) -> Choice:
    """What a preset sets.

    Args:
        preset: Its name.
        backbone: One of the catalogue.
        device: Where it runs. On the CPU nothing is compiled unless that is asked for by hand:
            it takes longer than it spares.

    Raises:
        ConfigError: There is no such preset, or none that this device has a use for.
    """
    check_known("preset", "preset", preset, get_args(Preset))
    if preset not in offered(backbone, device):
        raise ConfigError(
            f"preset={preset}: wants --device cuda, whose memory it spares; on the CPU {backbone} "
            f"takes {', '.join(offered(backbone, device))}"
        )
    choice = (LARGE if backbone in LARGE_NAMES else NANO)[preset]
    return replace(choice, compile=choice.compile and device != "cpu")
