"""Reads the art of the strategy game 0 A.D. (CC-BY-SA 3.0, Wildfire Games).

Formats: `.pmd` meshes, `.psa` animations, `.dds` textures and the XML of actors, materials
and skeletons.

The game's space is left-handed, y up, and its people face -z. Everything returned here is in
the space of `cast.py`: z is mirrored (so +z is forwards, +x is the left hand), metres, v = 0
at the texture's top row. One game unit is `METRES_PER_UNIT`.

Legend: V vertices, F faces, J bones, T frames.
"""

from __future__ import annotations

import io
import struct
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dreamactor.errors import AssetError
from dreamactor.world.art import Art
from dreamactor.world.cast import Array

METRES_PER_UNIT = 0.42
"""A bare-headed man is 4.28 units tall; this makes him 1.80 m. Animals shrink alike."""


@dataclass(frozen=True)
class PropPoint:
    """A named place where something can hang, fixed to a bone (-1: to the model's origin)."""

    bone: int
    position: Array  # (3,) metres, relative to the bone
    rotation: Array  # (4,) quaternion, relative to the bone


@dataclass(frozen=True)
class RawMesh:
    """A `.pmd` file in our space."""

    positions: Array  # (V, 3)
    normals: Array  # (V, 3)
    uvs: Array  # (V, 2)
    faces: NDArray[np.uint32]  # (F, 3)
    bone_indices: NDArray[np.uint8]  # (V, 4)
    bone_weights: Array  # (V, 4), all zero where nothing moves the vertex
    bind_position: Array  # (J, 3); J = 0 for a mesh without skeleton
    bind_rotation: Array  # (J, 4)
    points: dict[str, PropPoint]


@dataclass(frozen=True)
class RawAnimation:
    """A `.psa` file in our space: bone to world in every frame."""

    fps: float
    positions: Array  # (T, J, 3)
    rotations: Array  # (T, J, 4)


class _Bytes:
    """A cursor that refuses to read past the end."""

    def __init__(self, content: bytes, name: str, magic: bytes) -> None:
        self.content, self.name, self.at = content, name, 12
        if content[:4] != magic:
            raise AssetError(f"{name}: starts with {content[:4]!r}, want {magic!r}")

    def take(self, dtype: np.dtype[Any] | str, count: int) -> NDArray[Any]:
        kind = np.dtype(dtype)
        end = self.at + kind.itemsize * count
        if end > len(self.content):
            raise AssetError(f"{self.name}: {len(self.content)} bytes, want at least {end}")
        out = np.frombuffer(self.content, kind, count, self.at)
        self.at = end
        return out

    def number(self) -> int:
        return int(self.take("<u4", 1)[0])

    def text(self) -> str:
        return self.take("u1", self.number()).tobytes().decode("utf-8", "replace")


def mirror_position(position: Array) -> Array:
    """(..., 3) game units, left-handed -> metres, right-handed."""
    return np.asarray(position * np.array([1, 1, -1], np.float32) * METRES_PER_UNIT, np.float32)


def mirror_rotation(rotation: Array) -> Array:
    """(..., 4) quaternions of the left-handed space -> of the right-handed one, unit length."""
    length = np.maximum(np.linalg.norm(rotation, axis=-1, keepdims=True), 1e-12)
    return np.asarray(rotation / length * np.array([-1, -1, 1, 1], np.float32), np.float32)


def read_mesh(content: bytes, name: str) -> RawMesh:
    """Read a `.pmd` file (versions 3 and 4, the ones that hold world coordinates)."""
    data = _Bytes(content, name, b"PSMD")
    version = int.from_bytes(content[4:8], "little")
    if version not in (3, 4):
        raise AssetError(f"{name}: .pmd version {version}, want 3 or 4")
    count = data.number()
    sets = data.number() if version >= 4 else 1
    vertex = np.dtype(
        [
            ("p", "<f4", 3),
            ("n", "<f4", 3),
            ("uv", "<f4", (sets, 2)),
            ("bones", "u1", 4),
            ("weights", "<f4", 4),
        ]
    )
    v = data.take(vertex, count)
    faces = data.take("<u2", data.number() * 3).reshape(-1, 3)
    bones = data.take("<f4", data.number() * 7).reshape(-1, 7).astype(np.float32)
    points = {}
    for _ in range(data.number()):
        label = data.text()
        place = data.take("<f4", 7).astype(np.float32)
        bone = int(data.take("u1", 1)[0])
        bone = bone if bone < len(bones) else -1
        points[label] = PropPoint(bone, mirror_position(place[:3]), mirror_rotation(place[3:]))
    if len(faces) and int(faces.max()) >= count:
        raise AssetError(f"{name}: a face names vertex {int(faces.max())}, want below {count}")
    weights = np.where(v["bones"] < len(bones), v["weights"], 0)
    total = weights.sum(1, keepdims=True)
    return RawMesh(
        positions=mirror_position(v["p"]),
        normals=np.asarray(v["n"] * np.array([1, 1, -1], np.float32), np.float32),
        uvs=np.asarray(
            v["uv"][:, 0] * np.array([1, -1], np.float32) + np.array([0, 1], np.float32), np.float32
        ),
        faces=faces.astype(np.uint32),  # clockwise outside in the game; mirroring makes it right
        bone_indices=np.where(weights > 0, v["bones"], 0).astype(np.uint8),
        bone_weights=np.asarray(weights / np.where(total > 0, total, 1), np.float32),
        bind_position=mirror_position(bones[:, :3]),
        bind_rotation=mirror_rotation(bones[:, 3:]),
        points=points,
    )


