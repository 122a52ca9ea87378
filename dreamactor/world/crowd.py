"""Several identities side by side in one picture, and everything one picture has to hold.

A group is one identity or several, named from left to right. A shot is what they do, and from
where it is seen: one act for all, or one each. A stage puts a group before one camera that holds
all of its shots - a reference and the clips it is to become - so that these share place, size and
background. Driver and target of a case are two stages with the same shot.

The camera of a stage begins straight ahead, on +z: figures are turned instead, so that the
background of a reference is that of every clip made from it. Subject k of a picture is member
k - 1 of its group, in masks and joints alike, and stands to the left of subject k + 1.

Legend: S members, T frames, J bones, N points.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from dreamactor.errors import ConfigError
from dreamactor.world.body import lowest, pose_clip, soles
from dreamactor.world.camera import bounds, frame_camera, framed_points, posed_bounds
from dreamactor.world.cast import Array, Cast, Motion
from dreamactor.world.pairs import FPS, agree, is_whole, pose_side
from dreamactor.world.pose import place, slerp
from dreamactor.world.scene import Actor, Camera, Scene
from dreamactor.world.staging import Side

Path = Literal["stays", "followed", "crosses"]
GAP = 0.06
"""Least room between neighbours in any frame, in parts of the taller one's height."""
SEAM = 0.2
"""Seconds at the end of a motion that are blended into its beginning when it is repeated."""
AFLOAT = 0.04
"""Height of the lowest foot, in parts of the body's, from which somebody is in the air."""
STRIDES = 32
"""Moments of a round at which feet are looked at."""


@dataclass(frozen=True)
class Act:
    """What one subject does."""

    motion: Motion
    start: float
    """Seconds into the motion of the first frame."""
    speed: float

    def times(self, frames: int) -> Array:
        """(T,) seconds into the motion."""
        return np.asarray(self.start + np.arange(frames) * (self.speed / FPS), np.float32)


@dataclass(frozen=True)
class Shot:
    """What is done, and from where it is seen; whoever does it."""

    acts: tuple[Act, ...]
    """One for all members, or one each from left to right."""
    azimuth: Array
    """(T,) degrees about the figures, as of `frame_camera`."""
    path: Path = "stays"
    """stays: on the spot. followed: over the ground, the camera beside them. crosses: over the
    ground before a camera that stands."""

    @property
    def frames(self) -> int:
        """T."""
        return len(self.azimuth)

    def act(self, member: int) -> Act:
        """What a member does."""
        return self.acts[member if len(self.acts) > 1 else 0]


@dataclass(frozen=True)
class Group:
    """Who is in a picture, from left to right; light, background and frame are the first's."""

    sides: tuple[Side, ...]

    def __len__(self) -> int:
        return len(self.sides)


