"""How much of a pair a training sample shows: small and short samples teach the same for less."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Extent:
    """Size and length of a sample."""

    half: bool
    """Half size: rows and columns of latents count two positions each, so that a place in the
    other half is as far away at both sizes."""
    single: bool
    """One driven latent frame beside the reference, not all four."""

    @property
    def factor(self) -> int:
        """How many samples of it cost about as much as one of everything."""
        return (4 if self.half else 1) * (3 if self.single else 1)


def set_positions(
    rope: nn.Module, tables: tuple[Tensor, Tensor], extent: Extent, frame: int = 1
) -> None:
    """Let the rotary tables tell the network where a sample's cells and frames are.

    Args:
        rope: diffusers' WanRotaryPosEmbed, changed in place.
        tables: Its own tables (cos, sin), each (positions, head_dim).
        extent: Of the sample.
        frame: Position in time of a single driven latent frame.
    """
    start, stride = int(rope.t_dim), 2 if extent.half else 1  # type: ignore[arg-type]
    for buffer, own in zip((rope.freqs_cos, rope.freqs_sin), tables, strict=True):
        assert isinstance(buffer, Tensor)
        spaced = own[::stride, start:]
        buffer[: len(spaced), start:] = spaced
        buffer[1, :start] = own[frame if extent.single else 1, :start]
