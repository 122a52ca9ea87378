"""Collect the still pictures that nano-vae's training mixes in.

    python scripts/stills.py PUBLIC_ZIP OUT FOLDER...

Paintings and ground textures come from 0 A.D. (PUBLIC_ZIP), photographs from the FOLDERs, where
scripts/carry.sh has unpacked Debian's mate-backgrounds and plasma-workspace-wallpapers and the
pictures of scikit-image and scikit-learn, all freely licensed. Pictures named in HELD_OUT are
left for the tables in docs/results.md.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

from PIL import Image

HELD_OUT = {"astronaut", "chelsea", "camera", "logo", "page", "text", "color", "screenshot"}
FOLDERS = {
    "art/textures/ui/pregame/backgrounds/": 40,
    "art/textures/ui/loading/tips/": 40,
    "art/textures/ui/session/portraits/units/": 150,
    "art/textures/terrain/types/temperate/": 40,
    "art/textures/terrain/types/india/": 40,
}
"""Folder of the game -> at most so many pictures."""
SIDE = 512
"""Pixels of the short side at most."""
LARGE = 1400
"""A picture whose short side is above this also gives its middle at twice the scale."""


def keep(data: bytes, name: str, out: Path, least: int) -> int:
    """Write a picture as JPEG, and a closer crop if it is large; returns how many."""
    try:
        picture = Image.open(io.BytesIO(data)).convert("RGB")
    except (OSError, ValueError):
        return 0
    short = min(picture.size)
    if short < least:
        return 0
    views = [picture]
    if short > LARGE:
        wide, high = picture.size
        views.append(picture.crop((wide // 4, high // 4, 3 * wide // 4, 3 * high // 4)))
    for number, view in enumerate(views):
        scale = min(1.0, SIDE / min(view.size))
        small = view.resize([round(side * scale) for side in view.size], Image.Resampling.LANCZOS)
        small.save(out / f"{name}_{number}.jpg", quality=75)
    return len(views)


def main() -> None:
    """Collect."""
    source, out, folders = Path(sys.argv[1]), Path(sys.argv[2]), map(Path, sys.argv[3:])
    out.mkdir(parents=True, exist_ok=True)
    count = 0
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.parent.name == "images" and path != max(
                path.parent.iterdir(), key=lambda other: other.stat().st_size
            ):
                continue  # wallpapers hold one picture in many sizes
            if path.suffix.lower() in (".jpg", ".jpeg", ".png") and path.stem not in HELD_OUT:
                label = "_".join(path.relative_to(folder).with_suffix("").parts[-4:])
                count += keep(path.read_bytes(), f"photo_{label}", out, 256)
    with zipfile.ZipFile(source) as archive:
        for start, limit in FOLDERS.items():
            names = [
                name
                for name in sorted(archive.namelist())
                if name.startswith(start)
                and Path(name).suffix in (".png", ".dds", ".jpg")
                and not any(word in name for word in ("_norm", "_spec", "_n.", "_s."))
            ]
            for name in names[:limit]:
                label = name.removeprefix("art/textures/").replace("/", "_").rsplit(".", 1)[0]
                count += keep(archive.read(name), label, out, 200)
    print(f"{count} pictures in {out}")


if __name__ == "__main__":
    main()
