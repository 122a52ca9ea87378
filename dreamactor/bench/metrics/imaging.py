"""How natural the pictures of a clip look, with nothing to compare them with.

Brightness, less its local mean and over its local deviation, is distributed alike in all sharp and
clean pictures of a kind; blur, noise and artefacts change the shape of that distribution.
`naturalness` is how far a clip's shapes are from those of faultless frames: the recipe of NIQE,
fitted to frames of the synthetic world instead of photographs (`scripts/pristine.py`), so that a
cartoon is no fault. It is not NIQE, and its values must not be compared with NIQE's.

Legend: n frames of H x W pixels; p patches; a patch has 36 numbers, 18 of each of two scales.

Source:
    Mittal, Soundararajan and Bovik 2013, "Making a 'Completely Blind' Image Quality Analyzer".
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dreamactor.bench.metrics.clips import LUMA, Floats, unit_range
from dreamactor.errors import ShapeError

PATCH = 32
"""Pixels of a patch's side; half as many on the second scale."""
WINDOW, SIGMA = (7, 7), 7 / 6
"""Pixels; of local mean and deviation."""
FLAT = 1.0
"""Levels of 255: patches whose mean local deviation is less have no shape to speak of."""
FRAMES = 8
"""Of a clip that are looked at, evenly spread."""
SHAPES = np.arange(0.2, 10.0, 0.005)
_GAMMA = np.array([math.gamma(1 / a) for a in SHAPES])
_RATIO = (
    np.array([math.gamma(2 / a) for a in SHAPES]) ** 2
    / _GAMMA
    / np.array([math.gamma(3 / a) for a in SHAPES])
)
"""(E|x|)^2 / E x^2 of a generalised normal distribution by its shape; rises."""


@dataclass(frozen=True)
class Pristine:
    """Mean and covariance of faultless patches."""

    mean: Floats
    """(36,)"""
    covariance: Floats
    """(36, 36)"""


@cache
def pristine() -> Pristine:
    """Those that ship, made by `scripts/pristine.py`."""
    stored: dict[str, Any] = json.loads((files("dreamactor") / "data/pristine.json").read_text())
    return Pristine(np.array(stored["mean"]), np.array(stored["covariance"]))


def naturalness(clip: NDArray[Any], known: Pristine | None = None) -> float:
    """Distance from faultless frames, 0 = like them; lower is better, no upper bound.

    sqrt((m - m')^T ((C + C') / 2)^-1 (m - m')), m and C mean and covariance of the patches' numbers
    over `FRAMES` frames, m' and C' the faultless ones'. Blind to colour, identity and motion.

    Args:
        clip: (T, H, W, 3), sides of 64 or more.
        known: What is faultless; None = what ships.

    Returns:
        NaN where fewer than two patches have any texture.
    """
    known = known or pristine()
    chosen = np.linspace(0, len(clip) - 1, min(FRAMES, len(clip))).round().astype(int)
    patches = np.concatenate([patch_numbers(frame) for frame in unit_range(clip[chosen])])
    if len(patches) < 2:
        return float("nan")
    away = patches.mean(0) - known.mean
    pooled = (np.cov(patches, rowvar=False) + known.covariance) / 2
    return float(np.sqrt(away @ np.linalg.pinv(pooled) @ away))


def fit(frames: NDArray[Any]) -> Pristine:
    """What faultless frames (n, H, W, 3) have in common."""
    patches = np.concatenate([patch_numbers(frame) for frame in unit_range(frames)])
    return Pristine(patches.mean(0), np.cov(patches, rowvar=False))


def patch_numbers(frame: Floats) -> Floats:  # (p, 36)
    """Shapes of the textured patches of a frame (H, W, 3) in [0, 1]."""
    if min(frame.shape[:2]) < 2 * PATCH:
        raise ShapeError(f"naturalness of {frame.shape[:2]} pixels: want {2 * PATCH} or more")
    rows, columns = (side // PATCH * PATCH for side in frame.shape[:2])
    luma = 255 * frame[:rows, :columns] @ np.array(LUMA)
    scales, kept = [], np.ones(0, bool)
    for scale in (1, 2):
        if scale == 2:
            luma = cv2.resize(luma, (columns // 2, rows // 2), interpolation=cv2.INTER_AREA)
        normal, deviation = _normalised(luma)
        side = PATCH // scale
        if scale == 1:
            kept = _patches(deviation, side).mean((1, 2)) >= FLAT
        scales.append(_shapes(normal, side, kept))
    return np.concatenate(scales, axis=1)


def _normalised(luma: Floats) -> tuple[Floats, Floats]:
    """Brightness less its local mean, over its local deviation; and that deviation, levels."""
    mean = cv2.GaussianBlur(luma, WINDOW, SIGMA)
    spread = cv2.GaussianBlur(luma * luma, WINDOW, SIGMA) - mean * mean
    deviation = np.sqrt(np.maximum(spread, 0))
    return (luma - mean) / (deviation + 1), deviation


def _patches(image: Floats, side: int) -> Floats:  # (p, side, side)
    rows, columns = image.shape[0] // side, image.shape[1] // side
    cut = image[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return np.asarray(cut.swapaxes(1, 2).reshape(-1, side, side))


def _shapes(normal: Floats, side: int, kept: NDArray[np.bool_]) -> Floats:  # (p, 18)
    """Shape and spread of the values, then of their products with four neighbours."""
    values = _patches(normal, side)[kept]
    square = np.square(values).mean((1, 2))
    numbers = [_shape(np.abs(values).mean((1, 2)) ** 2 / np.maximum(square, 1e-9)), square]
    for step in ((0, 1), (1, 0), (1, 1), (1, -1)):
        product = _patches(normal * np.roll(normal, step, (0, 1)), side)[kept]
        numbers += _lopsided(product)
    return np.stack(numbers, axis=1)


def _lopsided(x: Floats) -> list[Floats]:
    """Shape, mean, and spread to the left and right of patches (p, side, side).

    Source: the moment estimate of Lasmar, Stitou and Berthoumieu 2009.
    """
    left, right = (
        np.sqrt(np.where(side, x * x, 0).sum((1, 2)) / np.maximum(side.sum((1, 2)), 1))
        for side in (x < 0, x > 0)
    )
    left, right = np.maximum(left, 1e-6), np.maximum(right, 1e-6)
    skew = left / right
    ratio = np.abs(x).mean((1, 2)) ** 2 / np.maximum(np.square(x).mean((1, 2)), 1e-12)
    shape = _shape(ratio * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2)
    return [shape, x.mean((1, 2)), left, right]


def _shape(ratio: Floats) -> Floats:
    """Shape of a generalised normal distribution with (E|x|)^2 / E x^2 = ratio."""
    return SHAPES[np.searchsorted(_RATIO, ratio).clip(0, len(SHAPES) - 1)]
