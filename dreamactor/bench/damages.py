"""Known damage to a clip that is right.

What every metric is held against (`validation.py`), at five strengths each, `STRENGTHS`:

    blur            frames seen through a Gaussian                        pixels
    noise           every value moved by itself                           levels of 255
    flicker         every frame brighter or darker by chance              parts of the brightness
    frozen          the clip stands still towards its end                 share of its time
    swapped         from the second quarter on somebody else, feet first  share of the height
    time shift      everything late; before its first frame, mirrored     frames of 1/12 s
    colour drift    more and more of one tint                             share in the last frame

Others, such as `stutter` and `recolour`, set the gate's scales (`planted.py`) and calibrate judges
(`calibration.py`), at strengths that stand there.

All are functions of clip, strength and a generator that is made anew for every strength, so that a
stronger damage is the weaker one, larger. Draws are keyed by case: nothing depends on order.

Legend: T frames of H x W pixels; clips (T, H, W, 3) uint8.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dreamactor.errors import ConfigError, ShapeError
from dreamactor.image import resize
from dreamactor.interpolate import Between

Clip = NDArray[np.uint8]

STRENGTHS: dict[str, tuple[float, ...]] = {
    "blur": (0.5, 0.8, 1.3, 2.0, 3.2),
    "noise": (3, 6, 12, 24, 48),
    "flicker": (0.03, 0.06, 0.12, 0.2, 0.32),
    "frozen": (0.2, 0.4, 0.6, 0.8, 1.0),
    "swapped": (0.2, 0.4, 0.6, 0.8, 1.0),
    "time shift": (0.5, 1, 1.5, 2, 3),
    "colour drift": (0.06, 0.12, 0.2, 0.35, 0.6),
}
"""Of each damage, weakest first; the units stand above."""
TINT = (200, 80, 60)
"""Red, green and blue that colours drift to."""
SWAP_AT = 0.25
"""Part of the clip that a swapped identity leaves right, as a first segment would be."""


def damage(
    name: str, clip: Clip, strength: float, rng: np.random.Generator, other: Clip | None = None
) -> Clip:
    """One damage of `STRENGTHS` by its name.

    Args:
        name: Which.
        clip: (T, H, W, 3).
        strength: In the unit of its damage; 0 = none.
        rng: Draws noise and flicker; made anew for every call.
        other: (T, H, W, 3) the same with another identity, for "swapped".

    Raises:
        ConfigError: No damage has that name.
        ShapeError: "swapped" without `other`, or with one of another shape.
    """
    if name == "blur":
        return blur(clip, strength)
    if name == "noise":
        return noise(clip, strength, rng)
    if name == "flicker":
        return flicker(clip, strength, rng)
    if name == "colour drift":
        return tint(clip, strength)
    if name == "swapped":
        if other is None or other.shape != clip.shape:
            given = None if other is None else other.shape
            raise ShapeError(f"the other identity is {given}: want {clip.shape}, as the clip")
        return swap(clip, other, strength)
    if name in STRENGTHS:
        return at_times(clip, shown(name, strength, len(clip)))
    raise ConfigError(f"damage {name!r}: want one of {', '.join(STRENGTHS)}")


def shown(name: str, strength: float, frames: int) -> NDArray[np.float64]:  # (T,)
    """Which frame of the clip each frame of the damaged one shows: joints move along with it."""
    order = np.arange(frames, dtype=np.float64)
    if name == "frozen":
        return np.minimum(order, frames - 1 - round(strength * (frames - 1)))
    if name == "time shift":
        return np.minimum(np.abs(order - strength), frames - 1)
    return order


def at_times(clip: Clip, times: NDArray[np.float64]) -> Clip:
    """Frames at the times given, in frames; between two of them, along the optical flow."""
    frames = []
    for time in times:
        before, share = int(time), float(time % 1)
        frames.append(Between(clip[before], clip[before + 1]).at(share) if share else clip[before])
    return np.stack(frames)


def joints_at(places: NDArray[Any], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Joints (T, J, 2) at the times given, in frames, on straight lines between two of them."""
    before = times.astype(int)
    after = np.minimum(before + 1, len(places) - 1)
    share = (times - before)[:, None, None]
    return np.asarray((1 - share) * places[before] + share * places[after], np.float64)


def blur(clip: Clip, sigma: float) -> Clip:
    """Every frame behind a Gaussian of `sigma` pixels."""
    if sigma <= 0:
        return clip
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in clip])


def noise(clip: Clip, sigma: float, rng: np.random.Generator) -> Clip:
    """Every value moved by itself, normally distributed, `sigma` levels."""
    return as_bytes(clip + rng.normal(0, sigma, clip.shape))


