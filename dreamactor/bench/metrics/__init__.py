"""How good a clip is: one float64 number a clip and metric, a module for each question.

    with the truth     fidelity (psnr, ssim, l1, lpips, sharpness), flow (motion error),
                       joints (AKD, MKR, PCK), distance (FAD-V, of sets of clips)
    without it         imaging, smoothness, consistency, appearance, activity, following, drift
    all of them        table (what each needs and must show), every (measured at once)

Shapes: T frames of H x W pixels, RGB last. A clip is (T, H, W, 3), uint8 in [0, 255] or floating
point in [0, 1]. A box is (top, left, bottom, right) in whole pixels, half open, so that
`frame[top:bottom, left:right]` cuts it out; boxes are (T, 4), or (4,) for one box of all frames.
A flow is (T - 1, H, W, 2), x then y, in pixels: what stands at (x, y) in frame t stands at
(x, y) + flow[t, y, x] in frame t + 1.

Fidelity, sharpness and motion are separate questions: a blurred guess wins the first and loses
the second, a frozen frame has no flicker and follows no motion. Report them together.
`docs/metrics.md` holds every metric against known damage.
"""

from dreamactor.bench.metrics.activity import dynamic_degree, is_dynamic
from dreamactor.bench.metrics.clips import subject_box, union_box, unit_range
from dreamactor.bench.metrics.fidelity import (
    PSNR_CAP,
    l1,
    lpips,
    lpips_each,
    psnr,
    sharpness_ratio,
    ssim,
)
from dreamactor.bench.metrics.flow import clip_flow, dis_flow, flow_epe
from dreamactor.bench.metrics.smoothness import temporal_flicker

__all__ = [
    "PSNR_CAP",
    "clip_flow",
    "dis_flow",
    "dynamic_degree",
    "flow_epe",
    "is_dynamic",
    "l1",
    "lpips",
    "lpips_each",
    "psnr",
    "sharpness_ratio",
    "ssim",
    "subject_box",
    "temporal_flicker",
    "union_box",
    "unit_range",
]
