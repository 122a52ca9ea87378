"""`bench speed` with several processes: rows, resuming, the table over one GPU, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from dreamactor.backbones.incontext import Context
from dreamactor.backbones.parallel import Team
from dreamactor.bench import speed
from dreamactor.bench.speed import bench_speed
from dreamactor.bench.speed_config import SpeedConfig
from dreamactor.bench.speed_report import Row, Session, report, speed_goals
from dreamactor.config import from_words
from dreamactor.errors import ConfigError, DreamActorError

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.usefixtures("one_thread")

T = TypeVar("T")
WORDS = ["shape=tiny", "sizes=32x32x5", "device=cpu", "repeats=1"]
IDENTITY = {
    "shape": "wan-14b", "layers": 0, "guidance": 1, "repeats": 3, "warmup": 1, "compile": False,
    "segments": "none", "seed": 0, "dtype": "bfloat16", "hardware": "1 GPU",
    "versions": {"torch": "2"},
}  # fmt: skip


@dataclass(frozen=True)
class Alike(Team):
    """Others that find what this process finds."""

    def meet(self) -> None:
        pass

    def everyone(self, mine: T) -> list[T]:
        return [mine] * self.count


def lines_of(out: Path) -> list[dict[str, dict[str, object]]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_rows_of_two_processes_beside_those_of_one(tmp_path: Path) -> None:
    """exact: torchrun measures what two processes lack, and only the first one writes."""
    words = [*WORDS, "modes=one-way,one-way-aligned"]
    bench_speed(tmp_path, from_words(SpeedConfig, words))
    known = next(line["row"] for line in lines_of(tmp_path) if "row" in line)
    done = known | {"parallel": 2, "cache_held": 7}
    with (tmp_path / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"row": done}) + "\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*torchrun, "--standalone", "-m", "dreamactor.cli", "bench", "speed"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    found = subprocess.run(
        [*command, "--out", str(tmp_path), *words],
        env=environment, capture_output=True, timeout=180, text=True,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    before, (beginning, added) = lines_of(tmp_path)[:-2], lines_of(tmp_path)[-2:]
    assert before[-1] == {"row": done}
    assert "session" in beginning
    row = added["row"]
    one = next(r["row"] for r in before if r.get("row", {}).get("way") == row["way"])
    assert (row["way"], row["parallel"], row["session"]) == ("one-way-aligned", 2, 1)
    assert row["cache_foreseen"] == row["cache_held"] == one["cache_held"] // 2
    text = (tmp_path / "report.md").read_text()
    assert "Made by `torchrun --nproc-per-node 2 -m dreamactor.cli bench speed --out" in text
    assert "| 32x32x5 | one-way-aligned, 2 processes | 0." in text
    table = text.partition("### Over one GPU")[2].partition("###")[0]
    assert "| 32x32x5 | one-way | 2 | 1.00 [1.00, 1.00] | 1.00" in table
    assert "| 32x32x5 | one-way-aligned | 2 | " in table


def test_memory_that_runs_out_in_one_process_ends_it_with_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """exact: whichever process it is writes the row; the same command goes on after it."""

    def of(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. GPU 1 has 1")

    config = from_words(SpeedConfig, [*WORDS, "modes=one-way,one-way-aligned:none"])
    (tmp_path / "results.jsonl").write_text(json.dumps({"settings": config.identity()}) + "\n")
    monkeypatch.setattr(Context, "of", of)
    with pytest.raises(DreamActorError, match=r"process 1: CUDA out of memory.* same command"):
        speed._bench(tmp_path, config, Alike(1, 2))
    (row,) = [line["row"] for line in lines_of(tmp_path) if "row" in line]
    assert (row["way"], row["parallel"]) == ("one-way", 2)
    assert (
        "| 32x32x5 | one-way, 2 processes | out of memory |" in (tmp_path / "report.md").read_text()
    )
    begun: list[str] = []

    def measure(_: object, size: object, way: speed.Way, session: int) -> Row:
        begun.append(way.name)
        return Row(str(size), way.name, session, [1.0], parallel=2)

    monkeypatch.setattr(speed._Stand, "measure", measure)
    speed._bench(tmp_path, config, Alike(0, 2))
    assert begun == ["one-way-aligned:none"]


def test_exact_the_slowest_process_counts() -> None:
    rows = [
        Row("s", "w", 0, [1.0, 4.0], [2.0], peak=5, cache_held=3, parallel=2),
        Row("s", "w", 0, [3.0, 2.0], [1.0], peak=6, cache_held=2, parallel=2),
    ]
    assert speed._slowest(rows) == replace(
        rows[0], seconds=[3.0, 4.0], once=[2.0], peak=6, cache_held=3
    )


def test_exact_verdicts_over_one_gpu() -> None:
    """exact: 40 steps and what is done once, of the way that is judged, not of one compiled."""
    size, way = "832x480x81", "one-way-aligned"
    rows = [
        Row(size, way, 0, [4.0, 4.2, 3.9], [5.0]),
        Row(size, f"{way}:compiled", 0, [3.0], [5.0]),
        Row(size, way, 1, [2.0, 2.1, 1.9], [3.0], cache_held=3 << 30, parallel=2),
        Row(size, way, 2, [1.3], [1.6], parallel=4),
        Row(size, f"{way}:compiled", 2, [0.8], [1.0], parallel=4),
        Row(size, "plain", 2, [1.0], parallel=4),
    ]
    _, two, four = speed_goals(rows, IDENTITY, 40)
    assert two.measured.mean == pytest.approx(165 / 83)
    assert two.measured.low == pytest.approx(161 / 87)
    assert two.measured.high == pytest.approx(173 / 79)
    assert two.verdict == "pass by 0.19"
    assert four.measured.mean == pytest.approx(165 / 53.6)
    assert four.verdict == "miss by 0.22"
    assert [goal.verdict for goal in speed_goals(rows[1:3], IDENTITY, 40)] == ["not measured"] * 2
    text = report([Session(8e14, {})] * 3, rows, [(size, way, 8)], "command", IDENTITY, 40)
    assert f"| {size} | {way} | 2 | 2.00 [1.86, 2.21] | 1.67 [1.67, 1.67] | 1.99 [1.85" in text
    assert f"| {size} | plain | 4 | - | - | - | - |" in text
    assert f"Not begun in time: {way}, 8 processes at {size}." in text
    assert "### Over one GPU" not in report([Session(1, {})], rows[:2], [], "", IDENTITY, 40)


@pytest.mark.parametrize(
    ("word", "count", "message"),
    [
        ("modes=wan-animate", 2, "modes=wan-animate: not spread over .* want plain, full, one-way"),
        ("modes=wan-animate-2", 2, "not spread over processes here; with 2 of them want"),
        ("modes=full", 2, "modes=full device=cpu: diffusers spreads it over GPUs alone"),
        ("modes=one-way:states", 2, "states with 2 processes: .* nearest is keys"),
        ("modes=one-way", 3, "3 processes: 2 heads are not shared out evenly; nearest is 2"),
    ],
)
def test_refuses_what_so_many_processes_cannot_do(word: str, count: int, message: str) -> None:
    config = from_words(SpeedConfig, [*WORDS, word])
    speed._check_spread(config, Team())
    with pytest.raises(ConfigError, match=message):
        speed._check_spread(config, Team(0, count))


def test_rows_of_before_are_of_one_process() -> None:
    """unchanged by: files that say no number of processes."""
    stored = asdict(Row("s", "w", 0))
    del stored["parallel"]
    assert Row(**stored).key == ("s", "w", 1)
