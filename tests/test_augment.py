"""Poses as they drive: bones scaled in one piece, one frame of reference, the empty second."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from dreamactor.conditioning.augment import (
    AugmentConfig,
    add_lead,
    augment,
    bounding_box,
    hide_lead,
    lead_frames,
    normalise,
    realign,
    scale_groups,
)
from dreamactor.conditioning.skeleton import BODY, BONES, JOINTS, WHOLE, PoseTrack, draw, tree
from dreamactor.errors import ConfigError

PLAIN = AugmentConfig(scale_share=0, normalise=False)


def walk(names: tuple[str, ...] = JOINTS, frames: int = 30, seed: int = 0) -> PoseTrack:
    """Two bodies whose joints wander smoothly about the picture."""
    rng = np.random.default_rng(seed)
    at = rng.uniform(60, 200, (1, 2, len(names), 2))
    phase = rng.uniform(0, 6, at.shape) + np.linspace(0, 3, frames)[:, None, None, None]
    positions = (at + 15 * np.sin(phase)).astype(np.float32)
    return PoseTrack(names, positions, np.ones(positions.shape[:3], np.float32), 240, 320, 12.0)


def bones(track: PoseTrack) -> dict[str, np.ndarray]:
    """(T, S, 2) the way from its parent to each joint."""
    return {
        name: track.positions[:, :, track.names.index(name)]
        - track.positions[:, :, track.names.index(parent)]
        for name, parent in tree(track.names, set(track.names)).items()
    }


@pytest.mark.parametrize("names", [JOINTS, BODY, WHOLE], ids=["world", "body", "whole"])
def test_every_bone_is_scaled_by_the_factor_of_its_group(names: tuple[str, ...]) -> None:
    """exact: the way to the parent times the factor, in all frames; so joints stay connected,
    directions stay, and a bone's length keeps its pattern in time."""
    track = walk(names)
    factors = {"thighs": 1.2, "forearms": 0.8, "trunk": 1.1, "hands": 0.9}
    scaled = scale_groups(track, factors)
    before, after = bones(track), bones(scaled)
    for name, way in before.items():
        assert_allclose(after[name], factors.get(BONES[name].group, 1) * way, atol=1e-3)
    neck = names.index("neck")
    assert_allclose(scaled.positions[:, :, neck], track.positions[:, :, neck], atol=1e-4)


def test_bones_are_scaled_on_three_of_ten_samples_by_the_papers_factors() -> None:
    """exact: about 600 of 2,000, all factors in [0.8, 1.2], spread evenly."""
    track = walk(frames=1)
    own = np.linalg.norm(bones(track)["knee_l"], axis=-1)
    config = AugmentConfig(normalise=False)
    scaled = [bones(augment(track, config, 0, item))["knee_l"] for item in range(2000)]
    ratios = np.array([float((np.linalg.norm(way, axis=-1) / own)[0, 0]) for way in scaled])
    changed = ratios[np.abs(ratios - 1) > 1e-5]
    assert len(changed) == pytest.approx(600, abs=60)
    assert 0.8 <= changed.min() < 0.81
    assert 1.19 < changed.max() <= 1.2001
    assert np.quantile(changed, 0.25) == pytest.approx(0.9, abs=0.02)


def test_left_and_right_are_scaled_alike() -> None:
    track = walk()
    scaled = augment(track, AugmentConfig(scale_share=1, normalise=False), 0, 5)
    left, right = (
        np.linalg.norm(bones(scaled)[f"elbow_{s}"], axis=-1)
        / np.linalg.norm(bones(track)[f"elbow_{s}"], axis=-1)
        for s in "lr"
    )
    assert_allclose(left, right, rtol=1e-3)
    assert abs(left[0, 0] - 1) > 0.001


def test_a_sample_depends_on_its_key_alone() -> None:
    """unchanged by: order, and options that are off."""
    config = AugmentConfig(scale_share=1, drop=0.1, noise=0.01)
    first = augment(walk(), config, 7, 3)
    augment(walk(), config, 7, 4)
    assert_array_equal(first.positions, augment(walk(), config, 7, 3).positions)
    assert np.abs(first.positions - augment(walk(), config, 7, 4).positions).max() > 1
    whole = replace(config, normalise=False, noise=0)
    parts = augment(walk(), whole, 7, 3), augment(walk(), replace(whole, drop=0), 7, 3)
    assert_array_equal(parts[0].positions, parts[1].positions)


def test_nothing_changes_unless_asked_for() -> None:
    track = walk()
    same = augment(track, PLAIN, 0, 0)
    assert_array_equal(same.positions, track.positions)
    assert_array_equal(same.confidence, track.confidence)


