"""What the pose variant is trained and driven with: other bodies, one frame of reference, a lead.

The paper scales bones by anatomical group with factors from U(0.8, 1.2) on 30 % of samples,
normalises by the bounding box of all joints of the whole clip, and hides the driving signal in
the first second of each training clip; at inference as much stands empty before the clip and is
cut from the result (`backbones.lora.AdapterInfo.lead` says how much). Everything else here is ours
and off by default.

Draws are keyed by the item, so a sample is the same in any batch and after any restart.

Legend: T frames, S subjects, J joints. A joint counts as found where it would be drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from dreamactor.conditioning.skeleton import BONES, SEEN, Array, Group, PoseTrack, tree
from dreamactor.errors import ConfigError
from dreamactor.runs import numpy_generator

UNLIKE = 3.0
"""Ratio of two bodies' bones up to which `realign` follows it; more is a fault of an estimator."""


@dataclass(frozen=True)
class AugmentConfig:
    """How poses are changed before they drive; the paper's, with further options off."""

    scale_share: float = 0.3
    """Share of samples whose bones are scaled."""
    scale_low: float = 0.8
    """Least factor on the length of a bone."""
    scale_high: float = 1.2
    """Largest factor."""
    normalise: bool = True
    """Bring the box of all joints of the clip to the middle of the picture, at its full size."""
    margin: float = 0.1
    """Empty part of the picture beyond the box, on each side that it reaches."""
    drop: float = 0.0
    """Share of joints that are lost for the whole clip."""
    noise: float = 0.0
    """Standard deviation of an error of each joint in each frame, in parts of the box's longer
    side."""

    def __post_init__(self) -> None:
        for name, most in (("scale_share", 1), ("margin", 0.45), ("drop", 1), ("noise", 1)):
            if not 0 <= getattr(self, name) <= most:
                raise ConfigError(f"{name}={getattr(self, name)}: want 0 to {most}")
        if not 0 < self.scale_low <= self.scale_high:
            raise ConfigError(
                f"scale_low={self.scale_low} scale_high={self.scale_high}: want 0 < low <= high"
            )


def augment(
    track: PoseTrack, config: AugmentConfig, seed: int, item: int, body: PoseTrack | None = None
) -> PoseTrack:
    """All of a training sample's changes but the lead.

    Args:
        track: As estimated or known.
        config: Which changes.
        seed: Of the run.
        item: The sample; its draws depend on (seed, item) alone.
        body: Another body, whose proportions are taken on first (`realign`); None for its own.
    """
    track = track if body is None else realign(track, body)
    rng = numpy_generator(seed, "pose/augment", item)
    factors = rng.uniform(config.scale_low, config.scale_high, len(get_args(Group)))
    if rng.random() < config.scale_share:
        track = scale_groups(track, dict(zip(get_args(Group), factors, strict=True)))
    lost = rng.random((track.subjects, len(track.names))) < config.drop
    track = replace(track, confidence=np.where(lost, 0, track.confidence).astype(np.float32))
    low, high = bounding_box(track)
    error = rng.standard_normal(track.positions.shape) * config.noise * (high - low).max()
    track = replace(track, positions=(track.positions + error).astype(np.float32))
    return normalise(track, config.margin) if config.normalise else track


def scale_groups(track: PoseTrack, factors: dict[Group, float]) -> PoseTrack:
    """Scale the bones of each anatomical group, the same in all frames and on both sides.

    Args:
        track: Positions of any body.
        factors: By group; bones of groups that are not named keep their length.
    """
    per_joint = [factors.get(BONES[n].group, 1.0) if n in BONES else 1.0 for n in track.names]
    return scale_bones(track, np.tile(np.array(per_joint, np.float32), (track.subjects, 1)))


def scale_bones(track: PoseTrack, factors: Array) -> PoseTrack:
    """Scale each bone by a factor of its own; joints stay connected, directions stay as they are.

    A joint's new place is its parent's new place plus the scaled way to it, so over time each
    bone keeps its pattern. Roots stay where they are. Where a joint is not found its place is
    taken from the frames before and after, so that those that hang on it do not jump.

    Args:
        track: Positions of any body.
        factors: (S, J) of the bone between a joint and its parent.

    Returns:
        The same track elsewhere; confidence is untouched.
    """
    positions = track.positions.copy()
    for s in range(track.subjects):
        found = track.confidence[:, s] >= SEEN  # (T, J)
        has = {n for j, n in enumerate(track.names) if found[:, j].any()}
        old = _bridged(track.positions[:, s], found)  # (T, J, 2)
        new = old.copy()
        index = {name: j for j, name in enumerate(track.names)}
        for name, parent in _outwards(tree(track.names, has)):
            j, p = index[name], index[parent]
            new[:, j] = new[:, p] + factors[s, j] * (old[:, j] - old[:, p])
        positions[:, s] = new
    return replace(track, positions=positions)


