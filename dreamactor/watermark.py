"""An invisible mark in the pixels: put into every frame, found again without the original.

One pattern is stretched over the whole picture and added to the brightness of every frame, weak
where the picture is smooth and stronger where its texture hides it. In the plane of a GRID x GRID
cosine transform the pattern is +1 or -1 on the coefficients between LOW and HIGH. A third of them
always carry the same signs: by these the mark is found. The rest say six bytes, four of an
identity and two of its checksum; each byte picks one of 256 sequences of signs.

The detector sums what is left of the frames without their coarse shapes, each place divided by its
own contrast, transforms the sum, divides every coefficient by the size of its neighbours, and
counts how well the signs agree. Pictures that were not marked know nothing of the signs, which came
from a hash, so by Hoeffding's inequality a score z happens by chance with a probability of at most
exp(-z^2 / 2), times the number of positions that were tried.

Legend: H, W pixels, G = GRID. A frame is (H, W, 3) uint8, sRGB values.
"""

from __future__ import annotations

import binascii
import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from dreamactor.errors import ConfigError
from dreamactor.image import Rgb

Plane = NDArray[np.float32]
"""(H, W), brightness or what is left of it."""

VERSION = 1
"""Of the pattern; another one finds nothing of this."""
GRID = 128
LOW, HIGH = 6, 64
"""Radii in the plane of the transform: 3 to 32 waves across the picture."""
SYMBOLS = 6
"""Bytes that the mark says: four of the identity, two of its checksum."""
FLAT, GAIN, TOP = 0.6, 0.5, 3.0
"""Levels of 255 where a picture is smooth, more per level of its texture, and at most."""
DARK = 48
"""Level of 255 below which it gets weaker, down to DARKEST of its strength at 0: a level shows
more in the dark."""
DARKEST = 0.4
SMALL = 256
"""Longer side from which on smooth places carry less: the waves are longer there, and plainer."""
RMS = 1.9
"""Levels of 255 over a whole frame at most: 42.5 dB."""
WINDOW = 1 / 32
"""Side of the neighbourhood that is asked for texture, of the picture's longer side."""
SUMMED = 256
"""Side of the square that frames are summed in."""
SMALLEST = 88
"""Side of the smallest crop that is looked for, of GRID: 69 %."""
CHANCE = 1e-6
"""A mark counts as found where it happens by chance less often than this, at most."""
MOST_FRAMES = 1500
"""That are summed; more say little more."""


@dataclass(frozen=True)
class Found:
    """What the detector saw."""

    score: float
    """Agreement with the signs in standard deviations; about 0 without a mark."""
    chance: float
    """Bound of the probability that a picture without a mark scores so at any place tried."""
    identity: str | None
    """Eight hex digits; None where there is no mark, or its checksum does not agree."""
    frames: int
    """That were looked at."""
    mirrored: bool = False
    """Whether left and right are exchanged."""
    seen: tuple[float, float] = (1.0, 1.0)
    """Share of the marked picture's height and width that is left."""

    @property
    def there(self) -> bool:
        """Whether the mark is there."""
        return self.chance < CHANCE


@dataclass(frozen=True)
class Code:
    """Which coefficients carry which signs."""

    known: NDArray[np.int64]
    """(K,) places in the flat plane that always carry the same."""
    signs: Plane
    """(K,) what they carry."""
    places: NDArray[np.int64]
    """(SYMBOLS, L) places of each byte."""
    words: Plane
    """(SYMBOLS, 256, L) what they carry for each value of it."""


@cache
def code() -> Code:
    """The signs, from a hash: the same on every machine and with every library."""
    row, column = np.indices((GRID, GRID))
    radius = np.hypot(row, column)
    band = np.flatnonzero((radius >= LOW) & (radius <= HIGH) & (row > 0) & (column > 0))
    keys = np.frombuffer(_stream("places", 8 * len(band)), "<u8")
    band = band[np.argsort(keys, kind="stable")]
    known = len(band) // 3
    each = (len(band) - known) // SYMBOLS
    places = band[known : known + SYMBOLS * each].reshape(SYMBOLS, each)
    words = _signs("words", SYMBOLS * 256 * each).reshape(SYMBOLS, 256, each)
    return Code(band[:known], _signs("known", known), places, words)


def _stream(name: str, count: int) -> bytes:
    return hashlib.shake_256(f"DREAMACTOR/{VERSION}/{name}".encode()).digest(count)


