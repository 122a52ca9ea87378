"""Properties of pairs: held out, the same whenever drawn, and true, on the mini pack."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import boxman
import cv2
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import dreamactor
from dreamactor.errors import AssetError
from dreamactor.world.cast import Cast, load_cast
from dreamactor.world.pairs import (
    CELL,
    LIKE_HEADINGS,
    REFERENCE_TURN,
    STILL,
    TARGET_FRAMES,
    Pair,
    PairSampler,
    PairSpec,
    _views,
    family,
)
from dreamactor.world.pose import Proportions, joint_angles, joint_positions, sample_motion
from dreamactor.world.render import Renderer
from dreamactor.world.scene import Background
from dreamactor.world.staging import describe

MINI = Path(dreamactor.__file__).parent / "data" / "mini.castpack"
SIZE = 128
SEED = 4
SPLITS = ("train", "validation", "test")
ANGLE = 1.5  # degrees; near a straight knee the angle's cosine is flat, and packs hold 16 bits


@cache
def cast() -> Cast:
    return load_cast(MINI)


@cache
def sampler(split: str = "test") -> PairSampler:
    return PairSampler(cast(), split, SIZE)


@cache
def specs(split: str) -> list[PairSpec]:
    return [sampler(split).spec(SEED, index) for index in range(20)]


@pytest.fixture(scope="module")
def drawn() -> list[Pair]:
    """Two pairs of people and two of animals, in full, with truth."""
    try:
        Renderer(cast()).context  # noqa: B018 - opens it
    except AssetError as fault:
        pytest.skip(str(fault))
    chosen = []
    for domain in ("human", "animal"):
        fit = [s for s in specs("test") if s.domain == domain and s.target.framing == "full"]
        chosen += [sampler().draw(spec, truth=True) for spec in fit[:2]]
    return chosen


def _joints(spec: PairSpec) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Joints of driver and target in metres, on the frames that both have."""
    driver, target = sampler("test")._poses(spec)
    skeletons = cast().skeletons
    return (
        joint_positions(skeletons[spec.driver.look.skeleton], driver[1:]),
        joint_positions(skeletons[spec.target.look.skeleton], target[1:]),
    )


@pytest.mark.parametrize("split", SPLITS)
def test_exact_a_pair_uses_its_split_only(split):
    for spec in specs(split):
        assert {spec.driver.look.split, spec.target.look.split} == {split}
        assert {spec.motion.split, spec.reference_motion.split} == {split}


@pytest.mark.parametrize("split", SPLITS)
def test_exact_driver_and_target_are_two_groups_of_one_family(split):
    shared = {}
    for look in cast().looks.values():
        if look.split == split:
            kin = family(cast().skeletons[look.skeleton])
            shared.setdefault((look.domain, kin), set()).add(look.group)
    for spec in specs(split):
        looks = spec.driver.look, spec.target.look
        kin = {family(cast().skeletons[look.skeleton]) for look in looks}
        assert len(kin) == 1
        if len(shared[spec.domain, kin.pop()]) > 1:
            assert looks[0].group != looks[1].group


def test_exact_only_training_pairs_are_mirrored():
    assert {spec.flip for spec in specs("train")} == {True, False}
    assert not any(spec.flip for split in ("validation", "test") for spec in specs(split))


def test_unchanged_by_order_and_instance(drawn):
    first = sampler().pair(SEED, 3)
    again = PairSampler(cast(), "test", SIZE).pair(SEED, 3)
    for name in ("reference", "target", "driving"):
        assert_array_equal(getattr(first, name), getattr(again, name))
    assert first.caption == again.caption
    other = sampler().spec(SEED + 1, 3)
    assert other.motion is not first.spec.motion or other.start != first.spec.start


def test_exact_joint_angles_of_driver_and_target_agree():
    """Exact but for rounding, between people and between beasts of other proportions alike."""
    errors = []
    for spec in specs("test"):
        theirs, ours = (joint_angles(joints) for joints in _joints(spec))
        shared = sorted(theirs.keys() & ours)
        assert len(shared) >= (4 if spec.domain == "human" else 2)
        errors += [np.degrees(np.abs(theirs[name] - ours[name])) for name in shared]
    assert np.concatenate(errors).max() < ANGLE
    assert np.median(np.concatenate(errors)) < 0.1
    assert {"human", "animal"} == {spec.domain for spec in specs("test")}


