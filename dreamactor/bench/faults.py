"""Faults of a synthesis, measured without knowing the truth: from source, identity and result.

Every fault is a number that grows with it and is about 0 or below for a faultless clip. None needs
a network: gradients, optical flow (OpenCV's DIS), interpolation along it, and colours.

    imaging quality         blur, harshness, grain        against the identity's picture
    motion smoothness       jerk, haste, stillness, halt, straying      against the source clip
    temporal consistency    flicker, residual, drift      against the source clip and frame 0
    appearance consistency  colours                       against the identity's picture

Legend: T frames of H x W pixels; h x w after shrinking to `SIDE`. Clips are (T, H, W, 3) uint8.
What moves is looked at on h x w pixels, what is fine on all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dreamactor.bench.metrics import clip_flow
from dreamactor.bench.metrics.appearance import palette
from dreamactor.bench.metrics.smoothness import frame_surprise
from dreamactor.errors import ShapeError
from dreamactor.image import Rgb, resize

Floats = NDArray[np.float64]
Clip = NDArray[np.uint8]

SIDE = 256
"""Pixels of the longer side, for what moves."""
LOOKS = 5
"""Moments at which interpolation and colours are looked at, evenly spread."""
DIRECTIONS = 8
SLOW = 0.3
"""Pixels a frame below which the direction of motion is noise."""
FLOOR_SPEED = 0.05
"""Pixels a frame; in ratios of speeds, so that two still clips agree."""
FLOOR_LEVEL = 0.3
"""Of 255; the same for ratios of differences of frames."""


@dataclass(frozen=True)
class Faults:
    """Larger is worse; log2 unless another unit is named."""

    blur: float
    """Gradient energy of the picture over the result's: 1 = edges twice as wide."""
    harshness: float
    """The reverse: noise, ringing, pasted edges."""
    grain: float
    """Fine noise in flat parts, over the picture's."""
    jerk: float
    """Error of each frame against the one interpolated from its neighbours, over the source's."""
    haste: float
    """Speed of the fastest twentieth, over the source's."""
    stillness: float
    """The reverse."""
    halt: float
    """The same for the slowest moment alone."""
    straying: float
    """1 - cosine of the directions of motion, frame by frame, of source and result; 0 to 1."""
    flicker: float
    """Second difference of the mean brightness beyond the source's, levels of 255."""
    residual: float
    """What optical flow does not explain between neighbours, over the source's."""
    drift: float
    """1 - likeness of palettes of frame 0 and the least like one; 0 to 1."""
    colours: float
    """1 - likeness of palettes of the identity and the least like frame; 0 to 1."""

    def plain(self) -> dict[str, float]:
        """By name."""
        return {f.name: float(getattr(self, f.name)) for f in fields(self)}


