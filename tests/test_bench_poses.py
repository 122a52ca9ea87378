"""`bench pose`: scores with a closed form; the exact estimator on the mini pack."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dreamactor.backbones.keypoints import KeypointNet, KeypointsConfig, header_of
from dreamactor.backbones.weights import save_weights
from dreamactor.bench.poses import LIMBS, PoseBenchConfig, bench_pose, score
from dreamactor.cli.world import MINI
from dreamactor.conditioning.skeleton import JOINTS, PoseTrack
from dreamactor.errors import AssetError, ConfigError
from dreamactor.world.cast import load_cast
from dreamactor.world.render import Renderer

SIZE = np.full(4, 100, np.float32)


def truth() -> PoseTrack:
    """Four frames of a body without a tail, all joints in the picture, hidden left of x = 60."""
    rng = np.random.default_rng(0)
    positions = rng.uniform(20, 180, (1, 1, 17, 2)).astype(np.float32).repeat(4, 0)
    positions[:, :, JOINTS.index("tail")] = 0
    for k, name in enumerate(LIMBS[:6]):  # left and right are 60 apart
        positions[:, 0, JOINTS.index(name)] = 40 + 10 * k, 40
        positions[:, 0, JOINTS.index(name[:-1] + "r")] = 40 + 10 * k, 100
    seen = (positions[..., 0] > 60).astype(np.float32)
    return PoseTrack(JOINTS, positions, seen, 200, 200, 12.0)


def sure(track: PoseTrack, positions: np.ndarray | None = None) -> PoseTrack:
    at = track.positions if positions is None else positions
    return replace(track, positions=at, confidence=np.ones(at.shape[:3], np.float32))


def test_the_truth_is_found_and_a_shift_is_not() -> None:
    """exact: 7 of 100 pixels off is within 0.1 and not within 0.05."""
    found = score(sure(truth()), truth(), SIZE)
    assert [found[k] for k in ("pck5", "pck10", "pck10_hidden", "pck10_trunk")] == [1, 1, 1, 1]
    assert (found["swaps"], found["lost"]) == (0, 0)
    shifted = score(sure(truth(), truth().positions + np.array([7, 0], np.float32)), truth(), SIZE)
    assert (shifted["pck5"], shifted["pck10"], shifted["swaps"]) == (0, 1, 0)


def test_swaps_are_told_from_misses() -> None:
    """exact: knees changed in two of four frames are 2 of 24 swaps, 4 of 48 joints."""
    positions = truth().positions.copy()
    left, right = JOINTS.index("knee_l"), JOINTS.index("knee_r")
    positions[:2, :, [left, right]] = positions[:2, :, [right, left]]
    found = score(sure(truth(), positions), truth(), SIZE)
    assert found["swaps"] == pytest.approx(2 / 24, abs=1e-4)
    assert found["pck10"] == pytest.approx(1 - 4 / 48, abs=1e-4)
    positions[:, :, left] = positions[:, :, right]  # both on one leg: a miss, no swap
    assert score(sure(truth(), positions), truth(), SIZE)["swaps"] == 0
    near = score(sure(truth(), positions), truth(), 10 * SIZE)  # now 0.06 of the size apart
    assert near["swaps"] is None


def test_hidden_lost_and_absent_joints() -> None:
    """exact: hidden ones are 3 of 6 of each side; what is not found is wrong and lost."""
    positions = truth().positions.copy()
    positions[:, 0, JOINTS.index("elbow_l")] = 1  # x = 50, hidden
    found = score(sure(truth(), positions), truth(), SIZE)
    assert found["pck10_seen"] == 1
    assert found["pck10_hidden"] == pytest.approx(5 / 6, abs=1e-4)
    positions = truth().positions.copy()
    positions[:, 0, JOINTS.index("wrist_r")] = 0
    track = sure(truth(), positions)
    track.confidence[:, 0, JOINTS.index("wrist_r")] = 0
    lost = score(track, truth(), SIZE)
    assert lost["lost"] == pytest.approx(1 / 12, abs=1e-4)
    assert lost["pck10"] == pytest.approx(11 / 12, abs=1e-4)


def test_the_best_of_several_people_counts() -> None:
    both = np.concatenate([truth().positions + 90, truth().positions], axis=1)
    assert score(sure(truth(), both), truth(), SIZE)["pck5"] == 1


def test_out_of_the_picture_does_not_count() -> None:
    known = truth()
    known.positions[:, 0, JOINTS.index("ankle_l")] = 90, 900
    found = sure(known, np.zeros_like(known.positions))
    assert score(found, known, np.full(4, np.nan, np.float32))["pck10"] is None
    assert score(sure(known), known, SIZE)["pck10"] == 1


def test_bench_measures_resumes_and_reports(tmp_path: Path) -> None:
    """exact: the world's own estimator errs nowhere; unchanged by: being done in two goes."""
    try:
        Renderer(load_cast(MINI)).context  # noqa: B018 - opens it
    except AssetError as fault:
        pytest.skip(str(fault))
    network = KeypointNet(KeypointsConfig((8, 8, 8, 8), (1, 1, 1, 1), 8))
    weights = tmp_path / "k.safetensors"
    save_weights(weights, network.state_dict(), header_of(network, 0))
    config = PoseBenchConfig(count=2, estimators="world", weights=weights, size=64)
    bench_pose(MINI, tmp_path / "out", config)
    more = replace(config, estimators="world,keypoints", count=3)
    report = bench_pose(MINI, tmp_path / "out", more).read_text()
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").open()]
    assert [(row["estimator"], row["clip"][-1]) for row in rows] == [
        *(("world", "0"), ("world", "1")),
        *(("keypoints", "0"), ("keypoints", "1"), ("world", "2"), ("keypoints", "2")),
    ]
    exact = [row for row in rows if row["estimator"] == "world"]
    assert all(row[k] in (1, None) for row in exact for k in row if k.startswith("pck"))
    assert all(row[k] in (0, None) for row in exact for k in ("swaps", "lost"))
    assert "| world | all | 3 | 1.000 ± 0.000 |" in report
    assert "| keypoints | all | 3 |" in report
    assert (tmp_path / "out" / "samples" / "sheet.png").is_file()
    with pytest.raises(ConfigError, match="another seed"):
        bench_pose(MINI, tmp_path / "out", replace(more, seed=1))


def test_estimators_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"estimators=openpose: no 'openpose'; known: keypoints"):
        PoseBenchConfig(estimators="openpose")
    with pytest.raises(ConfigError, match="device='cuda:x': want cpu, cuda or cuda:N"):
        PoseBenchConfig(device="cuda:x")
    with pytest.raises(ConfigError, match="count=0: want 1 or more"):
        PoseBenchConfig(count=0)
