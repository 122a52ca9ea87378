"""A synthetic cast: a man of skinned boxes, a copy with other bones, and a few motions."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from dreamactor.world.cast import Array, Cast, Look, Mesh, Motion, Part, Skeleton
from dreamactor.world.pose import quat_apply, quat_conj, quat_mul

BONES = {  # name: (parent, position in metres, thickness of its box)
    "pelvis": ("", (0, 1.0, 0), 0.26),
    "spine": ("pelvis", (0, 1.2, 0), 0.28),
    "neck": ("spine", (0, 1.5, 0), 0.10),
    "head": ("neck", (0, 1.6, 0), 0.20),
    "shoulder_l": ("spine", (0.2, 1.45, 0), 0.09),
    "elbow_l": ("shoulder_l", (0.48, 1.45, 0), 0.08),
    "wrist_l": ("elbow_l", (0.74, 1.45, 0), 0.07),
    "shoulder_r": ("spine", (-0.2, 1.45, 0), 0.09),
    "elbow_r": ("shoulder_r", (-0.48, 1.45, 0), 0.08),
    "wrist_r": ("elbow_r", (-0.74, 1.45, 0), 0.07),
    "hip_l": ("pelvis", (0.1, 0.92, 0), 0.13),
    "knee_l": ("hip_l", (0.1, 0.5, 0.01), 0.11),
    "ankle_l": ("knee_l", (0.1, 0.08, 0), 0.10),
    "hip_r": ("pelvis", (-0.1, 0.92, 0), 0.13),
    "knee_r": ("hip_r", (-0.1, 0.5, 0.01), 0.11),
    "ankle_r": ("knee_r", (-0.1, 0.08, 0), 0.10),
}


def about(axis: tuple[float, float, float], radians: Array | float) -> Array:
    """Quaternions (..., 4) that turn about an axis."""
    half = np.asarray(radians, dtype=np.float32)[..., None] / 2
    return np.concatenate([np.sin(half) * np.asarray(axis), np.cos(half)], -1).astype(np.float32)


def skeleton(name: str = "box", legs: float = 1.0, droop: float = 0.0) -> Skeleton:
    """The box man's bones; `droop` radians lower the arms of the bind pose (0 is a T)."""
    names = tuple(BONES)
    parents = np.array([names.index(p) if p else -1 for p, _, _ in BONES.values()], np.int32)
    at = np.array([p for _, p, _ in BONES.values()], dtype=np.float32)
    rest = at.copy()
    rotation = np.tile(np.array([0, 0, 0, 1], np.float32), (len(names), 1))
    for j, bone in enumerate(names):
        if bone.split("_")[0] in ("knee", "ankle"):
            at[j] = at[parents[j]] + legs * (rest[j] - rest[parents[j]])
        if bone.split("_")[0] in ("shoulder", "elbow", "wrist"):
            side = 1 if bone.endswith("_l") else -1
            turn = about((0, 0, 1), -side * droop)
            rotation[j] = turn
            if not bone.startswith("shoulder"):
                at[j] = at[parents[j]] + quat_apply(turn, rest[j] - rest[parents[j]])
    at[:, 1] += 0.84 * (legs - 1)
    joints = {bone: j for j, bone in enumerate(names)}
    return Skeleton(name, names, parents, rotation, at, joints, "biped")


def mesh(bones: Skeleton) -> Mesh:
    """A box along every bone; a box's far end follows the next bone a little."""
    out: dict[str, list[Array]] = {k: [] for k in ("p", "n", "u", "b", "w", "f")}
    count = 0
    for j, bone in enumerate(bones.bones):
        child = np.flatnonzero(bones.parents == j)
        start = bones.bind_position[j]
        end = bones.bind_position[child[0]] if len(child) else start + _tip(bone)
        thick = BONES[bone][2] / 2
        low, high = np.minimum(start, end) - thick, np.maximum(start, end) + thick
        for axis in range(3):
            for sign in (-1.0, 1.0):
                u, v = (axis + 1) % 3, (axis + 2) % 3
                corners = np.zeros((4, 3), np.float32)
                corners[:, axis] = high[axis] if sign > 0 else low[axis]
                corners[:, u] = [low[u], high[u], high[u], low[u]]
                corners[:, v] = [low[v], low[v], high[v], high[v]]
                normal = np.zeros((4, 3), np.float32)
                normal[:, axis] = sign
                ring = [0, 1, 2, 0, 2, 3] if sign > 0 else [0, 2, 1, 0, 3, 2]
                out["p"].append(corners)
                out["n"].append(normal)
                side = 0.25 if bone.endswith("_l") else 0.75
                out["u"].append(np.full((4, 2), (side, 0.5), np.float32))
                out["b"].append(np.tile(np.array([j, 0, 0, 0], np.uint8), (4, 1)))
                out["w"].append(np.tile(np.array([1, 0, 0, 0], np.float32), (4, 1)))
                out["f"].append(np.array(ring, np.uint32).reshape(2, 3) + count)
                count += 4
    p, n, u, b, w, f = (np.concatenate(out[k]) for k in ("p", "n", "u", "b", "w", "f"))
    return Mesh(p, n, u, f.astype(np.uint32), b, w)


