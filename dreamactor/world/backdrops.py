"""Flat backdrops as pictures, drawn with numpy from a seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dreamactor.world.cast import Array
from dreamactor.world.scene import Background


def backdrop(background: Background, height: int, width: int) -> NDArray[np.uint8]:
    """(H, W, 3) picture of a flat background; the same seed gives the same picture."""
    if background.kind == "image":
        assert background.image is not None  # checked by Background
        return cover(background.image, height, width)
    rng = np.random.default_rng([background.seed, len(background.kind)])
    draw = {
        "plain": _plain,
        "gradient": _gradient,
        "noise": _noise,
        "stripes": _stripes,
        "checker": _checker,
        "bokeh": _bokeh,
    }[background.kind]
    amount = draw(rng, height, width, background.scale)  # (H, W) in [0, 1]
    colours = np.asarray(background.colours, dtype=np.float32)
    picture = _ramp(colours, amount)
    # Half a step of noise hides the banding of slow gradients.
    dither = rng.random((height, width, 1), dtype=np.float32)
    return np.clip(picture * 255 + dither, 0, 255).astype(np.uint8)


def cover(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize (h, w, 3) to cover H x W and cut the middle out."""
    h, w = image.shape[:2]
    factor = max(height / h, width / w)
    size = (max(width, round(w * factor)), max(height, round(h * factor)))
    resized = Image.fromarray(image[..., :3]).resize(size, Image.Resampling.LANCZOS)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return np.asarray(resized.crop((left, top, left + width, top + height)))


def _ramp(colours: Array, amount: Array) -> Array:
    """Colours (N, 3) interpolated at amounts (H, W) in [0, 1]."""
    if len(colours) == 1:
        return np.broadcast_to(colours[0], (*amount.shape, 3))
    at = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(amount, at, colours[:, c]) for c in range(3)], -1).astype(np.float32)


def _grid(height: int, width: int) -> tuple[Array, Array]:
    """Coordinates x and y (H, W); y runs over [0, 1], pixels are square."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5
    return x / height, y / height


def _plain(rng: np.random.Generator, height: int, width: int, scale: float) -> Array:
    return np.zeros((height, width), dtype=np.float32)


def _gradient(rng: np.random.Generator, height: int, width: int, scale: float) -> Array:
    return np.asarray(1 - _grid(height, width)[1], dtype=np.float32)


def _noise(rng: np.random.Generator, height: int, width: int, scale: float) -> Array:
    total = np.zeros((height, width), dtype=np.float32)
    for octave in range(4):
        cells = max(2, round(3 * 2**octave / scale))
        coarse = rng.standard_normal((cells, max(2, cells * width // height)), dtype=np.float32)
        fine = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(fine) * 0.55**octave
    low, high = np.percentile(total, (2, 98))
    return np.asarray(np.clip((total - low) / max(high - low, 1e-6), 0, 1), dtype=np.float32)


def _stripes(rng: np.random.Generator, height: int, width: int, scale: float) -> Array:
    x, y = _grid(height, width)
    angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 1)
    run = (x * np.cos(angle) + y * np.sin(angle)) * 8 / scale + phase
    edge = 8 / scale / height  # a pixel of blend at each edge
    wave = np.abs(np.mod(run, 1) - 0.5) - 0.25
    return np.asarray(np.clip(wave / edge + 0.5, 0, 1), dtype=np.float32)


def _checker(rng: np.random.Generator, height: int, width: int, scale: float) -> Array:
    x, y = _grid(height, width)
    cells = 6 / scale
    wave = np.sin(np.pi * cells * (x + rng.uniform())) * np.sin(np.pi * cells * (y + rng.uniform()))
    return np.asarray(np.clip(wave * height / cells / 3 + 0.5, 0, 1), dtype=np.float32)


def _bokeh(rng: np.random.Generator, height: int, width: int, scale: float) -> Array:
    x, y = _grid(height, width)
    out = 0.15 * (1 - y)
    for _ in range(28):
        radius = rng.uniform(0.03, 0.13) * scale
        cx, cy = rng.uniform(0, width / height), rng.uniform(0, 1)
        box = tuple(  # a disc adds nothing outside
            slice(max(0, int((c - radius) * height)), int((c + radius) * height) + 2)
            for c in (cy, cx)
        )
        distance = np.hypot(x[box] - cx, y[box] - cy) / radius
        out[box] += rng.uniform(0.15, 0.5) * np.clip((1 - distance) * 6, 0, 1)
    return np.asarray(np.clip(out, 0, 1), dtype=np.float32)
