"""Skeletons: who hangs on whom, where and in which colour it is drawn; the world's exact joints."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from dreamactor.conditioning.skeleton import (
    BODY,
    BONES,
    JOINTS,
    WHOLE,
    PoseTrack,
    draw,
    select,
    shade,
    tree,
)
from dreamactor.errors import ShapeError
from dreamactor.world.scene import Joints
from dreamactor.world.tracks import Exact, track_of

OPENPOSE = (  # of joints and, less the last, of limbs: what every ControlNet of poses has seen
    *((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0)),
    *((0, 255, 0), (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255)),
    *((0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85)),
)
LIMBS = (  # in OpenPose's order
    *("shoulder_r", "shoulder_l", "elbow_r", "wrist_r", "elbow_l", "wrist_l", "hip_r", "knee_r"),
    *("ankle_r", "hip_l", "knee_l", "ankle_l", "nose", "eye_r", "ear_r", "eye_l", "ear_l"),
)


def still(names: tuple[str, ...], at: list[tuple[float, float]], size: int = 64) -> PoseTrack:
    """One frame of one subject."""
    positions = np.array(at, np.float32)[None, None]
    return PoseTrack(names, positions, np.ones(positions.shape[:3], np.float32), size, size, 12)


def test_colours_of_people_are_those_of_dwpose() -> None:
    assert tuple(BONES[name].joint for name in BODY) == OPENPOSE
    assert tuple(BONES[name].limb for name in LIMBS) == tuple(map(shade, OPENPOSE[:17]))
    assert shade((255, 85, 170)) == (153, 51, 102)
    parents = tree(BODY, set(BODY))
    assert {parents[name] for name in ("shoulder_r", "hip_l", "nose")} == {"neck"}
    assert set(WHOLE) <= BONES.keys()
    assert set(JOINTS) <= BONES.keys()


def test_bodies_hang_together_whatever_they_lack() -> None:
    """exact: a fish, a bird without pelvis, a person without trunk, all of one piece."""
    assert tree(JOINTS, {"head", "spine", "tail"}) == {"spine": "head", "tail": "spine"}
    bird = {"head", "neck", "spine", "tail", "hip_l", "hip_r", "shoulder_l", "shoulder_r"}
    assert tree(JOINTS, bird)["hip_l"] == tree(JOINTS, bird)["tail"] == "spine"
    assert tree(JOINTS, set(JOINTS) - {"spine", "pelvis"})["hip_r"] == "neck"
    for names in (JOINTS, WHOLE):
        parents = tree(names, set(names))
        assert set(names) - parents.keys() == {"neck"}


def test_limb_lies_where_its_joints_are() -> None:
    """exact: centre, length and width of a limb alone, with pixel centres at halves."""
    track = still(("shoulder_l", "elbow_l"), [(100, 40), (100, 200)], 256)
    cover = draw(track)[0, ..., 1] / shade(OPENPOSE[4])[1]
    row, column = np.mgrid[:256, :256] + 0.5
    assert_allclose((cover * column).sum() / cover.sum(), 100, atol=0.05)
    assert_allclose((cover[50:190] * row[50:190]).sum() / cover[50:190].sum(), 120, atol=0.2)
    assert_allclose(cover[119:121].sum() / 2, 4, rtol=0.1)  # 2 x 2 pixels at 256
    lit = np.flatnonzero(cover[:, 99:101].sum(1) > 1)
    assert [lit[0], lit[-1]] == [38, 201]  # from the top of one joint to the end of the other


def test_drawing_equals_a_larger_one_made_smaller() -> None:
    """same: as the mean of 4 x 4 samples a pixel."""
    rng = np.random.default_rng(0)
    large = still(BODY, list(map(tuple, rng.uniform(100, 900, (18, 2)))), 1024)
    small = replace(large, positions=large.positions / 4, height=256, width=256)
    pooled = draw(large)[0].reshape(256, 4, 256, 4, 3).mean((1, 3))
    difference = np.abs(draw(small)[0] - pooled)
    assert pooled.mean() > 2
    assert difference.mean() < 0.1 * pooled.mean()
    assert_allclose(draw(small).mean(), pooled.mean(), rtol=0.03)


def test_drawing_moves_with_the_body() -> None:
    """unchanged by: a shift of whole pixels."""
    track = still(("neck", "nose"), [(20.3, 30.7), (33.1, 21.9)])
    moved = draw(replace(track, positions=track.positions + np.array([5, 9], np.float32)))
    assert_array_equal(np.roll(draw(track), (9, 5), axis=(1, 2)), moved)


def test_what_is_not_found_is_not_drawn_and_changes_nothing_else() -> None:
    """exact: a knee lost for a frame takes thigh and shin along; the ankle stays a dot."""
    names = ("hip_l", "knee_l", "ankle_l")
    two = still(names, [(20, 10), (20, 30), (20, 50)])
    track = replace(
        two,
        positions=two.positions.repeat(2, 0),
        confidence=np.array([[[1, 1, 1]], [[1, 0.2, 1]]], np.float32),
    )
    frames = draw(track)
    assert frames[0, 40, 20].any()
    assert not frames[1, 15:45].any()
    assert frames[1, 50, 20].any()
    assert not draw(replace(track, confidence=0 * track.confidence)).any()


def test_trunk_is_shown_or_left_out() -> None:
    names = ("neck", "spine", "pelvis", "hip_l")
    track = still(names, [(32.5, 32.5), (128.5, 32.5), (224.5, 32.5), (224.5, 224.5)], 256)
    assert draw(track)[0, 32, 80].tolist() == [153, 153, 153]
    bare = draw(track, trunk=False)[0]
    assert not bare[32, 40:].any()
    assert bare[128, 128].any()  # hip to neck, as DWPose has it


def test_off_picture_and_over_a_picture() -> None:
    track = still(("neck", "nose"), [(32, 32), (1e9, 32)])
    under = np.full((1, 64, 64, 3), 7, np.uint8)
    over = draw(track, over=under)
    assert over[0, 32, 40].tolist() != [7, 7, 7]
    assert (under == 7).all()
    with pytest.raises(ShapeError, match=r"want \(1, 64, 64, 3\)"):
        draw(track, over=under[:, 1:])


def test_select_reorders_and_says_what_is_missing() -> None:
    track = select(still(("neck", "nose"), [(1, 2), (3, 4)]), ("nose", "tail"))
    assert track.names == ("nose", "tail")
    assert track.positions[0, 0, 0].tolist() == [3, 4]
    assert track.confidence[0, 0].tolist() == [1, 0]


def test_exact_joints_of_the_world() -> None:
    """exact: by name, in one order; hidden ones keep their place; other frames are refused."""
    pixels = np.array([[[32.0, 8.0], [64.0, 16.0]]], np.float32)
    joints = Joints(("wrist_r", "head"), pixels, np.ones((1, 2), np.float32), pixels[..., 0] < 50)
    track = track_of([joints, joints], (48, 64), 12.0)
    assert track.confidence.shape == (1, 2, 17)
    assert track.positions[0, 1, JOINTS.index("head")].tolist() == [64, 16]
    assert track.confidence.sum(axis=(0, 2)).tolist() == [1, 1]
    assert track.confidence[0, 0, JOINTS.index("wrist_r")] == 1
    frames = np.zeros((1, 48, 64, 3), np.uint8)
    assert Exact(track)(frames, 12.0) is track
    with pytest.raises(ShapeError, match="the known track belongs to"):
        Exact(track)(frames[:, :, 1:], 12.0)
