"""Turns a 0 A.D. actor into the parts of a look: props resolved, textures made small.

Legend: V vertices, J bones.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dreamactor.errors import AssetError
from dreamactor.world.cast import Array, Mesh, Part, rotate
from dreamactor.world.zeroad import (
    Actor,
    Actors,
    Choose,
    RawMesh,
    alpha_meaning,
    mesh_file,
    read_mesh,
    read_texture,
    texture_file,
)

TEXTURE_SIDE = 256  # pixels
WEBP_QUALITY = 80
_NOT_DRAWN = re.compile(
    r"blood|projectile|/arrow|arrow_|selection|decal|smoke|particle|dust|flame|fire|carcass|"
    r"shuttle|rider|cargo|actor_empty|/rein|loaded"
)
_NO_PLACE = {"projectile", "ammo", "loaded-projectile", "rider", "rider_R", "rider_L", "cargo"}
_RIGID_BONES = 30  # a prop with more is a rider or another creature, not a thing to carry
_FAR = 1.2  # metres between a rigid prop and the bone it hangs on; more is a misfit


Wardrobe = Callable[[str], Choose]
"""Path of a prop -> how to choose among its variants."""


@dataclass(frozen=True)
class Place:
    """A bone and a pose: where a prop hangs in the body's bind pose."""

    bone: int
    rotation: Array  # (4,)
    position: Array  # (3,)

    def then(self, rotation: Array, position: Array) -> Place:
        """The place given relative to this one."""
        turned = self.position + rotate(self.rotation, position)
        return replace(self, rotation=multiply(self.rotation, rotation), position=turned)


def multiply(a: Array, b: Array) -> Array:
    """Product of two quaternions (..., 4): first b, then a."""
    av, aw, bv, bw = a[..., :3], a[..., 3:], b[..., :3], b[..., 3:]
    vector = aw * bv + bw * av + np.cross(av, bv)
    scalar = aw * bw - (av * bv).sum(-1, keepdims=True)
    return np.asarray(np.concatenate([vector, scalar], -1), np.float32)


