"""Joints of a result held against those of its truth, both found by one estimator.

One estimator looks at both, as in the literature, so that what it gets wrong of a body in a pose
does not count against who drew it: the truth has an AKD of 0. Which joints count is known of the
truth: those that are in its picture, not hidden, and found.

Legend: T frames of H x W pixels, n of them looked at, J joints.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dreamactor.bench.metrics.every import Known
from dreamactor.bench.metrics.joints import Compared, as_found
from dreamactor.conditioning.pose import PoseEstimator


class Pointing:
    """Who finds joints, and in how many frames of a clip.

    Args:
        estimator: Of joints.
        frames: n, the first and the last among them; evenly.
    """

    def __init__(self, estimator: PoseEstimator, frames: int) -> None:
        self.estimator, self.frames = estimator, frames
        self._known: Known | None = None
        self._theirs: Compared | None = None

    @property
    def about(self) -> dict[str, Any]:
        """JSON values that its numbers depend on."""
        weights = sorted(self.estimator.weights.values())
        return {"estimator": self.estimator.name, "frames": self.frames, "weights": weights}

    def __call__(self, clip: NDArray[np.uint8], known: Known, fps: float) -> Compared | None:
        """Joints of both; None where nobody knows the truth's.

        Args:
            clip: (T, H, W, 3), as many frames as the truth.
            known: Of its case. The truth of the case before is remembered: its joints are found
                once for all of its clips.
            fps: Frames a second.
        """
        if known.truth is None or known.joints is None or known.seen is None:
            return None
        at = np.linspace(0, len(clip) - 1, min(self.frames, len(clip))).round().astype(int)
        rate = fps * len(at) / len(clip)
        if self._known is not known or self._theirs is None:
            there, found, knows = as_found(self.estimator(known.truth[at], rate), known.names)
            counted = known.seen[at] & found & knows
            self._theirs = Compared(there, there, found, counted, known.sizes[at])
            self._known = known
        places, found, _ = as_found(self.estimator(clip[at], rate), known.names)
        theirs = self._theirs
        return Compared(places, theirs.truth, found, theirs.known, theirs.size)
