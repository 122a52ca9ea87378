"""Which faults are planted into clips that are right, and what the truth says of any clip.

The gate of `bootstrap` sees no truth. The world does: here are clips with known faults to set the
gate's scales on, and the true error to hold the gate against. How a clip is damaged stands in
`damages.py`.

Legend: T frames of H x W pixels; clips (T, H, W, 3) uint8.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dreamactor.bench import damages, metrics
from dreamactor.bench.baselines import flow_warp
from dreamactor.bench.evaluate import Case

Clip = NDArray[np.uint8]

LIMITS = {"sharpness": 0.74, "motion": 0.5, "picture": 0.005, "flicker": 0.01}
"""What counts as bad, each alone: edges 1.67 times as wide (log2) or as narrow; half the motion
error of a still picture; a mean squared error of 0.005 (23 dB) on the subject; a hundredth of the
range in the mean difference of neighbouring frames."""


def true_errors(
    clip: Clip, seen: NDArray[np.float32], case: Case, floor: float
) -> dict[str, float]:
    """How far a clip is from the truth, by the names of `LIMITS`.

    Args:
        clip: (T, H, W, 3) what was made.
        seen: (T - 1, H, W, 2) its motion by `metrics.clip_flow`.
        case: The truth.
        floor: Motion error that is measured on the truth itself, pixels.
    """
    boxes = metrics.subject_box(case.mask, 8)
    sharp = metrics.sharpness_ratio(clip, case.truth, boxes)
    still = metrics.flow_epe(0 * case.flow, case.flow, case.mask)
    moved = metrics.flow_epe(seen, case.flow, case.mask) - floor
    changes = metrics.temporal_flicker(clip) - metrics.temporal_flicker(case.truth)
    return {
        "sharpness": abs(float(np.log2(max(sharp, 1e-6)))),
        "motion": moved / max(still, 0.1),
        "picture": float(10 ** (-metrics.psnr(clip, case.truth, boxes) / 10)),
        "flicker": abs(changes),
    }


def worst(errors: dict[str, float]) -> float:
    """The largest error in parts of its limit: above 1 is bad."""
    return max(errors[name] / limit for name, limit in LIMITS.items())


def plant(
    case: Case, driver: NDArray[np.bool_], other: Clip, rng: np.random.Generator
) -> Iterator[tuple[str, float, Clip]]:
    """The truth, and the truth with one fault at a time: name, severity, (T, H, W, 3).

    Args:
        case: What is right.
        driver: (T, H, W) the subject of the driving clip.
        other: (T, H, W, 3) somebody else doing something else.
        rng: Draws noise, flicker and jitter.
    """
    truth, source = case.truth, case.driving
    count, first = len(truth), truth[:1]
    yield "clean", 0, truth
    for sigma in (0.7, 1.0, 2.0):  # pixels
        yield "blur", sigma, damages.blur(truth, sigma)
    for sigma in (4.0, 12.0):  # levels of 255
        yield "noise", sigma, damages.noise(truth, sigma, rng)
    for width in (3, 7):  # frames
        yield "smear", width, damages.smear(truth, width)
    for size in (0.03, 0.12):  # parts of the brightness
        yield "flicker", size, damages.flicker(truth, size, rng)
    for size in (1, 3):  # pixels
        steps = rng.integers(-size, size + 1, (count, 2))
        moved = [
            np.roll(f, (int(y), int(x)), (0, 1)) for f, (y, x) in zip(truth, steps, strict=True)
        ]
        yield "jitter", size, np.stack(moved)
    for width in (2, 4):
        yield "stutter", width, damages.stutter(truth, width)
    yield "frozen", 1, first.repeat(count, 0)
    yield "frozen", 2, case.reference[None].repeat(count, 0)
    yield "slow", 2, truth[np.arange(count) // 2]
    yield "shuffled", 1, truth[rng.permutation(count)]
    yield "backwards", 1, truth[::-1]
    place = np.where(case.mask[..., None], np.median(truth, 0).astype(np.uint8), truth)
    yield "identity", 1, np.where(driver[..., None], source, place)
    yield "identity", 2, other
    yield "identity", 3, source
    ramp = np.linspace(0, 1, count)[:, None, None, None]
    yield "tint", 0.3, damages.tint(truth, 0.3)
    yield "fade", 1, damages.as_bytes(truth + ramp * (source.astype(float) - truth))
    yield "flow warp", 1, flow_warp(case.reference, source)
