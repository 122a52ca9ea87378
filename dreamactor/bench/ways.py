"""Ways of making a clip that `bench speed` compares, and a segment made in one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast, get_args

import torch

from dreamactor.backbones import animate2
from dreamactor.backbones.catalogue import Cache, CacheHolds, Keeping, Mode
from dreamactor.backbones.incontext import Context, predict, predicted_bytes
from dreamactor.backbones.shapes import Kind, Network, Size, inputs_of, nearest_of
from dreamactor.bench import flops
from dreamactor.errors import ConfigError

FLOOR = "plain"
"""The way that all others are compared with."""
ONE_WAY = ("one-way", "one-way-aligned")
ANIMATE, ANIMATE_2 = RIVALS = ("wan-animate", "wan-animate-2")
MODES = (FLOOR, "full", *ONE_WAY, *RIVALS)
COMPILED = "compiled"
KEPT: dict[str, tuple[str, ...]] = {
    "place": get_args(Cache), "dtype": ("bfloat16", "int8"), "holds": get_args(CacheHolds),
}  # fmt: skip


@dataclass(frozen=True)
class Way:
    """How a clip is made; `Way.parse` reads one."""

    name: str
    mode: str
    keeping: Keeping | None = None
    """Of the one-way modes, whose context is kept."""
    compiled: bool = False
    """Whether its blocks are to be compiled, whatever those of other ways."""

    @classmethod
    def parse(cls, text: str) -> Way:
        """From MODE or MODE:WORD+WORD.

        Raises:
            ConfigError: A word that is not known, or out of place.
        """
        mode, colon, rest = text.partition(":")
        if mode not in MODES:
            raise ConfigError(nearest_of("mode", mode, MODES))
        words = rest.split("+") if colon else []
        compiled = COMPILED in words
        if compiled:
            words.remove(COMPILED)
        if mode not in ONE_WAY:
            if words:
                raise ConfigError(f"mode {text!r}: keeps no context; nearest is {mode}")
            return cls(text, mode, compiled=compiled)
        said: dict[str, Any] = {}
        for word in words:
            key = next((key for key, known in KEPT.items() if word in known), None)
            if key is None:
                every = [known for words in KEPT.values() for known in words]
                raise ConfigError(
                    nearest_of(f"mode {text!r}: what is kept", word, [*every, COMPILED])
                )
            if key in said:
                raise ConfigError(f"mode {text!r}: want one of {', '.join(KEPT[key])}")
            said[key] = word
        return cls(text, mode, Keeping(**said), compiled)

    @property
    def kind(self) -> Kind:
        """Which of diffusers' transformers."""
        return cast(Kind, self.mode) if self.mode in RIVALS else "wan"

    @property
    def halves(self) -> int:
        """Of the canvas that it goes over."""
        return 1 if self.mode in (FLOOR, *RIVALS) else 2

    @property
    def caches(self) -> bool:
        """Whether a context is kept from step to step."""
        kept = self.keeping is not None and self.keeping.place != "none"
        return kept or self.mode == ANIMATE_2

    def exact(self, dtype: str) -> bool:
        """Whether what it keeps is as a network in `dtype` computed it."""
        return self.keeping is None or self.keeping.dtype in ("auto", dtype)

    def flops(self, network: Network, size: Size, passes: int = 1) -> tuple[int, int]:
        """Operations of a step of so many passes, and of what is done once a segment."""
        if self.mode == ANIMATE_2:
            return flops.animate_2(network, size, passes), flops.plain(network, size)
        if self.mode == ANIMATE:
            return passes * flops.animate(network, size), 0
        if self.keeping is None:
            whole = flops.plain if self.mode == FLOOR else flops.full
            return passes * whole(network, size), 0
        holds = self.keeping.holds if self.caches else None
        step = flops.one_way(network, size, cast(Mode, self.mode), holds)
        return passes * step, flops.filling(network, size) if self.caches else 0


class Segment:
    """A segment of a clip, of random inputs.

    Args:
        way: How it is made.
        transformer: Of the way's kind and in its mode.
        network: Shape.
        size: Of a half.
        device: Where.
        dtype: Of the clip.
    """

    def __init__(
        self,
        way: Way,
        transformer: Any,
        network: Network,
        size: Size,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._way, self._transformer = way, transformer
        self._given: dict[str, Any] = inputs_of(network, size, way.kind, way.halves, device, dtype)
        if way.keeping is not None:
            self._given["silence"] = torch.zeros_like(self._given["encoder_hidden_states"])
        self._kept: Any = None

    @property
    def bytes_foreseen(self) -> int:
        """Size of the cache, before there is one."""
        if not self._way.caches:
            return 0
        if self._way.mode == ANIMATE_2:
            return animate2.predicted_bytes(self._transformer, self._given)
        assert self._way.keeping is not None
        canvas = self._given["hidden_states"]
        return predicted_bytes(self._transformer, canvas, self._way.keeping)

    @property
    def bytes_held(self) -> int:
        """Likewise, of its tensors."""
        if self._kept is None:
            return 0
        if self._way.mode == ANIMATE_2:
            return animate2.held_bytes(self._kept)
        return cast(Context, self._kept).of(self._transformer, self._given).bytes

    def fill(self) -> None:
        """What is done once a segment, if anything is."""
        self._kept = None  # its memory goes before more is taken
        if not self._way.caches:
            return
        if self._way.mode == ANIMATE_2:
            self._kept = animate2.extract(self._transformer, self._given)
            return
        assert self._way.keeping is not None
        self._kept = Context(self._way.keeping)
        self._kept.of(self._transformer, self._given)

    def step(self, passes: int) -> None:
        """A step; the second pass is that of the branch that guidance leads away from."""
        for number in range(passes):
            if self._way.mode == ANIMATE_2:
                unconditional = number > 0
                animate2.predict(self._transformer, self._kept, self._given, unconditional)
            elif self._way.mode == ANIMATE:
                self._transformer(**self._given, return_dict=False)
            else:
                predict(self._transformer, self._kept, **self._given)

    def whole(self, steps: int, passes: int) -> None:
        """All of it, the cache filled anew."""
        self.fill()
        for _ in range(steps):
            self.step(passes)