def test_a_joint_that_is_lost_for_a_frame_lets_no_other_jump() -> None:
    """exact: on a straight path the bridge is the truth."""
    track = walk()
    straight = track.positions[:1] + np.arange(30, dtype=np.float32)[:, None, None, None]
    track = replace(track, positions=straight.astype(np.float32))
    wanted = scale_groups(track, {"upper arms": 1.2, "forearms": 0.8})
    elbow, wrist = JOINTS.index("elbow_l"), JOINTS.index("wrist_l")
    positions, confidence = track.positions.copy(), track.confidence.copy()
    positions[10:12, :, elbow], confidence[10:12, :, elbow] = 0, 0
    holey = scale_groups(
        replace(track, positions=positions, confidence=confidence),
        {"upper arms": 1.2, "forearms": 0.8},
    )
    assert_allclose(holey.positions[:, :, wrist], wanted.positions[:, :, wrist], atol=1e-2)


def test_the_box_of_the_whole_clip_fills_the_picture() -> None:
    """exact: centred, 10 % margin on the tighter axis; unchanged by where and how large it was."""
    track = normalise(walk(), 0.1)
    low, high = bounding_box(track)
    assert_allclose((low + high) / 2, [160, 120], atol=1e-2)
    assert_allclose(((high - low) / [320, 240]).max(), 0.8, atol=1e-4)
    moved = replace(walk(), positions=walk().positions * 0.3 + np.array([50, -9], np.float32))
    assert_allclose(normalise(moved, 0.1).positions, track.positions, atol=1e-2)
    hidden = replace(walk(), confidence=0 * walk().confidence)
    assert np.isfinite(normalise(hidden).positions).all()


def test_the_box_leaves_out_what_is_not_found() -> None:
    track = walk()
    positions, confidence = track.positions.copy(), track.confidence.copy()
    positions[3, 0, 4], confidence[3, 0, 4] = 9999, 0.1
    low, high = bounding_box(replace(track, positions=positions, confidence=confidence))
    assert high.max() < 300
    assert low.min() > 0


def test_first_second_is_hidden_in_training_and_empty_at_inference() -> None:
    """exact: 12 frames at 12 a second, 24 at 23.976; what is added is cut."""
    assert [lead_frames(fps, 1.0) for fps in (12.0, 24000 / 1001, 30.0)] == [12, 24, 30]
    assert lead_frames(12.0, 1 / 3) == 4
    track = walk()
    hidden = draw(hide_lead(track, 1.0))
    assert not hidden[:12].any()
    assert_array_equal(hidden[12:], draw(track)[12:])
    led = draw(add_lead(track, 12))
    assert led.shape[0] == 42
    assert not led[:12].any()
    assert_array_equal(led[12:], draw(track))


def test_realigned_bodies_have_the_others_proportions() -> None:
    """exact: scaling groups is undone up to the body's size; unchanged by its own body."""
    track = replace(walk(), positions=walk().positions[:, :1], confidence=walk().confidence[:, :1])
    assert_allclose(realign(track, track).positions, track.positions, atol=1e-2)
    body = scale_groups(track, {"thighs": 1.5, "shins": 1.5, "upper arms": 0.7})
    fitted = bones(realign(track, body))
    ratios = [
        np.quantile(np.linalg.norm(fitted[n], axis=-1), 0.9)
        / np.quantile(np.linalg.norm(bones(body)[n], axis=-1), 0.9)
        for n in ("knee_l", "elbow_r", "head")
    ]
    assert_allclose(ratios, ratios[0], rtol=0.02)
    assert_array_equal(augment(track, PLAIN, 0, 0, body).positions, realign(track, body).positions)
    with pytest.raises(ConfigError, match="want some in common"):
        realign(track, replace(body, confidence=0 * body.confidence))


def test_drop_out_and_noise_do_what_they_say() -> None:
    track = walk(WHOLE, 20)
    lost = augment(track, replace(PLAIN, drop=0.25), 0, 1)
    gone = lost.confidence == 0
    assert (gone.all(0) | ~gone.any(0)).all()
    assert gone.mean() == pytest.approx(0.25, abs=0.08)
    low, high = bounding_box(track)
    error = augment(track, replace(PLAIN, noise=0.02), 0, 1).positions - track.positions
    assert error.std() == pytest.approx(0.02 * (high - low).max(), rel=0.05)


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"scale_share=2: want 0 to 1"):
        AugmentConfig(scale_share=2)
    with pytest.raises(ConfigError, match="want 0 < low <= high"):
        AugmentConfig(scale_low=1.3)
