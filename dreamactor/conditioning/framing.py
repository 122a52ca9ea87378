"""Pictures to halves of the canvas and back.

Legend: H, W pixels. A picture is (H, W, 3) uint8, sRGB values; a half is (3, H, W) float32 in
[-1, 1], the same values scaled, with no change of colour space. Pixel 0 is -1, 255 is 1.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dreamactor.image import Box, Rgb, fit

SOFT = 1 / 24  # of the longer side: blur of the bars, so that they hold no streaks


def fit_soft(
    picture: Rgb, size: tuple[int, int], mode: Literal["letterbox", "crop"]
) -> tuple[Rgb, Box]:
    """Fit a picture into a half; the bars of a letterbox go on with the picture's border.

    The backbones have only seen pictures that fill their frame, so a black bar would be taken
    for scenery. Here the outermost rows or columns are repeated outwards and blurred.

    Args:
        picture: (H, W, 3) uint8.
        size: (height, width) of a half.
        mode: "letterbox" shows all of the picture, "crop" fills the half.

    Returns:
        (height, width, 3) uint8, and where in it the picture is.

    Raises:
        ShapeError: Not a picture.
    """
    fitted, box = fit(picture, size, mode)
    if box.size == size:
        return fitted, box
    import cv2

    inner = np.ascontiguousarray(box.cut(fitted))
    above, left = box.top, box.left
    below, right = size[0] - above - box.height, size[1] - left - box.width
    wide = cv2.copyMakeBorder(inner, above, below, left, right, cv2.BORDER_REPLICATE)
    soft = np.asarray(cv2.GaussianBlur(wide, (0, 0), max(size) * SOFT), np.uint8)
    box.cut(soft)[:] = inner
    return soft, box


def to_half(picture: Rgb) -> Tensor:
    """(H, W, 3) uint8 to (3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).float() / 127.5 - 1


def to_picture(half: Tensor) -> Rgb:
    """(3, H, W) in [-1, 1] to (H, W, 3) uint8, to the nearest level; beyond is clipped.

    A clip (3, T, H, W) becomes (T, H, W, 3). The rounding is done on the tensor's device.
    """
    levels = ((half.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.movedim(0, -1).contiguous().cpu().numpy()