def read_animation(content: bytes, name: str) -> RawAnimation:
    """Read a `.psa` file."""
    data = _Bytes(content, name, b"PSSA")
    data.text()
    frame_time = float(data.take("<f4", 1)[0])  # milliseconds
    bones, frames = data.number(), data.number()
    if not (0 < frame_time < 1000 and 0 < bones < 256 and 0 < frames < 1 << 16):
        raise AssetError(f"{name}: {frames} frames of {bones} bones every {frame_time} ms")
    keys = data.take("<f4", frames * bones * 7).reshape(frames, bones, 7).astype(np.float32)
    return RawAnimation(
        1000.0 / frame_time, mirror_position(keys[..., :3]), mirror_rotation(keys[..., 3:])
    )


def read_texture(content: bytes, name: str) -> NDArray[np.uint8]:
    """Decode a `.dds` (or any other picture Pillow knows) to (H, W, 4) RGBA."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            if picture.width * picture.height > 1 << 24:
                raise AssetError(f"{name}: {picture.size} pixels, want at most 4096 x 4096")
            return np.asarray(picture.convert("RGBA"))
    except (OSError, ValueError, NotImplementedError, struct.error) as fault:
        raise AssetError(f"{name}: {fault}") from fault


def read_xml(content: bytes, name: str) -> ET.Element:
    """Parse XML; entities are refused, since the game's files have none."""
    if b"<!ENTITY" in content:
        raise AssetError(f"{name}: declares XML entities")
    try:
        return ET.fromstring(content)
    except ET.ParseError as fault:
        raise AssetError(f"{name}: {fault}") from fault


def read_skeletons(content: bytes, name: str) -> dict[str, tuple[tuple[str, ...], list[int]]]:
    """Standard skeletons of one XML file: id -> (bone names, parents), in the game's bone order."""
    skeletons = {}
    for skeleton in read_xml(content, name).iter("standard_skeleton"):
        names: list[str] = []
        parents: list[int] = []

        def walk(bone: ET.Element, parent: int, names: list[str], parents: list[int]) -> None:
            names.append(bone.get("name", ""))
            parents.append(parent)
            here = len(names) - 1
            for child in bone.findall("bone"):
                walk(child, here, names, parents)

        for root in skeleton.findall("bone"):
            walk(root, -1, names, parents)
        skeletons[skeleton.get("id", "")] = (tuple(names), parents)
    return skeletons


@dataclass(frozen=True)
class Actor:
    """An actor after its variants were chosen."""

    path: str
    mesh: str | None = None
    texture: str | None = None
    material: str = "default.xml"
    color: tuple[float, float, float] | None = None  # of hair and the like, multiplies
    props: dict[str, tuple[str, ...]] = field(default_factory=dict)  # attach point -> actors
    animations: tuple[tuple[str, str], ...] = ()  # (kind in lower case, file)


Choose = Callable[[int, Sequence[str], Sequence[float]], int]
"""(group index, variant names, frequencies) -> index of the variant."""


@dataclass(frozen=True)
class _Variant:
    name: str = ""
    frequency: float = 0.0
    mesh: str | None = None
    texture: str | None = None
    color: tuple[float, float, float] | None = None
    props: tuple[tuple[str, str], ...] = ()
    animations: tuple[tuple[str, str], ...] = ()


