"""The cast: characters and motions compiled from 0 A.D. art into one compact file.

Axes: right-handed, y up, metres; a character stands at the origin, faces +z, and its
left hand is at +x. Quaternions are (x, y, z, w). All arrays are numpy.

A cast pack is a zip file, stored, not compressed:

    cast.json            names, parts, captions, splits, licence (schema version 1)
    arrays.safetensors   meshes, skeletons and motions, quantised as `load_cast` undoes
    textures/NAME.webp   RGBA; alpha 0 marks player-colour cloth on units (see `Look.tint`)

What quantising costs: positions of vertices 16 bit within the mesh's box (under .1 mm for a
person), normals and weights 8 bit, quaternions 16 bit (.003 degrees). Motions keep the game's
30 frames a second. Where a bone keeps its distance and direction to its parent bone, only that
offset is stored and `load_cast` adds the offsets up again; other bones store 16 bit offsets.

Legend: V vertices, F faces, J bones, T frames.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from dreamactor.errors import AssetError
from dreamactor.image import atomic, refusals

Array = NDArray[np.float32]
Split = Literal["train", "validation", "test"]

SCHEMA = 1
LICENCE = "CC-BY-SA 3.0, art of 0 A.D. by Wildfire Games (play0ad.com)"
_MAX_ENTRY = 256 << 20  # bytes; a full pack's arrays are about 30 MB
_STILL = 5e-4  # metres; a bone that moves less against its parent counts as fixed to it


@dataclass(frozen=True)
class Skeleton:
    """A tree of bones with the pose that meshes were bound in."""

    name: str
    """Skeletons `horse`, `horse~2`, ... are one family: the same bones, other bind poses."""
    bones: tuple[str, ...]
    """Bone names, parents before children."""
    parents: NDArray[np.int32]
    """(J,) index of the parent bone, -1 at the root."""
    bind_rotation: Array
    """(J, 4) quaternions, bone to world."""
    bind_position: Array
    """(J, 3) metres, world."""
    joints: dict[str, int]
    """Anatomical joint name -> bone index. Names are shared across skeletons of a body plan,
    such as head, neck, shoulder_l, elbow_l, wrist_l, hip_l, knee_l, ankle_l; animals use
    shoulder / elbow / wrist for forelegs and hip / knee / ankle for hind legs; may have tail."""
    body_plan: Literal["biped", "quadruped", "bird", "fish", "other"]


@dataclass(frozen=True)
class Mesh:
    """A skinned triangle mesh; a rigid prop has all its weight on one bone."""

    positions: Array  # (V, 3) metres, in the pose the skeleton is bound in, world
    normals: Array  # (V, 3) unit length
    uvs: Array  # (V, 2) in [0, 1], v = 0 at the texture's top row
    faces: NDArray[np.uint32]  # (F, 3), counter-clockwise seen from outside
    bone_indices: NDArray[np.uint8]  # (V, 4)
    bone_weights: Array  # (V, 4), rows sum to 1


@dataclass(frozen=True)
class Part:
    """One drawn piece of a look: the body, or a prop already resolved to the body's bones.

    Props hang on a prop point, which moves with a bone; the compiler bakes that offset into
    the mesh, so every part is skinned by the body's skeleton and nothing is left to attach.
    """

    mesh: str
    texture: str
    role: str  # body, head, helmet, shield, weapon, cape, hair, tool, mount, other
    double_sided: bool = False
    cutout: bool = False  # alpha is transparency (discard below 0.5) instead of player colour


@dataclass(frozen=True)
class Look:
    """One identity: what a camera sees, whatever the motion."""

    name: str
    domain: Literal["human", "animal"]
    skeleton: str
    parts: tuple[Part, ...]
    caption: str  # "a bearded Spartan hoplite with a bronze helmet and a round shield"
    group: str  # looks of one group share art and always share the split
    split: Split
    tint: tuple[float, float, float]
    """Player colour, linear blend where the texture's alpha is low (units only)."""
    motions: tuple[str, ...]
    """Motions made for this look's skeleton family (names in `Cast.motions`)."""


@dataclass(frozen=True)
class Motion:
    """A baked animation: where each bone is in each frame."""

    name: str
    skeleton: str
    """One of the family; a look may have a sibling of it, whose bones are in the same order."""
    fps: float
    rotations: Array  # (T, J, 4) quaternions, bone to world
    positions: Array  # (T, J, 3) metres, world
    caption: str  # "walks slowly", completes a sentence whose subject is the look
    group: str
    split: Split
    loops: bool


