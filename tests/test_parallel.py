"""Several processes that sample one clip together, on the CPU: equal to one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamactor.backbones.catalogue import Keeping
from dreamactor.backbones.incontext import predicted_bytes, set_mode, set_parallel
from dreamactor.backbones.parallel import Spread, Team, together
from dreamactor.backbones.shapes import NETWORKS, build
from dreamactor.errors import ConfigError

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What four processes found, each in its turn."""
    path = tmp_path_factory.mktemp("parallel") / "found.json"
    script = Path(__file__).parent / "parallel_run.py"
    command = [sys.executable, str(script), str(path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, timeout=180, text=True)
    assert done.returncode == 0, done.stderr
    everyone: list[dict[str, Any]] = json.loads(path.read_text())
    return everyone


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("mode", ["one-way", "one-way-aligned"])
def test_a_team_predicts_what_one_process_does(
    found: list[dict[str, Any]], mode: str, count: int
) -> None:
    """same: two clips of tokens that are not shared out evenly; computed anew, kept, in 8 bits."""
    for mine in found:
        rows = [r for r in mine["one-way"] if (r["mode"], r["team"]) == (mode, count)]
        assert [row["dtype"] for row in rows] == [None, "auto", "int8"]
        assert max(row["apart"] for row in rows) < 1e-5
    every = [[row["sum"] for row in mine["one-way"]] for mine in found]
    assert every == every[:1] * 4  # to the last bit the same in all of them


def test_each_keeps_its_own_heads_alone(found: list[dict[str, Any]]) -> None:
    """exact: bytes are foreseen, and are 1 / N of those of one process."""
    rows = [row for mine in found for row in mine["one-way"] if "held" in row]
    assert len(rows) == 4 * 2 * 2 * 2
    for row in rows:
        alone, mine = row["held"]
        assert row["foreseen"] == mine == alone // row["team"] > 0


def test_exchanges_are_part_of_a_compiled_block(found: list[dict[str, Any]]) -> None:
    """same: one graph a block (`aot_eager`), in two processes."""
    rows = [row for mine in found for row in mine.get("compiled", [])]
    assert len(rows) == 2
    assert max(row["apart"] for row in rows) < 1e-5


def test_mode_full_and_image_to_video_by_diffusers(found: list[dict[str, Any]]) -> None:
    """same: four processes and one, where tokens are shared out evenly and where they are not."""
    rows = [row for mine in found for row in mine["full"]]
    assert {(row["even"], row["halves"]) for row in rows} == {
        (even, halves) for even in (False, True) for halves in (1, 2)
    }
    assert max(row["apart"] for row in rows) < 1e-5


def test_exact_shares() -> None:
    """exact: all tokens once, in order, shares of one more at most; fewer tokens than processes."""
    for tokens, shares in ((45, [12, 11, 11, 11]), (8, [2, 2, 2, 2]), (3, [1, 1, 1, 0])):
        x = torch.arange(2 * tokens).view(2, tokens, 1)
        spreads = [Spread(Team(rank, 4), tokens) for rank in range(4)]
        parts = [spread.share(x) for spread in spreads]
        assert [part.shape[1] for part in parts] == shares == spreads[0].shares
        assert torch.equal(torch.cat(parts, dim=1), x)


def test_refuses_what_cannot_be_shared_out() -> None:
    """refuses: heads, states, gradients, a GPU that all would share."""
    transformer = build(NETWORKS["tiny"], "wan", torch.device("cpu"), torch.float32)
    set_mode(transformer, "one-way")
    with pytest.raises(ConfigError, match=r"3 processes: 2 heads .* evenly; nearest is 2"):
        set_parallel(transformer, Team(0, 3))
    set_parallel(transformer, Team(0, 2, "0"))
    canvas = torch.zeros(1, 12, 3, 4, 8)
    with pytest.raises(ConfigError, match=r"states with 2 processes: .* nearest is keys"):
        predicted_bytes(transformer, canvas, Keeping(holds="states"))
    with pytest.raises(AssertionError, match="only sample together"):
        transformer(canvas, torch.ones(1), torch.zeros(1, 512, 8))
    set_mode(transformer, "one-way")
    assert transformer.team is None


def test_refuses_one_gpu_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """refuses: before processes meet."""
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(ConfigError, match=r"device=cuda:1: 2 processes .* want cuda"),
        together("cuda:1"),
    ):
        pass
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(ConfigError, match=r"process 1 here finds 1 GPU.s.; want one for each"),
        together("cuda"),
    ):
        pass
