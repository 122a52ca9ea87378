"""The keypoints network: places from maps, the loss, views that keep joints, weights, training."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from dreamactor.backbones.keypoints import (
    DATA,
    DIGEST,
    SIZE,
    KeypointNet,
    Keypoints,
    KeypointsConfig,
    header_of,
    load_network,
    locate,
    nearer,
)
from dreamactor.backbones.load import load_estimator
from dreamactor.backbones.weights import save_weights
from dreamactor.bench.poses import clip_of, score
from dreamactor.cli.world import MINI
from dreamactor.conditioning.skeleton import JOINTS
from dreamactor.errors import AssetError, ConfigError, WeightsError
from dreamactor.image import Box, Rgb
from dreamactor.provenance import sha256
from dreamactor.runs import generator
from dreamactor.training.keypoints import (
    FramePool,
    KeypointTrainConfig,
    hits,
    place_loss,
    train_keypoints,
)
from dreamactor.training.loop import Worker
from dreamactor.training.pool import SHARD, Shard, read_shard, ready_shards, write_shard
from dreamactor.training.views import MIRRORED, cover, reframed, reframed_joints, views
from dreamactor.world.cast import load_cast
from dreamactor.world.pairs import PairSampler

TINY = KeypointsConfig((8, 8, 8, 8), (1, 1, 1, 1), 8)
CPU = Worker(0, 1, torch.device("cpu"))
PELVIS, WRIST_L, WRIST_R = (JOINTS.index(n) for n in ("pelvis", "wrist_l", "wrist_r"))


def bells(places: Tensor, cells: int = 64) -> Tensor:
    """Scores (B, J, cells, cells) with a bell of one cell at each place (B, J, 2)."""
    steps = torch.arange(cells) + 0.5
    far = (steps - cells * places[..., None]).square()  # (B, J, 2, cells)
    return -(far[..., 1, :, None] + far[..., 0, None, :]) / 2


def blank(count: int = 1) -> Tensor:
    return torch.full((count, len(JOINTS), 2), math.nan)


def test_places_are_found_between_cells() -> None:
    """exact: the middle of a bell to a hundredth of a cell, also at the border's cells."""
    torch.manual_seed(0)
    places = 0.06 + 0.88 * torch.rand(3, len(JOINTS), 2)
    assert_close(locate(bells(places)), places, atol=0.01 / 64, rtol=0)
    corner = torch.full((1, len(JOINTS), 2), 0.5 / 64)
    assert (locate(bells(corner)) - corner).abs().max() < 1 / 64


def test_loss_is_nothing_where_the_maps_are_right() -> None:
    """exact: 0 for the bells, the divergence of flat maps else; absent joints do not count."""
    joints = blank(2)
    joints[0, PELVIS] = torch.tensor([0.4, 0.7])
    right = bells(joints.nan_to_num(0.1))
    assert place_loss(right, joints).item() == pytest.approx(0, abs=1e-6)
    bell = right[0, PELVIS].flatten().softmax(0)
    flat = -math.log(64 * 64) - (bell.clamp_min(1e-30).log() / len(bell)).clamp_min(-1e9).sum()
    entropy = -(bell * bell.clamp_min(1e-30).log()).sum()
    assert flat > 0
    expected = math.log(64 * 64) - entropy
    assert_close(place_loss(torch.zeros_like(right), joints), expected, rtol=1e-4, atol=1e-4)
    assert place_loss(torch.randn_like(right), blank(2)).item() == 0


def test_hits_are_counted_in_parts_of_the_box() -> None:
    """exact: box 0.5 wide; 0.04 off is within 0.1 of it, 0.06 is not; absent ones do not count."""
    joints = blank()
    joints[0, 0], joints[0, 1] = torch.tensor([0.2, 0.3]), torch.tensor([0.7, 0.4])
    places = joints.nan_to_num(0.0)
    places[0, 0, 0] += 0.04
    places[0, 1, 1] += 0.06
    assert [hits(places, joints, p).item() for p in (0.05, 0.1, 0.2)] == [0, 0.5, 1]


def test_frames_do_not_know_of_each_other() -> None:
    """unchanged by: the batch, to rounding."""
    torch.manual_seed(0)
    estimator = Keypoints(_stirred(KeypointNet(TINY)))
    frames = np.random.default_rng(0).integers(0, 255, (19, 64, 48, 3), np.uint8)
    whole = estimator(frames, 12.0)
    alone = [estimator(frames[t : t + 1], 12.0) for t in (0, 16, 18)]
    for t, track in zip((0, 16, 18), alone, strict=True):
        np.testing.assert_allclose(track.positions[0], whole.positions[t], atol=1e-3)
        np.testing.assert_allclose(track.confidence[0], whole.confidence[t], atol=1e-5)


