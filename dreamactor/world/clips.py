"""Reads 0 A.D. animations and decides which are worth having and whom they suit.

Legend: T frames, J bones.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dreamactor.errors import AssetError
from dreamactor.world.art import Art
from dreamactor.world.captions import describe_motion
from dreamactor.world.cast import Array, Motion, Skeleton, Split, rotate
from dreamactor.world.pose import quat_conj, quat_mul
from dreamactor.world.zeroad import read_animation

SHORTEST = 0.4  # seconds
_REPEAT_TO = 0.8  # seconds; shorter loops are repeated
_STILL = 0.01  # metres; the liveliest bone of a clip moves at least so much about its mean
_REACH = 12.0  # metres from the origin; more is a broken file
_LOST = 1e-3  # metres from the origin, in every frame: the exporter left the bone out
_GROWTH = 0.07  # how much bigger the body may be that a clip was made for
_MISFIT = 0.06  # how far nine in ten bones may be off in length, as a share of the body's size
_ALIKE = 0.02  # mean distance of joints between clips that count as one, share of the body's size
_LOOP_GAP = 0.02  # mean distance of first and last pose, as a share of the body's size
_FOLDERS = {"biped": "biped", "quadraped": "animal", "other": "animal", "others": "animal"}
_NOT_BODIES = re.compile(r"sail|oar|shield|net_|rein|marker|barrels|bridge|circle|shoal|fisher/")


@dataclass(frozen=True)
class Clip:
    """An animation that passed the checks."""

    name: str
    fps: float
    positions: Array  # (T, J, 3)
    rotations: Array  # (T, J, 4)
    loops: bool

    def motion(self, skeleton: str, group: str, split: Split) -> Motion:
        """As a cast holds it."""
        return Motion(
            name=self.name,
            skeleton=skeleton,
            fps=self.fps,
            rotations=self.rotations,
            positions=self.positions,
            caption=describe_motion(self.name),
            group=group,
            split=split,
            loops=self.loops,
        )


def read_clips(art: Art, names: list[str], skipped: Counter[str]) -> list[Clip]:
    """All usable animations of bodies, in the order of their names."""
    clips = []
    for file in names:
        if not (file.startswith("art/animation/") and file.endswith(".psa")):
            continue
        name = file.removeprefix("art/animation/").split(".")[0]
        if name.split("/")[0] not in _FOLDERS or _NOT_BODIES.search(name):
            continue
        try:
            raw = read_animation(art.read(file), file)
        except AssetError:
            skipped["clip unreadable"] += 1
            continue
        clip = _checked(Clip(name, raw.fps, raw.positions, raw.rotations, False))
        if isinstance(clip, str):
            skipped[f"clip {clip}"] += 1
        else:
            clips.append(clip)
    return clips


def _checked(clip: Clip) -> Clip | str:
    """The clip, repeated if it is a short loop, or what is wrong with it."""
    positions = clip.positions
    if not (np.isfinite(positions).all() and np.isfinite(clip.rotations).all()):
        return "with values that are not finite"
    if np.abs(positions).max() > _REACH:
        return "that leaves the scene"
    if np.linalg.norm(positions - positions.mean(0), axis=-1).max() < _STILL:
        return "without motion"
    size = float(np.ptp(positions[0], axis=0).max())
    gap = float(np.linalg.norm(positions[0] - positions[-1], axis=-1).mean())
    named = re.search(r"walk|run|jog|trot|gallop|canter|pace|flight|glide|move", clip.name)
    loops = "death" not in clip.name and (named is not None or gap < _LOOP_GAP * size)
    seconds = len(positions) / clip.fps
    times = int(np.ceil(_REPEAT_TO / seconds)) if loops and seconds < SHORTEST else 1
    if seconds * times < SHORTEST:
        return "too short"
    return Clip(
        clip.name,
        clip.fps,
        np.tile(positions, (times, 1, 1)),
        np.tile(_continuous(clip.rotations), (times, 1, 1)),
        loops,
    )


def _continuous(rotations: Array) -> Array:
    """Flip quaternions so that neighbours in time have the same sign."""
    turns = (rotations[1:] * rotations[:-1]).sum(-1) < 0
    sign = np.where(np.cumsum(turns, 0) % 2, -1, 1).astype(np.float32)
    out = rotations.copy()
    out[1:] *= sign[..., None]
    return out


def group_clips(clips: list[Clip], bones: list[int]) -> dict[str, str]:
    """Clip name -> group, for clips of one skeleton.

    Takes of one action share a group (the name without number or letter at its end), and so do
    actions that look alike: the game reuses a walk for soldiers with different weapons.

    Args:
        clips: With the same number of bones.
        bones: The joints that are compared.
    """
    stems = []
    for clip in clips:
        stem = clip.name
        while (shorter := re.sub(r"(_?\d+|_[a-n])$", "", stem)) != stem:
            stem = shorter
        stems.append(stem)
    leader = {stem: stem for stem in stems}

    def find(stem: str) -> str:
        while leader[stem] != stem:
            stem = leader[stem]
        return stem

    poses = np.stack(
        [c.positions[np.linspace(0, len(c.positions) - 1, 16).astype(int)][:, bones] for c in clips]
    )  # (clips, 16, joints, 3)
    size = float(np.median(np.ptp(poses[:, 0], axis=1).max(-1)))
    for i, pose in enumerate(poses):
        apart = np.linalg.norm(poses[i + 1 :] - pose, axis=-1).mean((1, 2))
        for j in np.flatnonzero(apart < _ALIKE * size) + i + 1:
            first, second = sorted((find(stems[i]), find(stems[j])))
            leader[second] = first
    return {clip.name: find(stem) for clip, stem in zip(clips, stems, strict=True)}


def faced(clip: Clip, joints: dict[str, int]) -> Clip:
    """The clip, turned about if the head is behind the body in it: some birds fly backwards."""
    back = joints.get("pelvis", joints.get("tail", joints.get("spine")))
    if "head" not in joints or back is None:
        return clip
    middle = clip.positions.mean(0)
    if middle[joints["head"], 2] >= middle[back, 2]:
        return clip
    turned = clip.positions * np.array([-1, 1, -1], np.float32)
    x, y, z, w = np.moveaxis(clip.rotations, -1, 0)
    return replace(clip, positions=turned, rotations=np.stack([z, w, -x, -y], -1))


def settled(clip: Clip, skeleton: Skeleton) -> Clip:
    """The clip, with bones that were exported at the origin hung on their parents.

    Some clips leave sheaths there, and knees of the peacock; others have them where they belong.
    """
    lost = np.abs(clip.positions).max((0, 2)) < _LOST
    lost &= np.abs(skeleton.bind_position).max(1) > 10 * _LOST
    positions, rotations = clip.positions.copy(), clip.rotations.copy()
    bind = skeleton.bind_rotation
    for bone in np.flatnonzero(lost & (skeleton.parents >= 0)):
        parent = skeleton.parents[bone]
        turn = quat_mul(rotations[:, parent], quat_conj(bind[parent])[None])  # (T, 4)
        offset = skeleton.bind_position[bone] - skeleton.bind_position[parent]
        rotations[:, bone] = quat_mul(turn, bind[bone][None])
        positions[:, bone] = positions[:, parent] + rotate(turn, offset[None])
    return replace(clip, positions=positions, rotations=rotations)


def fits(clip: Clip, skeleton: Skeleton, used: NDArray[np.bool_]) -> bool:
    """Whether a motion was made for a body of these proportions.

    Motions hold absolute positions, so one made for a calf would shrink a cow: bones that
    carry vertices must keep their length.
    """
    count = len(skeleton.bones)
    if clip.positions.shape[1] != count or (skeleton.body_plan == "biped") != clip.name.startswith(
        "biped/"
    ):
        return False
    bones = used[:count]
    child = np.flatnonzero(bones & (skeleton.parents >= 0))
    child = child[bones[skeleton.parents[child]]]
    parent = skeleton.parents[child]
    bind = skeleton.bind_position
    size = float(np.ptp(bind[bones], axis=0).max())
    ours = np.linalg.norm(bind[child] - bind[parent], axis=-1)
    frames = np.linalg.norm(clip.positions[:, child] - clip.positions[:, parent], axis=-1)
    theirs = np.median(frames, 0)
    long = ours > 0.03 * size
    growth = float(np.median(theirs[long] / ours[long])) if long.any() else 1.0
    misfit = float(np.percentile(np.abs(theirs - ours), 90)) / size
    return abs(growth - 1) < _GROWTH and misfit < _MISFIT
