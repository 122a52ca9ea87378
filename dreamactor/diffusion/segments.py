"""Plan of a long clip: segments of the backbone's length, each shown the end of the one before.

Canvas frame 0 of a segment is the reference; frame i > 0 follows the driving frame
`start + i - 1`. The first segment shows nothing else and generates the rest; every later one
shows the last `overlap` generated frames at canvas frames 1 to `overlap` and goes on from there:

    driving   0 1 2 ... 15 16 17 ... 27 28 ...
    segment 0 R g g ... g
    segment 1       R s s s s g ... g            (starts at 12, frames 12 to 15 are shown)

The last segment has the fewest frames stride_t * k + 1 that suffice; where the driving clip ends
before them its last frame is repeated, and what is generated there is dropped.

All frame numbers are at the backbone's frame rate. Neither torch nor a file is touched here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

from dreamactor.errors import ConfigError

Guard = Literal["none", "statistics", "anchor"]
"""What is done against drift; `seams.py` says how."""
GuardChoice = Literal["auto", Guard]
"""auto: none up to LONG segments, for more of them AUTO."""
LONG = 10
AUTO: Guard = "anchor"
"""The one that ends drift over a minute (docs/results.md)."""
EVERY = 4
"""Segments from one anchor to the next."""


class Lengths(Protocol):
    """What the plan reads of `backbones.base.Native`."""

    @property
    def frames(self) -> int:
        """Frames of one segment, the reference included."""

    @property
    def overlap(self) -> int:
        """Generated frames shown again."""


class Stride(Protocol):
    """What the plan reads of `conditioning.canvas.LatentGrid`."""

    @property
    def stride_t(self) -> int:
        """Pixel frames per latent frame."""


@dataclass(frozen=True)
class Segment:
    """One run of the sampler."""

    index: int
    start: int
    """Driving frame that canvas frame 1 follows."""
    shown: int
    """Frames 1 to `shown` of the canvas are generated already and shown again."""
    new: int
    """Frames that are kept: canvas frames shown + 1 to shown + new."""
    frames: int
    """Frames of the canvas, stride_t * k + 1, the reference included."""

    @property
    def first_new(self) -> int:
        """Number of the first kept frame in the whole clip."""
        return self.start + self.shown

    def driving(self, total: int) -> list[int]:
        """Driving frame that each canvas frame is shown beside.

        Canvas frame 0 has the one before `start` (at the clip's beginning the first itself).

        Args:
            total: Frames of the whole driving clip; its last one is repeated past the end.
        """
        first = self.start - 1
        return [min(max(first + i, 0), total - 1) for i in range(self.frames)]


def plan(frames: int, native: Lengths, grid: Stride) -> list[Segment]:
    """Cut a clip into segments.

    Args:
        frames: Frames to generate, at least 1.
        native: Length of a segment and how much of it is shown again.
        grid: Only `stride_t` is read.

    Returns:
        Segments in order; their `new` frames are 0 .. frames - 1, each once.

    Raises:
        ConfigError: There is nothing to generate, or the backbone's lengths do not fit its grid.

    Example:
        >>> [(s.start, s.shown, s.new, s.frames) for s in plan(30, native, grid)]  # 17 and 4
        [(0, 0, 16, 17), (12, 4, 12, 17), (24, 4, 2, 9)]
    """
    stride, body = grid.stride_t, native.frames - 1
    if frames < 1:
        raise ConfigError(f"{frames} frames to generate: want at least 1")
    if body < stride or body % stride or native.overlap % stride or not 0 <= native.overlap < body:
        raise ConfigError(
            f"segments of {native.frames} frames of which {native.overlap} overlap: want "
            f"{stride} * k + 1 frames and an overlap that is a multiple of {stride} below that"
        )
    segments: list[Segment] = []
    done = 0
    while done < frames:
        shown = native.overlap if segments else 0
        new = min(body - shown, frames - done)
        runs = -(-(shown + new) // stride)
        segments.append(Segment(len(segments), done - shown, shown, new, runs * stride + 1))
        done += new
    return segments


def guard_of(choice: GuardChoice, segments: int) -> Guard:
    """The guard of a clip of so many segments."""
    if choice != "auto":
        return choice
    return AUTO if segments > LONG else "none"


def as_anchor(segment: Segment, guard: Guard) -> Segment:
    """The segment as it is generated: an anchor also makes the frames that others are shown."""
    if guard != "anchor" or not segment.shown or segment.index % EVERY:
        return segment
    return replace(segment, shown=0, new=segment.shown + segment.new)
