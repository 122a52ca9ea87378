"""Collect the still pictures that nano-vae's training mixes in.

    python scripts/stills.py PUBLIC_ZIP OUT_FOLDER

Photographs come from packages on PyPI (download them with `pip download --no-deps gradio
scikit-image scikit-learn ultralytics` into ./wheels first), paintings and textures from 0 A.D.
Pictures named in HELD_OUT are left for the tables in docs/results.md.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

from PIL import Image

HELD_OUT = {"astronaut", "chelsea", "camera", "logo", "page", "text", "color", "hf-logo_transpng"}
FOLDERS = (
    "art/textures/ui/pregame/backgrounds/",
    "art/textures/ui/loading/tips/",
    "art/textures/ui/session/portraits/units/",
    "art/textures/terrain/types/temperate/",
    "art/textures/terrain/types/india/",
)
LIMIT = {"art/textures/ui/session/portraits/units/": 150}


def keep(data: bytes, name: str, out: Path, least: int) -> bool:
    """Write one picture as a JPEG of at most 512 pixels on its short side."""
    try:
        picture = Image.open(io.BytesIO(data)).convert("RGB")
    except (OSError, ValueError):
        return False
    short = min(picture.size)
    if short < least:
        return False
    if short > 512:
        scale = 512 / short
        picture = picture.resize([round(side * scale) for side in picture.size], Image.LANCZOS)
    picture.save(out / f"{name}.jpg", quality=80)
    return True


def main() -> None:
    """Collect."""
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    count = 0
    for wheel in sorted(Path("wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                path = Path(name)
                if path.suffix.lower() in (".jpg", ".jpeg", ".png") and path.stem not in HELD_OUT:
                    count += keep(archive.read(name), f"photo_{path.stem}", out, 256)
    with zipfile.ZipFile(source) as archive:
        for folder in FOLDERS:
            names = [n for n in sorted(archive.namelist()) if n.startswith(folder)]
            names = [n for n in names if not any(w in n for w in ("_norm", "_spec", "_n.", "_s."))]
            names = [n for n in names if Path(n).suffix in (".png", ".dds", ".jpg")]
            for name in names[: LIMIT.get(folder, 40)]:
                label = name.removeprefix("art/textures/").replace("/", "_").rsplit(".", 1)[0]
                count += keep(archive.read(name), label, out, 200)
    print(f"{count} pictures in {out}")


if __name__ == "__main__":
    main()
