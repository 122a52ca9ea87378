"""Stages: who stands where, who does what, and pictures that several shots share."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import dreamactor
from dreamactor.errors import AssetError, ConfigError
from dreamactor.world.axes import activity_of, age_of, species_of
from dreamactor.world.body import soles
from dreamactor.world.cast import Cast, load_cast
from dreamactor.world.crowd import Act, Group, Shot, Stage, repeated, stride
from dreamactor.world.pairs import CELL, PairSampler
from dreamactor.world.pose import joint_angles, joint_positions, sample_motion
from dreamactor.world.troupe import PluralSampler, Troupe, Wish, shot_caption

MINI = Path(dreamactor.__file__).parent / "data" / "mini.castpack"
SIZE = 64
WALK, STAB, FIST = (
    f"biped/{name}"
    for name in (
        "gatherer/walk_axe",
        "infantry/knife/attack_melee_knife_a",
        "infantry/promotion",
    )
)


@cache
def cast() -> Cast:
    return load_cast(MINI)


@cache
def sampler(split: str = "test") -> PairSampler:
    return PairSampler(cast(), split, SIZE, frames=4)


@cache
def troupe() -> Troupe:
    return Troupe(sampler())


@pytest.fixture(scope="module")
def draws():
    try:
        sampler().renderer.context  # noqa: B018 - opens it
    except AssetError as fault:
        pytest.skip(str(fault))


def act(name: str) -> Act:
    return Act(repeated(cast().motions[name]), 0.2, 1.0)


def group(count: int, seed: int = 0) -> Group:
    rng, sides, taken = np.random.default_rng(seed), [], set()
    for _ in range(count):
        look = troupe().look(rng, "human", avoid=[taken])
        taken.add(look.group)
        side = troupe().side(rng, look, Wish(several=count > 1, age="young"))
        sides.append(replace(side, centre=(0.0, 0.0)))
    return Group(tuple(sides))


def stage(names: list[str], count: int, path: str = "stays", azimuth: float = 20.0) -> Stage:
    view = np.full(8, azimuth, np.float32)
    shots = (
        Shot((act(FIST),), view[:1]),
        Shot(tuple(act(n) for n in names), view, path),
    )
    return Stage(cast(), group(count), shots, 6.0, SIZE)


@pytest.mark.usefixtures("draws")
def test_exact_subjects_stand_from_left_to_right_and_never_meet():
    """Mask value k is member k - 1, all of it left of the next, in reference and clip alike."""
    three = stage([STAB, FIST, WALK], 3)
    for shot in range(2):
        drawn = sampler().renderer.render(three.scene(shot), "all")
        assert set(np.unique(drawn.mask)) == {0, 1, 2, 3}
        for frame in drawn.mask:
            spans = [np.flatnonzero((frame == k).any(axis=0)) for k in (1, 2, 3)]
            assert spans[0].max() < spans[1].min()
            assert spans[1].max() < spans[2].min()
        for k, joints in enumerate(drawn.joints, 1):
            x, y = np.moveaxis(joints.pixels.astype(int), -1, 0)
            on = drawn.mask[np.arange(len(x))[:, None], y, x]
            assert (on[joints.visible] == k).mean() > 0.75  # thin limbs lie between pixels
            assert not ((on != 0) & (on != k)).any()


def test_same_joint_angles_of_each_member_and_its_driver():
    """exact: member k does act k (many to many), or all do the one (one to many)."""
    for names in ([STAB, FIST], [STAB]):
        driver, target = stage(names, len(names)), stage(names, 2, azimuth=50.0)
        for k, side in enumerate(target.group.sides):
            ours = k if len(names) > 1 else 0
            look = driver.group.sides[ours].look
            skeletons = (cast().skeletons[s.skeleton] for s in (look, side.look))
            poses = driver.poses[1][ours], target.poses[1][k]
            angles = [
                joint_angles(joint_positions(s, p)) for s, p in zip(skeletons, poses, strict=True)
            ]
            for joint in ("elbow_l", "elbow_r", "knee_l", "knee_r"):
                assert_allclose(
                    np.degrees(angles[0][joint]), np.degrees(angles[1][joint]), atol=1.5
                )


def test_refuses_acts_for_others_than_there_are():
    with pytest.raises(ConfigError, match="2 acts for 3 subjects"):
        stage([STAB, FIST], 3)


def test_exact_reference_and_clip_share_the_camera():
    for path in ("stays", "followed", "crosses"):
        found = stage([WALK], 1, path)
        reference, clip = found.scene(0).camera, found.scene(1).camera
        assert_allclose(reference.eye[0], clip.eye[0], atol=1e-4)
        assert_allclose(reference.shift[0], clip.shift[0])
        moved = float(np.linalg.norm(clip.eye[-1] - clip.eye[0]))
        assert (moved > 0.2) == (path == "followed")


def test_exact_who_is_followed_stays_and_who_crosses_goes():
    places = {}
    for path in ("stays", "followed", "crosses"):
        scene = stage([WALK], 1, path, azimuth=80.0).scene(1)
        pelvis = cast().skeletons[scene.actors[0].look.skeleton].joints["pelvis"]
        at = scene.actors[0].pose[:, pelvis, None, :3, 3]
        places[path] = scene.camera.project(at, SIZE, SIZE)[0][:, 0, 0]
    assert_allclose(places["stays"], places["followed"], atol=0.2)
    assert abs(places["crosses"][-1] - places["crosses"][0]) > 0.15 * SIZE


def test_exact_the_standing_foot_stays_where_it_is():
    """Whoever is moved at the pace of `stride` does not slide: half a foot's way at most."""
    side, motion = group(1).sides[0], cast().motions[WALK]
    pace = stride(cast(), side, motion)
    assert 0.8 < pace < 2.5  # metres a second: a walk
    found = stage([WALK], 1, "followed", azimuth=0.0)
    actor = found.scene(1).actors[0]
    feet = soles(cast().skeletons[actor.look.skeleton])
    at = actor.pose[:, feet][..., :3, 3]
    steps = np.linalg.norm(np.diff(at, axis=0)[..., [0, 2]], axis=-1)  # (T - 1, F)
    lowest = at[:-1, :, 1].argmin(axis=1)
    planted = np.median(steps[np.arange(len(steps)), lowest])
    body = np.linalg.norm(np.diff(found.travel[1], axis=0), axis=-1).mean()
    assert planted < 0.35 * body
    assert stride(cast(), side, cast().motions[FIST]) < 0.3