def flicker(clip: Clip, size: float, rng: np.random.Generator) -> Clip:
    """Every frame's brightness moved by at most `size` of itself."""
    return as_bytes(clip * (1 + rng.uniform(-size, size, (len(clip), 1, 1, 1))))


def tint(clip: Clip, share: float) -> Clip:
    """Colours that go over to `TINT`, from nothing in the first frame to `share` in the last."""
    ramp = np.linspace(0, 1, len(clip))[:, None, None, None]
    return as_bytes(clip + share * ramp * (np.array(TINT) - clip.astype(float)))


def swap(clip: Clip, other: Clip, share: float) -> Clip:
    """Another's body up to `share` of its height, in all frames from `SWAP_AT` on.

    Not a cross-fade: to features a ghost of two is as strange as the other alone.
    """
    swapped = clip.copy()
    for t in range(round(SWAP_AT * len(clip)), len(clip)):
        rows = np.flatnonzero((clip[t] != other[t]).any((1, 2)))
        if len(rows):
            line = round(rows[-1] + 1 - share * (rows[-1] + 1 - rows[0]))
            swapped[t, line:] = other[t, line:]
    return swapped


def impostor(clip: Clip, mask: NDArray[Any], other: Clip, theirs: NDArray[Any]) -> Clip:
    """The clip with another's body in it, the background untouched away from both bodies.

    Args:
        clip: (T, H, W, 3).
        mask: (T, H, W) its subject.
        other: (T, H, W, 3) the same scene with somebody else doing the same.
        theirs: (T, H, W) who that is.
    """
    kernel = np.ones((5, 5), np.uint8)  # shadows and soft edges of both
    either = (mask.astype(bool) | theirs.astype(bool)).astype(np.uint8)
    near = np.stack([cv2.dilate(frame, kernel) for frame in either]) > 0
    return np.where(near[..., None], other, clip)


def stutter(clip: Clip, width: int) -> Clip:
    """Each frame that is shown stays for `width` frames."""
    return clip[np.arange(len(clip)) // width * width]


def shake(clip: Clip, width: int, rng: np.random.Generator) -> Clip:
    """Jitter in time: every frame may stand up to `width` frames early or late."""
    order = np.arange(len(clip)) + np.rint(width * rng.uniform(-1, 1, len(clip))).astype(int)
    return clip[order.clip(0, len(clip) - 1)]


def delay(clip: Clip, width: int) -> Clip:
    """Begins `width` frames late, and so never comes to its end."""
    return clip[(np.arange(len(clip)) - width).clip(0)]


def slow(clip: Clip, share: float) -> Clip:
    """Goes the slower the larger the share is; 1 stands still."""
    return clip[np.rint(np.arange(len(clip)) * (1 - share)).astype(int)]


def recolour(clip: Clip, where: NDArray[np.bool_], size: float) -> Clip:
    """Other colours, the same in every frame, brightness kept.

    Args:
        clip: (T, H, W, 3).
        where: (T, H, W) whose colours change.
        size: Of the way to a violet in CIELAB; 1 is 60 steps of a and -80 of b.
    """
    lab = np.stack([cv2.cvtColor(np.ascontiguousarray(f), cv2.COLOR_RGB2LAB) for f in clip])
    moved = lab.astype(np.float32) + size * np.array([0, 60, -80], np.float32)
    lab[where] = as_bytes(moved)[where]
    return np.stack([cv2.cvtColor(f, cv2.COLOR_LAB2RGB) for f in lab])


def replace(clip: Clip, other: Clip, share: float) -> Clip:
    """Somebody else, from a moment on.

    Args:
        clip: (T, H, W, 3).
        other: (T, h, w, 3), shown instead of the last frames.
        share: Of the frames.
    """
    begin = round(len(clip) * (1 - share))
    tail = [resize(frame, (clip.shape[1], clip.shape[2])) for frame in other[begin:]]
    return np.concatenate([clip[:begin], np.stack(tail)]) if tail else clip


def smear(clip: Clip, width: int) -> Clip:
    """Every frame the mean of the `width` around it; an odd number."""
    half = width // 2
    padded = np.pad(clip, ((half, half), (0, 0), (0, 0), (0, 0)), mode="edge").astype(np.float32)
    return as_bytes(np.stack([padded[t : t + width].mean(0) for t in range(len(clip))]))


def as_bytes(clip: NDArray[Any]) -> Clip:
    """Rounded, and kept within 0 to 255."""
    return np.asarray(np.rint(clip).clip(0, 255), np.uint8)