@dataclass(frozen=True)
class Watched:
    """A clip and what is seen in it, each looked at once and when it is asked for."""

    clip: Clip
    """(T, H, W, 3), T at least 3."""

    def __post_init__(self) -> None:
        if self.clip.ndim != 4 or len(self.clip) < 3 or self.clip.shape[-1] != 3:
            raise ShapeError(f"clip is {self.clip.shape}: want (T, H, W, 3) of 3 frames or more")

    @cached_property
    def small(self) -> Clip:  # (T, h, w, 3)
        """Shrunk so that the longer side is at most `SIDE`."""
        height, width = self.clip.shape[1:3]
        scale = SIDE / max(height, width)
        if scale >= 1:
            return self.clip
        size = max(16, round(height * scale)), max(16, round(width * scale))
        return np.stack([resize(frame, size) for frame in self.clip])

    @cached_property
    def flow(self) -> NDArray[np.float32]:  # (T - 1, h, w, 2)
        """Motion to the next frame, pixels."""
        return clip_flow(self.small)

    @cached_property
    def looks(self) -> list[int]:
        """Frames that have two neighbours, at most `LOOKS`."""
        last = len(self.clip) - 2
        return sorted({round(float(k)) for k in np.linspace(1, last, min(LOOKS, last))})

    @cached_property
    def energy(self) -> float:
        """Mean squared step of brightness between neighbouring pixels."""
        return float(np.mean([energy(frame) for frame in self.clip]))

    @cached_property
    def grain(self) -> float:
        """As `grain`, mean over the looks."""
        return float(np.mean([grain(self.clip[t]) for t in self.looks]))

    @cached_property
    def speeds(self) -> Floats:  # (T - 1,)
        """Mean length of the 5 % longest flow vectors, pixels a frame."""
        lengths = np.linalg.norm(self.flow, axis=-1).reshape(len(self.flow), -1)  # (T - 1, h w)
        count = max(1, lengths.shape[1] // 20)
        fast = np.partition(lengths, -count, axis=1)[:, -count:]
        return np.asarray(fast.mean(1), np.float64)

    @cached_property
    def headings(self) -> Floats:  # (T - 1, DIRECTIONS)
        """Sum of the flow vectors' lengths by direction, neighbours blended."""
        lengths = np.linalg.norm(self.flow, axis=-1)
        lengths = np.where(lengths > SLOW, lengths, 0)
        turn = np.arctan2(self.flow[..., 1], self.flow[..., 0]) / (2 * np.pi) * DIRECTIONS
        sector = np.rint(turn).astype(int) % DIRECTIONS  # (T - 1, h, w)
        sums = np.stack(
            [
                np.bincount(s.ravel(), length.ravel(), minlength=DIRECTIONS)
                for s, length in zip(sector, lengths, strict=True)
            ]
        )
        return sums + (np.roll(sums, 1, 1) + np.roll(sums, -1, 1)) / 2

    @cached_property
    def surprise(self) -> float:
        """Mean error of frames against those interpolated from their neighbours, of 255."""
        x = self.small
        return float(np.mean([frame_surprise(x, t) for t in self.looks]))

    @cached_property
    def residual(self) -> float:
        """Mean error of frames against the next one moved back along the flow, of 255."""
        height, width = self.small.shape[1:3]
        grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
        errors = []
        for t in self.looks:
            at = grid + self.flow[t]
            back = cv2.remap(
                self.small[t + 1],
                np.ascontiguousarray(at[..., 0]),
                np.ascontiguousarray(at[..., 1]),
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
            errors.append(np.abs(back.astype(np.float64) - self.small[t]).mean())
        return float(np.mean(errors))

    @cached_property
    def unsteadiness(self) -> float:
        """Mean absolute second difference of the mean brightness, of 255."""
        levels = [float(_grey(frame).mean()) for frame in self.small]
        return float(np.abs(np.diff(levels, 2)).mean())

    @cached_property
    def palettes(self) -> Floats:  # (n, bins)
        """Of the first frame, the looks and the last."""
        chosen = [0, *self.looks, len(self.clip) - 1]
        return np.stack([palette(self.small[t]) for t in chosen])


def find_faults(source: Watched, identity: Rgb, result: Watched) -> Faults:
    """What is wrong with a result, as far as it shows.

    Args:
        source: V_src, of as many frames.
        identity: I_o, (H, W, 3) of any size and the result's aspect ratio.
        result: V_o.
    """
    if len(source.clip) != len(result.clip):
        raise ShapeError(f"source has {len(source.clip)} frames, result {len(result.clip)}")
    picture = resize(identity, (result.clip.shape[1], result.clip.shape[2]))
    pace = _ratio(result.speeds.mean(), source.speeds.mean(), FLOOR_SPEED)
    energies = _ratio(result.energy, energy(picture), 1e-6)
    likeness = result.palettes @ palette(picture)
    return Faults(
        blur=-energies,
        harshness=energies,
        grain=_ratio(result.grain, grain(picture), FLOOR_LEVEL),
        jerk=_ratio(result.surprise, source.surprise, FLOOR_LEVEL),
        haste=pace,
        stillness=-pace,
        halt=_ratio(source.speeds.min(), result.speeds.min(), FLOOR_SPEED),
        straying=_straying(source.headings, result.headings),
        flicker=result.unsteadiness - source.unsteadiness,
        residual=_ratio(result.residual, source.residual, FLOOR_LEVEL),
        drift=1 - float((result.palettes @ result.palettes[0]).min()),
        colours=1 - float(likeness.min()),
    )


def energy(frame: Rgb) -> float:
    """Mean squared step of brightness to the right and down, brightness in [0, 1].

    An edge of height h over w pixels has h^2 / w, so half the energy is edges twice as wide.
    """
    x = _grey(frame) / 255
    return float(sum(np.square(np.diff(x, axis=axis)).mean() for axis in (0, 1)))


def grain(frame: Rgb) -> float:
    """Median of the absolute second difference both ways, of 255: blind to edges.

    Source: the mask of Immerkaer 1996 (fast noise variance estimation), with a median.
    """
    mask = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    return float(np.median(np.abs(cv2.filter2D(_grey(frame), -1, mask))))


def _straying(source: Floats, result: Floats) -> float:
    """Mean over frames in which the source moves; 0 where it never does."""
    moves = source.sum(1) > 0
    if not moves.any():
        return 0.0
    a, b = source[moves], result[moves]
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return 1 - float(np.mean((a * b).sum(1) / np.maximum(lengths, 1e-9)))


def _ratio(a: Any, b: Any, floor: float) -> float:
    return float(np.log2((a + floor) / (b + floor)))


def _grey(frame: Rgb) -> NDArray[np.float32]:
    return cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY).astype(np.float32)
