"""Frames between frames: from the rate a backbone works at to the rate of the output.

Legend: H, W pixels; a frame is (H, W, 3) uint8. Output frame k stands at k / fps seconds, input
frame j at j / source_fps. Two input frames are in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from dreamactor.errors import MediaError
from dreamactor.image import Rgb

Interpolation = Literal["flow", "nearest"]
Flow = NDArray[np.float32]
"""(H, W, 2): pixels right and down that a point moves."""
AGREE, DIFFER = 40.0, 90.0  # mean levels of 255 between the warps: blend below, choose above


def frames_needed(count: int, fps: Fraction, source_fps: Fraction) -> int:
    """Source frames for `count` output frames: the last is the one nearest to the last output.

    Of two equally near ones the earlier counts, so a 2-second clip of 24 frames a second takes 24
    source frames at 12: one more would cost a latent frame for the clip's last 42 ms. What lies
    past the last source frame shows it still, for half a source frame at most.

    Example:
        >>> frames_needed(25, Fraction(25), Fraction(12))  # the last output is at .96 s: 11.52
        13
    """
    last = (count - 1) * source_fps / fps  # in source frames
    return math.ceil(last - Fraction(1, 2)) + 1


def at_rate(
    frames: Iterable[Rgb],
    source_fps: Fraction,
    fps: Fraction,
    count: int,
    mode: Interpolation = "flow",
) -> Iterator[Rgb]:
    """Show frames of one rate at another.

    Args:
        frames: (H, W, 3) at `source_fps`; the last one stays where they end early.
        source_fps: Rate of `frames`.
        fps: Rate wanted.
        count: Frames wanted.
        mode: "flow" moves pixels along the optical flow; "nearest" repeats and drops, of two
            equally near frames the earlier is taken.

    Raises:
        MediaError: There are no frames.
    """
    source = iter(frames)
    before = next(source, None)
    if before is None:
        raise MediaError("there are no frames to show at another rate; want at least 1")
    after = next(source, None)
    position = 0
    between: Between | None = None
    for k in range(count):
        time = k * source_fps / fps
        while after is not None and time >= position + 1:
            before, after, position, between = after, next(source, None), position + 1, None
        share = time - position
        if after is None or share == 0:
            yield before
        elif mode == "nearest":
            yield before if share <= Fraction(1, 2) else after
        else:
            between = between or Between(before, after)
            yield between.at(float(share))


class Between:
    """The motion between two frames, by DIS optical flow both ways.

    Source: flow at a time between them as in Jiang et al. 2018 (arXiv 1712.00080), equation 4.
    """

    def __init__(self, before: Rgb, after: Rgb) -> None:
        self.before, self.after = before, after
        self._still = bool(np.array_equal(before, after))
        if self._still:
            return
        grey = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in (before, after)]
        self._forth, self._back = _flow(grey[0], grey[1]), _flow(grey[1], grey[0])

    def at(self, share: float) -> Rgb:
        """The frame at `share` of the way, in (0, 1).

        Where the two warps disagree the motion is not known (something came into sight, or the
        flow is wrong): there the one of the nearer frame stands alone.
        """
        if self._still:
            return self.before
        t = np.float32(share)
        first = _warp(self.before, t * t * self._back - t * (1 - t) * self._forth)
        second = _warp(self.after, (1 - t) ** 2 * self._forth - t * (1 - t) * self._back)
        apart = cv2.blur(np.abs(first - second).mean(axis=2), (5, 5))
        doubt = np.clip((apart - AGREE) / (DIFFER - AGREE), 0, 1)[..., None]
        nearer = np.float32(1 if share > 0.5 else 0)
        weight = t + doubt * (nearer - t)  # of the second
        mixed = first + weight * (second - first)
        return np.asarray(np.clip(np.rint(mixed), 0, 255), np.uint8)


def _flow(before: NDArray[Any], after: NDArray[Any]) -> Flow:
    if min(before.shape) < 16:  # DIS works on patches of 8 at half size
        return np.zeros((*before.shape, 2), np.float32)
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return np.asarray(method.calc(before, after, None), np.float32)


def _warp(frame: Rgb, flow: Flow) -> NDArray[np.float32]:
    """Frame read at x + flow(x), beyond the border the border."""
    height, width = frame.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    moved = cv2.remap(
        frame.astype(np.float32),
        x + flow[..., 0],
        y + flow[..., 1],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.asarray(moved, np.float32)