def _signs(name: str, count: int) -> Plane:
    bits = np.unpackbits(np.frombuffer(_stream(name, -(-count // 8)), np.uint8))[:count]
    return bits.astype(np.float32) * 2 - 1


def check_identity(identity: str) -> bytes:
    """The four bytes of an identity.

    Raises:
        ConfigError: It is not eight hex digits.
    """
    try:
        data = binascii.unhexlify(identity)
    except (binascii.Error, ValueError):
        data = b""
    if len(data) != SYMBOLS - 2:
        raise ConfigError(f"identity={identity!r}: want {2 * SYMBOLS - 4} hex digits")
    return data


def _checksum(data: bytes) -> bytes:
    return binascii.crc_hqx(data, 0xFFFF).to_bytes(2, "big")


def pattern(identity: str) -> Plane:
    """(GRID, GRID) of mean 0 and standard deviation 1 that says an identity."""
    known, data = code(), check_identity(identity)
    plane = np.zeros(GRID * GRID, np.float32)
    plane[known.known] = known.signs
    for places, words, byte in zip(known.places, known.words, data + _checksum(data), strict=True):
        plane[places] = words[byte]
    return _spread(plane)


def _spread(plane: Plane) -> Plane:
    """(G * G,) coefficients -> (G, G) pattern of standard deviation 1."""
    spread = cv2.idct(plane.reshape(GRID, GRID))
    return np.asarray(spread / spread.std(), np.float32)


class Marker:
    """Marks frames of one size, each by itself: the same frame always becomes the same.

    Example:
        >>> marker = Marker("3fa211ee", (256, 256))
        >>> marked = marker.mark(frame)
    """

    def __init__(self, identity: str, size: tuple[int, int]) -> None:
        """Make the pattern.

        Args:
            identity: Eight hex digits that the mark says.
            size: (height, width) of the frames.

        Raises:
            ConfigError: Not such an identity.
        """
        self._pattern = _stretch(pattern(identity), size)  # (H, W)
        self._flat = FLAT * math.sqrt(min(1.0, SMALL / max(size)))
        side = max(3, round(max(size) * WINDOW) | 1)
        self._window = (side, side)
        self._square = np.ones(self._window, np.uint8)
        # half a level is no whole number: where it becomes one is noise, but the same in every
        # frame, so that smooth places get neither bands nor flicker
        noise = np.frombuffer(_stream("noise", size[0] * size[1]), np.uint8).reshape(size)
        self._noise = (noise.astype(np.float32) - 127.5) / 256

    def mark(self, frame: Rgb) -> Rgb:
        """A marked copy of a frame (H, W, 3)."""
        light = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)  # (H, W)
        added = np.rint(self._strength(light) * self._pattern + self._noise).astype(np.int16)
        return np.clip(frame + added[..., None], 0, 255).astype(np.uint8)

    def _strength(self, light: Plane) -> Plane:
        """(H, W) levels: how much the picture hides.

        A slope has no texture, and an edge has it on its own narrow strip only, so the least of
        each neighbourhood counts.
        """
        rough = _rough(light, self._window)
        texture = _contrast(rough, self._window)
        hidden = cv2.blur(cv2.erode(texture, self._square), self._window)
        bright = np.minimum(DARKEST + (1 - DARKEST) / DARK * cv2.blur(light, self._window), 1)
        strength = np.minimum(self._flat + GAIN * hidden, TOP) * bright
        power = math.sqrt(float(np.mean(strength * strength)))
        return np.asarray(strength * min(1.0, RMS / max(power, 1e-9)), np.float32)


def _stretch(plane: Plane, size: tuple[int, int]) -> Plane:
    """(H, W) -> size, each axis by itself; areas where it shrinks."""
    for axis in (0, 1):
        target = (size[0], plane.shape[1]) if axis == 0 else (plane.shape[0], size[1])
        shrinks = size[axis] < plane.shape[axis]
        way = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        if plane.shape != target:
            plane = cv2.resize(plane, target[::-1], interpolation=way)
    return plane


def _rough(light: Plane, window: tuple[int, int]) -> Plane:
    """The picture without its coarse shapes."""
    return np.asarray(light - cv2.blur(cv2.blur(light, window), window), np.float32)


def _contrast(rough: Plane, window: tuple[int, int]) -> Plane:
    """Root mean square of each neighbourhood."""
    power = cv2.blur(rough * rough, window)  # a running sum: may end a little below 0
    return np.asarray(np.sqrt(np.maximum(power, 0)), np.float32)


# ---- finding it ----------------------------------------------------------------------------------


def read(frames: Iterable[Rgb]) -> Found:
    """Look for the mark in all frames together.

    First where it was put, upright and mirrored; then, if it is not there, in every crop that left
    at least SMALLEST of GRID of each side. Scaling, by whatever factors, needs no search.

    Args:
        frames: (H, W, 3) uint8, one by one; their sizes may differ. At most MOST_FRAMES are read.

    Returns:
        The best of what was found; a score of 0 where there are no frames.
    """
    total, count = np.zeros((SUMMED, SUMMED), np.float32), 0
    for frame in frames:
        total += _evidence(frame)
        count += 1
        if count == MOST_FRAMES:
            break
    if count == 0:
        return Found(0.0, 1.0, None, 0)
    whole = _stretch(total, (GRID, GRID))
    tries = 2 * 2  # upright and mirrored, and a search may follow
    best = max((_look(whole[:, ::step], tries, count, step < 0) for step in (1, -1)), key=_score)
    if best.there:
        return best
    return max([best, *_search(total, count)], key=lambda found: (-found.chance, found.score))


def _score(found: Found) -> float:
    return found.score


def _evidence(frame: Rgb) -> Plane:
    """(SUMMED, SUMMED) what is left of a frame: its fine structure over its contrast there."""
    light = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
    light = _stretch(light, (SUMMED, SUMMED))
    window = (SUMMED // 32 + 1, SUMMED // 32 + 1)
    rough = _rough(light, window)
    return np.asarray(rough / (_contrast(rough, window) + 1), np.float32)


def _look(plane: Plane, tries: int, frames: int, mirrored: bool, **found: object) -> Found:
    """What the signs of an aligned (G, G) plane say."""
    known = code()
    coefficients = cv2.dct(np.ascontiguousarray(plane))
    around = _contrast(coefficients, (9, 9))
    flat = np.clip(coefficients / np.maximum(around, 1e-9), -2, 2).ravel()

    def agree(places: NDArray[np.int64], words: Plane) -> NDArray[np.float32]:
        values = flat[places]
        norm = math.sqrt(float(values @ values))
        return np.asarray(words @ values / max(norm, 1e-9), np.float32)

    score = float(agree(known.known, known.signs))
    chance = min(1.0, tries * math.exp(-score * score / 2)) if score > 0 else 1.0
    said = bytes(
        int(agree(places, words).argmax())
        for places, words in zip(known.places, known.words, strict=True)
    )
    data, checksum = said[:-2], said[-2:]
    sure = chance < CHANCE and _checksum(data) == checksum
    return Found(score, chance, data.hex() if sure else None, frames, mirrored, **found)  # type: ignore[arg-type]


SIDES = tuple(range(SMALLEST, GRID + 1, 2))
"""Sides of crops that are tried, of GRID; what lies between is near enough."""


def _search(total: Plane, frames: int) -> Iterator[Found]:
    """The best crop, upright and mirrored."""
    shape = np.zeros(GRID * GRID, np.float32)
    shape[code().known] = code().signs
    upright = _spread(shape)
    wanted = [_spectrum(upright[:, ::step]) for step in (1, -1)]
    ways = 9 * sum((GRID - side + 1) for side in SIDES) ** 2  # 9: the sides beside the best ones
    tries = 2 * 2 * ways  # mirrored or not, and the whole was tried before
    places: list[list[Place]] = [[], []]
    for tall in SIDES:
        for wide in SIDES:
            seen = _whitened(_stretch(total, (tall, wide)))
            for found, known in zip(places, wanted, strict=True):
                found.append(_best_place(seen, known, tall, wide))
    for step, found in zip((1, -1), places, strict=True):
        _, top, left, tall, wide = max(found)
        yield max(
            (
                _look(plane[:, ::step], tries, frames, step < 0, seen=(a / GRID, b / GRID))
                for a in (tall - 1, tall, tall + 1)
                for b in (wide - 1, wide, wide + 1)
                for plane in _placed(total, top, left, a, b)
            ),
            key=_score,
        )


Place = tuple[float, int, int, int, int]
"""Score of a crop; its top, left, height and width on the marked picture, of GRID."""


def _spectrum(plane: Plane) -> Plane:
    """(G, G) -> (G, G, 2), real and imaginary."""
    return np.asarray(cv2.dft(np.ascontiguousarray(plane), flags=cv2.DFT_COMPLEX_OUTPUT))


def _whitened(part: Plane) -> Plane:
    """(G, G, 2) spectrum of a crop (h, w), every wave over the size of its neighbours."""
    plane = np.zeros((GRID, GRID), np.float32)
    plane[: part.shape[0], : part.shape[1]] = part
    spectrum = _spectrum(plane)
    size = cv2.blur(cv2.magnitude(spectrum[..., 0], spectrum[..., 1]), (9, 9))
    return np.asarray(spectrum / np.maximum(size, 1e-9)[..., None], np.float32)


def _best_place(seen: Plane, known: Plane, tall: int, wide: int) -> Place:
    """Where the crop fits the known pattern best: there the two agree, one moved by that."""
    both = cv2.mulSpectrums(known, seen, 0, conjB=True)
    agreed = cv2.dft(both, flags=cv2.DFT_INVERSE | cv2.DFT_REAL_OUTPUT)
    room = agreed[: GRID - tall + 1, : GRID - wide + 1]
    top, left = np.unravel_index(int(room.argmax()), room.shape)
    score = float(room[top, left]) / max(float(agreed.std()), 1e-12)
    return score, int(top), int(left), tall, wide


def _placed(total: Plane, top: int, left: int, tall: int, wide: int) -> Iterator[Plane]:
    """(G, G) planes with a crop where it belongs, if it has room there."""
    if max(tall, wide) > GRID:
        return
    top, left = min(top, GRID - tall), min(left, GRID - wide)
    plane = np.zeros((GRID, GRID), np.float32)
    plane[top : top + tall, left : left + wide] = _stretch(total, (tall, wide))
    yield plane
