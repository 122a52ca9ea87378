"""The ratios that `--feature-cache magcache` goes by: of the size of what nano's blocks add.

    python scripts/magnitudes.py FULL_CASTPACK [PAIRS]

They are means over pairs of the validation split, sampled in 32 steps, and are written beside the
weights that ship, whose hash stands with them.
"""

import json
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dreamactor.backbones.feature_cache import measure_magnitudes
from dreamactor.backbones.nano import DATA, load_nano
from dreamactor.bench.cases import as_case
from dreamactor.bench.systems import Animation
from dreamactor.runs import write_text
from dreamactor.world.cast import load_cast
from dreamactor.world.pairs import PairSampler

STEPS = 32


def main() -> None:
    """Measure and write them."""
    cast, count = load_cast(Path(sys.argv[1])), int(sys.argv[2]) if len(sys.argv) > 2 else 8
    nano = load_nano(DATA)
    system, sampler = Animation(nano, STEPS), PairSampler(cast, "validation")
    cases = [as_case(sampler.pair(0, k, truth=True), f"validation/{k}", k) for k in range(count)]
    rows = [
        measure_magnitudes(nano, STEPS, lambda case=case: system.animate([case]))
        for case in tqdm(cases)
    ]
    print(f"spread over pairs: at most {np.std(rows, axis=0).max():.4f}")
    stated = {
        "transformer": nano.weights["transformer.safetensors"],
        "pairs": count,
        "ratios": [round(float(ratio), 5) for ratio in np.mean(rows, axis=0)],
    }
    write_text(DATA / "magnitudes.json", json.dumps(stated, indent=1) + "\n")
    print(stated["ratios"])


if __name__ == "__main__":
    main()
