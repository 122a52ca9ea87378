"""Where joints are: one type for every estimator, every subject and every body.

Legend: T frames, S subjects, J joints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dreamactor.errors import ShapeError

Array = NDArray[np.float32]


@dataclass(frozen=True)
class PoseTrack:
    """Named joints of one or several subjects in every frame of a clip."""

    names: tuple[str, ...]
    """Of the joints; names of sides end in _l and _r, the subject's own left and right."""
    positions: Array
    """(T, S, J, 2) pixels, x right, y down; finite also where nothing was found."""
    confidence: Array
    """(T, S, J) in [0, 1]; 0 = not found, not in the picture, or the body lacks this joint."""
    height: int
    width: int
    fps: float

    def __post_init__(self) -> None:
        shape = (*self.confidence.shape, 2)
        if self.confidence.ndim != 3 or self.positions.shape != shape:
            raise ShapeError(
                f"positions {self.positions.shape} and confidence {self.confidence.shape}: "
                "want (T, S, J, 2) and (T, S, J)"
            )
        if self.confidence.shape[2] != len(self.names):
            raise ShapeError(f"{self.confidence.shape[2]} joints with {len(self.names)} names")

    @property
    def frames(self) -> int:
        """T."""
        return len(self.confidence)

    @property
    def subjects(self) -> int:
        """S."""
        return self.confidence.shape[1]
