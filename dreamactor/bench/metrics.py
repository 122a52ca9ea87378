"""How good one clip is, measured against its truth: one float64 number a clip.

Shapes: T frames of H x W pixels, RGB last. A clip is (T, H, W, 3), uint8 in [0, 255] or floating
point in [0, 1]. A box is (top, left, bottom, right) in whole pixels, half open, so that
`frame[top:bottom, left:right]` cuts it out; boxes are (T, 4), or (4,) for one box of all frames.
A flow is (T - 1, H, W, 2), x then y, in pixels: what stands at (x, y) in frame t stands at
(x, y) + flow[t, y, x] in frame t + 1.

Fidelity (psnr, ssim, l1, lpips), sharpness and motion are separate questions: a blurred guess wins
the first and loses the second, a frozen frame has no flicker and follows no motion. Report
them together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dreamactor.errors import MediaError, ShapeError

if TYPE_CHECKING:
    from torch import Tensor

    from dreamactor.bench.perceptual import Perceptual

Array = NDArray[Any]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PSNR_CAP = 100.0  # dB: what equal clips get instead of infinity
SSIM_SIGMA, SSIM_SIDE = 1.5, 11  # pixels; Wang et al. 2004
LPIPS_SIDE = 64  # pixels: below it the last stage of the trunk sees little but padding
LUMA = (0.299, 0.587, 0.114)  # BT.601
DIS_SIDE = 12  # pixels: OpenCV's DIS refuses smaller frames


def subject_box(mask: Array, margin: int = 0) -> Ints:  # (T, 4)
    """Smallest box around the subject of every frame.

    Args:
        mask: (T, H, W), true on the subject.
        margin: Pixels added on each side, as far as the frame goes.

    Returns:
        (T, 4) boxes. A frame without subject gets the union of the others' boxes; a clip
        without any gets whole frames.
    """
    if mask.ndim != 3:
        raise ShapeError(f"mask is {mask.shape}: want (T, H, W)")
    height, width = mask.shape[1:]
    boxes = np.zeros((len(mask), 4), np.int64)
    for t, frame in enumerate(mask.astype(bool)):
        rows, columns = np.flatnonzero(frame.any(1)), np.flatnonzero(frame.any(0))
        if len(rows):
            boxes[t] = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
    seen = boxes[:, 2] > 0
    boxes[~seen] = union_box(boxes[seen]) if seen.any() else (0, 0, height, width)
    boxes += np.array([-margin, -margin, margin, margin])
    return boxes.clip(0, [height, width, height, width])


def union_box(boxes: Array) -> Ints:  # (4,)
    """Smallest box that holds all boxes; boxes: (T, 4) or (4,)."""
    boxes = np.asarray(boxes, np.int64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])


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
    pairs = _crops(result, truth, boxes)
    mse = float(np.mean([np.square(a - b).mean() for a, b in pairs]))
    return PSNR_CAP if mse <= 10 ** (-PSNR_CAP / 10) else float(-10 * np.log10(mse))


def l1(result: Array, truth: Array, boxes: Array | None = None) -> float:
    """Mean absolute error of values in [0, 1], frame by frame; lower is better.

    Arguments as of `psnr`.
    """
    return float(np.mean([np.abs(a - b).mean() for a, b in _crops(result, truth, boxes)]))


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
    a, b = _same(result, truth)
    height, width = a.shape[1:3]
    pad = SSIM_SIDE // 2
    if min(height, width) < SSIM_SIDE:
        raise ShapeError(f"ssim on {height}x{width} frames: want sides of {SSIM_SIDE} or more")
    values = []
    for x, y, box in zip(a, b, _boxes_of(a, boxes), strict=True):
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
        _check_same(result, truth)
    height, width = truth.shape[1:3]
    top, left, bottom, right = union_box(_boxes_of(truth, boxes))
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
    for pair in _crops(result, truth, boxes):
        for side, crop in enumerate(pair):
            luma = crop @ np.array(LUMA)  # (h, w)
            energy[side] += sum(np.square(np.diff(luma, axis=axis)).sum() for axis in (0, 1))
    return float(energy[0] / energy[1]) if energy[1] > 0 else float("nan")


def dis_flow(frame: Array, following: Array, start: Array | None = None) -> NDArray[np.float32]:
    """Dense optical flow between two frames, (H, W, 2) in pixels, x then y.

    Args:
        frame: (H, W, 3), where the vectors stand.
        following: (H, W, 3), where they point.
        start: (H, W, 2) first guess, or None for zero.

    Source:
        Kroeger et al. 2016, DIS; OpenCV's, preset MEDIUM: 0.4 px error at 9 px of motion on
        a turned photo, 9 ms for 256 x 256.
    """
    if min(frame.shape[:2]) < DIS_SIDE:
        raise ShapeError(f"optical flow on {frame.shape[:2]}: want sides of {DIS_SIDE} or more")
    solver = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # type: ignore[attr-defined]
    guess = None if start is None else start.astype(np.float32)
    flow = solver.calc(_gray(frame), _gray(following), guess)
    return np.asarray(flow, np.float32)


def clip_flow(clip: Array) -> NDArray[np.float32]:  # (T - 1, H, W, 2)
    """Flow from each frame of a clip to the next, as `dis_flow` sees it; clip: (T, H, W, 3)."""
    pairs = [dis_flow(a, b) for a, b in pairwise(clip)]
    return np.stack(pairs) if pairs else np.zeros((0, *clip.shape[1:3], 2), np.float32)


def flow_epe(seen: Array, flow: Array, mask: Array) -> float:
    """Mean end-point error of motion on the subject, pixels a frame; lower is better.

    Mean over frame pairs of the mean over the subject's pixels of |seen - flow|. Pairs without
    subject are left out.

    The estimate errs on a perfect clip too: `flow_epe(clip_flow(truth), ...)` is the floor.
    A frozen clip scores the mean length of the true flow, `flow_epe(0 * flow, flow, mask)`.

    Args:
        seen: (T - 1, H, W, 2) flow of the result, from `clip_flow`.
        flow: (T - 1, H, W, 2) true flow.
        mask: (T, H, W) or (T - 1, H, W), true on the truth's subject.

    Returns:
        Pixels; NaN without any subject.
    """
    mask = mask[: len(flow)].astype(bool)
    if seen.shape != flow.shape or mask.shape != flow.shape[:3]:
        raise ShapeError(f"flows are {seen.shape} and {flow.shape}, the mask {mask.shape}")
    error = np.linalg.norm(seen.astype(np.float64) - flow, axis=-1)  # (T - 1, H, W)
    values = [e[m].mean() for e, m in zip(error, mask, strict=True) if m.any()]
    return float(np.mean(values)) if values else float("nan")


def dynamic_degree(seen: Array) -> float:
    """How fast the fastest twentieth of the picture moves, in units of VBench's threshold.

    Mean over frame pairs of (mean length of the 5 % longest vectors) / (6 min(H, W) / 256).

    Args:
        seen: (T - 1, H, W, 2) pixels, from `clip_flow`.

    Returns:
        0 = frozen; a pair over 1 counts as moving for VBench; NaN without pairs.

    Source:
        VBench dynamic_degree.py. There RAFT measures the flow at 8 fps, and a clip gets 1 or 0:
        see `is_dynamic`.
    """
    speeds = _fast_speeds(seen)
    return float(speeds.mean()) if len(speeds) else float("nan")


def is_dynamic(seen: Array) -> bool:
    """VBench's verdict: at least round(T / 4) frame pairs are over the threshold.

    Args:
        seen: (T - 1, H, W, 2) pixels of a clip at 8 fps.
    """
    wanted = round(4 * (len(seen) + 1) / 16)
    return bool((_fast_speeds(seen) > 1).sum() >= wanted)


def temporal_flicker(clip: Array) -> float:
    """Likeness of following frames, 1 = frozen: mean of (255 - mean |I_t - I_t+1|) / 255.

    Motion lowers it as flicker does, so compare it with the truth's own value.

    Args:
        clip: (T, H, W, 3).

    Returns:
        0 to 1; NaN for a single frame.

    Source:
        VBench temporal_flickering.py.
    """
    x = unit_range(clip)
    return float(np.mean(1 - np.abs(np.diff(x, axis=0)))) if len(x) > 1 else float("nan")


def unit_range(clip: Array) -> Floats:
    """A clip as float64 in [0, 1], from uint8 in [0, 255] or floating point in [0, 1]."""
    if clip.ndim != 4 or clip.shape[-1] != 3:
        raise ShapeError(f"clip is {clip.shape}: want (T, H, W, 3)")
    if clip.dtype == np.uint8:
        return clip.astype(np.float64) / 255
    if not np.issubdtype(clip.dtype, np.floating):
        raise MediaError(f"clip holds {clip.dtype}: want uint8 or floating point in [0, 1]")
    x = clip.astype(np.float64)
    if not np.isfinite(x).all() or x.min() < -1e-3 or x.max() > 1 + 1e-3:
        raise MediaError(f"clip spans {x.min():.3g} to {x.max():.3g}: want [0, 1] or uint8")
    return x.clip(0, 1)


def _features(metric: Perceptual, frames: Floats) -> list[Tensor]:
    """Responses of the network to frames (n, h, w, 3), where it is."""
    import torch

    x = torch.from_numpy(frames.astype(np.float32) * 2 - 1).permute(0, 3, 1, 2).contiguous()
    with torch.inference_mode():
        return metric.features(x.to(next(metric.buffers()).device))


def _check_same(result: Array, truth: Array) -> None:
    if result.shape != truth.shape or not len(truth):
        raise ShapeError(
            f"result is {result.shape}, truth {truth.shape}: want the same (T, H, W, 3)"
        )


def _same(result: Array, truth: Array) -> tuple[Floats, Floats]:
    _check_same(result, truth)
    return unit_range(result), unit_range(truth)


def _boxes_of(clip: Array, boxes: Array | None) -> Ints:  # (T, 4)
    frames, height, width = clip.shape[:3]
    if boxes is None:
        boxes = np.array([0, 0, height, width])
    boxes = np.asarray(boxes, np.int64)
    if boxes.shape not in {(4,), (frames, 4)}:
        raise ShapeError(f"boxes are {boxes.shape}: want (4,) or ({frames}, 4)")
    boxes = np.broadcast_to(boxes, (frames, 4))
    size = [height, width]
    if (boxes[:, :2] < 0).any() or (boxes[:, 2:] > size).any():
        raise ShapeError(f"a box leaves the {height}x{width} frame: {boxes.tolist()}")
    if (boxes[:, :2] >= boxes[:, 2:]).any():
        raise ShapeError(f"a box is empty; want (top, left, bottom, right): {boxes.tolist()}")
    return boxes


def _crops(result: Array, truth: Array, boxes: Array | None) -> Iterator[tuple[Floats, Floats]]:
    a, b = _same(result, truth)
    for x, y, (top, left, bottom, right) in zip(a, b, _boxes_of(a, boxes), strict=True):
        yield x[top:bottom, left:right], y[top:bottom, left:right]


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


def _gray(frame: Array) -> NDArray[np.uint8]:
    x = frame if frame.dtype == np.uint8 else (frame.clip(0, 1) * 255).round().astype(np.uint8)
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(x), cv2.COLOR_RGB2GRAY), np.uint8)


def _fast_speeds(seen: Array) -> Floats:  # (T - 1,)
    """Mean length of the 5 % longest vectors of each pair over VBench's threshold."""
    pairs, height, width = seen.shape[:3]
    lengths = np.linalg.norm(seen.astype(np.float64), axis=-1).reshape(pairs, height * width)
    count = int(height * width * 0.05)
    fastest = np.sort(lengths, axis=1)[:, -count:]
    return np.asarray(fastest.mean(1) / (6 * min(height, width) / 256), np.float64)
