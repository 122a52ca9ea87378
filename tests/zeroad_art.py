"""Tiny 0 A.D. art written by the tests: one shark with a hat, one animation, one texture."""

from __future__ import annotations

import io
import lzma
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

BONES = 9  # as many as the shark's skeleton


def pmd(
    positions: np.ndarray,
    bind: np.ndarray | None = None,
    points: tuple[tuple[str, tuple[float, ...], int], ...] = (),
    version: int = 4,
) -> bytes:
    """A `.pmd` file; vertex i hangs on bone i modulo the number of bones."""
    bind = np.zeros((0, 7)) if bind is None else bind
    out = struct.pack("<I", len(positions)) + (struct.pack("<I", 1) if version >= 4 else b"")
    for i, position in enumerate(positions):
        bones = (i % len(bind), 255, 255, 255) if len(bind) else (255,) * 4
        out += struct.pack("<3f3f2f4B4f", *position, 0, 0, -1, 0.25, 0.75, *bones, 1, 0, 0, 0)
    faces = [(i, i + 1, i + 2) for i in range(len(positions) - 2)]
    out += struct.pack("<I", len(faces)) + b"".join(struct.pack("<3H", *f) for f in faces)
    out += struct.pack("<I", len(bind)) + bind.astype("<f4").tobytes()
    out += struct.pack("<I", len(points))
    for name, place, bone in points:
        out += struct.pack("<I", len(name)) + name.encode() + struct.pack("<7fB", *place, bone)
    return b"PSMD" + struct.pack("<II", version, len(out)) + out


def psa(keys: np.ndarray, milliseconds: float = 1000 / 30) -> bytes:
    """A `.psa` file of keys (T, J, 7)."""
    out = struct.pack("<I", 4) + b"clip" + struct.pack("<fII", milliseconds, *keys.shape[1::-1])
    out += keys.astype("<f4").tobytes()
    return b"PSSA" + struct.pack("<II", 1, len(out)) + out


def dds(color: tuple[int, int, int, int], side: int = 8) -> bytes:
    """A plain `.dds` texture."""
    out = io.BytesIO()
    Image.new("RGBA", (side, side), color).save(out, "dds")
    return out.getvalue()


def bind_pose() -> np.ndarray:
    """(J, 7) bones in a row; in the game's frame the head is at -z."""
    bind = np.zeros((BONES, 7))
    bind[:, 1] = 1.0
    bind[:, 2] = np.linspace(-2, 2, BONES)
    bind[:, 6] = 1.0
    return bind


def files() -> dict[str, bytes]:
    """Path inside public.zip -> content."""
    bind = bind_pose()
    positions = np.random.default_rng(0).normal(size=(40, 3)) * 0.3 + [0, 1, 0]
    keys = np.repeat(bind[None], 30, axis=0)
    keys[:, :, 0] += 0.3 * np.sin(np.linspace(0, 2 * np.pi, 30))[:, None]
    skeleton = (
        '<skeletons><standard_skeleton id="s"><bone name="Head"/><bone name="Front">'
        '<bone name="Middle"><bone name="Back"><bone name="Tail"><bone name="End"/></bone></bone>'
        '</bone><bone name="TopFin"/><bone name="RightFin"/><bone name="LeftFin"/></bone>'
        "</standard_skeleton></skeletons>"
    )
    actor = """<actor version="1"><group><variant><mesh>skeletal/shark.dae</mesh><props>
        <prop actor="props/hat.xml" attachpoint="top"/><prop actor="props/hat.xml"
        attachpoint="ammo"/></props></variant></group><group>
        <variant name="a" frequency="1" file="grey.xml"/>
        <variant name="b" frequency="1"><textures>
        <texture file="blue.png" name="baseTex"/></textures></variant></group>
        <group><variant name="idle" frequency="1"/><variant name="carry">
        <props><prop attachpoint="top"/></props></variant></group>
        <material>player_trans.xml</material></actor>"""
    grey = '<variant><textures><texture file="grey.png" name="baseTex"/></textures></variant>'
    hat = """<actor version="1"><group><variant><mesh>props/hat.dae</mesh>
        <textures><texture file="grey.png" name="baseTex"/></textures></variant></group></actor>"""
    material = '<material><define name="USE_PLAYERCOLOR" value="1"/></material>'
    quarter = (0, 0.5, 0, 0, np.sqrt(0.5), 0, np.sqrt(0.5))  # half up, turned about y
    return {
        "art/actors/fauna/shark.xml": actor.encode(),
        "art/actors/props/hat.xml": hat.encode(),
        "art/variants/grey.xml": grey.encode(),
        "art/skeletons/shark.xml": skeleton.encode(),
        "art/materials/player_trans.xml": material.encode(),
        "art/meshes/skeletal/shark.dae.cached.pmd": pmd(positions, bind, (("top", quarter, 2),)),
        "art/meshes/props/hat.dae.cached.pmd": pmd(np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])),
        "art/animation/other/shark_run.dae.cached.psa": psa(keys),
        "art/animation/other/shark_dead.dae.cached.psa": psa(keys[:1].repeat(30, axis=0)),
        "art/textures/skins/grey.png.cached.dds": dds((90, 100, 110, 0)),
        "art/textures/skins/blue.png.cached.dds": dds((10, 20, 200, 255)),
    }


def write_folder(root: Path) -> Path:
    """The art, unpacked."""
    for name, content in files().items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def zip_bytes() -> bytes:
    """The art as `public.zip`."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("readme.txt", "not art")
        for name, content in files().items():
            archive.writestr(name, content)
    return out.getvalue()


def deb_bytes() -> bytes:
    """The art as Debian packs it: ar, in it data.tar.xz, in it public.zip."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        inner = zip_bytes()
        entry = tarfile.TarInfo("./usr/share/games/0ad/mods/public/public.zip")
        entry.size = len(inner)
        archive.addfile(entry, io.BytesIO(inner))
    out = b"!<arch>\n"
    for name, content in (
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", b"odd"),
        ("data.tar.xz", lzma.compress(tar.getvalue())),
    ):
        head = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n"
        out += head.encode() + content + b"\n" * (len(content) % 2)
    return out
