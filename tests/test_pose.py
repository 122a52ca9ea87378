"""Properties of skeleton maths, on the box man."""

from __future__ import annotations

from dataclasses import replace

import boxman
import numpy as np
import pytest
from numpy.testing import assert_allclose

from dreamactor.errors import AssetError, ConfigError
from dreamactor.world.body import faced, pose_clip, retarget, same_body, shape
from dreamactor.world.pose import (
    Proportions,
    Track,
    bind_pose,
    in_place,
    joint_angles,
    joint_positions,
    matrices,
    period,
    place,
    quat_apply,
    quat_between,
    quat_conj,
    quat_matrix,
    quat_mul,
    sample_motion,
    skinning,
    slerp,
    smooth,
)

CAST = boxman.build()
BOX, LANKY = CAST.skeletons["box"], CAST.skeletons["lanky"]
WALK, STROLL = CAST.motions["walk"], CAST.motions["stroll"]


def _random_quaternions(count: int) -> np.ndarray:
    q = np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32)
    return q / np.linalg.norm(q, axis=1, keepdims=True)


def test_exact_quaternions_rotate_as_their_matrices():
    a, b = _random_quaternions(20), _random_quaternions(40)[20:]
    v = np.random.default_rng(1).standard_normal((20, 3)).astype(np.float32)
    rotated = np.einsum("nab,nb->na", quat_matrix(quat_mul(a, b)), v)
    assert_allclose(quat_apply(a, quat_apply(b, v)), rotated, atol=1e-5)
    assert_allclose(quat_apply(quat_conj(a), quat_apply(a, v)), v, atol=1e-5)


@pytest.mark.parametrize("end", [(0, 1, 0), (-1, 0, 0), (1, 0, 0), (0.6, 0, 0.8)])
def test_exact_quat_between_turns_one_direction_into_the_other(end):
    start, end = np.array([1.0, 0, 0]), np.array(end, dtype=float)
    assert_allclose(quat_apply(quat_between(start, end), start), end, atol=1e-6)


def test_exact_slerp_halves_an_angle_and_takes_the_short_way():
    turn = boxman.about((0, 1, 0), np.array(1.2))
    still = np.array([0, 0, 0, 1], np.float32)
    half = np.array(0.5, np.float32)
    expected = boxman.about((0, 1, 0), np.array(0.6))
    assert_allclose(slerp(still, turn, half), expected, atol=1e-6)
    assert_allclose(slerp(still, -turn, half), expected, atol=1e-6)


def test_exact_sampling_at_baked_times_gives_baked_frames():
    track = sample_motion(WALK, np.arange(20) / WALK.fps)
    assert_allclose(track.positions, WALK.positions, atol=1e-5)
    assert_allclose(np.abs(np.sum(track.rotations * WALK.rotations, -1)), 1, atol=1e-5)


def test_unchanged_by_whole_rounds_of_a_loop():
    round_ = period(WALK) / WALK.fps
    times = np.array([0.03, 0.4, 0.91])
    a, b = sample_motion(WALK, times), sample_motion(WALK, times + 3 * round_)
    assert_allclose(a.positions, b.positions, atol=1e-5)


def test_exact_period_drops_a_repeated_last_frame():
    repeated = replace(
        WALK,
        positions=np.concatenate([WALK.positions, WALK.positions[:1]]),
        rotations=np.concatenate([WALK.rotations, WALK.rotations[:1]]),
    )
    assert period(WALK) == 20
    assert period(repeated) == 20


def test_exact_ends_of_a_motion_that_does_not_loop():
    past = (len(STROLL.positions) - 1 + 5) / STROLL.fps
    clamped = sample_motion(STROLL, [past, -1.0])
    assert_allclose(clamped.positions[0], STROLL.positions[-1], atol=1e-6)
    assert_allclose(clamped.positions[1], STROLL.positions[0], atol=1e-6)
    returned = sample_motion(STROLL, [past], end="pingpong")
    assert_allclose(returned.positions[0], STROLL.positions[-6], atol=1e-5)


def test_refuses_an_unknown_end():
    with pytest.raises(ConfigError, match="want auto, loop, clamp or pingpong"):
        sample_motion(WALK, [0.0], end="bounce")  # type: ignore[arg-type]


def test_exact_skinning_of_the_bind_pose_is_the_identity():
    moves = skinning(LANKY, bind_pose(LANKY))
    assert_allclose(moves, np.broadcast_to(np.eye(4), moves.shape), atol=1e-5)


def test_exact_smoothing_keeps_a_line_and_in_place_removes_it():
    line = np.linspace([0, 0, 0], [3, 0, -1], 30).astype(np.float32)
    assert_allclose(smooth(line, 4), line, atol=1e-5)
    pose = matrices(sample_motion(STROLL, np.arange(40) / STROLL.fps))
    assert np.ptp(pose[:, 0, 2, 3]) > 2.9
    assert np.ptp(in_place(pose)[:, 0, 2, 3]) < 0.01


def test_exact_place_turns_moves_and_scales():
    pose = place(bind_pose(BOX, 2), (1, 0, 2), heading=np.pi / 2, scale=2.0)
    left = BOX.joints["wrist_l"]
    x, y, _ = BOX.bind_position[left]
    assert_allclose(pose[1, left, :3, 3], [1, 2 * y, 2 - 2 * x], atol=1e-5)


