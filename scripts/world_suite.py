"""Held-out pairs of the world as a suite with truths, to calibrate judges on (docs/judge.md).

python scripts/world_suite.py FULL_CASTPACK OUT [PAIRS] [FRAMES]
"""

import sys
from pathlib import Path

import numpy as np

from dreamactor.bench.manifest import Media, Suite, SuiteCase, Truth, save_suite, write_arrays
from dreamactor.image import write_png
from dreamactor.provenance import sha256
from dreamactor.video import write_clip
from dreamactor.world.cast import load_cast
from dreamactor.world.pairs import FPS, PairSampler

LICENCE = "CC-BY-SA-3.0"


def main(pack: Path, out: Path, count: int = 12, frames: int = 36) -> None:
    """Write the suite; its flows are drawn, so it takes some seconds a pair on a CPU."""
    cast = load_cast(pack)
    sampler = PairSampler(cast, "test", frames=frames)
    (out / "media").mkdir(parents=True)
    media: dict[str, Media] = {}
    cases = []
    for index in range(count):
        pair = sampler.pair(0, index, truth=True)
        rgb = [
            np.ascontiguousarray(x[..., :3]) for x in (pair.reference, pair.driving, pair.target)
        ]
        stem = out / "media" / f"{index:02d}"
        files = {"reference": f"{stem}.png", "driving": f"{stem}d.mp4", "truth": f"{stem}t.mp4"}
        write_png(files["reference"], rgb[0])
        write_clip(files["driving"], rgb[1][1:], FPS)
        write_clip(files["truth"], rgb[2], FPS)
        assert pair.flow is not None
        arrays = Path(f"{stem}.npz")
        mask = (pair.target[..., 3] > 0).astype(np.uint8)
        write_arrays(arrays, Truth(mask, {}, pair.flow))
        about = {"arrays": f"media/{arrays.name}", "arrays_sha256": sha256(arrays)}
        subject = pair.spec.domain
        for kind, file in files.items():
            name = f"{kind}-{index}"
            more = about if kind == "truth" else {}
            digest = sha256(Path(file))
            place = f"media/{Path(file).name}"
            media[name] = Media(
                name, kind, place, digest, LICENCE, subject, "Wildfire Games", **more
            )
        names = (f"{kind}-{index}" for kind in files)
        scenario = "human2human" if subject == "human" else "animal2animal"
        cases.append(SuiteCase(f"{scenario}/{index:02d}", scenario, *names))
        print(f"{index + 1} of {count}: {pair.caption}")
    about = {"cast": cast.digest, "split": "test", "seed": 0, "frames": frames}
    save_suite(Suite(out, "world-pairs", "1", LICENCE, media, cases, about))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
