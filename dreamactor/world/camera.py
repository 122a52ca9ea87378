"""Cameras that hold a moving figure in the frame at a wanted size and place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dreamactor.errors import ConfigError
from dreamactor.world.cast import Array, Cast, Look, Mesh
from dreamactor.world.pose import joint_of_bone, skinning, smooth
from dreamactor.world.scene import Actor, Camera

Framing = Literal["full", "upper", "face"]
BODY_ROLES = frozenset({"body", "head", "helmet", "hair", "mount"})
"""Parts that must stay in the frame."""
NEAR_BODY = 0.35  # parts of a body's height; a crest stays in the frame, a long pike may leave it


@dataclass(frozen=True)
class Bounds:
    """Points of a look's outer shape, each held by one bone."""

    points: Array  # (N, 3) metres, in the bind pose
    bones: NDArray[np.int64]  # (N,) bone of each
    joints: tuple[str, ...]  # (N,) nearest joint at or above that bone
    body: NDArray[np.bool_]  # (N,) part of the body itself, not of what it wears
    chosen: dict[str, NDArray[np.int64]]
    """Index of the points of a narrower framing (face, upper; empty if there are none), and of the
    lowest points of the body: its feet's, or all where no bone is a foot."""


_BOUNDS: dict[tuple[str, str], Bounds] = {}
DIRECTIONS = np.array(
    [(x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1) if x or y or z],
    dtype=np.float32,
)


def bounds(cast: Cast, look: Look) -> Bounds:
    """For every bone the vertices furthest out in 26 directions; kept by the cast's digest."""
    key = (cast.digest, look.name)
    if key not in _BOUNDS or not cast.digest:  # a cast without digest was never saved
        skeleton = cast.skeletons[look.skeleton]
        parts = [part for part in look.parts if part.role in BODY_ROLES] or list(look.parts)
        body = np.concatenate([cast.meshes[part.mesh].positions for part in parts])
        margin = NEAR_BODY * float(np.ptp(body[:, 1]))
        low, high = body.min(axis=0) - margin, body.max(axis=0) + margin
        points, bones, own = [], [], []
        for part in look.parts:
            mesh = cast.meshes[part.mesh]
            inside = (mesh.positions >= low) & (mesh.positions <= high)
            worn = part.role not in ("weapon", "tool") and bool(inside.all())
            if part not in parts and not worn:
                continue
            held = _heaviest(mesh)
            for bone in np.unique(held):
                mine = mesh.positions[held == bone]
                out = mine[np.unique(np.argmax(mine @ DIRECTIONS.T, axis=0))]
                points.append(out)
                bones.append(np.full(len(out), bone))
                own.append(np.full(len(out), part in parts))
        index = np.concatenate(bones)
        names = joint_of_bone(skeleton)
        joints = tuple(names[bone] for bone in index)
        flesh = np.concatenate(own)
        base = [name.split("_")[0] for name in joints]
        feet = flesh & np.isin(base, ("wrist", "ankle", "toe"))
        chosen = {
            "face": flesh & np.isin(base, "head"),  # a crest may leave a portrait
            "upper": np.isin(base, ("head", "neck", "shoulder", "spine", "chest")),
            "lowest": feet if feet.any() else flesh,
        }
        _BOUNDS[key] = Bounds(
            np.concatenate(points),
            index,
            joints,
            flesh,
            {name: np.flatnonzero(which) for name, which in chosen.items()},
        )
    return _BOUNDS[key]


def _heaviest(mesh: Mesh) -> NDArray[np.int64]:
    """(V,) the bone that each vertex follows most."""
    strongest = np.argmax(mesh.bone_weights, axis=1)[:, None]
    return np.take_along_axis(mesh.bone_indices, strongest, axis=1)[:, 0].astype(np.int64)


def posed_bounds(
    cast: Cast, look: Look, pose: Array, chosen: NDArray[np.int64] | None = None
) -> Array:
    """(T, N, 3) the bounding points, or the chosen, of a look in a pose (T, J, 4, 4), metres."""
    box = bounds(cast, look)
    which = slice(None) if chosen is None else chosen
    moves = skinning(cast.skeletons[look.skeleton], pose)[:, box.bones[which], :3]
    posed = np.einsum("tnab,nb->tna", moves[..., :3], box.points[which]) + moves[..., 3]
    return np.asarray(posed, dtype=np.float32)


def orbit(start: float, sweep: float, frames: int) -> Array:
    """(frames,) azimuths in degrees from start to start + sweep at an even pace."""
    return np.linspace(start, start + sweep, frames, dtype=np.float32)