def _tip(bone: str) -> Array:
    """Metres from an end bone to the end of its box."""
    if bone == "head":
        return np.array([0, 0.14, 0], np.float32)
    if bone.startswith("ankle"):
        return np.array([0, -0.02, 0.14], np.float32)
    return np.array([0.1 if bone.endswith("_l") else -0.1, 0, 0], np.float32)


def motion(
    bones: Skeleton, name: str, frames: int = 20, travel: float = 0.0, loops: bool = True
) -> Motion:
    """A walk on the spot with swinging, bent arms; `travel` metres along z over the clip."""
    local = np.zeros((frames, len(bones.bones), 4), dtype=np.float32)
    local[..., 3] = 1
    phase = np.arange(frames) / frames * 2 * np.pi
    for side, sign in (("_l", 1.0), ("_r", -1.0)):
        swing = np.sin(phase) * sign
        at = bones.bones.index
        local[:, at("hip" + side)] = about((1, 0, 0), -0.6 * swing)
        local[:, at("knee" + side)] = about((1, 0, 0), 0.5 - 0.4 * swing)
        down = about((0, 0, 1), np.full(frames, -1.2 * sign))
        local[:, at("shoulder" + side)] = quat_mul(about((1, 0, 0), 0.7 * swing), down)
        local[:, at("elbow" + side)] = about((0, 1, 0), np.full(frames, -0.9 * sign))
    flat = skeleton().bind_rotation  # `local` turns are written for a T pose
    rotations = np.empty_like(local)
    positions = np.empty((frames, len(bones.bones), 3), dtype=np.float32)
    rest = skeleton(legs=1.0).bind_position
    for j, parent in enumerate(bones.parents):
        if parent < 0:
            rotations[:, j] = local[:, j]
            positions[:, j] = bones.bind_position[j]
            positions[:, j, 2] += np.linspace(0, travel, frames)
            continue
        rotations[:, j] = quat_mul(rotations[:, parent], local[:, j])
        offset = np.tile(rest[j] - rest[parent], (frames, 1))
        positions[:, j] = positions[:, parent] + quat_apply(rotations[:, parent], offset)
    rotations = quat_mul(rotations, np.broadcast_to(quat_conj(flat), rotations.shape))
    return Motion(name, bones.name, 20.0, rotations, positions, "walks", name, "train", loops)


def texture() -> bytes:
    """Left half red, right half blue, opaque."""
    image = np.zeros((64, 64, 4), np.uint8)
    image[:, :32] = (200, 90, 70, 255)
    image[:, 32:] = (80, 110, 200, 255)
    out = io.BytesIO()
    Image.fromarray(image).save(out, "WEBP", lossless=True)
    return out.getvalue()


def build() -> Cast:
    """The cast: looks red and lanky, motions walk (in place) and stroll (travels 3 m)."""
    box, lanky = skeleton(), skeleton("lanky", legs=1.3, droop=0.9)
    part = (Part("box", "cloth", "body"),)
    tall = (Part("lanky", "cloth", "body"),)
    motions = ("walk", "stroll")

    def look(name: str, bones: str, parts: tuple[Part, ...]) -> Look:
        words = f"a {name} man of boxes"
        tint = (0.2, 0.4, 0.8)
        return Look(name, "human", bones, parts, words, name, "train", tint, motions)

    return Cast(
        skeletons={"box": box, "lanky": lanky},
        meshes={"box": mesh(box), "lanky": mesh(lanky)},
        looks={"red": look("red", "box", part), "lanky": look("lanky", "lanky", tall)},
        motions={
            "walk": motion(box, "walk"),
            "stroll": motion(box, "stroll", 40, travel=3.0, loops=False),
        },
        textures={"cloth": texture(), "soil": texture()},
        terrains=("soil",),
        digest="boxman",
    )