@dataclass(frozen=True)
class Cast:
    """A loaded cast pack."""

    skeletons: dict[str, Skeleton]
    meshes: dict[str, Mesh]
    looks: dict[str, Look]
    motions: dict[str, Motion]
    textures: dict[str, bytes]
    """Encoded webp; decoded by the renderer when first drawn."""
    terrains: tuple[str, ...]
    """Names in `textures` of ground pictures that serve as backgrounds."""
    digest: str
    """sha256 of the pack file; empty for a cast that was never saved."""

    def texture(self, name: str) -> NDArray[np.uint8]:
        """Decode one texture to (H, W, 4) RGBA."""
        if name not in self.textures:
            near = next(iter(sorted(self.textures)), "none, the pack has no textures")
            raise AssetError(f"texture {name!r} is not in the pack; there is {near}")
        try:
            with Image.open(io.BytesIO(self.textures[name])) as picture:
                return np.asarray(picture.convert("RGBA"))
        except (OSError, ValueError) as fault:
            raise AssetError(f"texture {name!r} is damaged: {fault}") from fault


def rotate(rotation: Array, vector: Array) -> Array:
    """Rotate (..., 3) vectors by (..., 4) quaternions (x, y, z, w)."""
    axis = rotation[..., :3]
    twice = 2 * np.cross(axis, vector)
    return np.asarray(vector + rotation[..., 3:] * twice + np.cross(axis, twice), np.float32)


def subset(
    cast: Cast, looks: Collection[str], motions: Collection[str], terrains: Collection[str]
) -> Cast:
    """Keep the named looks, motions and terrains, and only what these need."""
    kept = {
        name: replace(look, motions=tuple(m for m in look.motions if m in motions))
        for name, look in cast.looks.items()
        if name in looks
    }
    parts = [part for look in kept.values() for part in look.parts]
    meshes = {part.mesh for part in parts}
    textures = {part.texture for part in parts} | set(terrains)
    clips = {n: m for n, m in cast.motions.items() if n in motions}
    skeletons = {look.skeleton for look in kept.values()} | {m.skeleton for m in clips.values()}
    return Cast(
        skeletons={n: s for n, s in cast.skeletons.items() if n in skeletons},
        meshes={n: m for n, m in cast.meshes.items() if n in meshes},
        looks=kept,
        motions=clips,
        textures={n: t for n, t in cast.textures.items() if n in textures},
        terrains=tuple(t for t in cast.terrains if t in terrains),
        digest="",
    )


def summary(cast: Cast) -> str:
    """Counts by domain and split, and sizes, as lines for a person to read."""
    splits = ("train", "validation", "test")
    lines = [f"{'':18}{'all':>7}" + "".join(f"{s:>12}" for s in splits)]

    def count(label: str, items: list[Split]) -> None:
        row = "".join(f"{items.count(s):12d}" for s in splits)  # type: ignore[arg-type]
        lines.append(f"{label:18}{len(items):7d}{row}")

    for domain in ("human", "animal"):
        looks = [look for look in cast.looks.values() if look.domain == domain]
        count(f"{domain} looks", [look.split for look in looks])
        groups = {look.group: look.split for look in looks}
        count(f"{domain} groups", list(groups.values()))
    plans = {name: s.body_plan for name, s in cast.skeletons.items()}
    for plan in sorted(set(plans.values())):
        motions = [m for m in cast.motions.values() if plans[m.skeleton] == plan]
        count(f"{plan} motions", [m.split for m in motions])
    frames = sum(len(m.rotations) for m in cast.motions.values())
    seconds = sum(len(m.rotations) / m.fps for m in cast.motions.values())
    vertices = sum(len(m.positions) for m in cast.meshes.values())
    size = sum(len(t) for t in cast.textures.values())
    lines.append(
        f"{len(cast.meshes)} meshes ({vertices} vertices), {len(cast.skeletons)} skeletons, "
        f"{len(cast.textures)} textures ({size / 1e6:.1f} MB), {len(cast.terrains)} terrains, "
        f"{frames} frames ({seconds / 60:.1f} minutes)"
    )
    return "\n".join(lines)


def save_cast(cast: Cast, path: str | Path) -> str:
    """Write a pack; the same cast gives the same bytes. Returns the sha256 of the file."""
    arrays, index = _pack_arrays(cast)
    sets = sorted({look.motions for look in cast.looks.values()})
    looks = [
        {**asdict(look), "motions": sets.index(look.motions)}
        for _, look in sorted(cast.looks.items())
    ]
    document = {
        "schema": SCHEMA,
        "licence": LICENCE,
        **index,
        "looks": looks,
        "motion_sets": sets,
        "terrains": cast.terrains,
        "textures": sorted(cast.textures),
    }
    entries = {
        "cast.json": json.dumps(document, sort_keys=True, separators=(",", ":")).encode(),
        "arrays.safetensors": save_tensors(arrays),
    }
    entries |= {f"textures/{name}.webp": data for name, data in sorted(cast.textures.items())}
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic(target) as hidden, zipfile.ZipFile(hidden, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)
    return _digest(target)


