"""Skeleton maths: sample, reshape, place and retarget motions.

Shapes: T frames, J bones. A pose over time is an array (T, J, 4, 4) of bone-to-world
matrices in metres; it may hold scale, which skinning hands on to the mesh. A `Track` is
the same without scale. Quaternions are (x, y, z, w). Axes are those of `cast`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Literal, TypeVar, TypeVarTuple

import numpy as np
from numpy.typing import ArrayLike

from dreamactor.errors import ConfigError
from dreamactor.world.cast import Array, Motion, Skeleton

End = Literal["auto", "loop", "clamp", "pingpong"]
Ts = TypeVarTuple("Ts")
R = TypeVar("R")


@dataclass(frozen=True)
class Track:
    """Rigid bones over time, bone to world."""

    rotations: Array  # (T, J, 4) quaternions
    positions: Array  # (T, J, 3) metres


@dataclass(frozen=True)
class Proportions:
    """Factors on a body's lengths; 1 leaves it as it is. Rotations never change."""

    head: float = 1.0
    """Size of the head and all it wears; 1.8 with short limbs makes a chibi."""
    neck: float = 1.0
    torso: float = 1.0
    """Length between hips and shoulders (and breadth of the shoulders)."""
    arms: float = 1.0
    """Length of upper and lower arms; of a quadruped the forelegs."""
    legs: float = 1.0
    """Length of thighs and shins."""
    hands: float = 1.0
    feet: float = 1.0
    tail: float = 1.0
    girth: float = 1.0
    """Thickness of torso and limbs across the bone."""


# ---- what no frame changes ----------------------------------------------------------------


class _Same:
    """Stands for an object in a key: equal to itself only, and alive as long as the key is."""

    def __init__(self, it: object) -> None:
        self.it = it

    def __hash__(self) -> int:
        return id(self.it)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.it is other.it


def remembered(function: Callable[[*Ts], R]) -> Callable[[*Ts], R]:
    """Keep the last 1024 results of a function of skeletons or motions, told apart by identity.

    These hold arrays, so they have no hash. Results are shared: do not write to them.
    """

    @lru_cache(maxsize=1024)
    def result(*keys: _Same) -> R:
        return function(*(key.it for key in keys))  # type: ignore[arg-type]

    @wraps(function)
    def asked(*args: *Ts) -> R:
        return result(*map(_Same, args))

    return asked


# ---- quaternions and matrices -------------------------------------------------------------


def cross(a: Array, b: Array) -> Array:
    """Cross product of (..., 3) vectors; np.cross takes many times as long on short arrays."""
    ax, ay, az = a[..., 0], a[..., 1], a[..., 2]
    bx, by, bz = b[..., 0], b[..., 1], b[..., 2]
    return np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], axis=-1)


def quat_mul(a: Array, b: Array) -> Array:
    """Hamilton product of (..., 4) quaternions: rotate by b, then by a."""
    ax, ay, az, aw = a[..., 0], a[..., 1], a[..., 2], a[..., 3]
    bx, by, bz, bw = b[..., 0], b[..., 1], b[..., 2], b[..., 3]
    product = (
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
        aw * bw - ax * bx - ay * by - az * bz,
    )
    return np.stack(product, axis=-1)


def quat_conj(q: Array) -> Array:
    """Inverse of unit quaternions (..., 4)."""
    return q * np.array([-1, -1, -1, 1], dtype=q.dtype)


def quat_apply(q: Array, v: Array) -> Array:
    """Rotate vectors (..., 3) by unit quaternions (..., 4)."""
    u, w = q[..., :3], q[..., 3:]
    t = 2 * cross(u, v)
    return np.asarray(v + w * t + cross(u, t), dtype=v.dtype)


def quat_matrix(q: Array) -> Array:
    """(..., 4) unit quaternions to (..., 3, 3) rotation matrices."""
    x, y, z, w = q[..., 0], q[..., 1], q[..., 2], q[..., 3]
    out = np.empty((*q.shape[:-1], 3, 3), dtype=q.dtype)
    out[..., 0, 0] = 1 - 2 * (y * y + z * z)
    out[..., 0, 1] = 2 * (x * y - z * w)
    out[..., 0, 2] = 2 * (x * z + y * w)
    out[..., 1, 0] = 2 * (x * y + z * w)
    out[..., 1, 1] = 1 - 2 * (x * x + z * z)
    out[..., 1, 2] = 2 * (y * z - x * w)
    out[..., 2, 0] = 2 * (x * z - y * w)
    out[..., 2, 1] = 2 * (y * z + x * w)
    out[..., 2, 2] = 1 - 2 * (x * x + y * y)
    return out