def test_exact_view_direction_is_shared():
    for spec in specs("test"):
        trunks = []
        for joints in _joints(spec):
            along = joints["neck"] - joints["pelvis"]
            trunks.append(along / np.linalg.norm(along, axis=-1, keepdims=True))
        between = np.degrees(np.arccos((trunks[0] * trunks[1]).sum(-1).clip(-1, 1)))
        assert between.max() <= LIKE_HEADINGS
        driver, target = sampler()._poses(spec)
        cameras = [
            sampler()._scene(spec, side, pose, _views(spec, side)).camera
            for side, pose in ((spec.driver, driver), (spec.target, target))
        ]
        backs = [camera.basis()[:, 2] for camera in cameras]  # (T + 1, 3)
        assert_allclose(backs[0][1:], backs[1][1:], atol=1e-5)
        assert_allclose(backs[1][0], backs[1][1], atol=1e-5)  # only the reference's figure turns
        assert abs(spec.reference_turn) <= REFERENCE_TURN


def test_exact_reference_stands_where_the_target_starts():
    for spec in specs("test"):
        _, target = sampler()._poses(spec)
        root = cast().skeletons[spec.target.look.skeleton].joints.get("pelvis", 0)
        assert_allclose(target[0, root, [0, 2], 3], target[1, root, [0, 2], 3], atol=1e-4)


def test_exact_reference_and_target_share_background_and_place(drawn):
    """With a camera that stands, no shadow and a flat backdrop, only the figure changes."""
    for pair in drawn:
        spec = replace(
            pair.spec,
            azimuth=np.full_like(pair.spec.azimuth, 30),
            travels=False,
            target=replace(
                pair.spec.target,
                background=Background("bokeh", seed=1),
                light=replace(pair.spec.target.light, shadow=0),
            ),
        )
        still = sampler().draw(spec)
        frames = np.concatenate([still.reference[None], still.target])
        near = cv2.dilate(frames[..., 3].max(axis=0), np.ones((5, 5), np.uint8)) > 0
        assert 0.05 < near.mean() < 0.9
        assert_array_equal(
            frames[:, ~near, :3], np.broadcast_to(frames[0, ~near, :3], (17, (~near).sum(), 3))
        )


def test_exact_figures_are_whole_and_in_the_frame(drawn):
    for pair in drawn:
        clips = np.concatenate([pair.reference[None], pair.target, pair.driving])
        assert clips.shape == (2 * TARGET_FRAMES + 2, SIZE, SIZE, 4)
        assert set(np.unique(clips[..., 3])) == {0, 255}
        assert ((clips[..., 3] > 0).mean(axis=(1, 2)) > 0.015).all()
        for joints in (pair.target_joints, pair.driving_joints):
            assert joints.pixels.shape[0] == TARGET_FRAMES + 1
            assert (joints.pixels > 0).all()
            assert (joints.pixels < SIZE).all()
        rows = (pair.target[..., 3] > 0).any(axis=2).sum(axis=1)
        columns = (pair.target[..., 3] > 0).any(axis=1).sum(axis=1)
        assert (np.maximum(rows, columns) > 0.4 * SIZE).all()


def test_exact_joints_lie_on_the_mask(drawn):
    for pair in drawn:
        frames = np.concatenate([pair.reference[None], pair.target])
        _on_the_mask(frames, pair.target_joints)
        _on_the_mask(pair.driving, pair.driving_joints)


def _on_the_mask(frames: np.ndarray, joints) -> None:
    """Within 2 % of the frame; a joint deep in a thin limb may lie a little outside the skin."""
    wide = np.ones((5, 5), np.uint8)
    near = np.stack([cv2.dilate(mask, wide) for mask in frames[..., 3]])
    x, y = np.moveaxis(joints.pixels.astype(int).clip(0, SIZE - 1), -1, 0)
    assert (near[np.arange(len(near))[:, None], y, x] > 0).mean() > 0.97


def test_exact_flow_warps_each_target_frame_to_the_next(drawn):
    for pair in drawn:
        assert pair.flow is not None
        assert pair.flow.shape == (TARGET_FRAMES - 1, SIZE, SIZE, 2)
        warped, stayed = [], []
        for t, flow in enumerate(pair.flow):
            inner = cv2.erode(pair.target[t, ..., 3], np.ones((3, 3), np.uint8)) > 0
            y, x = np.nonzero(inner & (np.abs(flow).sum(-1) > 1))
            to = np.rint(np.stack([x, y], -1) + flow[y, x]).astype(int).clip(0, SIZE - 1)
            before, after = (c.astype(int)[..., :3] for c in pair.target[t : t + 2])
            warped.append(np.abs(after[to[:, 1], to[:, 0]] - before[y, x]).mean(-1))
            stayed.append(np.abs(after[y, x] - before[y, x]).mean(-1))
        gain = np.concatenate(stayed).mean() / np.concatenate(warped).mean()
        assert gain > 1.3, pair.caption
        assert np.median(np.concatenate(warped)) < 12