class Actors:
    """Reads actors; each XML file is parsed once."""

    def __init__(self, art: Art) -> None:
        self.art = art
        self._variants: dict[str, _Variant] = {}
        self._actors: dict[str, tuple[str, list[list[_Variant]]]] = {}

    def resolve(self, path: str, choose: Choose) -> Actor:
        """Merge one variant of each of an actor's groups, as the game does.

        Args:
            path: Path below `art/actors`, such as `fauna/lion.xml`.
            choose: Picks among the variants of a group that can appear by chance; variants of
                frequency 0 show only in some action (carrying wood, dying) and are not
                offered unless there is nothing else.
        """
        material, groups = self._groups(path)
        actor = Actor(path, material=material)
        for index, variants in enumerate(groups):
            offered = [v for v in variants if v.frequency > 0] or variants[:1]
            names = [v.name for v in offered]
            actor = _merge(actor, offered[choose(index, names, [v.frequency for v in offered])])
        return actor

    def animations(self, path: str) -> list[tuple[str, str]]:
        """Every (kind, file) that any variant of an actor plays."""
        return [a for group in self._groups(path)[1] for v in group for a in v.animations]

    def _groups(self, path: str) -> tuple[str, list[list[_Variant]]]:
        if path not in self._actors:
            root = self._root(path)
            groups = [
                [self._variant(v) for v in group.findall("variant")]
                for group in root.findall("group")
            ]
            material = (root.findtext("material") or "default.xml").strip()
            self._actors[path] = (material, [g for g in groups if g])
        return self._actors[path]

    def _root(self, path: str) -> ET.Element:
        """The actor element; of quality levels the best, which comes with all its props."""
        file = f"art/actors/{path}"
        root = read_xml(self.art.read(file), file)
        if root.tag != "qualitylevels":
            return root
        for level in reversed(root.findall("actor")):
            if linked := level.get("file"):
                return self._root(linked)
            if level.find("group") is not None:
                return level
        inline = root.find("inline")
        return root if inline is None else inline

    def _variant(self, element: ET.Element) -> _Variant:
        base = _Variant()
        if file := element.get("file"):
            if file not in self._variants:
                path = f"art/variants/{file}"
                self._variants[file] = self._variant(read_xml(self.art.read(path), path))
            base = self._variants[file]
        textures = {t.get("name"): t.get("file") for t in element.iter("texture")}
        color = element.findtext("color")
        rgb = [float(c) / 255 for c in color.split()] if color else []
        props = tuple((p.get("attachpoint", ""), p.get("actor", "")) for p in element.iter("prop"))
        return _Variant(
            name=element.get("name") or base.name,
            frequency=float(element.get("frequency") or base.frequency),
            mesh=(element.findtext("mesh") or "").strip() or base.mesh,
            texture=textures.get("baseTex") or base.texture,
            color=(rgb[0], rgb[1], rgb[2]) if len(rgb) == 3 else base.color,
            props=base.props + props,
            animations=base.animations
            + tuple(
                (a.get("name", "").lower(), a.get("file", ""))
                for a in element.iter("animation")
                if a.get("file")
            ),
        )


def _merge(actor: Actor, variant: _Variant) -> Actor:
    props = {k: v for k, v in actor.props.items() if k not in dict(variant.props)}
    for point, path in variant.props:
        if path:
            props[point] = (*props.get(point, ()), path)
    replaced = {kind for kind, _ in variant.animations}
    kept = tuple(a for a in actor.animations if a[0] not in replaced)
    return replace(
        actor,
        mesh=variant.mesh or actor.mesh,
        texture=variant.texture or actor.texture,
        color=variant.color or actor.color,
        props=props,
        animations=kept + variant.animations,
    )


def mesh_file(name: str) -> str:
    """Path in the art of a mesh named by an actor."""
    return f"art/meshes/{name}" + ("" if name.endswith(".pmd") else ".cached.pmd")


def animation_file(name: str) -> str:
    """Path in the art of an animation named by an actor."""
    return f"art/animation/{name}" + ("" if name.endswith(".psa") else ".cached.psa")


def texture_file(name: str) -> str:
    """Path in the art of a skin named by an actor."""
    return f"art/textures/skins/{name}.cached.dds"


def alpha_meaning(art: Art, material: str) -> str:
    """What a material does with the texture's alpha: `player`, `object`, `cutout` or `none`."""
    file = f"art/materials/{material}"
    try:
        root = read_xml(art.read(file), file)
    except AssetError:
        return "none"
    defines = {d.get("name") for d in root.iter("define") if d.get("value") != "0"}
    if "USE_PLAYERCOLOR" in defines:
        return "player"
    if "USE_OBJECTCOLOR" in defines:
        return "object"
    see_through = "USE_TRANSPARENT" in defines or root.find("alpha_blending") is not None
    return "cutout" if see_through else "none"
