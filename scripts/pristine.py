"""Fit dreamactor/data/pristine.json: what faultless frames of the world look like to `naturalness`.

    python scripts/pristine.py dreamactor/data/mini.castpack dreamactor/data/pristine.json

Frames are of targets and drivers of the training split, so that held-out clips are new to it.
"""

import json
import sys
from pathlib import Path

import numpy as np

from dreamactor.bench.metrics import imaging
from dreamactor.runs import write_text
from dreamactor.world.cast import load_cast
from dreamactor.world.pairs import PairSampler

PAIRS, SEED, FRAMES = 24, 0, [0, 5, 10, 15]


def main(cast: Path, out: Path) -> None:
    """Draw, fit, write."""
    sampler = PairSampler(load_cast(cast), "train", 256)
    frames = []
    for index in range(PAIRS):
        pair = sampler.pair(SEED, index)
        frames += [pair.target[FRAMES, ..., :3], pair.driving[FRAMES, ..., :3]]
    found = imaging.fit(np.concatenate(frames))
    about = {
        "made by": "scripts/pristine.py",
        "cast sha256": sampler.cast.digest,
        "pairs": PAIRS,
        "seed": SEED,
        "frames": len(np.concatenate(frames)),
    }
    numbers = {"mean": found.mean.round(6).tolist(), "covariance": found.covariance.tolist()}
    rows = [[float(f"{v:.6g}") for v in row] for row in numbers["covariance"]]
    write_text(out, json.dumps({**about, **numbers, "covariance": rows}, indent=None) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
