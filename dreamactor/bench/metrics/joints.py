"""Where joints are against where they should be: AKD, MKR, PCK.

What they measure is as good as who finds the joints. In the literature that is a detector of
people, which looks at result and truth alike (`dreamactor.bench.pointing`); the embedded
`keypoints` and the world's exact joints (`dreamactor.world.tracks`) hold for animals too.

Legend: T frames, J joints; places are (T, J, 2) pixels, x right and y down; found is (T, J), true
where a joint was found: in the truth one that is in the picture and seen.

Source:
    Siarohin et al. 2019, "First Order Motion Model" (AKD, MKR); Yang and Ramanan 2013 (PCK).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dreamactor.bench.metrics.clips import Array, Floats
from dreamactor.conditioning.skeleton import SEEN, PoseTrack, select
from dreamactor.errors import ShapeError

Found = NDArray[np.bool_]


@dataclass(frozen=True)
class Compared:
    """Joints of a result and of its truth on the same frames: what the metrics here take."""

    result: Floats
    """(T, J, 2)"""
    truth: Floats
    """(T, J, 2)"""
    found: Found
    """(T, J) of the result."""
    known: Found
    """(T, J) of the truth."""
    size: Floats
    """(T,) longer side of the truth's subject, pixels."""

    def values(self) -> dict[str, float]:
        """All three by their names."""
        return {
            "akd": akd(self.result, self.truth, self.found, self.known),
            "mkr": mkr(self.found, self.known),
            "pck": pck(self.result, self.truth, self.found, self.known, self.size),
        }


def as_found(track: PoseTrack, names: Sequence[str]) -> tuple[Floats, Found, Found]:
    """What an estimator found, in the truth's order of joints; of several people the surest.

    Args:
        track: Of the result.
        names: Of the truth's J joints.

    Returns:
        (T, J, 2) pixels; (T, J) whether found; (J,) whether the estimator knows such a joint at
        all: one that it does not know is not to be counted as missing.
    """
    chosen = select(track, names)
    best = int(chosen.confidence.sum(axis=(0, 2)).argmax())
    known = np.isin(np.asarray(names), np.asarray(track.names))
    return chosen.positions[:, best].astype(np.float64), chosen.confidence[:, best] >= SEEN, known


def akd(result: Array, truth: Array, found: Found, known: Found) -> float:
    """Average keypoint distance: mean over joints found in both, pixels; lower is better.

    Args:
        result: (T, J, 2).
        truth: (T, J, 2).
        found: (T, J) of the result.
        known: (T, J) of the truth.

    Returns:
        Pixels; NaN where no joint is in both.
    """
    _check(result, truth, found, known)
    away = np.linalg.norm(result.astype(np.float64) - truth, axis=-1)
    both = found & known
    return float(away[both].mean()) if both.any() else float("nan")


def mkr(found: Found, known: Found) -> float:
    """Missing keypoint rate: share of the truth's joints not found in the result; lower is better.

    Args:
        found: (T, J) of the result.
        known: (T, J) of the truth.

    Returns:
        0 to 1; NaN where the truth has none.
    """
    if found.shape != known.shape:
        raise ShapeError(f"joints found are {found.shape}, known {known.shape}: want (T, J) both")
    return float((~found)[known].mean()) if known.any() else float("nan")


def pck(
    result: Array, truth: Array, found: Found, known: Found, size: Array, part: float = 0.1
) -> float:
    """Percentage of correct keypoints, as a share: higher is better.

    Share of the truth's joints found within `part` times the subject's size; a joint that was not
    found is wrong.

    Args:
        result: (T, J, 2).
        truth: (T, J, 2).
        found: (T, J) of the result.
        known: (T, J) of the truth.
        size: (T,) longer side of the truth's subject, pixels.
        part: Of it that counts as right.

    Returns:
        0 to 1; NaN where the truth has no joint.
    """
    _check(result, truth, found, known)
    if size.shape != (len(truth),):
        raise ShapeError(f"sizes are {size.shape}: want ({len(truth)},), one a frame")
    away = np.linalg.norm(result.astype(np.float64) - truth, axis=-1)
    right = found & (away <= part * size[:, None])
    return float(right[known].mean()) if known.any() else float("nan")


def _check(result: Array, truth: Array, found: Found, known: Found) -> None:
    shape = (*known.shape, 2)
    if result.shape != shape or truth.shape != shape or found.shape != known.shape:
        raise ShapeError(
            f"joints are {result.shape} and {truth.shape}, found {found.shape} and {known.shape}: "
            "want (T, J, 2) twice and (T, J) twice"
        )