def load_cast(path: str | Path) -> Cast:
    """Read a cast pack.

    Raises:
        AssetError: No such file, not a pack, damaged, or of another schema version.
        MediaError: What it lies in cannot be entered.
    """
    source = Path(path)
    with refusals(source, "reached"):
        if not source.is_file():
            raise AssetError(
                f"{source}: no such cast pack; build one with `dreamactor world build`"
            )
    try:
        with zipfile.ZipFile(source) as archive:
            entries = {e.filename: e for e in archive.infolist()}
            for entry in entries.values():
                if entry.file_size > _MAX_ENTRY or entry.compress_type != zipfile.ZIP_STORED:
                    raise AssetError(f"{source}: {entry.filename} is compressed or over 256 MB")
            document = json.loads(archive.read("cast.json"))
            if not isinstance(document, dict) or document.get("schema") != SCHEMA:
                given = document.get("schema") if isinstance(document, dict) else document
                raise AssetError(f"{source}: schema {given}, want {SCHEMA}; build the pack again")
            arrays = load_tensors(archive.read("arrays.safetensors"))
            textures = {n: archive.read(f"textures/{n}.webp") for n in document["textures"]}
        return _unpack(document, arrays, textures, _digest(source))
    except (zipfile.BadZipFile, OSError, EOFError) as fault:
        raise AssetError(f"{source}: not a cast pack or damaged ({fault})") from fault
    except (KeyError, IndexError, TypeError, ValueError, SafetensorError) as fault:
        raise AssetError(f"{source}: damaged cast pack ({fault!r}); build it again") from fault


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pack_arrays(cast: Cast) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Concatenate and quantise all arrays; the index says how long each piece is."""
    columns: dict[str, list[NDArray[Any]]] = {}
    index: dict[str, list[dict[str, Any]]] = {"skeletons": [], "meshes": [], "motions": []}

    def put(**pieces: NDArray[Any]) -> None:
        for name, piece in pieces.items():
            columns.setdefault(name, []).append(piece)

    for name, skeleton in sorted(cast.skeletons.items()):
        put(
            skeleton_parents=skeleton.parents.astype(np.int16),
            skeleton_rotations=skeleton.bind_rotation.astype(np.float32),
            skeleton_positions=skeleton.bind_position.astype(np.float32),
        )
        index["skeletons"].append(
            {
                "name": name,
                "bones": skeleton.bones,
                "joints": skeleton.joints,
                "body_plan": skeleton.body_plan,
            }
        )
    for name, mesh in sorted(cast.meshes.items()):
        low = mesh.positions.min(0)
        step = np.maximum(mesh.positions.max(0) - low, 1e-6) / 65535
        put(
            mesh_positions=np.rint((mesh.positions - low) / step).astype(np.uint16),
            mesh_box=np.stack([low, step]).astype(np.float32),
            mesh_normals=np.rint(mesh.normals * 127).astype(np.int8),
            mesh_uvs=mesh.uvs.astype(np.float16),
            mesh_bones=mesh.bone_indices.astype(np.uint8),
            mesh_weights=np.rint(mesh.bone_weights * 255).astype(np.uint8),
            mesh_faces=mesh.faces.astype(np.uint16),
        )
        index["meshes"].append(
            {"name": name, "vertices": len(mesh.positions), "faces": len(mesh.faces)}
        )
    for name, motion in sorted(cast.motions.items()):
        parents = cast.skeletons[motion.skeleton].parents
        local = _local_offsets(motion.rotations, motion.positions, parents)
        still = np.abs(local - local.mean(0)).max((0, 2)) < _STILL
        moving = local[:, ~still]
        step = max(float(np.abs(moving).max(initial=0)), 1e-6) / 32767
        put(
            motion_rotations=np.rint(motion.rotations.reshape(-1, 4) * 32767).astype(np.int16),
            motion_offsets=local.mean(0).astype(np.float32),
            motion_still=still,
            motion_moving=np.rint(moving.reshape(-1, 3) / step).astype(np.int16),
        )
        index["motions"].append(
            {
                "name": name,
                "skeleton": motion.skeleton,
                "fps": motion.fps,
                "frames": len(motion.rotations),
                "step": step,
                "caption": motion.caption,
                "group": motion.group,
                "split": motion.split,
                "loops": motion.loops,
            }
        )
    return {n: np.ascontiguousarray(np.concatenate(c)) for n, c in columns.items()}, index


def _local_offsets(rotations: Array, positions: Array, parents: NDArray[np.int32]) -> Array:
    """World positions (T, J, 3) -> positions relative to the parent bone, roots unchanged."""
    local = positions.copy()
    child = np.flatnonzero(parents >= 0)
    parent = parents[child]
    inverse = rotations[:, parent] * np.array([-1, -1, -1, 1], np.float32)
    local[:, child] = rotate(inverse, positions[:, child] - positions[:, parent])
    return local


class _Cursor:
    """Hands out consecutive rows of each array."""

    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        self.arrays = arrays
        self.at = dict.fromkeys(arrays, 0)

    def take(self, name: str, count: int) -> NDArray[Any]:
        start = self.at[name]
        rows = self.arrays[name][start : start + count]
        if len(rows) != count:
            raise ValueError(f"{name} has {len(self.arrays[name])} rows, want {start + count}")
        self.at[name] = start + count
        return rows


def _unpack(
    document: dict[str, Any],
    arrays: dict[str, NDArray[Any]],
    textures: dict[str, bytes],
    digest: str,
) -> Cast:
    rows = _Cursor(arrays)
    skeletons = {}
    for entry in document["skeletons"]:
        count = len(entry["bones"])
        skeletons[entry["name"]] = Skeleton(
            name=entry["name"],
            bones=tuple(entry["bones"]),
            parents=rows.take("skeleton_parents", count).astype(np.int32),
            bind_rotation=rows.take("skeleton_rotations", count),
            bind_position=rows.take("skeleton_positions", count),
            joints=entry["joints"],
            body_plan=entry["body_plan"],
        )
    meshes = {e["name"]: _unpack_mesh(rows, e["vertices"], e["faces"]) for e in document["meshes"]}
    motions = {
        e["name"]: _unpack_motion(rows, e, skeletons[e["skeleton"]].parents)
        for e in document["motions"]
    }
    sets = [tuple(names) for names in document["motion_sets"]]
    looks = {}
    for entry in document["looks"]:
        entry["parts"] = tuple(Part(**part) for part in entry["parts"])
        entry["tint"] = tuple(entry["tint"])
        entry["motions"] = sets[entry["motions"]]
        looks[entry["name"]] = Look(**entry)
    used = {p.mesh for look in looks.values() for p in look.parts} - meshes.keys()
    missing = used | ({m for names in sets for m in names} - motions.keys())
    if missing:
        raise ValueError(f"refers to {min(missing)}, which is not in it")
    return Cast(skeletons, meshes, looks, motions, textures, tuple(document["terrains"]), digest)


def _unpack_mesh(rows: _Cursor, vertices: int, faces: int) -> Mesh:
    low, step = rows.take("mesh_box", 2)
    normals = rows.take("mesh_normals", vertices).astype(np.float32)
    weights = rows.take("mesh_weights", vertices).astype(np.float32)
    triangles = rows.take("mesh_faces", faces)
    if faces and int(triangles.max()) >= vertices:
        raise ValueError(f"a face names vertex {int(triangles.max())} of {vertices}")
    return Mesh(
        positions=low + rows.take("mesh_positions", vertices) * step,
        normals=normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-6),
        uvs=rows.take("mesh_uvs", vertices).astype(np.float32),
        faces=triangles.astype(np.uint32),
        bone_indices=rows.take("mesh_bones", vertices),
        bone_weights=weights / np.maximum(weights.sum(1, keepdims=True), 1),
    )


def _unpack_motion(rows: _Cursor, entry: dict[str, Any], parents: NDArray[np.int32]) -> Motion:
    frames, bones = entry["frames"], len(parents)
    rotations = rows.take("motion_rotations", frames * bones).astype(np.float32)
    rotations = rotations.reshape(frames, bones, 4)
    rotations /= np.maximum(np.linalg.norm(rotations, axis=-1, keepdims=True), 1)
    still = rows.take("motion_still", bones).astype(bool)
    positions = np.tile(rows.take("motion_offsets", bones), (frames, 1, 1))
    moving = int((~still).sum())
    steps = rows.take("motion_moving", frames * moving).reshape(frames, moving, 3)
    positions[:, ~still] = steps * np.float32(entry["step"])
    for level in _levels(parents):  # parents are final before their children are placed
        parent = parents[level]
        turned = rotate(rotations[:, parent], positions[:, level])
        positions[:, level] = positions[:, parent] + turned
    return Motion(
        name=entry["name"],
        skeleton=entry["skeleton"],
        fps=entry["fps"],
        rotations=rotations,
        positions=positions,
        caption=entry["caption"],
        group=entry["group"],
        split=entry["split"],
        loops=entry["loops"],
    )


def _levels(parents: NDArray[np.int32]) -> list[NDArray[np.int64]]:
    """Bones by depth below the root, roots left out."""
    depth = np.zeros(len(parents), np.int64)
    for bone, parent in enumerate(parents):
        depth[bone] = depth[parent] + 1 if parent >= 0 else 0
    return [np.flatnonzero(depth == d) for d in range(1, int(depth.max(initial=0)) + 1)]