class Stage:
    """A group before a camera that holds all its shots.

    Args:
        cast: Holds meshes and skeletons.
        group: Who is shown.
        shots: What they do; one of a single frame is a reference.
        elevation: Degrees above the horizon of the camera.
        size: Pixels of a side.
    """

    def __init__(
        self, cast: Cast, group: Group, shots: tuple[Shot, ...], elevation: float, size: int
    ) -> None:
        for shot in shots:
            if len(shot.acts) not in (1, len(group)):
                raise ConfigError(
                    f"{len(shot.acts)} acts for {len(group)} subjects: want 1, or one each"
                )
        self.cast, self.group, self.shots, self.size = cast, group, shots, size
        self.poses = [
            [_still_or_moving(cast, s, shot, k) for k, s in enumerate(group.sides)]
            for shot in shots
        ]  # [shot][member] (T, J, 4, 4) over the origin, facing +z
        self.scales = _like_sizes(cast, group)
        self.travel = [self._travel(shot) for shot in shots]  # [shot] (T, 3) metres
        turned = [
            [self._turned(pose, shot, k) for k, pose in enumerate(poses)]
            for shot, poses in zip(shots, self.poses, strict=True)
        ]
        self._placed = self._side_by_side(turned)
        self._camera = self._frame(elevation)

    # ---- where everybody stands -----------------------------------------------------------

    def _turned(self, pose: Array, shot: Shot, member: int) -> Array:
        heading = -np.radians(float(shot.azimuth[0]))
        return place(pose, (0, 0, 0), heading, self.scales[member])

    def _travel(self, shot: Shot) -> Array:
        """(T, 3) metres over the ground from the first frame on, all members alike."""
        if shot.path == "stays":
            return np.zeros((shot.frames, 3), np.float32)
        paces = [
            shot.act(k).speed * stride(self.cast, side, shot.act(k).motion) * self.scales[k]
            for k, side in enumerate(self.group.sides)
        ]
        heading = -np.radians(float(shot.azimuth[0]))
        ahead = np.array([np.sin(heading), 0, np.cos(heading)])
        steps = np.arange(shot.frames)[:, None] / FPS
        return np.asarray(np.mean(paces) * steps * ahead, np.float32)

    def _side_by_side(self, turned: list[list[Array]]) -> list[list[Array]]:
        """The poses, moved to the side so that neighbours never meet."""
        offsets, reach = [0.0], []
        swing = max(float(np.abs(np.radians(s.azimuth - s.azimuth[0])).max()) for s in self.shots)
        for k, side in enumerate(self.group.sides):
            low, high, tall = np.inf, -np.inf, 0.0
            for shot, poses in zip(self.shots, turned, strict=True):
                points = posed_bounds(self.cast, side.look, poses[k])  # (T, N, 3)
                about = np.radians(shot.azimuth - shot.azimuth[0])[:, None]
                across = points[..., 0] * np.cos(about) - points[..., 2] * np.sin(about)
                low, high = min(low, float(across.min())), max(high, float(across.max()))
                tall = max(tall, float(np.ptp(points[..., 1])))
            reach.append((low, high, tall))
        for (_, right, tall), (left, _, other) in pairwise(reach):
            apart = right - left + GAP * max(tall, other)
            offsets.append(offsets[-1] + apart / float(np.cos(swing)))
        middle = (offsets[0] + offsets[-1]) / 2
        return [
            [place(pose, (at - middle, 0, 0)) for pose, at in zip(poses, offsets, strict=True)]
            for poses in turned
        ]

    def _frame(self, elevation: float) -> Camera:
        """One camera over the frames of all shots, one after the other."""
        first = self.group.sides[0]
        actors = []
        for k, side in enumerate(self.group.sides):
            crossing = [
                place(poses[k], path) if shot.path == "crosses" else poses[k]
                for shot, poses, path in zip(self.shots, self._placed, self.travel, strict=True)
            ]
            actors.append(Actor(side.look, np.concatenate(crossing), side.style, side.drop))
        about = np.concatenate([shot.azimuth - shot.azimuth[0] for shot in self.shots])
        return frame_camera(
            self.cast, tuple(actors), first.framing, about, elevation, first.size, first.centre
        )

    # ---- what comes of it -----------------------------------------------------------------

    def scene(self, index: int, size: int | None = None) -> Scene:
        """What is to be drawn of a shot."""
        shot, first, path = self.shots[index], self.group.sides[0], self.travel[index]
        start = sum(s.frames for s in self.shots[:index])
        frames = slice(start, start + shot.frames)
        held = self._camera
        beside = path if shot.path == "followed" else np.zeros_like(path)
        camera = Camera(
            held.eye[frames] + beside, held.target[frames] + beside, held.fov[frames],
            held.shift[frames],
        )  # fmt: skip
        actors = tuple(
            Actor(side.look, place(pose, path), side.style, side.drop)
            for side, pose in zip(self.group.sides, self._placed[index], strict=True)
        )
        side_of = size or self.size
        return Scene(actors, camera, first.light, first.background, side_of, side_of)

    def extents(self, index: int) -> Array:
        """(T, S) the longer side of each member's box on the picture, in parts of the frame's."""
        scene, framing = self.scene(index), self.group.sides[0].framing
        out = []
        for actor in scene.actors:
            points = framed_points(self.cast, actor, framing)
            pixels, _ = scene.camera.project(points, 1, 1)
            out.append(np.ptp(pixels, axis=1).max(axis=-1))
        return np.stack(out, axis=1)

    def heights(self, index: int, joint: str) -> Array:
        """(T, n) how far down the picture joints of that name are, all sides: 0 top, 1 bottom."""
        scene, out = self.scene(index), []
        for actor in scene.actors:
            named = self.cast.skeletons[actor.look.skeleton].joints
            bones = [bone for name, bone in named.items() if name.startswith(joint)]
            pixels, _ = scene.camera.project(actor.pose[:, bones][..., :3, 3], 1, 1)
            out.append(pixels[..., 1])
        return np.concatenate(out, axis=1)

    def is_whole(self) -> bool:
        """Whether no body is stretched in any shot."""
        return all(
            is_whole(self.cast, side.look, poses[k])
            for poses in self.poses
            for k, side in enumerate(self.group.sides)
        )

    def stands(self, index: int) -> bool:
        """Whether all members who have feet touch the ground throughout a shot."""
        for side, pose in zip(self.group.sides, self.poses[index], strict=True):
            skeleton = self.cast.skeletons[side.look.skeleton]
            height = float(lowest(self.cast, side.look, pose).max())
            tall = float(np.ptp(bounds(self.cast, side.look).points[:, 1]))
            if skeleton.body_plan != "bird" and soles(skeleton) and height > AFLOAT * tall:
                return False
        return True


