"""The world's exact joints as a PoseTrack, and as the estimator that cannot err."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dreamactor.conditioning.skeleton import JOINTS, PoseTrack
from dreamactor.errors import ShapeError
from dreamactor.image import Rgb
from dreamactor.world.scene import Joints


def track_of(subjects: Sequence[Joints], size: tuple[int, int], fps: float) -> PoseTrack:
    """Exact joints of one clip, in the order of JOINTS.

    Args:
        subjects: Of each actor, on T frames.
        size: (height, width) of the pictures.
        fps: Frames a second.

    Returns:
        Confidence 1 where a joint is visible: in the picture and, if the clip was drawn with
        truth, not hidden. Positions are exact where it is hidden or out of the picture too.
    """
    shape = (len(subjects[0].pixels), len(subjects), len(JOINTS))  # (T, S, J)
    positions, confidence = np.zeros((*shape, 2), np.float32), np.zeros(shape, np.float32)
    for s, joints in enumerate(subjects):
        at = [JOINTS.index(name) for name in joints.names]
        positions[:, s, at] = joints.pixels
        confidence[:, s, at] = joints.visible
    return PoseTrack(JOINTS, positions, confidence, *size, fps)


@dataclass(frozen=True)
class Exact:
    """An estimator that was told the truth of one clip (`conditioning.pose.PoseEstimator`)."""

    track: PoseTrack
    name: str = "world"
    weights: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, frames: Iterable[Rgb], fps: float) -> PoseTrack:
        """The truth, if the frames can be those that it belongs to.

        Raises:
            ShapeError: They are more, fewer, or of another size.
        """
        wanted = [(self.track.height, self.track.width, 3)] * self.track.frames
        shapes = [frame.shape for frame in frames]
        if shapes != wanted:
            raise ShapeError(
                f"{len(shapes)} frames {sorted(set(shapes))}: the known track belongs to "
                f"{len(wanted)} of {wanted[:1]}"
            )
        return self.track