@dataclass
class Baker:
    """Collects meshes and textures, each stored once, and counts what was left out."""

    actors: Actors
    meshes: dict[str, Mesh] = field(default_factory=dict)
    textures: dict[str, bytes] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    _raw: dict[str, RawMesh] = field(default_factory=dict)
    _names: dict[bytes, str] = field(default_factory=dict)
    _pictures: dict[tuple[object, ...], str] = field(default_factory=dict)
    _alpha: dict[str, str] = field(default_factory=dict)

    def raw(self, mesh: str) -> RawMesh:
        """Read a mesh named by an actor, once."""
        if mesh not in self._raw:
            self._raw[mesh] = read_mesh(self.actors.art.read(mesh_file(mesh)), mesh)
        return self._raw[mesh]

    def parts(self, actor: Actor, choose: Wardrobe) -> list[Part]:
        """Bake a body and everything that hangs on it, body first.

        Args:
            actor: The body, resolved.
            choose: Given the path of a prop, how to choose among its variants.
        """
        assert actor.mesh is not None
        body = self.raw(actor.mesh)
        skin = Mesh(
            body.positions, body.normals, body.uvs, body.faces, body.bone_indices, body.bone_weights
        )
        parts = [self._part(actor, skin, "body", actor.mesh)]
        for point, paths in sorted(actor.props.items()):
            for path in paths:
                if self._hidden(point, path):
                    continue
                if worn := self._worn(body, path, choose):
                    parts += worn
                elif point == "root":
                    self.skipped["prop at the root without the body's skeleton"] += 1
                elif point in body.points:
                    here = body.points[point]
                    place = Place(here.bone, here.rotation, here.position)
                    if here.bone >= 0:
                        bind = (body.bind_rotation[here.bone], body.bind_position[here.bone])
                        place = Place(here.bone, *bind).then(here.rotation, here.position)
                    parts += self._hung(place, path, choose, 0)
                else:
                    self.skipped[f"no attach point {point}"] += 1
        return parts

    def _hidden(self, point: str, path: str) -> bool:
        return point in _NO_PLACE or bool(_NOT_DRAWN.search(path))

    def _worn(self, body: RawMesh, path: str, choose: Wardrobe) -> list[Part]:
        """A skinned prop on the body's own skeleton, such as a cape or a mane; else nothing."""
        actor = self._resolve(path, choose)
        if actor is None or actor.mesh is None:
            return []
        raw = self.raw(actor.mesh)
        if len(raw.bind_position) != len(body.bind_position) or not raw.bone_weights.any():
            return []
        return [self._part(actor, rebind(raw, body), role_of(path, actor.mesh), actor.mesh)]

    def _hung(self, place: Place, path: str, choose: Wardrobe, depth: int) -> list[Part]:
        """A rigid prop and the props on it."""
        actor = self._resolve(path, choose)
        if actor is None or actor.mesh is None or place.bone < 0 or depth > 4:
            self.skipped["prop without mesh or bone"] += 1
            return []
        raw = self.raw(actor.mesh)
        if len(raw.bind_position) > _RIGID_BONES:
            self.skipped["prop that moves by itself"] += 1
            return []
        positions = place.position + rotate(place.rotation, raw.positions)
        gap = np.linalg.norm(positions - place.position, axis=1).min(initial=np.inf)
        if not gap < _FAR:
            self.skipped["prop far from its bone"] += 1
            return []
        count = len(positions)
        weights = np.zeros((count, 4), np.float32)
        weights[:, 0] = 1
        mesh = Mesh(
            positions=np.asarray(positions, np.float32),
            normals=rotate(place.rotation, raw.normals),
            uvs=raw.uvs,
            faces=raw.faces,
            bone_indices=np.full((count, 4), place.bone, np.uint8),
            bone_weights=weights,
        )
        parts = []
        if actor.texture:
            parts.append(self._part(actor, mesh, role_of(path, actor.mesh), actor.mesh))
        for point, paths in sorted(actor.props.items()):
            for inner in paths:
                if self._hidden(point, inner):
                    continue
                if point == "root":
                    parts += self._hung(place, inner, choose, depth + 1)
                elif point in raw.points:
                    here = raw.points[point]
                    there = place
                    if (bone := here.bone) >= 0:
                        there = place.then(raw.bind_rotation[bone], raw.bind_position[bone])
                    there = there.then(here.rotation, here.position)
                    parts += self._hung(there, inner, choose, depth + 1)
                else:
                    self.skipped[f"no attach point {point}"] += 1
        return parts

    def _resolve(self, path: str, choose: Wardrobe) -> Actor | None:
        try:
            return self.actors.resolve(path, choose(path))
        except AssetError:
            self.skipped["prop actor missing"] += 1
            return None

    def _part(self, actor: Actor, mesh: Mesh, role: str, mesh_name: str) -> Part:
        if actor.texture is None:
            raise AssetError(f"{actor.path}: no texture")
        if actor.material not in self._alpha:
            self._alpha[actor.material] = alpha_meaning(self.actors.art, actor.material)
        meaning = self._alpha[actor.material]
        texture = self._texture(actor.texture, meaning, actor.color)
        cutout = meaning == "cutout"
        return Part(
            mesh=self._store(mesh, mesh_name),
            texture=texture,
            role=role,
            double_sided=cutout or role in ("cape", "hair", "shield"),
            cutout=cutout,
        )

    def _store(self, mesh: Mesh, name: str) -> str:
        """Keep a mesh under a readable name; equal ones share it."""
        content = hashlib.sha256()
        for array in (mesh.positions.round(4) + 0.0, mesh.uvs, mesh.faces, mesh.bone_indices):
            content.update(np.ascontiguousarray(array).tobytes())
        key = content.digest()
        if key not in self._names:
            stem = name.removesuffix(".dae").removesuffix(".pmd")
            free, count = stem, 1
            while free in self.meshes:
                count += 1
                free = f"{stem}~{count}"
            self._names[key] = free
            self.meshes[free] = mesh
        return self._names[key]

    def _texture(self, name: str, meaning: str, color: tuple[float, float, float] | None) -> str:
        key = (name, meaning, color if meaning == "object" else None)
        if key not in self._pictures:
            file = texture_file(name)
            picture = shrink(read_texture(self.actors.art.read(file), file), TEXTURE_SIDE)
            data = encode_webp(apply_alpha(picture, meaning, color))
            content = hashlib.sha256(data).digest()
            if content not in self._names:
                stem = re.sub(r"\.\w+$", "", name).replace("/", "-")
                free, count = stem, 1
                while free in self.textures:
                    count += 1
                    free = f"{stem}~{count}"
                self._names[content] = free
                self.textures[free] = data
            self._pictures[key] = self._names[content]
        return self._pictures[key]