def test_exact_mirrored_pairs_mirror_their_truth(drawn):
    plain = drawn[0]
    mirrored = sampler().draw(replace(plain.spec, flip=True), truth=True)
    assert_array_equal(mirrored.target, plain.target[:, :, ::-1])
    left, right = mirrored.target_joints["elbow_l"], plain.target_joints["elbow_r"]
    assert_allclose(left[:, 0] + right[:, 0], SIZE, atol=1e-3)
    assert_allclose(left[:, 1], right[:, 1], atol=1e-3)
    assert_allclose(mirrored.flow[..., 0], -plain.flow[:, :, ::-1, 0])


def test_exact_most_clips_move():
    """The mean path of the joints is long enough to see in nine of ten pairs and more."""
    moved = []
    for spec in specs("test") + specs("train"):
        times = spec.start + np.arange(TARGET_FRAMES) * spec.speed / 12
        track = sample_motion(spec.motion, times)
        joints = track.positions[:, list(cast().skeletons[spec.motion.skeleton].joints.values())]
        path = np.linalg.norm(np.ptp(joints, axis=0), axis=-1).mean()
        moved.append(path / np.ptp(joints, axis=1).max())
    assert (np.array(moved) > STILL).mean() > 0.85


def test_exact_captions_leave_out_what_is_not_shown():
    side = next(s.target for s in specs("test") if "shield" in s.target.look.caption)
    bare = replace(side, drop=frozenset({"shield"}), proportions=Proportions())
    assert "shield" not in describe(bare)
    assert describe(replace(side, drop=frozenset())) == side.look.caption


def test_refuses_a_split_that_the_cast_lacks():
    with pytest.raises(AssetError, match="the cast has no test characters"):
        PairSampler(boxman.build(), "test")


@pytest.mark.parametrize("frames", [4, TARGET_FRAMES])
def test_twins_are_a_pair_both_ways_round(drawn: list[Pair], frames: int) -> None:
    """same: one motion by two identities, each behind a reference of its own."""
    twins = PairSampler(cast(), "train", SIZE, frames=frames).twins(SEED, 1)
    first, second = twins.specs
    assert first.driver is second.target
    assert first.target is second.driver
    assert first.motion is second.motion
    assert first.caption != second.caption
    for spec, clip, joints in zip(twins.specs, twins.clips, twins.joints, strict=True):
        assert clip.shape == (frames + 2, SIZE, SIZE, 4)
        assert len(joints.pixels) == frames + 2
        assert spec.reference_motion is not spec.motion or spec.reference_time != spec.start
        assert (clip[..., 3] > 0).any(axis=(1, 2)).all()
    for clip, surface in zip(twins.clips, twins.surfaces, strict=True):
        assert surface.shape == (frames + 2, SIZE // CELL, SIZE // CELL, 3)
        shown = clip[:, CELL // 2 :: CELL, CELL // 2 :: CELL, 3] > 0
        agree = shown == np.isfinite(surface).all(axis=-1)
        assert agree.mean() > 0.95  # outlines, and borders between two pixels
    again = PairSampler(cast(), "train", SIZE, frames=frames).twins(SEED, 1)
    assert_array_equal(twins.clips[1], again.clips[1])


def test_a_mirrored_twin_has_left_and_right_changed() -> None:
    """exact: pictures and spots are mirrored, and what was on the left of the body is right."""
    sampler = PairSampler(cast(), "train", SIZE, frames=4)
    for spec in sampler.twins(SEED, 1).specs:
        plain, mirrored = (sampler._twin(replace(spec, flip=flip)) for flip in (False, True))
        assert_array_equal(mirrored[0], plain[0][:, :, ::-1])
        assert_allclose(mirrored[2], plain[2][:, :, ::-1] * np.array([-1, 1, 1]))
        left = np.nanmean(plain[2][..., 0])  # one sees more of one side, or of both as much
        assert np.nanmean(mirrored[2][..., 0]) == pytest.approx(-left)
        assert 0.3 < np.nanmax(plain[2][..., 1]) < 2  # parts of the body's size


def test_a_twin_does_what_its_spec_says(drawn: list[Pair]) -> None:
    """same: frames of twins and of a pair are posed alike; only their cameras hold other frames."""
    sampled = PairSampler(cast(), "test", SIZE)
    pair, twins = sampled.pair(SEED, 0), sampled.twins(SEED, 0)
    assert pair.caption == twins.specs[0].caption
    assert pair.target_joints.names == twins.joints[0].names
    seen = pair.target_joints.pixels[1:], twins.joints[0].pixels[2:]
    shapes = [p - p.mean(axis=1, keepdims=True) for p in seen]
    scale = np.linalg.norm(shapes[0]) / np.linalg.norm(shapes[1])
    assert 0.7 < scale < 1.4
    assert_allclose(shapes[0], scale * shapes[1], atol=0.05 * SIZE)