def _stirred(network: KeypointNet) -> KeypointNet:
    """With other weights than the zeros it starts from."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


class _Told(nn.Module):
    """Says that the head is at one place of the square, the tail in none, the rest about."""

    def __init__(self, place: tuple[float, float]) -> None:
        super().__init__()
        x = torch.linspace(0.05, 0.95, len(JOINTS))
        self.places = torch.stack([x, torch.full_like(x, 0.5)], dim=-1)
        self.places[0] = torch.tensor(place)
        self.seen = torch.empty(0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.seen = x
        there = torch.full((len(x), len(JOINTS)), 9.0)
        there[:, JOINTS.index("tail")] = -9
        return bells(self.places.expand(len(x), len(JOINTS), 2)), there


@pytest.mark.parametrize(("size", "at"), [((90, 160), (40, 45)), ((256, 256), (64, 128))])
def test_places_are_told_in_the_pictures_pixels(
    size: tuple[int, int], at: tuple[float, float]
) -> None:
    """exact: a quarter from the left, half way down, of any shape of picture."""
    told = _Told((0.25, 0.5))
    track = Keypoints(told)(np.full((2, *size, 3), 9, np.uint8), 12.0)  # type: ignore[arg-type]
    assert told.seen.shape == (2, 3, SIZE, SIZE)
    np.testing.assert_allclose(track.positions[1, 0, 0], at, atol=0.03)
    assert track.confidence[0, 0, 0] > 0.99
    assert track.confidence[0, 0, JOINTS.index("tail")] < 0.01
    outside = Keypoints(_Told((0.5, 0.05)))(np.zeros((1, 90, 160, 3), np.uint8), 12.0)  # type: ignore[arg-type]
    assert outside.confidence[0, 0, 0] == 0  # in the bar above the picture
    assert outside.confidence[0, 0, 1] > 0.99


class _Bright(nn.Module):
    """Finds all joints at the brightest of its cells."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        light = 50 * nn.functional.avg_pool2d(x.mean(dim=1, keepdim=True), 4)
        return light.expand(-1, len(JOINTS), -1, -1), torch.full((len(x), len(JOINTS)), 9.0)


def test_small_subjects_are_looked_at_again() -> None:
    """exact: a dot of 4 x 4 in 800 x 800, which one look places to some 12 pixels, to one."""
    frames = np.zeros((3, 800, 800, 3), np.uint8)
    for t in range(3):
        frames[t, 98 + 7 * t : 102 + 7 * t, 698:702] = 255
    estimator = Keypoints(_Bright())  # type: ignore[arg-type]
    track = estimator(frames, 12.0)
    np.testing.assert_allclose(track.positions[:, 0, 0, 0], 700, atol=0.5)
    np.testing.assert_allclose(track.positions[:, 0, 0, 1], [100, 107, 114], atol=0.5)


def test_only_what_is_small_is_looked_at_again() -> None:
    """exact: the square is 1.6 times the joints' extent, and stays in the picture."""
    sure = np.ones((60, 3), np.float32)
    at = np.array([[[500, 300], [600, 300], [580, 380]]], np.float32).repeat(60, 0)
    assert nearer(at, sure, (600, 800)) == Box(260, 470, 160, 160)
    assert nearer(4 * at, sure, (600, 800)) is None
    assert nearer(at, 0.4 * sure, (600, 800)) is None
    corner = nearer(at - at[:, :1], sure, (600, 800))
    assert corner is not None
    assert (corner.left, corner.top) == (0, 0)
    flat = nearer(at, sure, (100, 800))
    assert flat is not None
    assert (flat.top, flat.height, flat.width) == (0, 100, 160)