def role_of(path: str, mesh: str) -> str:
    """Role of a prop from the folders and names of its actor and mesh."""
    if re.search("earring|necklace|feather", mesh):
        return "other"
    if mesh.startswith("props/shield/"):
        return "shield"  # with its back, boss and handgrip: whoever drops it drops all of it
    if "/heads" in path:
        return "helmet" if "/helmet" in mesh else "head"  # turbans and hoods are among the heads
    for pattern, role in (
        (r"sheath|quiver|armor/|greave", "other"),
        (r"capes/|cape_", "cape"),
        (r"helmets/props", "other"),
        (r"hair", "hair"),
        (r"helmets?/|helmet|/hat_|hele_.*hat", "helmet"),
        (r"head_", "head"),
        (r"shield", "shield"),
        (r"tools/|hammer|pick|shovel|hoe|sickle", "tool"),
        (r"weapons/|spear|sword|bow|jav|axe", "weapon"),
    ):
        if re.search(pattern, path):
            return role
    return "other"


def rebind(mesh: RawMesh, body: RawMesh) -> Mesh:
    """Move a skinned prop from the pose it was bound in to the body's bind pose."""
    turn = multiply(
        body.bind_rotation, mesh.bind_rotation * np.array([-1, -1, -1, 1], np.float32)
    )  # (J, 4)
    moved = np.zeros_like(mesh.positions)
    normals = np.zeros_like(mesh.normals)
    for slot in range(4):
        bone = mesh.bone_indices[:, slot]
        weight = mesh.bone_weights[:, slot, None]
        local = rotate(turn[bone], mesh.positions - mesh.bind_position[bone])
        moved += weight * (body.bind_position[bone] + local)
        normals += weight * rotate(turn[bone], mesh.normals)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-6)
    return Mesh(moved, normals, mesh.uvs, mesh.faces, mesh.bone_indices, mesh.bone_weights)


def apply_alpha(
    picture: NDArray[np.uint8], meaning: str, color: tuple[float, float, float] | None
) -> NDArray[np.uint8]:
    """Keep alpha where it is player colour or transparency; else bake it in and make it opaque.

    Object colour (hair) multiplies the texture where alpha is low, as the game's shader does.
    """
    if meaning in ("player", "cutout"):
        return picture
    out = picture.copy()
    if meaning == "object" and color is not None:
        alpha = picture[..., 3:].astype(np.float32) / 255
        factor = np.array(color, np.float32) * (1 - alpha) + alpha
        out[..., :3] = np.rint(picture[..., :3] * factor).astype(np.uint8)
    out[..., 3] = 255
    return out


def shrink(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Reduce so that the longer side is at most `side`; colour is kept where alpha is 0."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    bands = (Image.fromarray(picture[..., :3]), Image.fromarray(picture[..., 3]))
    color, alpha = (np.asarray(b.resize(size, Image.Resampling.BOX)) for b in bands)
    return np.dstack([color, alpha])


def encode_webp(picture: NDArray[np.uint8]) -> bytes:
    """Lossy webp that keeps colour under alpha 0."""
    out = io.BytesIO()
    opaque = bool((picture[..., 3] == 255).all())
    image = Image.fromarray(picture[..., :3] if opaque else picture)
    image.save(out, "webp", quality=WEBP_QUALITY, method=4, exact=True, alpha_quality=90)
    return out.getvalue()
