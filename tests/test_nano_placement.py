"""Drivers brought to the subject's place: exact moves, what the network learns, and who uses it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from test_nano_surface import SEEN, TINY
from torch.testing import assert_close

from dreamactor.backbones.nano import (
    PREDICTS,
    Nano,
    NanoConfig,
    load_nano,
    load_vae,
)
from dreamactor.backbones.nano_placement import PlacementNet, as_placement, place
from dreamactor.backbones.nano_vae import NanoVAE
from dreamactor.backbones.weights import load_weights, save_weights
from dreamactor.conditioning.placement import Placement, place_cells, place_frames, place_points
from dreamactor.conditioning.skeleton import JOINTS
from dreamactor.conditioning.text import TextEncoder
from dreamactor.errors import ConfigError, WeightsError
from dreamactor.runs import generator
from dreamactor.training.export import export_nano
from dreamactor.training.latents import LatentPool, placements
from dreamactor.training.loop import Worker
from dreamactor.training.nano_placement import (
    PlacementTrainConfig,
    apart,
    best,
    mirrored,
    missed,
    moved,
    train_nano_placement,
    with_placement,
)
from dreamactor.training.pool import SHARD, Shard, read_shard, write_shard

CPU = Worker(0, 1, torch.device("cpu"))
pytestmark = pytest.mark.usefixtures("one_thread")
PLACED = replace(SEEN, placed=True)
AWAY = Placement(torch.tensor([2.0, 0.5]), torch.tensor([[0.25, -0.5], [0.0, 0.25]]))


def test_frames_cells_and_points_move_alike() -> None:
    """exact: a lone square of 4 x 4 pixels, doubled and moved by 2 and -4 pixels of 16."""
    clip = torch.zeros(1, 3, 2, 16, 16)
    clip[:, :, :, 6:10, 4:8] = 1.0
    double = AWAY.of(torch.tensor([0]))
    wanted = torch.zeros(16, 16)
    wanted[0:8, 2:10] = 1  # from (y 6..10, x 4..8): 2 (p - 8) + 8 + (2, -4)
    found = place_frames(clip, double)[0, 0, 1]
    assert_close(found[1:7, 3:9], wanted[1:7, 3:9])
    assert not found[9:].any()
    cells = torch.full((1, 2, 16, 16, 3), torch.nan)
    cells[:, :, 6:10, 4:8] = torch.tensor([0.1, 0.2, 0.3])
    seen = place_cells(cells.half(), double)
    assert seen.dtype == torch.float16
    assert torch.equal(seen.isfinite().all(dim=-1)[0, 0], wanted.bool())
    corners = torch.tensor([[[4.0, 6.0], [8.0, 10.0]]]) / 16
    assert_close(place_points(corners, double) * 16, torch.tensor([[[2.0, 0.0], [10.0, 8.0]]]))
    small = place_cells(torch.zeros(2, 1, 16, 16, 1), AWAY)[1, 0, ..., 0]
    assert int(small.isfinite().sum()) == 8 * 8  # beyond the driver's picture nothing is known
    plain = Placement(torch.ones(2), torch.zeros(2, 2))
    noise = torch.randn(2, 3, 3, 8, 16)
    assert_close(place_frames(noise, plain), noise)


def test_the_best_placement_is_found() -> None:
    """exact: joints that were placed are fitted by the same scale and shift."""
    torch.manual_seed(0)
    driver = torch.rand(2, 3, 17, 2)
    driver[0, 0, :5] = torch.nan
    target = place_points(driver, AWAY)
    target[1, 1, 3] = torch.nan
    found = best(driver, target)
    assert_close(found.scale, AWAY.scale)
    assert_close(found.shift, AWAY.shift)
    assert (apart(found, driver, target) < 2e-3).all()
    target[1] = torch.nan
    assert apart(found, driver, target).isnan().tolist() == [False, True]


def test_distances_have_gradients_where_there_are_no_joints() -> None:
    found = torch.zeros(2, 3, requires_grad=True)
    joints = torch.rand(2, 3, 17, 2)
    joints[1] = torch.nan
    apart(as_placement(found), joints, joints + 0.1).nanmean().backward()
    assert found.grad is not None
    assert found.grad[0].abs().sum() > 0
    assert not found.grad[1].any()


def test_points_are_held_against_joints_that_are_there() -> None:
    """exact: 3, 4 and 5 parts of a side away; free points do not count."""
    joints = torch.tensor([[0.5, 0.5], [0.25, 0.25], [torch.nan, 0.0]])
    points = 2 * torch.tensor([[0.5, 0.8], [0.65, 0.55], [0.9, 0.9], [9.0, 9.0]]) - 1
    assert_close(missed(points[None], joints[None]), torch.tensor((0.3 + 0.5) / 2))


def test_pictures_move_with_their_joints() -> None:
    """exact: by whole cells, what leaves is lost; mirrored, x of spots changes its sign."""
    spots, joints = torch.zeros(64, 4, 8, 8), torch.full((64, 1, len(JOINTS), 2), 0.5)
    spots[:, :, 4, 4] = 1.0
    shifted, there = moved(spots, joints, generator(0, "x", 0))
    by = (8 * (there[:, 0, 0] - 0.5)).round().int()
    inside = ((by + 4 >= 0) & (by + 4 < 8)).all(dim=1)
    assert 0 < inside.sum() < 64
    for k in range(64):
        if inside[k]:
            assert shifted[k, 0, 4 + by[k, 1], 4 + by[k, 0]] == 1
            assert shifted[k].sum() == 4
        else:
            assert not shifted[k].any()
    flip = torch.arange(64) % 2 == 0
    turned, there = mirrored(spots, joints + torch.tensor([0.25, 0]), flip)
    assert turned[0, :, 4, 3].tolist() == [-1, 1, 1, 1]
    assert torch.equal(turned[1], spots[1])
    assert there[:2, 0, 0, 0].tolist() == [0.25, 0.75]
    left, right = (JOINTS.index(f"wrist_{side}") for side in "lr")
    joints[:, :, left] = torch.tensor([0.125, 0.375])
    _, there = mirrored(spots, joints, flip)
    assert there[0, 0, right].tolist() == [0.875, 0.375]  # the hand on the right of a body
    assert there[1, 0, left].tolist() == [0.125, 0.375]


def test_places_are_the_mean_over_frames_that_show_someone() -> None:
    """exact; and where no one is seen the driver stays."""
    torch.manual_seed(0)
    network = PlacementNet().eval().requires_grad_(False)
    torch.nn.init.normal_(network.judge[-1].weight, std=0.1)
    reference, driver = torch.rand(2, 4, 8, 8), torch.rand(2, 3, 4, 8, 8)
    driver[0, 1] = 0
    reference[1] = 0
    found = place(network, reference, driver)
    frames = [network(reference[:1], driver[:1, k])[0] for k in (0, 2)]
    wanted = as_placement(torch.stack(frames).mean(dim=0))
    assert_close(found.scale[:1], wanted.scale)
    assert_close(found.shift[:1], wanted.shift)
    assert found.plain()[1] == {"scale": 1.0, "shift": [0.0, 0.0]}


def _pool(folder: Path, shards: int = 2) -> Path:
    """Twins that are one square each, which the joints are in the corners of."""
    pool = folder / "pool"
    pool.mkdir()
    rng = np.random.default_rng(0)
    for index in range(shards):
        pixels = np.zeros((SHARD, 2, 6, 32, 32, 4), np.uint8)
        joints = np.full((SHARD, 2, 6, 17, 2), np.nan, np.float32)
        for k in range(SHARD):
            for side in range(2):
                size = int(rng.integers(8, 16))
                x, y = (int(v) for v in rng.integers(0, 32 - size, 2))
                pixels[k, side, :, y : y + size, x : x + size] = 255
                joints[k, side, :, 0] = np.array([x, y]) / 32
                joints[k, side, :, 1] = np.array([x + size, y + size]) / 32
        surface = np.zeros((SHARD, 2, 6, 4, 4, 3), np.float16)
        write_shard(pool, Shard(index, pixels, joints, surface, [["a", "b"]] * SHARD))
    return pool


def _vae(path: Path, config: object = SEEN) -> Path:
    torch.manual_seed(0)
    vae = NanoVAE(config)  # type: ignore[arg-type]
    save_weights(path, vae.state_dict(), {"model": "nano-vae", "config": asdict(vae.config)})
    return path


def test_training_changes_placements_alone_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """unchanged by: being taught; everything but placements. Refuses what knows no surfaces."""
    monkeypatch.setattr("dreamactor.training.loop.LOOK_EVERY", 1)
    monkeypatch.setattr("dreamactor.training.loop.LOG_EVERY", 1)
    vae, pool = _vae(tmp_path / "vae.safetensors"), _pool(tmp_path)
    config = PlacementTrainConfig(pool=pool, vae=vae, minutes=0.03, batch=8, twins=64, least=SHARD)
    weights = train_nano_placement(config, tmp_path / "run")
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").open()]
    assert rows[-1].keys() == {"step", "held_still", "held_placed", "held_best"}
    assert rows[-1]["held_best"] < 1 < rows[-1]["held_still"]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert load_vae(weights).config == PLACED
    kept, given = load_weights(weights)[0], load_weights(vae)[0]
    assert all(torch.equal(value, kept[name]) for name, value in given.items())
    assert list((tmp_path / "run" / "samples").glob("*.png"))
    train_nano_placement(config, tmp_path / "run")  # its time is up
    again = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").open()]
    assert again[-1]["step"] == rows[-1]["step"]
    further = replace(config, vae=weights, minutes=0)
    more = load_weights(train_nano_placement(further, tmp_path / "more"))[0]
    assert all(torch.equal(value, more[name]) for name, value in kept.items())
    with pytest.raises(ConfigError, match="train nano-surface"):
        train_nano_placement(replace(config, vae=_vae(tmp_path / "plain", TINY)), tmp_path / "no")


def test_placements_are_learnt() -> None:
    """The loss falls to a third: squares at random places and sizes, one beside the other."""
    torch.manual_seed(0)
    network = PlacementNet()
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    losses = []
    for step in range(120):
        draws = generator(0, "squares", step)
        sides = [_squares(32, draws) for _ in range(2)]
        found, _ = network(sides[0][0], sides[1][0])
        loss = apart(as_placement(found), sides[1][1], sides[0][1]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[:5]) / 3


def _squares(count: int, draws: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    spots, joints = torch.zeros(count, 4, 16, 16), torch.zeros(count, 1, 2, 2)
    for k in range(count):
        size = int(torch.randint(4, 9, (1,), generator=draws))
        x, y = (int(v) for v in torch.randint(0, 16 - size, (2,), generator=draws))
        spots[k, :, y : y + size, x : x + size] = 1.0
        joints[k, 0] = torch.tensor([[x, y], [x + size, y + size]]) / 16
    return spots, joints


def test_pools_place_drivers_as_animate_does(tmp_path: Path) -> None:
    """same: motion is what encoding the placed driver gives; targets are as without."""
    torch.manual_seed(0)
    plain = NanoVAE(SEEN)
    network = PlacementNet()
    torch.nn.init.normal_(network.judge[-1].weight, std=0.02)
    placed = with_placement(plain, network)
    pool = _pool(tmp_path)
    encoder = cast(TextEncoder, lambda captions: torch.zeros(len(captions), 1))
    stores = []
    for vae in (plain.requires_grad_(False), placed):
        latents = LatentPool(pool, 80, vae, encoder, CPU, consume=False)
        latents.wait(4 * SHARD)
        stores.append(latents.store)
    shard = read_shard(pool, 0)
    block = torch.from_numpy(shard.pixels)
    found = placements(placed, block, CPU)
    for pair in (0, 3):
        twins, side = divmod(pair, 2)
        x = block[twins, ..., :3].permute(0, 4, 1, 2, 3).float() / 127.5 - 1  # (2, 3, T + 2, H, W)
        one = placed.place(x[side, :, 0][None], x[1 - side, :, 1:][None])
        assert_close(one.scale, found.scale[pair : pair + 1])
        driver = place_frames(x[1 - side, :, 1:][None], one)
        wanted = placed.encode(driver)[0]
        assert_close(stores[1]["motion"][pair].float(), wanted, atol=4e-3, rtol=4e-3)
        joints = torch.from_numpy(shard.joints[twins, 1 - side, 1:])
        told = stores[1]["joints"][pair, 5:].float()
        assert_close(told, place_points(joints[None], one)[0], atol=2e-3, rtol=0, equal_nan=True)
    assert not torch.equal(stores[0]["motion"], stores[1]["motion"])
    assert torch.equal(stores[0]["target"], stores[1]["target"])


def test_weights_say_whether_drivers_are_placed(tmp_path: Path) -> None:
    """exact: the header decides, the autoencoder must know how, and adapters go without."""
    shape = NanoConfig(1, 1, 16, 32, 20)
    paths = {}
    for placed in (False, True):
        header = {"model": "nano", "task": "animate", "config": asdict(shape),
                  "predicts": PREDICTS, "placed": placed}  # fmt: skip
        paths[placed] = tmp_path / f"{placed}.safetensors"
        save_weights(paths[placed], shape.build().state_dict(), header)
    vae = _vae(tmp_path / "vae", PLACED)
    reference, driving = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 5, 16, 16)
    for placed, path in paths.items():
        export_nano(vae, path, tmp_path / "weights", 4, 5.0, 16)
        nano = load_nano(tmp_path / "weights")
        assert (nano.place(reference, driving) is not None) == placed
    nano.adapter = {"sha256": "0"}
    assert nano.place(reference, driving) is None
    nano.adapter, nano.variant = None, "pose"
    assert nano.place(reference, driving) is None
    export_nano(_vae(tmp_path / "other", SEEN), paths[True], tmp_path / "wrong", 4, 5.0, 16)
    with pytest.raises(WeightsError, match="knows no placements"):
        load_nano(tmp_path / "wrong")
    assert isinstance(nano, Nano)