def frame_camera(
    cast: Cast,
    actors: Actor | tuple[Actor, ...],
    framing: Framing = "full",
    azimuth: ArrayLike = 0.0,
    elevation: ArrayLike = 6.0,
    size: float = 0.84,
    centre: tuple[float, float] = (0.0, 0.0),
    follow: bool = False,
    fov: float = 30.0,
    aspect: float = 1.0,
    heading: float = 0.0,
) -> Camera:
    """A camera that shows actors at a wanted size and place.

    Args:
        cast: Holds the meshes.
        actors: Whom the frame must hold, through the whole clip.
        framing: full = all of the body; upper = hips to crown; face = head and neck.
        azimuth: () or (T,) degrees about the figure: 0 sees a character that faces +z from
            the front, 90 sees its left side. An array orbits (see `orbit`).
        elevation: () or (T,) degrees above the horizon.
        size: Height of the figure as a part of the frame's height (its width, if that is
            what fills the frame first).
        centre: Where the figure's middle appears, x right and y up, in [-1, 1].
        follow: Track the smoothed path of the figure; otherwise the camera stands still and
            the frame holds the whole path.
        fov: Degrees, top to bottom.
        aspect: W / H.
        heading: Degrees; turns azimuth along, for an actor placed with that heading.

    Returns:
        Camera of T frames.
    """
    if framing not in ("full", "upper", "face"):
        raise ConfigError(f"framing={framing!r}: want full, upper or face")
    if not 0.05 <= size <= 2:
        raise ConfigError(f"size={size}: want 0.05 to 2, such as 0.85")
    group = actors if isinstance(actors, tuple) else (actors,)
    points = np.concatenate([framed_points(cast, a, framing) for a in group], axis=1)
    points = np.ascontiguousarray(points.transpose(2, 0, 1))  # (3, T, N): numpy is slow along 3
    frames = points.shape[1]
    middle = (points.min(axis=2) + points.max(axis=2)).T / 2  # (T, 3)
    path = smooth(middle, frames / 8 + 2) if follow else np.zeros_like(middle)
    local = points - path.T[:, :, None]
    path = path + (local.min(axis=(1, 2)) + local.max(axis=(1, 2))) / 2
    turn = np.radians(np.broadcast_to(np.asarray(azimuth, np.float32) + heading, (frames,)))
    lift = np.radians(np.broadcast_to(np.asarray(elevation, np.float32), (frames,)))
    back = np.stack(
        [np.sin(turn) * np.cos(lift), np.sin(lift), np.cos(turn) * np.cos(lift)], axis=1
    )
    seen = Camera(
        (path + back).astype(np.float32),
        path.astype(np.float32),
        np.full(frames, fov, np.float32),
        np.zeros((frames, 2), np.float32),
    )
    # Right, up and back of every point about the target, in metres.
    axes = seen.basis().transpose(1, 2, 0)[..., None]  # (3, 3, T, 1)
    local = points - path.T[:, :, None]
    x, y, z = (axis[0] * local[0] + axis[1] * local[1] + axis[2] * local[2] for axis in axes)
    distance = _distance(x, y, z, size, fov, aspect)
    focal = 1 / np.tan(np.radians(fov) / 2)
    on_screen = (x * focal / (distance - z), y * focal / (distance - z))
    box = [(float(v.min()) + float(v.max())) / 2 for v in on_screen]
    box[0] /= aspect
    shift = np.tile((np.asarray(centre) - box).astype(np.float32), (frames, 1))
    eye = (path + back * distance).astype(np.float32)
    return Camera(eye, seen.target, seen.fov, shift)


def framed_points(cast: Cast, actor: Actor, framing: Framing) -> Array:
    """(T, N, 3) the points that a framing must hold."""
    chosen = bounds(cast, actor.look).chosen.get(framing)  # none if full
    if chosen is None or not len(chosen):
        return posed_bounds(cast, actor.look, actor.pose)
    points = posed_bounds(cast, actor.look, actor.pose, chosen)
    if framing == "face":
        return points
    joints = cast.skeletons[actor.look.skeleton].joints
    hips = [b for n, b in joints.items() if n.startswith("hip") or n == "pelvis"]
    return np.concatenate([points, actor.pose[:, hips][..., :3, 3]], axis=1)


def _distance(x: Array, y: Array, z: Array, size: float, fov: float, aspect: float) -> float:
    """Metres from target to eye at which points fill `size`; right, up and back of the target."""
    focal = 1 / np.tan(np.radians(fov) / 2)
    near = max(float(z.max()), 0.0) + 0.15
    low, high = near, near + 400.0
    breadth = min(1.0, size / 0.92)  # a broad figure may fill a little more of the frame's breadth
    for _ in range(40):
        middle = (low + high) / 2
        scale = focal / (middle - z)
        across, up = x * scale / aspect, y * scale
        filled = max(float(up.max() - up.min()), float(across.max() - across.min()) * breadth) / 2
        low, high = (middle, high) if filled > size else (low, middle)
    return high