def quat_between(a: Array, b: Array) -> Array:
    """Shortest rotations (..., 4) that turn directions a (..., 3) into b (..., 3)."""
    a = a / np.maximum(np.linalg.norm(a, axis=-1, keepdims=True), 1e-9)
    b = b / np.maximum(np.linalg.norm(b, axis=-1, keepdims=True), 1e-9)
    w = 1 + np.sum(a * b, axis=-1, keepdims=True)
    # Opposite directions have no shortest arc: half a turn about any axis across.
    side = np.where(np.abs(a[..., :1]) < 0.9, np.eye(3)[0], np.eye(3)[1])
    axis = np.where(w < 1e-6, np.cross(a, side), np.cross(a, b))
    q = np.concatenate([axis, np.where(w < 1e-6, 0, w)], axis=-1)
    return np.asarray(q / np.linalg.norm(q, axis=-1, keepdims=True), dtype=np.float32)


def slerp(a: Array, b: Array, t: Array) -> Array:
    """Spherical interpolation of (..., 4) quaternions; t broadcasts, 0 gives a."""
    dot = np.sum(a * b, axis=-1, keepdims=True)
    b = np.where(dot < 0, -b, b)
    angle = np.arccos(np.clip(np.abs(dot), 0, 1))
    sine = np.sin(angle)
    near = sine < 1e-4
    safe = np.where(near, 1, sine)
    wa = np.where(near, 1 - t, np.sin((1 - t) * angle) / safe)
    wb = np.where(near, t, np.sin(t * angle) / safe)
    q = wa * a + wb * b
    return np.asarray(q / np.linalg.norm(q, axis=-1, keepdims=True), dtype=np.float32)


def matrices(track: Track) -> Array:
    """(T, J, 4, 4) bone-to-world matrices of a track."""
    out = np.zeros((*track.rotations.shape[:2], 4, 4), dtype=np.float32)
    out[..., :3, :3] = quat_matrix(track.rotations)
    out[..., :3, 3] = track.positions
    out[..., 3, 3] = 1
    return out


def skinning(skeleton: Skeleton, pose: Array) -> Array:
    """(T, J, 4, 4) matrices that move vertices from the bind pose into `pose` (T, J, 4, 4).

    Some of the upper three rows of the pose give the same rows.
    """
    out = pose.copy()
    out[..., :3, :3] = pose[..., :3, :3] @ _unbind(skeleton)
    shift = np.einsum("tjab,jb->tja", out[..., :3, :3], skeleton.bind_position)
    out[..., :3, 3] = pose[..., :3, 3] - shift
    return out


@remembered
def _unbind(skeleton: Skeleton) -> Array:
    """(J, 3, 3) inverse rotations of the bind pose."""
    return quat_matrix(quat_conj(skeleton.bind_rotation))


def bind_pose(skeleton: Skeleton, frames: int = 1) -> Array:
    """(frames, J, 4, 4): the pose that meshes are bound in, standing still."""
    one = Track(skeleton.bind_rotation[None], skeleton.bind_position[None])
    return np.repeat(matrices(one), frames, axis=0)


# ---- motion over time ---------------------------------------------------------------------


@remembered
def period(motion: Motion) -> int:
    """Frames in one round of a looping motion.

    Some art repeats the first frame at the end, some does not; a repeated frame would make
    the loop hesitate, so it counts as no frame of its own.
    """
    count = len(motion.positions)
    if count < 3:
        return count
    local = motion.positions - motion.positions[:, :1]
    steps = np.linalg.norm(np.diff(local, axis=0), axis=-1).mean(axis=1)  # (T - 1,)
    seam = float(np.linalg.norm(local[-1] - local[0], axis=-1).mean())
    return count - 1 if seam < 0.4 * float(np.median(steps)) else count


def sample_motion(motion: Motion, times: ArrayLike, end: End = "auto") -> Track:
    """The motion at any times.

    Args:
        motion: A baked animation.
        times: (T,) seconds; may be negative or beyond the end.
        end: What happens past the end; auto loops what was made to loop and else clamps.

    Returns:
        Track of T frames, rotations by slerp and positions linearly between baked frames.
    """
    if end not in ("auto", "loop", "clamp", "pingpong"):
        raise ConfigError(f"end={end!r}: want auto, loop, clamp or pingpong")
    count = len(motion.positions)
    x = np.atleast_1d(np.asarray(times, dtype=np.float64)) * motion.fps
    if end == "loop" or (end == "auto" and motion.loops):
        turn = period(motion)
        x = np.mod(x, turn)
        low = np.floor(x).astype(int) % turn
        high = (low + 1) % turn
    else:
        last = max(count - 1, 1)
        x = last - np.abs(np.mod(x, 2 * last) - last) if end == "pingpong" else x
        x = np.clip(x, 0, count - 1)
        low = np.floor(x).astype(int)
        high = np.minimum(low + 1, count - 1)
    t = (x - np.floor(x)).astype(np.float32)[:, None, None]
    rotations = slerp(motion.rotations[low], motion.rotations[high], t)
    positions = (1 - t) * motion.positions[low] + t * motion.positions[high]
    return Track(rotations, positions.astype(np.float32))


