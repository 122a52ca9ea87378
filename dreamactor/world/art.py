"""Where 0 A.D.'s art lies: `public.zip`, a game folder, or Debian's package as downloaded."""

from __future__ import annotations

import io
import lzma
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from dreamactor.errors import AssetError
from dreamactor.image import refusals

_KINDS = (".xml", ".pmd", ".psa", ".dds")
_FOLDERS = (
    "art/actors/",
    "art/animation/",
    "art/materials/",
    "art/meshes/",
    "art/skeletons/",
    "art/textures/skins/",
    "art/textures/terrain/types/",
    "art/variants/",
)
_INSIDE = (
    "",
    "mods/public",
    "data/mods/public",
    "binaries/data/mods/public",
    "usr/share/games/0ad/mods/public",
    "share/0ad/data/mods/public",
)
_MAX_ENTRY = 64 << 20  # bytes; the largest file of the real art that we read is 11 MB


class Art(Protocol):
    """Files of the game by their path inside `public.zip`, such as `art/actors/fauna/lion.xml`."""

    def names(self) -> list[str]:
        """Paths of all files that a cast can need, sorted."""
        ...

    def read(self, name: str) -> bytes:
        """Content of one file; raises AssetError where it is missing or damaged."""
        ...


@dataclass(frozen=True)
class ZipArt:
    """Art inside a `public.zip`."""

    archive: zipfile.ZipFile

    def names(self) -> list[str]:
        """Sorted paths."""
        return sorted(n for n in self.archive.namelist() if _wanted(n))

    def read(self, name: str) -> bytes:
        """One file, or AssetError."""
        try:
            entry = self.archive.getinfo(name)
            if entry.file_size > _MAX_ENTRY:
                raise AssetError(f"{name}: {entry.file_size} bytes, want at most {_MAX_ENTRY}")
            return self.archive.read(entry)
        except KeyError:
            raise AssetError(f"{name}: not in {self.archive.filename}") from None
        except (zipfile.BadZipFile, OSError, EOFError) as fault:
            raise AssetError(f"{name} in {self.archive.filename}: {fault}") from fault


@dataclass(frozen=True)
class FolderArt:
    """Art unpacked in a folder that has `art/` in it."""

    root: Path

    def names(self) -> list[str]:
        """Sorted paths."""
        files = (p.relative_to(self.root).as_posix() for p in self.root.glob("art/**/*"))
        return sorted(n for n in files if _wanted(n))

    def read(self, name: str) -> bytes:
        """One file, or AssetError."""
        if ".." in PurePosixPath(name).parts:
            raise AssetError(f"{name}: want a path inside the art folder")
        try:
            return (self.root / name).read_bytes()
        except OSError as fault:
            raise AssetError(f"{name}: not in {self.root} ({fault.strerror})") from fault


@dataclass(frozen=True)
class MemoryArt:
    """Art already read, path -> bytes."""

    files: dict[str, bytes]

    def names(self) -> list[str]:
        """Sorted paths."""
        return sorted(self.files)

    def read(self, name: str) -> bytes:
        """One file, or AssetError."""
        if name not in self.files:
            raise AssetError(f"{name}: not in the art that was read")
        return self.files[name]


def _wanted(name: str) -> bool:
    return name.startswith(_FOLDERS) and name.endswith(_KINDS)


def open_art(source: str | Path) -> Art:
    """Open 0 A.D. art wherever a user is likely to have it.

    Args:
        source: `public.zip`, a folder that contains it or its unpacked `art/` at any of the
            usual places, or Debian's `0ad-data_*.deb` (read as a stream, about a minute).

    Raises:
        AssetError: Nothing is there, or it is not 0 A.D. art.
        MediaError: It cannot be read, or what it lies in cannot be entered.
    """
    path = Path(source)
    hint = "want public.zip, a 0 A.D. folder or 0ad-data_*.deb (apt-get download 0ad-data)"
    with refusals(path, "reached"):
        if not path.exists():
            raise AssetError(f"{path}: does not exist; {hint}")
        if path.is_dir():
            for folder in (path / inside for inside in _INSIDE):
                if (folder / "public.zip").is_file():
                    return open_art(folder / "public.zip")
                if (folder / "art/actors").is_dir():
                    return FolderArt(folder)
            raise AssetError(f"{path}: no public.zip and no art/actors in it; {hint}")
        with path.open("rb") as file:
            magic = file.read(8)
    if magic == b"!<arch>\n":
        return MemoryArt(dict(_stream_deb(path)))
    try:
        art = ZipArt(zipfile.ZipFile(path))
    except (zipfile.BadZipFile, OSError, EOFError) as fault:
        raise AssetError(f"{path}: {fault}; {hint}") from fault
    if not any(n.startswith("art/actors/") for n in art.archive.namelist()):
        raise AssetError(f"{path}: a zip file without art/actors/; {hint}")
    return art


def _stream_deb(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the wanted files of the `public.zip` inside a Debian package, front to back."""
    try:
        with path.open("rb") as file:
            file.seek(8)
            while header := file.read(60):
                name = header[:16].decode("ascii", "replace").strip().rstrip("/")
                size = int(header[48:58])
                if name == "data.tar.xz":
                    with (
                        lzma.open(file) as unpacked,
                        tarfile.open(fileobj=unpacked, mode="r|") as tar,
                    ):
                        for member in tar:
                            if member.name.endswith("mods/public/public.zip"):
                                inner = tar.extractfile(member)
                                assert inner is not None
                                yield from _stream_zip(inner)
                                return
                    break
                file.seek(size + size % 2, io.SEEK_CUR)
    except (OSError, EOFError, ValueError, lzma.LZMAError, tarfile.TarError) as fault:
        raise AssetError(f"{path}: damaged package ({fault}); download it again") from fault
    raise AssetError(f"{path}: no mods/public/public.zip in it; want 0ad-data_*.deb")


def _stream_zip(file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """Walk a zip file by its local headers, which needs no seeking; entries must be stored."""
    while (header := file.read(30))[:4] == b"PK\x03\x04":
        _, flags, method, _, _, _, size, _, name_size, extra_size = struct.unpack(
            "<HHHHHIIIHH", header[4:]
        )
        name = file.read(name_size).decode("utf-8", "replace")
        file.read(extra_size)
        if method != 0 or flags & 8:
            raise AssetError(f"{name}: compressed in public.zip; unpack the package and give that")
        if _wanted(name) and size <= _MAX_ENTRY:
            yield name, file.read(size)
        else:
            while size > 0 and (piece := file.read(min(size, 1 << 20))):
                size -= len(piece)
