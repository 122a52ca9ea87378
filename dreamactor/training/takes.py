"""Where cached examples come from: the world's pool, a folder of clips, or triplets.

A source gives takes, frames that belong together before anything is encoded. They come in
numbered groups, one a shard of the cache, that are the same whenever they are read.

Legend: T frames of a take, the first of which is the reference on the target's side; H x W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from dreamactor.backbones.load import Variant
from dreamactor.conditioning.framing import fit_soft
from dreamactor.conditioning.pose import PoseEstimator, identity
from dreamactor.conditioning.skeleton import JOINTS, Frames, PoseTrack
from dreamactor.decode import probe
from dreamactor.errors import ConfigError, MediaError
from dreamactor.provenance import sha256
from dreamactor.training.pool import read_shard, ready_shards
from dreamactor.video import CLIP_SUFFIXES, iter_frames, resample
from dreamactor.world.pairs import FPS

FILES_AT_ONCE = 16
"""Clips of a folder that make one shard."""
Reference = Literal["first", "other"]
"""The clip's own first frame, as in the paper, or a picture in another pose (pools have one)."""


@dataclass(frozen=True)
class Take:
    """Frames that belong together."""

    key: str
    target: Frames
    """(T, H, W, 3): the reference, then what is to be generated."""
    driving: Frames
    """(T, H, W, 3) of the driving clip, as it was shot."""
    track: PoseTrack | None
    """Its joints on T frames; None in the RGB stage, which has no use for them."""
    caption: str
    subject: NDArray[np.uint8] | None = None
    """(T, H, W) 0 or 255: where the target's subject is, if that is known."""


class Source(Protocol):
    """Numbered groups of takes."""

    @property
    def fps(self) -> float:
        """Frames a second of all takes."""
        ...

    @property
    def about(self) -> dict[str, Any]:
        """JSON values: what has a say in the takes besides settings."""
        ...

    def groups(self) -> list[int]:
        """Their numbers."""
        ...

    def takes(self, group: int) -> Iterator[Take]:
        """All takes of a group, the same every time."""
        ...


@dataclass(frozen=True)
class Pool:
    """A pool of twins (`training.pool`): two identities in one motion.

    For the pose stage a clip's own exact joints drive it, for the RGB stage the twin's pictures.
    """

    folder: Path
    task: Variant
    reference: Reference = "first"
    fps: float = FPS

    @property
    def about(self) -> dict[str, Any]:
        """Nothing: joints are known."""
        return {}

    def groups(self) -> list[int]:
        """One a shard of the pool."""
        found = ready_shards(self.folder)
        if not found:
            raise ConfigError(f"{self.folder}: no pool; fill it with `dreamactor world pool`")
        return found

    def takes(self, group: int) -> Iterator[Take]:
        """Both sides of all twins of a shard."""
        shard = read_shard(self.folder, group)
        for k, side in np.ndindex(shard.pixels.shape[:2]):
            own = shard.pixels[k, side]  # (T + 1, H, W, 4): other reference, frame before, frames
            shown = own[1:] if self.reference == "first" else np.concatenate([own[:1], own[2:]])
            driven = own[1:] if self.task == "pose" else shard.pixels[k, 1 - side, 1:]
            track = None
            if self.task == "pose":
                track = pool_track(shard.joints[k, side, 1:], own.shape[1], self.fps)
            yield Take(
                f"{self.folder.name}/{group:06d}/{k}/{side}",
                shown[..., :3],
                driven[..., :3],
                track,
                shard.captions[k][side],
                shown[..., 3],
            )


def pool_track(joints: NDArray[np.float32], side: int, fps: float) -> PoseTrack:
    """Joints as a pool holds them, (T, 17, 2) in parts of the side and NaN, as a track."""
    found = np.isfinite(joints).all(axis=-1)  # (T, J)
    positions = np.nan_to_num(joints * side)[:, None].astype(np.float32)  # (T, 1, J, 2)
    return PoseTrack(JOINTS, positions, found[:, None].astype(np.float32), side, side, fps)