@pytest.mark.parametrize("near", [None, Box(8, 16, 64, 64)], ids=["once", "nearer"])
def test_a_clip_may_come_frame_by_frame(near: Box | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """same: as a stream that is read anew at every look, and as one array."""
    torch.manual_seed(0)
    monkeypatch.setattr("dreamactor.backbones.keypoints.nearer", lambda *_: near)
    frames = np.random.default_rng(0).integers(0, 256, (37, 96, 120, 3), dtype=np.uint8)

    class Stream:
        def __iter__(self) -> Iterator[Rgb]:
            return iter(list(frames))

    estimator = Keypoints(KeypointNet(TINY))
    one, other = estimator(frames, 12.0), estimator(Stream(), 12.0)
    assert one.confidence.shape == (37, 1, 17)
    np.testing.assert_array_equal(one.positions, other.positions)
    np.testing.assert_array_equal(one.confidence, other.confidence)


def test_weights_round_trip_and_are_small(tmp_path: Path) -> None:
    network = KeypointNet()
    save_weights(tmp_path / "k.safetensors", network.state_dict(), header_of(network, 7))
    assert (tmp_path / "k.safetensors").stat().st_size <= 6e6
    loaded = load_estimator("keypoints", tmp_path / "k.safetensors")
    assert loaded.name == "keypoints"
    assert loaded.weights == {"k.safetensors": sha256(tmp_path / "k.safetensors")}


def test_weights_that_ship_are_those_that_were_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """golden: the hash; refuses: a file of another, or none."""
    assert load_estimator("keypoints").weights == {DATA.name: DIGEST}
    path = tmp_path / DATA.name
    monkeypatch.setattr("dreamactor.backbones.keypoints.DATA", path)
    with pytest.raises(WeightsError, match="make them with `dreamactor train keypoints`"):
        load_estimator("keypoints")
    save_weights(path, KeypointNet(TINY).state_dict(), header_of(KeypointNet(TINY), 0))
    with pytest.raises(WeightsError, match=f"sha256 is .*, want {DIGEST[:12]}"):
        load_estimator("keypoints")


def test_shipped_weights_find_joints_of_the_mini_pack() -> None:
    """golden: PCK@0.1 over four held-out clips, two frames of each: .82 when they were shipped."""
    sampler = PairSampler(load_cast(MINI), "test", SIZE, frames=2)
    estimator, shares = load_estimator("keypoints"), []
    for index in range(4):
        try:
            frames, truth, size = clip_of(sampler.pair(0, index, truth=True))
        except AssetError as fault:
            pytest.skip(str(fault))
        shares.append(score(estimator(frames, 12.0), truth, size)["pck10"])
    assert np.mean([share for share in shares if share is not None]) >= 0.7


def test_weights_of_others_are_refused(tmp_path: Path) -> None:
    network, path = KeypointNet(TINY), tmp_path / "k.safetensors"
    header = header_of(network, 0)
    with pytest.raises(WeightsError, match="weights are missing"):
        load_network(path)
    faults = (
        ({"model": "nano"}, "weights of 'nano', want 'keypoints'"),
        ({"joints": ["nose"]}, r"finds \['nose'\], this program wants"),
        ({"config": {"widths": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "neck": 16}}, "do not fit"),
        ({"config": {"width": 3}}, "do not fit keypoints"),
    )
    for change, message in faults:
        save_weights(path, network.state_dict(), {**header, **change})
        with pytest.raises(WeightsError, match=message):
            load_network(path)


def test_estimators_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ConfigError, match="pose='keypoint': no such estimator, nearest is keyp"):
        load_estimator("keypoint")
    with pytest.raises(ConfigError, match="weights=w: mediapipe brings its own"):
        load_estimator("mediapipe", Path("w"))


def test_joints_stay_on_the_picture_that_is_turned() -> None:
    """exact: a dot follows its joint; what leaves the picture is no more."""
    x, joints = torch.zeros(3, 4, 64, 64), blank(3)
    x[:, 0, 19:21, 43:45] = 1
    joints[:, WRIST_L] = torch.tensor([44, 20]) / 64
    angle, mirror = math.radians(30), torch.tensor([[-1.0, 0.0], [0.0, 1.0]])
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = torch.stack([turn / 1.3, turn @ mirror, turn / 4])
    shift = torch.tensor([[0.2, -0.1], [0.1, 0.0], [0.0, 0.9]])
    moved, at = reframed(x, matrix, shift), reframed_joints(joints, matrix, shift)
    steps = torch.arange(64) + 0.5
    for k, joint in enumerate((WRIST_L, WRIST_R)):
        dot = moved[k, 0] / moved[k, 0].sum()
        found = torch.stack([(dot.sum(0) * steps).sum(), (dot.sum(1) * steps).sum()])
        assert_close(at[k, joint] * 64, found, atol=0.05, rtol=0)
        assert at[k].isfinite().all(-1).sum() == 1
    assert not at[2].isfinite().any()
    assert MIRRORED[JOINTS.index("hip_l")] == JOINTS.index("hip_r")


