"""Draw docs/img/pairs.png: pairs of the synthetic world, which are what nano learns from.

python scripts/pairs_picture.py [OUT_PNG]
"""

from __future__ import annotations

import sys
from pathlib import Path

import dreamactor
from dreamactor.image import contact_sheet, write_png
from dreamactor.world.cast import load_cast
from dreamactor.world.pairs import PairSampler

DATA = Path(dreamactor.__file__).parent / "data"
SEED = 1
INDICES = (17, 2, 9, 4)
MOMENTS = (0, 5, 10, 15)


def main() -> None:
    """Draw one row a pair: reference, driving clip, target."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/img/pairs.png")
    out.parent.mkdir(parents=True, exist_ok=True)
    sampler = PairSampler(load_cast(DATA / "mini.castpack"), "train")
    rows = []
    for index in INDICES:
        pair = sampler.pair(SEED, index)
        pictures = [
            pair.reference,
            *(pair.driving[1 + k] for k in MOMENTS),
            *(pair.target[k] for k in MOMENTS),
        ]
        label = f"Reference, 4 frames of the driving clip, 4 of the target: {pair.caption}"
        rows.append((label, [picture[..., :3] for picture in pictures]))
    write_png(out, contact_sheet(rows, 112, text_height=15))


if __name__ == "__main__":
    main()