@dataclass(frozen=True)
class Clips:
    """A folder of clips for the pose stage; CLIP.txt beside CLIP.mp4 is its caption."""

    folder: Path
    estimator: PoseEstimator
    frames: int
    fps: float
    half: tuple[int, int]
    """(H, W)."""

    @property
    def about(self) -> dict[str, Any]:
        """Who finds the joints, with which weights."""
        return {"estimator": identity(self.estimator)}

    @cached_property
    def _paths(self) -> list[Path]:
        return clips_of(self.folder)

    def groups(self) -> list[int]:
        """So many files each."""
        return list(range(-(-len(self._paths) // FILES_AT_ONCE)))

    def takes(self, group: int) -> Iterator[Take]:
        """Windows of whole clips, one after the other; what is left at the end is not used."""
        for path in self._paths[group * FILES_AT_ONCE : (group + 1) * FILES_AT_ONCE]:
            caption = _caption(path)
            for number, clip in enumerate(windows(path, self.frames, self.fps, self.half)):
                track = self.estimator(clip, self.fps)
                yield Take(f"{path.name}/{number}", clip, clip, track, caption)


@dataclass(frozen=True)
class _Line:
    """One of triplets.jsonl."""

    driving: Path
    target: Path
    source: Path
    """Clip of the reference."""
    frame: int
    """Its number there."""
    text: str


@dataclass(frozen=True)
class Triplets:
    """triplets.jsonl of `dreamactor bootstrap`: a synthetic driver, a real target.

    Each line holds `driving` and `target`, paths from the file on, `reference`, the clip and
    number of a frame, and perhaps `text`, what the target shows; without it TARGET.txt says
    so. As in `diffusion.segments`, the first frame is generated too and its driver
    stands beside the reference already, so a clip of 16 frames makes a take of 17.
    """

    path: Path
    frames: int
    fps: float
    half: tuple[int, int]
    """(H, W)."""

    @property
    def about(self) -> dict[str, Any]:
        """Nothing: the RGB stage looks for no joints."""
        return {}

    @cached_property
    def _lines(self) -> list[_Line]:
        return [self._line(number, line) for number, line in enumerate(self._read(), 1)]

    def _read(self) -> list[str]:
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ConfigError(f"{self.path}: no triplets: {error.strerror}") from error
        if not lines:
            raise ConfigError(f"{self.path}: no triplets; did the review accept any?")
        return lines

    def _line(self, number: int, line: str) -> _Line:
        here, root = f"{self.path}:{number}", self.path.parent
        try:
            said = json.loads(line)
            driving, target = root / said["driving"], root / said["target"]
            reference, frame = root / said["reference"]["clip"], int(said["reference"]["frame"])
            text = str(said.get("text") or "")
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{here}: want driving, reference and target ({error})") from error
        for path in (driving, target, reference):
            if not path.is_file():
                raise MediaError(f"{here}: {path}: no such file")
        if driving.samefile(target) or sha256(driving) == sha256(target):
            raise ConfigError(
                f"{here}: the driving clip is the target; want another identity in the same motion"
            )
        return _Line(driving, target, reference, frame, text or _caption(target))

    def groups(self) -> list[int]:
        """So many lines each."""
        return list(range(-(-len(self._lines) // FILES_AT_ONCE)))

    def takes(self, group: int) -> Iterator[Take]:
        """Windows of both clips in step."""
        for line in self._lines[group * FILES_AT_ONCE : (group + 1) * FILES_AT_ONCE]:
            picture = _frame(line.source, line.frame, self.half)
            both = (
                windows(p, self.frames, self.fps, self.half, twice=True)
                for p in (line.driving, line.target)
            )
            for number, (driver, clip) in enumerate(zip(*both, strict=False)):
                shown = np.concatenate([picture[None], clip[1:]])
                key = f"{line.driving.relative_to(self.path.parent)}/{number}"
                yield Take(key, shown, driver, None, line.text)


def clips_of(folder: Path) -> list[Path]:
    """Clips that lie in a folder, by name.

    Raises:
        ConfigError: There is no such folder.
        MediaError: There are none.
    """
    if not folder.is_dir():
        raise ConfigError(f"clips={folder}: no such folder")
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in CLIP_SUFFIXES)
    if not found:
        raise MediaError(f"{folder}: no clips; want {' '.join(CLIP_SUFFIXES)}")
    return found


def windows(
    path: Path, frames: int, fps: float, half: tuple[int, int], twice: bool = False
) -> Iterator[Frames]:
    """Cut a clip into windows of `frames` frames that share one frame with the next.

    With `twice` the first frame of the clip stands there twice.
    """
    held: list[NDArray[np.uint8]] = []
    for picture in resample(iter_frames(path), fps, probe(path).duration):
        fitted = fit_soft(picture, half, "letterbox")[0]
        held += [fitted, fitted] if twice and not held else [fitted]
        if len(held) == frames:
            yield np.stack(held)
            held = held[-1:]


def _frame(path: Path, number: int, half: tuple[int, int]) -> NDArray[np.uint8]:
    for index, (_, picture) in enumerate(iter_frames(path)):
        if index == number:
            return fit_soft(picture, half, "letterbox")[0]
    raise MediaError(f"{path}: no frame {number} for a reference")


def _caption(path: Path) -> str:
    beside = path.with_suffix(".txt")
    return beside.read_text(encoding="utf-8").strip() if beside.is_file() else ""
