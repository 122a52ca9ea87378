"""All metrics of one clip at once, what several of them need computed a single time.

Legend: T frames of H x W pixels, J joints; clips, boxes and flows as in `dreamactor.bench.metrics`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dreamactor.bench.metrics import (
    activity,
    appearance,
    consistency,
    distance,
    drift,
    fidelity,
    flow,
    following,
    imaging,
    smoothness,
)
from dreamactor.bench.metrics.clips import MARGIN, Floats, subject_box
from dreamactor.bench.metrics.features import Features, features_of, moving
from dreamactor.bench.metrics.joints import Compared
from dreamactor.bench.metrics.table import METRICS

if TYPE_CHECKING:
    from dreamactor.bench.perceptual import Perceptual


@dataclass(frozen=True)
class Known:
    """What is known of a case: reference and driver always, of the world's cases the truth too."""

    reference: NDArray[np.uint8]
    """(H, W, 3)"""
    driving: NDArray[np.uint8]
    """(T, H, W, 3)"""
    truth: NDArray[np.uint8] | None = None
    """(T, H, W, 3)"""
    mask: NDArray[np.bool_] | None = None
    """(T, H, W) the truth's subject."""
    flow: NDArray[np.float32] | None = None
    """(T - 1, H, W, 2) pixels, the truth's."""
    joints: Floats | None = None
    """(T, J, 2) pixels, the truth's."""
    seen: NDArray[np.bool_] | None = None
    """(T, J) which of them are in the picture and not hidden."""
    names: tuple[str, ...] = ()
    """Of the J joints."""

    def cells(self, net: Perceptual) -> NDArray[np.float32]:  # (C, h, w)
        """The reference as a network sees it, looked at once."""
        found = self.__dict__.setdefault("_cells", {})  # frozen is what is known, not what is kept
        if id(net) not in found:
            found[id(net)] = features_of(self.reference[None], net).cells[0]
        return found[id(net)]

    @cached_property
    def motion(self) -> Floats:
        """The driver's motion grid."""
        return following.motion_grid(self.driving)

    @cached_property
    def sizes(self) -> Floats:  # (T,)
        """Longer side of the truth's subject, pixels."""
        assert self.mask is not None
        boxes = subject_box(self.mask)
        return (boxes[:, 2:] - boxes[:, :2]).max(1).astype(np.float64)


@dataclass(frozen=True)
class Measured:
    """Of one clip."""

    values: dict[str, float]
    """By the names of `METRICS` but those of sets; NaN where undefined or not to be had."""
    vector: Floats | None
    """(K,) the clip as `distance` sees it; None without a network."""


def measure_every(
    clip: NDArray[Any],
    known: Known,
    net: Perceptual | None = None,
    lpips_frames: int | None = None,
    joints: Compared | None = None,
) -> Measured:
    """Every metric that what is known allows for.

    Args:
        clip: (T, H, W, 3).
        known: Of its case.
        net: Network of features and ST-LPIPS; None leaves their metrics NaN.
        lpips_frames: Frames that ST-LPIPS looks at; None = all.
        joints: Those of the clip and of its truth.
    """
    values = {m.name: math.nan for m in METRICS if "a set" not in m.needs}
    seen = flow.clip_flow(clip)
    values |= _by_truth(clip, known, seen) | _by_itself(clip, known, seen)
    if joints is not None:
        values |= joints.values()
    if net is None:
        return Measured(values, None)
    felt = features_of(clip, net)
    values |= _by_features(clip, known, felt, net)
    if known.truth is not None and known.mask is not None:
        boxes = subject_box(known.mask, MARGIN)
        values["lpips"] = fidelity.lpips_each([clip], known.truth, net, boxes, frames=lpips_frames)[
            0
        ]
    return Measured(values, distance.project(distance.clip_vector(felt.pooled)[None])[0])


def _by_truth(clip: NDArray[Any], known: Known, seen: NDArray[np.float32]) -> dict[str, float]:
    values: dict[str, float] = {}
    if known.truth is not None and known.mask is not None:
        boxes = subject_box(known.mask, MARGIN)
        values |= {
            "psnr": fidelity.psnr(clip, known.truth, boxes),
            "ssim": fidelity.ssim(clip, known.truth, boxes),
            "l1": fidelity.l1(clip, known.truth, boxes),
            "sharpness_ratio": fidelity.sharpness_ratio(clip, known.truth, boxes),
        }
    if known.flow is not None and known.mask is not None:
        values["flow_epe"] = flow.flow_epe(seen, known.flow, known.mask)
    return values


def _by_itself(clip: NDArray[Any], known: Known, seen: NDArray[np.float32]) -> dict[str, float]:
    motion = following.motion_grid(clip)
    return {
        "naturalness": imaging.naturalness(clip),
        "motion_smoothness": smoothness.motion_smoothness(clip),
        "temporal_flicker": smoothness.temporal_flicker(clip),
        "warp_error": consistency.warp_error(clip, seen),
        "colour_likeness": appearance.colour_likeness(clip, known.reference),
        "dynamic_degree": activity.dynamic_degree(seen),
        "following": following.following(motion, known.motion),
        "lag": following.lag(motion, known.motion),
        "colour_drift": drift.colour_drift(clip),
        "sharpness_drift": drift.sharpness_drift(clip),
    }


def _by_features(
    clip: NDArray[Any], known: Known, felt: Features, net: Perceptual
) -> dict[str, float]:
    """Where the subject is, is guessed from what moves: no mask is known of a result."""
    weight = moving(clip)[felt.frames]
    likeness = appearance.part_likeness(felt.cells, known.cells(net), weight)
    return {
        "feature_consistency": consistency.feature_consistency(felt.cells),
        "subject_consistency": consistency.feature_consistency(felt.cells, weight),
        "appearance": float(likeness.mean()),
        "identity_drift": drift.identity_drift(likeness),
    }