def test_covers_hide_pictures_and_no_joints() -> None:
    """exact: what is covered shows the other picture, all of the rest is untouched."""
    under, over = torch.zeros(40, 3, 64, 64), torch.ones(40, 3, 64, 64)
    covered = cover(under, over, generator(0, "cover", 0))
    assert set(covered.unique().tolist()) == {0.0, 1.0}
    assert 0.01 < covered.mean() < 0.3
    joints = blank(40)
    joints[:, PELVIS] = 0.5
    pictures = torch.full((40, 64, 64, 4), 128, dtype=torch.uint8)
    x, at = views(pictures, joints, generator(0, "views", 0))
    assert x.shape == (40, 3, 64, 64)
    assert x.abs().max() <= 1
    assert at[:, PELVIS].isfinite().all()
    again, _ = views(pictures, joints, generator(0, "views", 0))
    assert torch.equal(x, again)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of a bright square, the pelvis, on grey; 64 x 64, five frames."""
    folder = tmp_path_factory.mktemp("pool")
    rng = np.random.default_rng(0)
    for index in range(2):
        shape = (SHARD, 2, 6, 64, 64, 4)
        pixels = np.full(shape, 90, np.uint8)
        pixels[..., 3] = 0
        joints = np.full((*shape[:3], len(JOINTS), 2), np.nan, np.float32)
        for where in np.ndindex(shape[:3]):
            x, y = rng.integers(12, 52, 2)
            pixels[(*where, slice(y - 5, y + 5), slice(x - 5, x + 5))] = (255, 255, 60, 255)
            joints[(*where, PELVIS)] = x / 64, y / 64
        captions = [["", ""] for _ in range(SHARD)]
        surface = np.zeros((SHARD, 2, 6, 8, 8, 3), np.float16)
        write_shard(folder, Shard(index, pixels, joints, surface, captions))
    return folder


def test_held_frames_are_never_drawn(pool: Path) -> None:
    """The first shard's frames stay; the ring of newer ones goes round behind them."""
    frames = FramePool(pool, 100, 4, 0, CPU)
    frames.wait(64)
    assert (frames.held_count, frames.count) == (128, 256)
    first = read_shard(pool, 0).joints[..., PELVIS, :].reshape(-1, 2)
    assert frames.store is not None
    known = {tuple(p) for p in frames.store.joints[128:228, PELVIS].tolist()}
    drawn = frames.batch(generator(0, "x", 0), 200)
    assert {tuple(p) for p in drawn.joints[:, PELVIS].tolist()} <= known
    held = frames.held()
    assert {tuple(p) for p in held.joints[:, PELVIS].tolist()} <= {tuple(p) for p in first}
    assert (held.pictures.shape, held.surface.shape) == ((128, 64, 64, 4), (128, 8, 8, 3))


def test_consuming_leaves_the_held_shard(pool: Path, tmp_path: Path) -> None:
    """unchanged by: starting again; the frames that are measured are still there."""
    for index in range(2):
        write_shard(tmp_path, read_shard(pool, index))
    frames = FramePool(tmp_path, 100, 4, 0, CPU, consume=True)
    frames.wait(64)
    assert ready_shards(tmp_path) == [0]
    again = FramePool(tmp_path, 100, 4, 0, CPU, consume=True)
    again.refresh(1, seconds=5.0)
    assert torch.equal(again.held().joints[:, PELVIS], frames.held().joints[:, PELVIS])


def test_a_dot_is_learnt(pool: Path) -> None:
    """The loss, by the same steps as in training, falls far below that of knowing nothing."""
    torch.manual_seed(0)
    frames = FramePool(pool, 128, 4, 0, CPU)
    frames.wait(64)
    network = KeypointNet(TINY)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for step in range(30):
        pictures, joints, _ = frames.batch(generator(0, "dot", step), 8)
        scores, _ = network(pictures.permute(0, 3, 1, 2)[:, :3] / 127.5 - 1)
        losses.append(place_loss(scores, joints))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])


def test_training_resumes_and_writes_weights(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dreamactor.training.keypoints.KeypointsConfig", lambda: TINY)
    monkeypatch.setattr("dreamactor.training.loop.LOG_EVERY", 1)
    monkeypatch.setattr("dreamactor.training.loop.LOOK_EVERY", 1)
    config = KeypointTrainConfig(pool=pool, minutes=0.02, batch=4, frames=128, least=64)
    weights = train_keypoints(config, tmp_path / "run")
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").open()]
    assert {"total", "place", "there", "pck"} <= rows[0].keys()
    assert rows[-1]["held_pck10"] == 0  # a box of one joint has no size
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert load_network(weights).config == TINY
    assert list((tmp_path / "run" / "samples").glob("*.png"))
    train_keypoints(config, tmp_path / "run")
    again = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").open()]
    assert again[-1]["step"] == rows[-1]["step"]