@pytest.mark.parametrize("wanted", [Proportions(legs=1.4), Proportions(head=2, arms=0.7, girth=2)])
def test_exact_proportions_scale_limbs_and_keep_angles(wanted):
    track = sample_motion(WALK, np.arange(8) / 10)
    before = joint_positions(BOX, matrices(track))
    after = joint_positions(BOX, shape(BOX, track, wanted))

    def length(joints, a, b):
        return np.linalg.norm(joints[a] - joints[b], axis=-1)

    pairs = [("hip_l", "knee_l", wanted.legs), ("elbow_r", "wrist_r", wanted.arms)]
    for a, b, factor in pairs:
        assert_allclose(length(after, a, b), factor * length(before, a, b), rtol=1e-4)
    for name, angle in joint_angles(before).items():
        assert_allclose(joint_angles(after)[name], angle, atol=1e-3)
    lowest = [min(j[n][0, 1] for n in ("ankle_l", "ankle_r")) for j in (before, after)]
    assert lowest[1] == pytest.approx(lowest[0], abs=1e-4)


def test_same_joint_angles_after_retargeting_to_other_limbs_and_another_bind_pose():
    track = sample_motion(WALK, np.arange(10) / 10)
    theirs = joint_angles(joint_positions(BOX, matrices(track)))
    carried = retarget(track, BOX, replace(LANKY, bones=tuple(f"b_{n}" for n in LANKY.bones)))
    ours = joint_angles(joint_positions(LANKY, matrices(carried)))
    assert set(ours) == {"elbow_l", "elbow_r", "knee_l", "knee_r"}
    for name, angle in theirs.items():
        assert_allclose(ours[name], angle, atol=2e-3)


def test_unchanged_by_retargeting_to_a_body_of_the_same_size():
    track = sample_motion(WALK, [0.0, 0.1])
    assert retarget(track, BOX, boxman.skeleton("stooped", droop=0.5)) is track
    assert same_body(BOX, boxman.skeleton("stooped", droop=0.5))
    assert not same_body(BOX, LANKY)


def test_exact_lengths_after_retargeting_to_the_same_bones_of_another_size():
    """A foal has the bones of a horse: it moves like one, and stays as small as it is."""
    track = sample_motion(WALK, np.arange(6) / 10)
    carried = joint_positions(LANKY, matrices(retarget(track, BOX, LANKY)))
    theirs = joint_angles(joint_positions(BOX, matrices(track)))
    for name, angle in joint_angles(carried).items():
        assert_allclose(theirs[name], angle, atol=2e-3)
    for upper, lower in (("hip_l", "knee_l"), ("knee_r", "ankle_r"), ("elbow_l", "wrist_l")):
        length = np.linalg.norm(carried[upper] - carried[lower], axis=-1)
        bind = LANKY.bind_position[[LANKY.joints[upper], LANKY.joints[lower]]]
        assert_allclose(length, np.linalg.norm(bind[0] - bind[1]), rtol=1e-4)


def test_unchanged_by_the_heading_a_body_is_bound_in():
    """A skeleton bound facing -z, retargeted, walks the way the motion goes."""
    beast = replace(
        BOX,
        body_plan="quadruped",
        bind_position=BOX.bind_position + np.array([0, 0, 1]) * _forwards(),
    )
    other = replace(beast, bones=tuple(f"b_{n}" for n in BOX.bones))
    turned = replace(
        other,
        bind_position=other.bind_position * np.array([-1, 1, -1], np.float32),
        bind_rotation=quat_mul(np.array([[0, 1, 0, 0]], np.float32), other.bind_rotation),
    )
    assert faced(beast) is beast
    assert_allclose(faced(turned).bind_position, beast.bind_position, atol=1e-6)
    track = sample_motion(WALK, np.arange(4) / 10)
    straight, about = retarget(track, beast, other), retarget(track, beast, turned)
    assert_allclose(about.positions, straight.positions, atol=1e-4)


def _forwards() -> np.ndarray:
    """(J, 1) metres that a bone lies further forwards in a beast than in a man."""
    front = [
        name.split("_")[0] in ("neck", "head", "shoulder", "elbow", "wrist") for name in BOX.bones
    ]
    return np.array(front, np.float32)[:, None]


def test_refuses_another_body_plan():
    track = Track(WALK.rotations, WALK.positions)
    beast = replace(LANKY, bones=("x", *LANKY.bones[1:]), body_plan="quadruped")
    with pytest.raises(AssetError, match="want one body plan"):
        retarget(track, BOX, beast)


def test_exact_feet_stay_on_the_ground_when_a_clip_is_reshaped():
    look = CAST.looks["red"]
    times = np.arange(8) / 10
    plain = pose_clip(CAST, look, WALK, times)
    tall = pose_clip(CAST, look, WALK, times, Proportions(legs=1.5))
    feet = [BOX.joints["ankle_l"], BOX.joints["ankle_r"]]
    assert_allclose(plain[:, feet, 1, 3].min(), tall[:, feet, 1, 3].min(), atol=0.03)