def smooth(values: Array, sigma: float) -> Array:
    """Gaussian smoothing along axis 0 (frames); ends continue as point reflections."""
    count = len(values)
    if sigma <= 0 or count < 2:
        return values
    radius = max(1, int(3 * sigma + 0.5))
    # A point reflection keeps the slope at the ends, so a walk in a line stays one.
    pad = ((radius, radius), *((0, 0),) * (values.ndim - 1))
    padded = np.pad(values.astype(np.float64), pad, mode="reflect", reflect_type="odd")
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    windows = np.lib.stride_tricks.sliding_window_view(padded, len(kernel), axis=0)
    return np.asarray(windows @ kernel, dtype=values.dtype)


def root_path(pose: Array, sigma: float = 6.0, root: int = 0) -> Array:
    """(T, 3) smoothed path of the root over the ground, metres; its height is 0."""
    path = pose[:, root, :3, 3].copy()
    path[:, 1] = 0
    return smooth(path, sigma)


def in_place(pose: Array, sigma: float = 6.0, root: int = 0) -> Array:
    """The pose (T, J, 4, 4) without its smoothed travel: stays over the origin.

    Args:
        pose: Bone-to-world matrices.
        sigma: Frames of smoothing; sway faster than this stays in the pose.
        root: Bone whose path counts as the travel.
    """
    out = pose.copy()
    out[..., :3, 3] -= root_path(pose, sigma, root)[:, None]
    return out


def place(pose: Array, position: ArrayLike, heading: ArrayLike = 0.0, scale: float = 1.0) -> Array:
    """Put a pose (T, J, 4, 4) into the world.

    Args:
        pose: Bone-to-world matrices of a character at the origin that faces +z.
        position: (3,) or (T, 3) metres.
        heading: () or (T,) radians about y; a quarter turn positive faces +x.
        scale: Factor on the size.
    """
    turn = np.broadcast_to(np.asarray(heading, dtype=np.float32), (len(pose),))
    world = np.zeros((len(pose), 1, 4, 4), dtype=np.float32)
    world[:, 0, 0, 0] = world[:, 0, 2, 2] = scale * np.cos(turn)
    world[:, 0, 0, 2] = scale * np.sin(turn)
    world[:, 0, 2, 0] = -scale * np.sin(turn)
    world[:, 0, 1, 1] = scale
    world[:, 0, :3, 3] = np.asarray(position, dtype=np.float32)
    world[:, 0, 3, 3] = 1
    return np.asarray(world @ pose, dtype=np.float32)


# ---- joints -------------------------------------------------------------------------------


def joint_positions(skeleton: Skeleton, pose: Array) -> dict[str, Array]:
    """Joint name -> (T, 3) metres in the world."""
    return {name: pose[:, bone, :3, 3] for name, bone in skeleton.joints.items()}


HINGES = (
    ("shoulder", "elbow", "wrist"),
    ("hip", "knee", "ankle"),
    ("knee", "ankle", "toe"),
)


def joint_angles(joints: dict[str, Array]) -> dict[str, Array]:
    """Inner angles in radians at elbows, knees and ankles, (T,) each; straight is pi.

    Args:
        joints: Joint name -> (T, 3) or (T, 2) positions; hinges that lack a joint are left out.
    """
    angles = {}
    for names in HINGES:
        for side in ("_l", "_r"):
            if not all(name + side in joints for name in names):
                continue
            a, b, c = (np.asarray(joints[name + side], dtype=np.float64) for name in names)
            u, v = a - b, c - b
            length = np.linalg.norm(u, axis=-1) * np.linalg.norm(v, axis=-1)
            cosine = np.sum(u * v, axis=-1) / np.maximum(length, 1e-9)
            angles[names[1] + side] = np.arccos(np.clip(cosine, -1, 1)).astype(np.float32)
    return angles


@remembered
def joint_of_bone(skeleton: Skeleton) -> tuple[str, ...]:
    """For each bone the name of the nearest joint at or above it; '' above all joints."""
    named = {bone: name for name, bone in skeleton.joints.items()}
    out: list[str] = []
    for bone, parent in enumerate(skeleton.parents):
        above = out[parent] if parent >= 0 else ""
        out.append(named.get(bone, above))
    return tuple(out)
