"""A picture's subject in words, without any model: its colours, its size, what it stands on.

The background is what the picture's border shows; what differs from it is the subject. That holds
for cut-outs, renders and plain photographs, and fails on busy ones, where the words turn vague.

Legend: h x w pixels of the picture scaled down; Lab colours in levels of OpenCV's CIELAB.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from dreamactor.errors import ShapeError
from dreamactor.image import Rgb, resize

Mask = NDArray[np.bool_]

SIDE = 128  # pixels of the longer side at which a subject is looked for
SHARE = 0.22  # of the subject that a second colour covers before it is named
SMALL, LARGE = 0.05, 0.45  # of the picture
PLAIN = 14.0  # levels of deviation up to which a border counts as one colour
NAMES = {  # sRGB of what people mean by the word, roughly; grey levels apart from hues
    "black": ((15, 15, 15), (40, 38, 36)),
    "white": ((250, 250, 250), (228, 226, 222)),
    "grey": ((128, 128, 128), (85, 85, 85), (175, 175, 175), (105, 110, 118)),
    "brown": ((110, 70, 40), (75, 48, 30), (140, 95, 60), (95, 80, 62)),
    "tan": ((200, 165, 125), (175, 150, 120), (220, 190, 150)),
    "red": ((200, 30, 30), (140, 25, 30), (190, 70, 60)),
    "orange": ((235, 130, 30), (220, 110, 50)),
    "yellow": ((235, 215, 60), (200, 175, 60)),
    "green": ((50, 130, 50), (110, 150, 70), (60, 90, 45), (100, 190, 100)),
    "blue": ((45, 80, 180), (100, 150, 215), (35, 45, 95), (150, 190, 225)),
    "purple": ((120, 60, 150), (80, 45, 100)),
    "pink": ((235, 150, 170), (220, 110, 150)),
}


def describe_looks(picture: Rgb, mask: Mask | None = None, species: str | None = None) -> str:
    """Who is shown, and on what.

    Args:
        picture: (H, W, 3) uint8.
        mask: (H, W), true where the subject is; None looks for it.
        species: What it is, where that is known, such as a caption of the world.

    Returns:
        Such as "a small brown and white figure, before a plain green backdrop".

    Raises:
        ShapeError: The mask is not the picture's.
    """
    if mask is not None and mask.shape != picture.shape[:2]:
        raise ShapeError(f"mask of {mask.shape}: want {picture.shape[:2]}, the picture's size")
    scale = min(1.0, SIDE / max(picture.shape[:2]))
    size = tuple(max(1, round(side * scale)) for side in picture.shape[:2])
    small = resize(picture, (size[0], size[1]))
    if mask is None:
        inside = find_subject(small)
    else:
        levels = np.repeat(np.uint8(255) * mask[..., None], 3, axis=2)  # (H, W, 3)
        inside = resize(levels, (size[0], size[1]))[..., 0] > 127
    if not 0.005 < inside.mean() < 0.95:
        return species or "a figure"
    if species is None:
        big = "small " if inside.mean() < SMALL else "large " if inside.mean() > LARGE else ""
        words = big + " and ".join(_colours(small[inside])) + " figure"
        species = ("an " if words[0] in "aeiou" else "a ") + words
    return f"{species}, {_backdrop(small, inside)}"


def find_subject(picture: Rgb) -> Mask:
    """Where a picture differs from its border, in one piece.

    Each column's and row's border colours stand for what lies behind: a pixel is background where
    it is near to any of a few colours of the border. The largest piece of the rest is the subject,
    refined by GrabCut.

    Args:
        picture: (h, w, 3) uint8, small.

    Returns:
        (h, w); all false where nothing differs.
    """
    height, width = picture.shape[:2]
    if min(height, width) < 16:
        return np.zeros((height, width), bool)
    lab = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB).astype(np.float32)
    rim = max(2, min(height, width) // 32)
    edge = np.ones((height, width), bool)
    edge[rim:-rim, rim:-rim] = False
    colours = _centres(lab[edge], 6)
    apart = np.stack([np.linalg.norm(lab - colour, axis=2) for colour in colours]).min(axis=0)
    level = np.clip(apart * 2, 0, 255).astype(np.uint8)
    threshold, _ = cv2.threshold(level, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    differs = level > threshold
    if not differs.any() or level[differs].mean() < 24:  # 12 levels of Lab: texture, no subject
        return np.zeros((height, width), bool)
    kernel = np.ones((3, 3), np.uint8)
    rough = cv2.morphologyEx(differs.astype(np.uint8), cv2.MORPH_CLOSE, kernel)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(rough)
    if count < 2:
        return np.zeros((height, width), bool)
    piece = labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    return _refined(picture, piece, edge)


def _refined(picture: Rgb, piece: Mask, edge: Mask) -> Mask:
    """A piece by GrabCut: the border stays background, the rest may go either way."""
    likely = np.where(piece, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    likely[edge & ~piece] = cv2.GC_BGD
    if not piece.any() or piece.all():
        return piece
    cv2.setRNGSeed(0)  # GrabCut draws its first clusters
    bgr = np.ascontiguousarray(picture[..., ::-1])
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(bgr, likely, None, *models, 3, cv2.GC_INIT_WITH_MASK)
    found = np.isin(likely, (cv2.GC_FGD, cv2.GC_PR_FGD))
    return found if found.any() else piece


def _centres(colours: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """(count, 3) colours that stand for many."""
    cv2.setRNGSeed(0)
    stop = (cv2.TERM_CRITERIA_MAX_ITER | cv2.TERM_CRITERIA_EPS, 10, 1.0)
    flags = cv2.KMEANS_PP_CENTERS
    return np.asarray(cv2.kmeans(colours, count, None, stop, 1, flags)[2], np.float32)


def colour_shares(pixels: NDArray[np.uint8]) -> dict[str, float]:
    """Share of pixels (N, 3) by the nearest name, largest first."""
    names = [name for name, samples in NAMES.items() for _ in samples]
    samples = np.array([s for group in NAMES.values() for s in group], np.uint8)
    wanted, given = (
        cv2.cvtColor(np.ascontiguousarray(rows)[None], cv2.COLOR_RGB2LAB)[0].astype(np.float32)
        for rows in (samples, pixels)
    )
    nearest = np.linalg.norm(given[:, None] - wanted[None], axis=2).argmin(axis=1)
    shares: dict[str, float] = {}
    for index, number in enumerate(np.bincount(nearest, minlength=len(names)).tolist()):
        shares[names[index]] = shares.get(names[index], 0.0) + number / max(len(pixels), 1)
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _colours(pixels: NDArray[np.uint8]) -> list[str]:
    """One name, or two."""
    (first, _), (second, share) = list(colour_shares(pixels).items())[:2]
    return [first, second] if share > SHARE else [first]


def _backdrop(picture: Rgb, inside: Mask) -> str:
    behind = picture[~inside]
    colour = next(iter(colour_shares(behind)))
    plain = float(behind.astype(np.float64).std(axis=0).mean()) < PLAIN
    return f"before a {'plain ' if plain else ''}{colour} backdrop"
