"""Three lists of training samples from one bootstrapped data set, for scripts/claims.sh.

    python scripts/claims_triplets.py DATA WORKERS SHARE

reversed.jsonl has the SHARE of the items that the measured gate finds best, all.jsonl all of them:
the synthetic clip drives towards the real one. forward.jsonl has the best ones the wrong way round,
to compare: the real clip drives towards the synthetic one. `dreamactor` itself makes no such list.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dreamactor.bench.measured import Measured
from dreamactor.bootstrap.gate import gate_best
from dreamactor.bootstrap.manifest import DataSet
from dreamactor.bootstrap.review import accept_unseen
from dreamactor.runs import write_text


def main() -> None:
    """Write the lists, and say how many lines each has."""
    data, workers, share = DataSet(Path(sys.argv[1])), int(sys.argv[2]), float(sys.argv[3])
    judge, items = Measured(), len(data.items())
    best = max(1, round(share * items))
    for name, least in (("reversed", best), ("all", items)):
        _, threshold = gate_best(data, judge, least=least, workers=workers)
        accept_unseen(data, judge.name)
        path, count = data.write_triplets(judge.name, 1)
        write_text(data.root / f"{name}.jsonl", path.read_text())
        print(f"{name}: {count} of {items} items, average over {threshold:.2f}")
    lines = (data.root / "reversed.jsonl").read_text().splitlines()
    turned = [json.dumps(forward(json.loads(line))) for line in lines]
    write_text(data.root / "forward.jsonl", "\n".join(turned) + "\n")


def forward(line: dict[str, object]) -> dict[str, object]:
    """A sample with its clips exchanged; the synthetic clip's first frame is the reference."""
    driving, target = line["driving"], line["target"]
    return {
        **line,
        "driving": target,
        "target": driving,
        "reference": {"clip": driving, "frame": 0},
    }


if __name__ == "__main__":
    main()
