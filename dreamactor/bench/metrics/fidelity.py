"""How near a clip is to its truth, picture by picture, and how sharp it is beside it.

Legend: T frames of H x W pixels; clips and boxes as in `dreamactor.bench.metrics`. A blurred guess
wins psnr, ssim and l1 and loses sharpness: report them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from dreamactor.bench.metrics.clips import (
    LUMA,
    Array,
    Floats,
    boxes_of,
    check_same,
    crops,
    same,
    union_box,
    unit_range,
)
from dreamactor.errors import ShapeError

if TYPE_CHECKING:
    from torch import Tensor

    from dreamactor.bench.perceptual import Perceptual

PSNR_CAP = 100.0  # dB: what equal clips get instead of infinity
SSIM_SIGMA, SSIM_SIDE = 1.5, 11  # pixels; Wang et al. 2004
LPIPS_SIDE = 64  # pixels: below it the last stage of the trunk sees little but padding


def psnr(result: Array, truth: Array, boxes: Array | None = None) -> float:
    """Peak signal-to-noise ratio in dB; higher is better.

    -10 log10(MSE), MSE = mean over frames of the mean squared error of a frame's box, values in
    [0, 1]. The errors are averaged before the logarithm, so that one perfect frame (often
    the first) cannot lift a clip. At most `PSNR_CAP`, which equal clips get.

    Args:
        result: (T, H, W, 3).
        truth: (T, H, W, 3).
        boxes: (T, 4) or (4,) pixels; None = whole frames.
    """
    pairs = crops(result, truth, boxes)
    mse = float(np.mean([np.square(a - b).mean() for a, b in pairs]))
    return PSNR_CAP if mse <= 10 ** (-PSNR_CAP / 10) else float(-10 * np.log10(mse))


def l1(result: Array, truth: Array, boxes: Array | None = None) -> float:
    """Mean absolute error of values in [0, 1], frame by frame; lower is better.

    Arguments as of `psnr`.
    """
    return float(np.mean([np.abs(a - b).mean() for a, b in crops(result, truth, boxes)]))


def ssim(result: Array, truth: Array, boxes: Array | None = None) -> float:
    """Structural similarity, 1 = same; higher is better.

    The map of a frame is computed on the whole frame per colour channel, so that windows at
    the edge of a box see real neighbours, and averaged over the box; the 5 outermost pixels of
    the frame, where the window would leave it, count for nothing.

    Args:
        result: (T, H, W, 3), sides over 10 pixels.
        truth: (T, H, W, 3).
        boxes: (T, 4) or (4,) pixels; None = whole frames.

    Source:
        Wang et al. 2004; equals skimage.metrics.structural_similarity with
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False (tests/test_metrics.py).
    """
    a, b = same(result, truth)
    height, width = a.shape[1:3]
    pad = SSIM_SIDE // 2
    if min(height, width) < SSIM_SIDE:
        raise ShapeError(f"ssim on {height}x{width} frames: want sides of {SSIM_SIDE} or more")
    values = []
    for x, y, box in zip(a, b, boxes_of(a, boxes), strict=True):
        top, left = np.maximum(box[:2], pad)
        bottom, right = np.minimum(box[2:], [height - pad, width - pad])
        if top < bottom and left < right:
            values.append(_ssim_map(x, y)[top:bottom, left:right].mean())
    return float(np.mean(values)) if values else float("nan")


def lpips(
    result: Array, truth: Array, metric: Perceptual, boxes: Array | None = None, batch: int = 8
) -> float:
    """Shift-tolerant perceptual distance, 0 = same; lower is better, no upper bound.

    Arguments as of `lpips_each`, which see.
    """
    return lpips_each([result], truth, metric, boxes, batch)[0]


def lpips_each(
    results: Sequence[Array],
    truth: Array,
    metric: Perceptual,
    boxes: Array | None = None,
    batch: int = 8,
    frames: int | None = None,
) -> list[float]:
    """`lpips` of several results of one truth, whose features are then computed only once.

    All frames are cut with one box, the union of `boxes` grown to at least 64 x 64 pixels (as far
    as the frame goes) and never resampled: resizing would change how blurred a result looks.

    Args:
        results: Each (T, H, W, 3).
        truth: (T, H, W, 3).
        metric: Network, on any device.
        boxes: (T, 4) or (4,) pixels; None = whole frames.
        batch: Frames at a time; does not change the values beyond rounding.
        frames: Look at so many frames, evenly spread from the first to the last; None = all.

    Source:
        ST-LPIPS, see `dreamactor.bench.perceptual`: not comparable with LPIPS v0.1.
    """
    for result in results:
        check_same(result, truth)
    height, width = truth.shape[1:3]
    top, left, bottom, right = union_box(boxes_of(truth, boxes))
    top, bottom = _grow(int(top), int(bottom), min(LPIPS_SIDE, height), height)
    left, right = _grow(int(left), int(right), min(LPIPS_SIDE, width), width)
    count = len(truth) if frames is None else min(frames, len(truth))
    chosen = np.linspace(0, len(truth) - 1, count).round().astype(int)
    known, *shown = (
        unit_range(clip[chosen, top:bottom, left:right]) for clip in (truth, *results)
    )  # (n, h, w, 3)
    values = np.zeros((len(results), count))
    for start in range(0, count, batch):
        part = slice(start, start + batch)
        features: list[Tensor] | None = None
        for k, clip in enumerate(shown):
            # equal frames are 0: no need to look
            differing = np.flatnonzero((clip[part] != known[part]).any((1, 2, 3)))
            if not len(differing):
                continue
            features = features or _features(metric, known[part])
            theirs = [stage[differing] for stage in features]
            distances = metric.compare(_features(metric, clip[part][differing]), theirs)  # (n,)
            values[k, start + differing] = distances.double().cpu().numpy()
    return [float(v) for v in values.mean(1)]


def sharpness_ratio(result: Array, truth: Array, boxes: Array | None = None) -> float:
    """Gradient energy of the result over that of the truth: 1 = same, below blurred, above noisy.

    E = sum over the boxes' pixels of (luma step to the right)^2 + (luma step down)^2; the ratio
    is E_result / E_truth over the whole clip. An edge of height h smeared over w pixels has the
    energy h^2 / w, so 0.5 reads "edges twice as wide". (The sum of absolute steps is h for any
    w, blind to blur; the Laplacian's h^2 / w^3 is ruled by single noisy pixels.) Use boxes with a
    margin, not masks: a limb beside the truth's silhouette is then still looked at. Other content
    has other edges, so read the ratio only for systems that show the right subject: a copy or the
    driving clip may come out over 1 without being sharper.

    Args:
        result: (T, H, W, 3).
        truth: (T, H, W, 3).
        boxes: (T, 4) or (4,) pixels; None = whole frames.

    Returns:
        A ratio, 0 or more; NaN where the truth is flat.
    """
    energy = np.zeros(2)
    for pair in crops(result, truth, boxes):
        for side, crop in enumerate(pair):
            luma = crop @ np.array(LUMA)  # (h, w)
            energy[side] += sum(np.square(np.diff(luma, axis=axis)).sum() for axis in (0, 1))
    return float(energy[0] / energy[1]) if energy[1] > 0 else float("nan")


def _features(metric: Perceptual, frames: Floats) -> list[Tensor]:
    """Responses of the network to frames (n, h, w, 3), where it is."""
    import torch

    x = torch.from_numpy(frames.astype(np.float32) * 2 - 1).permute(0, 3, 1, 2).contiguous()
    with torch.inference_mode():
        return metric.features(x.to(next(metric.buffers()).device))


def _ssim_map(x: Floats, y: Floats) -> Floats:  # (H, W, 3)
    def blur(image: Floats) -> Floats:
        return np.asarray(cv2.GaussianBlur(image, (SSIM_SIDE, SSIM_SIDE), SSIM_SIGMA))

    c1, c2 = 0.01**2, 0.03**2
    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    likeness: Floats = (2 * mx * my + c1) * (2 * cov + c2)
    likeness /= (mx * mx + my * my + c1) * (vx + vy + c2)
    return likeness


def _grow(start: int, stop: int, side: int, limit: int) -> tuple[int, int]:
    """Widen [start, stop) to `side` around its middle, inside [0, limit)."""
    missing = max(0, side - (stop - start))
    start = min(max(0, start - missing // 2), limit - max(side, stop - start))
    return start, max(stop, start + side)
