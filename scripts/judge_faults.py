"""How well the faults behind the measured judge's scores grade damage, before scores end at 1.

    python scripts/judge_faults.py FOLDER       FOLDER is of `bench calibrate judge=measured`

A score is cut off at 1; the fault goes on. Of each kind of damage this prints the order among the
damaged clips (as `bench calibrate` does of the scores) by the worst fault of its dimension.
"""

import json
import sys
from pathlib import Path

from dreamactor.bench.calibration import KINDS, LEVELS
from dreamactor.bench.calibration_report import find_verdicts
from dreamactor.bench.judging import Answer, read_answers
from dreamactor.bench.measured import FAULTS_OF, load_scales
from dreamactor.bench.stats import format_interval, markdown_table


def uncut(answer: Answer, dimension: str) -> Answer:
    """The answer with a score that may fall below 1."""
    scales, faults = load_scales(), json.loads(answer.answers[0])
    worst = max(
        (faults[name] - scales[name].good) / (scales[name].bad - scales[name].good)
        for name in FAULTS_OF[dimension]
    )
    return Answer(answer.case, answer.system, dimension, answer.repeat, [], -worst)


def main() -> None:
    """A table on stdout."""
    said = read_answers(Path(sys.argv[1]) / "answers.jsonl")
    owners = {k.system(n): (k.name, k.dimension, n) for k in KINDS for n in range(1, LEVELS + 1)}
    raw = [uncut(a, a.dimension) for a in said]
    by_score, by_fault = (find_verdicts(x, owners, "clean", list(FAULTS_OF)) for x in (said, raw))
    print(
        markdown_table(
            ["damage", "order by scores", "order by faults"],
            [
                [kind, format_interval(found), format_interval(by_fault[d].order[kind])]
                for d, verdict in by_score.items()
                for kind, found in verdict.order.items()
            ],
        ),
        end="",
    )


if __name__ == "__main__":
    main()
