"""What the shaders read: cameras and shadow spots, vertices, colour changes.

T frames, V vertices; the texture layouts are described in `shaders`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dreamactor.world.cast import Array, Cast, Mesh, Part
from dreamactor.world.scene import Scene, Style

HEAD = 8  # texels of `frames` before the shadow blobs
BLOBS = 24  # shadow blobs a frame
BLOB_JOINTS = {
    "head": 0.13, "neck": 0.15, "pelvis": 0.20, "spine": 0.2, "shoulder": 0.14, "elbow": 0.10,
    "wrist": 0.10, "hip": 0.16, "knee": 0.13, "ankle": 0.13,
}  # fmt: skip
"""Joint -> radius in metres of the soft spot it casts, for a body of 1.7 m."""


def camera_table(cast: Cast, scene: Scene) -> Array:
    """(T, 8 + BLOBS, 4) rows of the `frames` texture; its layout is in `shaders`."""
    camera, aspect = scene.camera, scene.width / scene.height
    table = np.zeros((scene.frames, HEAD + BLOBS, 4), dtype=np.float32)
    table[:, :4] = camera.projection(aspect) @ camera.view()
    table[:, 4, :3] = camera.eye
    right, up, back = np.moveaxis(camera.basis(), 1, 0)
    tangent = np.tan(np.radians(camera.fov) / 2)[:, None]
    wide, high = right * tangent * aspect, up * tangent
    shift = camera.shift
    table[:, 5, :3] = -back - shift[:, :1] * wide - shift[:, 1:] * high
    table[:, 6, :3], table[:, 7, :3] = wide, high
    if scene.light.shadow > 0 and scene.actors:
        blobs = _blobs(cast, scene)
        table[:, HEAD : HEAD + blobs.shape[1]] = blobs
        table[:, 4, 3] = blobs.shape[1]
    return table


def _blobs(cast: Cast, scene: Scene) -> Array:
    """(T, n, 4) soft spots below the joints: x, z, radius in metres, strength."""
    out = []
    each = BLOBS // len(scene.actors)
    for actor in scene.actors:
        skeleton = cast.skeletons[actor.look.skeleton]
        bind = skeleton.bind_position
        known = [(n, b) for n, b in skeleton.joints.items() if n.split("_")[0] in BLOB_JOINTS]
        # Feet first: where they touch, the shadow tells.
        chosen = sorted(known, key=lambda pair: float(bind[pair[1], 1]))[:each]
        at = actor.pose[:, [bone for _, bone in chosen]][..., :3, 3]  # (T, n, 3)
        tall = float(np.ptp(bind[list(skeleton.joints.values()), 1])) / 1.6
        size = max(tall, 0.3) * np.cbrt(np.linalg.det(actor.pose[:, :1, :3, :3]))  # (T, 1)
        radius = np.array([BLOB_JOINTS[name.split("_")[0]] for name, _ in chosen])
        height = np.maximum(at[..., 1], 0) / size
        blob = np.empty((scene.frames, len(chosen), 4), dtype=np.float32)
        blob[..., :2] = at[..., [0, 2]]
        blob[..., 2] = size * (0.9 * radius + 0.10 * height)
        blob[..., 3] = scene.light.shadow * 0.6 * np.exp(-1.1 * height)
        out.append(blob)
    return np.concatenate(out, axis=1)


def vertices(mesh: Mesh) -> NDArray[np.void]:
    """Interleaved vertices; `smooth` is the mean normal of all vertices at one place."""
    layout = [("p", "f4", 3), ("n", "f4", 3), ("s", "f4", 3), ("u", "f4", 2), ("b", "u1", 4)]
    out = np.zeros(len(mesh.positions), dtype=[*layout, ("w", "f4", 4)])
    out["p"], out["n"], out["u"] = mesh.positions, mesh.normals, mesh.uvs
    out["b"], out["w"] = mesh.bone_indices, mesh.bone_weights
    _, where = np.unique(np.round(mesh.positions, 4), axis=0, return_inverse=True)
    total = np.zeros((int(where.max()) + 1, 3))
    np.add.at(total, where, mesh.normals)
    mean = total[where]
    length = np.linalg.norm(mean, axis=1, keepdims=True)
    out["s"] = np.where(length > 0.1, mean / np.maximum(length, 1e-9), mesh.normals)
    return out


def recolour(style: Style, place: int, part: Part) -> tuple[float, float, float, float]:
    """Hue turn, saturation, value and amount for one part."""
    if style.recolour <= 0:
        return (0.0, 1.0, 1.0, 0.0)
    rng = np.random.default_rng([style.seed, place])
    turn, saturation, value = rng.uniform(0.08, 0.92), rng.uniform(0.9, 1.7), rng.uniform(0.8, 1.3)
    calm = 0.0 if part.role == "head" else 1.0
    return (float(turn), float(saturation), float(value), style.recolour * calm)