def heads_agree(
    one: Stage, shot: int, other: Stage, again: int, members: tuple[tuple[int, int], ...]
) -> bool:
    """Whether members of two stages, paired as given, hold their trunks alike in a shot."""
    return all(
        agree(
            one.cast,
            (one.group.sides[a].look, one.poses[shot][a]),
            (other.group.sides[b].look, other.poses[again][b]),
        )
        for a, b in members
    )


def repeated(motion: Motion) -> Motion:
    """The motion as a loop: what was not made to repeat returns to its beginning within SEAM."""
    count = len(motion.positions)
    blend = min(count // 3, max(2, round(SEAM * motion.fps)))
    if motion.loops or count < 6:
        return motion
    share = np.zeros((count, 1, 1), np.float32)
    share[count - blend :, 0, 0] = np.arange(1, blend + 1) / (blend + 1)
    positions = motion.positions + share * (motion.positions[:1] - motion.positions)
    rotations = slerp(
        motion.rotations, np.broadcast_to(motion.rotations[:1], motion.rotations.shape), share
    )
    return replace(motion, positions=positions.astype(np.float32), rotations=rotations, loops=True)


def stride(cast: Cast, side: Side, motion: Motion) -> float:
    """Metres a second at which the ground passes below the foot that stands.

    The game's walks are on the spot; whoever does them has to be moved at this pace, or slides.
    """
    skeleton = cast.skeletons[side.look.skeleton]
    feet = soles(skeleton)
    if not feet:
        return 0.0
    length = len(motion.positions) / motion.fps
    times = np.linspace(0, length, STRIDES, endpoint=False, dtype=np.float32)
    pose = pose_clip(cast, side.look, motion, times, side.proportions)
    at = pose[:, feet][..., :3, 3]  # (STRIDES, F, 3)
    speed = (np.roll(at, -1, axis=0) - np.roll(at, 1, axis=0))[..., 2] * STRIDES / (2 * length)
    lowest = at[..., 1].argmin(axis=1)
    back = -speed[np.arange(STRIDES), lowest]
    return max(float(np.median(back)), 0.0)


def _still_or_moving(cast: Cast, side: Side, shot: Shot, member: int) -> Array:
    """(T, J, 4, 4) a member's pose in a shot; over the origin, however short the shot is."""
    act = shot.act(member)
    if shot.frames > 1:
        return pose_side(cast, side, act.motion, act.times(shot.frames))
    around = np.float32(act.start) + np.arange(-2, 3, dtype=np.float32) / np.float32(FPS)
    pose = pose_side(cast, side, act.motion, around)[2:3]
    root = cast.skeletons[side.look.skeleton].joints.get("pelvis", 0)
    pose[..., [0, 2], 3] -= pose[:, root, None][..., [0, 2], 3]
    return pose


def _like_sizes(cast: Cast, group: Group) -> list[float]:
    """Scales that bring members of unlike size nearer to each other, by half of what they differ.

    A goat beside a camel would be a speck.
    """
    tall = [float(np.ptp(bounds(cast, side.look).points[:, 1])) for side in group.sides]
    same = all(side.look.domain == "human" for side in group.sides)
    return [1.0 if same else float(np.sqrt(max(tall) / own)) for own in tall]
