"""Draw docs/img/keypoints.jpg: joints that `keypoints` finds, and where it fails, beside the truth.

python scripts/keypoints_picture.py CAST [OUT_JPG]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from dreamactor.backbones.load import load_estimator
from dreamactor.bench.poses import clip_of, score
from dreamactor.conditioning.skeleton import draw
from dreamactor.image import atomic, contact_sheet
from dreamactor.world.cast import load_cast
from dreamactor.world.pairs import FPS, PairSampler

ROWS = {
    "Found": (3, 40, 73, 8),
    "In between": (28, 78, 25, 43),
    "Not found": (33, 12, 59, 63),
}
"""Held-out clips of seed 0, as `bench pose` numbers them: chosen, by their PCK."""


def main() -> None:
    """Draw a row of clips a word: the middle frame's truth, then what was found."""
    out = Path(sys.argv[2] if len(sys.argv) > 2 else "docs/img/keypoints.jpg")
    sampler, estimator = (
        PairSampler(load_cast(Path(sys.argv[1])), "test"),
        load_estimator("keypoints"),
    )
    rows = []
    for word, indices in ROWS.items():
        pictures, shares = [], []
        for index in indices:
            frames, truth, size = clip_of(sampler.pair(0, index, truth=True))
            found, middle = estimator(frames, FPS), len(frames) // 2
            both = (draw(track, over=frames)[middle] for track in (truth, found))
            pictures.append(np.concatenate(list(both), axis=1))
            shares.append(f"{score(found, truth, size)['pck10']:.2f}")
        label = (
            f"{word}: truth (joints that can be seen) and keypoints; PCK@0.1 {', '.join(shares)}"
        )
        rows.append((label, pictures))
    with atomic(out) as hidden:
        Image.fromarray(contact_sheet(rows, 176, 15)).save(hidden, "JPEG", quality=85)


if __name__ == "__main__":
    main()
