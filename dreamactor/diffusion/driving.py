"""What takes the motion half of the canvas: the driving clip (rgb), or its skeleton (pose).

    rgb    clip -> frames at the backbone's rate, fitted into a half
    pose   clip -> frames at the backbone's rate -> joints of the whole clip -> normalised, as
           many empty frames before them as training had -> drawn frame by frame

The normalisation needs the box of the whole clip, so an estimator goes through all of it first;
only the joints are kept. Everything else streams.

Legend: H x W pixels of one half, T frames of a segment.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamactor.backbones.base import Native
from dreamactor.backbones.load import load_estimator
from dreamactor.conditioning.framing import fit_soft, to_half
from dreamactor.conditioning.pose import PoseEstimator, identity
from dreamactor.conditioning.skeleton import SEEN, PoseTrack, drawings
from dreamactor.diffusion.job import Job
from dreamactor.diffusion.task import Task, native_frames, rate_of
from dreamactor.errors import MediaError
from dreamactor.image import Rgb
from dreamactor.video import iter_frames, resample


@dataclass(frozen=True)
class Footage:
    """A clip at a constant rate, read anew whenever it is gone through."""

    path: Path
    fps: Fraction
    count: int
    """Frames."""

    def __iter__(self) -> Iterator[Rgb]:
        """The frames (H, W, 3), in the clip's own size."""
        return resample(iter_frames(self.path), self.fps, float(self.count / self.fps))


def footage(job: Job, native: Native) -> Footage:
    """The driving clip at a backbone's rate: the frames that the subject is to follow."""
    return Footage(job.config.driving, rate_of(native), native_frames(job, native))


def find_joints(
    job: Job, native: Native, estimator: PoseEstimator | None = None
) -> tuple[PoseTrack, dict[str, Any]]:
    """Joints of the driving clip at the backbone's rate, in its own pixels, and who found them.

    Args:
        job: From `prepare`.
        native: The rate.
        estimator: Loaded already; None loads the one that the job names.

    Raises:
        ConfigError: The estimator is not installed, or cannot run here.
        MediaError: The clip cannot be read, or nothing is found in it.
        WeightsError: The estimator's weights are missing or damaged.
    """
    if estimator is None:
        estimator = load_estimator(job.config.estimator, device=job.config.device)
    track = estimator(footage(job, native), native.fps)
    if not (track.confidence >= SEEN).any():
        raise MediaError(
            f"{job.config.driving}: {estimator.name} finds no joint in it; want a subject that it "
            "knows, another --pose, or --variant rgb"
        )
    return track, identity(estimator)


def motion_frames(task: Task, native: Native) -> Iterator[Rgb]:
    """The `task.native_frames` pictures (H, W, 3) of the motion half, one by one."""
    assert (task.skeleton is not None) == (task.job.config.variant == "pose")
    if task.skeleton is not None:
        yield from drawings(task.skeleton)
        return
    for frame in footage(task.job, native):
        yield fit_soft(frame, (native.height, native.width), task.job.config.fit)[0]


class Window:
    """The driving frames around one segment; older ones are let go."""

    def __init__(self, frames: Iterator[Rgb]) -> None:
        self._frames = frames
        self._halves: dict[int, Tensor] = {}
        self._next = 0

    def halves(self, numbers: list[int]) -> Tensor:
        """(1, 3, T, H, W) of these frames; numbers never go back by more than one segment."""
        self._halves = {k: half for k, half in self._halves.items() if k >= min(numbers)}
        while self._next <= max(numbers):
            self._halves[self._next] = to_half(next(self._frames))
            self._next += 1
        return torch.stack([self._halves[k] for k in numbers], dim=1)[None]
