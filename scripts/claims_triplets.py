"""Four lists of training samples from one bootstrapped data set, for scripts/claims.sh.

    python scripts/claims_triplets.py DATA WORKERS SHARE

reversed.jsonl has the SHARE of the items that the measured gate finds best, all.jsonl all of them:
the synthetic clip drives towards the real one. checked.jsonl has as many as reversed.jsonl, chosen
as a person would: of half as many again that the gate finds best those nearest to the world's truth
(PSNR in the subject's boxes). forward.jsonl has the gate's best ones the wrong way round,
to compare: the real clip drives towards the synthetic one. `dreamactor` itself makes no such list.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from dreamactor.bench.measured import Measured
from dreamactor.bench.metrics import psnr
from dreamactor.bootstrap.gate import gate_best
from dreamactor.bootstrap.manifest import DataSet
from dreamactor.bootstrap.review import accept_unseen
from dreamactor.runs import write_text
from dreamactor.video import iter_frames


def main() -> None:
    """Write the lists, and say how many lines each has."""
    data, workers, share = DataSet(Path(sys.argv[1])), int(sys.argv[2]), float(sys.argv[3])
    judge, items = Measured(), len(data.items())
    best = max(1, round(share * items))
    for name, least in (("reversed", best), ("checked", min(best * 3 // 2, items)), ("all", items)):
        _, threshold = gate_best(data, judge, least=least, workers=workers)
        accept_unseen(data, judge.name)
        path, count = data.write_triplets(judge.name, 1)
        text = path.read_text()
        if name == "checked":
            text, count = nearest(data, judge.name, text.splitlines(), best), min(best, count)
        write_text(data.root / f"{name}.jsonl", text)
        print(f"{name}: {count} of {items} items, average over {threshold:.2f}")
    lines = (data.root / "reversed.jsonl").read_text().splitlines()
    turned = [json.dumps(forward(json.loads(line))) for line in lines]
    write_text(data.root / "forward.jsonl", "\n".join(turned) + "\n")


def nearest(data: DataSet, judge: str, lines: list[str], count: int) -> str:
    """The `count` of the lines whose synthetic clips are nearest to their truths."""
    found = []
    for line, triplet in zip(lines, data.triplets(judge, 1), strict=True):
        notes = data.facts(triplet.accepted.synthesis.item)["notes"]
        made, truth = (
            np.stack([frame for _, frame in iter_frames(path)])
            for path in (triplet.driving.path, data.root / "inputs" / notes["truth"])
        )
        found.append((-psnr(made, truth, np.array(notes["boxes"])), len(found), line))
    return "".join(f"{line}\n" for _, _, line in sorted(found)[:count])


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