def test_exact_a_repeated_motion_has_no_seam():
    motion = cast().motions[STAB]
    assert not motion.loops
    loop = repeated(motion)
    assert loop.loops
    length = len(motion.positions) / motion.fps
    times = np.arange(length - 0.2, length + 0.2, 1 / 60, dtype=np.float32)
    jumps = [
        np.linalg.norm(np.diff(sample_motion(m, times, "loop").positions, axis=0), axis=-1).max()
        for m in (motion, loop)
    ]
    assert jumps[1] < 0.8 * jumps[0]
    assert_array_equal(loop.positions[: len(loop.positions) // 2],
                       motion.positions[: len(motion.positions) // 2])  # fmt: skip
    assert repeated(cast().motions[WALK]) is cast().motions[WALK]


@pytest.mark.parametrize(
    ("name", "activity"),
    [
        (WALK, "travel"), (STAB, "fight"), (FIST, "daily"),
        ("biped/infantry/slinger/idle_ready", "still"),
        ("quadraped/horse_pace", "travel"), ("quadraped/zebra_idle", "still"),
        ("quadraped/elephant_asian_attack_melee_01", "fight"),
    ],
)  # fmt: skip
def test_exact_activities(name, activity):
    assert activity_of(cast().motions[name]) == activity


def test_exact_ages_and_species():
    rng = np.random.default_rng(0)
    for age in ("child", "young", "elderly"):
        look = troupe().look(rng, "human", age=age)
        side = troupe().side(rng, look, Wish(age=age))
        assert age_of(side.look, side.proportions) == age
        assert species_of(look) is None
    goat = next(look for look in cast().looks.values() if look.group == "goat")
    assert (species_of(goat), age_of(goat, side.proportions)) == ("goat", None)


@pytest.mark.usefixtures("draws")
def test_plural_twins_are_groups_in_one_motion():
    """same: both show the same acts; unchanged by drawing again; joints of every subject."""
    plural, kinds = PluralSampler(sampler("train")), set()
    for index in range(4):
        twins = plural.twins(3, index)
        kinds.add(twins.kind)
        assert twins.stages[0].shots[1] is not None
        counts = [len(stage.group) for stage in twins.stages]
        assert {"one2many": counts[0] == 1 < counts[1], "half2full": counts == [1, 1],
                "many2many": counts[0] == counts[1] > 1}[twins.kind]  # fmt: skip
        for clip, joints, surface, count in zip(
            twins.clips, twins.joints, twins.surfaces, counts, strict=True
        ):
            assert clip.shape == (6, SIZE, SIZE, 4)
            assert len(joints) == count
            assert all(j.pixels.shape[0] == 6 for j in joints)
            x = [j.pixels[..., 0].mean() for j in joints]
            assert x == sorted(x)
            assert surface.shape == (6, SIZE // CELL, SIZE // CELL, 3)
            assert 0.3 < np.nanmax(np.abs(surface)) < 2
    assert len(kinds) > 1
    assert_array_equal(plural.twins(3, 3).clips[1], twins.clips[1])


def test_exact_captions_of_groups():
    pair = stage([STAB, FIST], 2)
    said = shot_caption(pair.group, pair.shots[1])
    assert said.startswith("side by side, a")
    assert "stabs with a knife and a" in said
    assert "each raises a fist" in shot_caption(pair.group, pair.shots[0])