def realign(track: PoseTrack, body: PoseTrack) -> PoseTrack:
    """Give every subject the proportions of another body, and keep its own size.

    Lengths on the picture are compared by their 90th percentile over the clip, left and right
    together: near their true length bones are seen at some time, shorter ones most of it. Bones
    that either clip never shows keep their length, in proportion to the rest.

    Args:
        track: Whose motion it is.
        body: Whose proportions are wanted; its first subject counts, and any number of frames.

    Raises:
        ConfigError: The two have no bone in common.
    """
    wanted = _lengths(body, 0)
    factors = np.ones((track.subjects, len(track.names)), np.float32)
    for s in range(track.subjects):
        own = _lengths(track, s)
        shared = sorted(own.keys() & wanted.keys())
        if not shared:
            raise ConfigError(
                f"realign: bones {sorted(own)} and {sorted(wanted)}: want some in common"
            )
        size = sum(own[bone] for bone in shared) / sum(wanted[bone] for bone in shared)
        ratio = {b: np.clip(size * wanted[b] / own[b], 1 / UNLIKE, UNLIKE) for b in shared}
        factors[s] = [ratio.get(_unsided(name), 1.0) for name in track.names]
    return scale_bones(track, factors)


def bounding_box(track: PoseTrack) -> tuple[Array, Array]:
    """(2,) lowest and (2,) highest x, y of all joints found in the clip; the picture if none."""
    found = track.positions[track.confidence >= SEEN]  # (N, 2)
    if not len(found):
        return np.zeros(2, np.float32), np.array([track.width, track.height], np.float32)
    return found.min(axis=0), found.max(axis=0)


def normalise(track: PoseTrack, margin: float = 0.1) -> PoseTrack:
    """Bring the box of all joints of the clip to the middle of the picture, as large as it fits.

    One shift and one scale for the whole clip: what moves within the box still does, and the
    figure keeps its aspect (*ours*; the paper only names the box).

    Args:
        track: Any.
        margin: Part of the picture left empty on each side that the box reaches.
    """
    low, high = bounding_box(track)
    size = np.array([track.width, track.height], np.float32)
    scale = float(((1 - 2 * margin) * size / np.maximum(high - low, 1e-3)).min())
    positions = size / 2 + scale * (track.positions - (low + high) / 2)
    return replace(track, positions=positions.astype(np.float32))


def lead_frames(fps: float, seconds: float) -> int:
    """Frames without a driving signal, in which the subject may come to the driver's pose."""
    return round(seconds * fps)


def hide_lead(track: PoseTrack, seconds: float) -> PoseTrack:
    """Training: nothing is found in the clip's first seconds; its length stays."""
    confidence = track.confidence.copy()
    confidence[: lead_frames(track.fps, seconds)] = 0
    return replace(track, confidence=confidence)


def add_lead(track: PoseTrack, count: int) -> PoseTrack:
    """Inference: so many frames on which nothing is found come before the clip."""
    first = np.repeat(track.positions[:1], count, axis=0)
    nothing = np.zeros((count, *track.confidence.shape[1:]), np.float32)
    return replace(
        track,
        positions=np.concatenate([first, track.positions]),
        confidence=np.concatenate([nothing, track.confidence]),
    )


def _outwards(parents: dict[str, str]) -> list[tuple[str, str]]:
    """(joint, parent) in an order in which parents come before those that hang on them."""
    order: dict[str, str] = {}

    def add(name: str) -> None:
        if name in parents and name not in order:
            add(parents[name])
            order[name] = parents[name]

    for name in parents:
        add(name)
    return list(order.items())


def _bridged(positions: Array, found: NDArray[np.bool_]) -> Array:  # (T, J, 2), (T, J)
    """Positions with gaps in time bridged straight; of joints that are never found as they are."""
    out = positions.copy()
    frames = np.arange(len(positions))
    for j in np.flatnonzero(found.any(axis=0) & ~found.all(axis=0)):
        here = found[:, j]
        for axis in range(2):
            out[:, j, axis] = np.interp(frames, frames[here], positions[here, j, axis])
    return out


def _lengths(track: PoseTrack, subject: int) -> dict[str, float]:
    """Pixels of each bone that is seen, by its joint's name without the side."""
    found = track.confidence[:, subject] >= SEEN  # (T, J)
    has = {n for j, n in enumerate(track.names) if found[:, j].any()}
    seen: dict[str, list[float]] = {}
    for name, parent in tree(track.names, has).items():
        j, p = track.names.index(name), track.names.index(parent)
        both = found[:, j] & found[:, p]
        way = track.positions[both, subject, j] - track.positions[both, subject, p]  # (N, 2)
        seen.setdefault(_unsided(name), []).extend(np.linalg.norm(way, axis=-1).tolist())
    lengths = {bone: float(np.quantile(ways, 0.9)) for bone, ways in seen.items() if ways}
    return {bone: length for bone, length in lengths.items() if length > 0}


def _unsided(name: str) -> str:
    return name.removesuffix("_l").removesuffix("_r")
