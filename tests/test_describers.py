"""The offline describer: known motions and pictures get the words that they should."""

import cv2
import numpy as np
import pytest

from dreamactor.conditioning.limbs import WORDS, plan_of, remap, strangers
from dreamactor.conditioning.looks import NAMES, colour_shares, describe_looks, find_subject
from dreamactor.conditioning.motion_words import STILL, from_flow, from_track
from dreamactor.conditioning.skeleton import PoseTrack
from dreamactor.errors import ShapeError

FPS, FRAMES = 12.0, 25
CLOCK = np.arange(FRAMES) / FPS  # two seconds
REST = {  # a person of 250 pixels facing us; the own left is on the right
    "head": (150, 40), "neck": (150, 75), "pelvis": (150, 145),
    "shoulder_l": (170, 80), "elbow_l": (178, 112), "wrist_l": (180, 142),
    "shoulder_r": (130, 80), "elbow_r": (122, 112), "wrist_r": (120, 142),
    "hip_l": (160, 148), "knee_l": (161, 200), "ankle_l": (162, 250),
    "hip_r": (140, 148), "knee_r": (139, 200), "ankle_r": (138, 250),
}  # fmt: skip
BEAST = {  # seen from its left side, looking to the left
    "head": (50, 60), "neck": (80, 80), "pelvis": (180, 85),
    "shoulder_l": (90, 95), "wrist_l": (90, 160), "shoulder_r": (92, 95), "wrist_r": (92, 160),
    "hip_l": (180, 95), "ankle_l": (180, 160), "hip_r": (182, 95), "ankle_r": (182, 160),
}  # fmt: skip


def track(rest=REST, **moved):
    """A track of resting joints; `wrist_l=(dx, dy)` adds pixels, numbers or (FRAMES,)."""
    at = np.array([[rest[name] for name in rest]] * FRAMES, np.float32)
    for name, (dx, dy) in moved.items():
        joints = range(len(rest)) if name == "everything" else [list(rest).index(name)]
        for j in joints:
            at[:, j, 0] += dx
            at[:, j, 1] += dy
    return PoseTrack(tuple(rest), at[:, None], np.ones((FRAMES, 1, len(rest)), np.float32),
                     300, 300, FPS)  # fmt: skip


def sine(pixels, hertz):
    return pixels * np.sin(2 * np.pi * hertz * CLOCK)


def ramp(pixels):
    return pixels * np.clip(CLOCK / CLOCK[-1] * 2 - 0.5, 0, 1)


def steps(pixels, hertz, names=("ankle_l", "ankle_r"), together=False):
    left = sine(pixels, hertz)
    return {names[0]: (left, 0), names[1]: (left if together else -left, 0)}


# ---- motion from a track -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moved", "words"),
    [
        ({}, "stands still"),
        (
            {"wrist_l": (sine(35, 2), -90)},
            "stands and waves the left arm fast 4 times, twice a second",
        ),
        ({"wrist_r": (sine(25, 1), -90)}, "stands and waves the right arm twice, once a second"),
        (
            {"wrist_l": (sine(25, 1), -90), "wrist_r": (sine(25, 1), -90)},
            "stands and waves both arms twice, once a second",
        ),
        ({"wrist_l": (0, ramp(-110))}, "stands and raises the left arm"),
        (
            {"wrist_l": (0, ramp(-110)), "wrist_r": (0, ramp(-110))},
            "stands and raises both arms",
        ),
        ({"wrist_r": (0, -100 - ramp(-100))}, "stands and lowers the right arm"),
        ({"wrist_r": (0, -100)}, "stands and holds up the right arm"),
        (steps(30, 0.8), "walks"),
        (steps(60, 1.5), "runs"),
        (steps(30, 0.8) | {"everything": (ramp(-120), 0)}, "walks to the left"),
        (steps(30, 0.8) | {"everything": (ramp(120), 0)}, "walks to the right"),
        (
            steps(30, 0.8) | {"wrist_l": (0, ramp(-110))},
            "walks and raises the left arm",
        ),
        ({"everything": (ramp(120), 0)}, "moves to the right"),
        ({"everything": (0, -60 * np.sin(np.pi * CLOCK / CLOCK[-1]))}, "jumps"),
    ],
)  # fmt: skip
def test_a_persons_motion(moved, words):
    assert from_track(track(**moved)) == words


@pytest.mark.parametrize(
    ("moved", "words"),
    [
        ({}, "stands still"),
        (steps(25, 0.5), "walks"),
        (steps(35, 1.5), "trots"),
        (steps(60, 2, together=True), "runs"),
        ({"head": (0, ramp(60))}, "stands and lowers its head"),
        ({"head": (0, ramp(-40))}, "stands and raises its head"),
        ({"neck": (ramp(60), ramp(-70)), "shoulder_l": (ramp(60), ramp(-70)),
          "shoulder_r": (ramp(60), ramp(-70))}, "rears up"),
    ],
)  # fmt: skip
def test_an_animals_motion(moved, words):
    assert from_track(track(BEAST, **moved)) == words


def test_words_do_not_depend_on_size_or_place():
    wave = track(wrist_l=(sine(35, 2), -90))
    half = PoseTrack(wave.names, wave.positions / 2 + 40, wave.confidence, 300, 300, FPS)
    assert from_track(half) == from_track(wave)


def test_mirrored_directions_and_own_sides():
    walk = track(**steps(30, 0.8), everything=(ramp(-120), 0), wrist_l=(0, ramp(-110)))
    swap = {"l": "r", "r": "l"}
    names = tuple(n[:-1] + swap[n[-1]] if n[-2:] in ("_l", "_r") else n for n in walk.names)
    flip = walk.positions * (-1, 1) + (300, 0)
    mirrored = PoseTrack(names, flip.astype(np.float32), walk.confidence, 300, 300, FPS)
    assert from_track(walk) == "walks to the left and raises the left arm"
    assert from_track(mirrored) == "walks to the right and raises the right arm"


def test_joints_that_are_not_found_are_bridged_or_left_out():
    wave = track(wrist_l=(sine(35, 2), -90), wrist_r=(sine(35, 2), -90))
    confidence = wave.confidence.copy()
    confidence[5, 0] = 0  # a frame of nothing
    confidence[:, 0, wave.names.index("wrist_r")] = 0
    positions = np.where(confidence[..., None] > 0, wave.positions, 9999).astype(np.float32)
    seen = PoseTrack(wave.names, positions, confidence, 300, 300, FPS)
    assert from_track(seen) == "stands and waves the left arm fast 4 times, twice a second"


def test_joints_that_an_estimator_does_not_name_are_told_from_others():
    """Dots of OpenPose have no pelvis, and a nose for a head."""
    names = {"nose" if n == "head" else n: at for n, at in BEAST.items() if n != "pelvis"}
    assert from_track(track(names, nose=(0, ramp(60)))) == "stands and lowers its head"


def test_the_best_seen_subject_counts():
    wave, still = track(wrist_l=(sine(35, 2), -90)), track()
    two = PoseTrack(
        wave.names,
        np.concatenate([still.positions, wave.positions], axis=1),
        np.concatenate([still.confidence / 2, wave.confidence], axis=1),
        300, 300, FPS,
    )  # fmt: skip
    assert from_track(two).startswith("stands and waves")


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize(("subjects", "told"), [(0, ""), (1, STILL)])
def test_next_to_nothing_stands_still_and_nobody_does_nothing(frames, subjects, told):
    wave = track()
    few = PoseTrack(wave.names, wave.positions[:frames, :subjects],
                    wave.confidence[:frames, :subjects], 300, 300, FPS)  # fmt: skip
    assert from_track(few) == told


# ---- motion from flow --------------------------------------------------------------------------


def textured(height, width, low=0, high=255, seed=0):
    noise = np.random.default_rng(seed).standard_normal((height, width, 3))
    soft = cv2.GaussianBlur(noise, (0, 0), 3)
    return (low + (high - low) * np.clip(soft / soft.std() / 4 + 0.5, 0, 1)).astype(np.uint8)


def puppet(body=(0, 0), arm=(0, 0), leg=(0, 0), scene=(0, 0)):
    """Frames of a bright column before a dark wall; the column's top is its arm, its end a leg."""
    wall, skin = textured(400, 400, 0, 60, 1), textured(120, 30, 90, 255, 2)
    parts = (scene, body, arm, leg)
    moves = [np.stack(np.broadcast_arrays(*part, CLOCK)[:2], axis=1) for part in parts]
    frames = []
    for (sx, sy), (bx, by), arm_at, leg_at in zip(*moves, strict=True):
        frame = paste(np.zeros((192, 192, 3), np.uint8), wall, sx - 100, sy - 100)
        for k, (dx, dy) in enumerate((arm_at, (0, 0), leg_at)):
            part = skin[40 * k : 40 * k + 40]
            frame = paste(frame, part, 81 + bx + dx, 36 + 40 * k + by + dy)
        frames.append(frame)
    return frames


def paste(frame, patch, x, y):
    shift = np.float32([[1, 0, x], [0, 1, y]])
    return cv2.warpAffine(patch, shift, (192, 192), frame, borderMode=cv2.BORDER_TRANSPARENT)


@pytest.mark.parametrize(
    ("moved", "words"),
    [
        ({}, "stands still"),
        ({"arm": (sine(14, 1), 0)}, "moves the upper body from side to side twice"),
        ({"leg": (sine(14, 1), 0)}, "moves the lower body from side to side twice"),
        ({"body": (0, sine(5, 1.5))}, "moves up and down 3 times"),
        ({"body": (ramp(-90), 0)}, "moves to the left"),
        ({"body": (ramp(90), 0)}, "moves to the right"),
        ({"body": (ramp(55), ramp(-50))}, "moves to the right"),
        ({"scene": (ramp(70), 0)}, "moves to the left"),
    ],
)
def test_motion_without_joints(moved, words):
    assert from_flow(puppet(**moved), FPS) == words


def test_a_moving_camera_is_not_the_subjects_motion():
    pan = ramp(30)
    assert from_flow(puppet(scene=(pan, 0), body=(pan, 0)), FPS) == STILL


@pytest.mark.parametrize("frames", [[], [textured(40, 60)], [textured(8, 8)] * 5])
def test_too_little_to_see_a_motion(frames):
    assert from_flow(frames, FPS) == STILL


# ---- appearance --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_colours_are_called_what_they_are(name):
    for colour in NAMES[name]:
        assert next(iter(colour_shares(np.full((9, 3), colour, np.uint8)))) == name


def drawn(size=60, colour=(200, 30, 30), behind=(100, 190, 100), second=None):
    picture = np.full((128, 128, 3), behind, np.uint8)
    box = slice(64 - size // 2, 64 + size // 2)
    picture[box, box] = colour
    if second:
        picture[70 : 64 + size // 2, box] = second
    return picture


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (drawn(), "a red figure, before a plain green backdrop"),
        (drawn(20), "a small red figure, before a plain green backdrop"),
        (drawn(100), "a large red figure, before a plain green backdrop"),
        (drawn(colour=(235, 130, 30)), "an orange figure, before a plain green backdrop"),
        (drawn(60, (15, 15, 15), (250, 250, 250)), "a black figure, before a plain white backdrop"),
        (drawn(second=(15, 15, 15)), "a red and black figure, before a plain green backdrop"),
        (np.full((128, 128, 3), 90, np.uint8), "a figure"),
        (np.full((4, 300, 3), 90, np.uint8), "a figure"),
        (drawn().repeat(4, 0).repeat(4, 1), "a red figure, before a plain green backdrop"),
    ],
)
def test_looks(picture, words):
    assert describe_looks(picture) == words
    assert describe_looks(picture) == words, "the same again"


def test_the_subject_is_found_to_the_pixel():
    picture = drawn(60)
    assert np.array_equal(find_subject(picture), (picture == (200, 30, 30)).all(axis=2))


def test_what_is_known_comes_first():
    picture = drawn(60, second=(15, 15, 15))
    mask = (picture == (15, 15, 15)).all(axis=2)
    assert describe_looks(picture, mask) == "a black figure, before a green backdrop"
    said = describe_looks(picture, mask, "a grey goat")
    assert said == "a grey goat, before a green backdrop"
    with pytest.raises(ShapeError, match=r"mask of \(3, 3\): want \(128, 128\)"):
        describe_looks(picture, np.ones((3, 3), bool))


# ---- limbs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ("person", "waves both hands, raises an arm and lifts the left foot"),
        ("bird", "waves both wings, raises a wing and lifts the left claw"),
        ("paws", "waves both front paws, raises a foreleg and lifts the left hind paw"),
        ("hooves", "waves both front hooves, raises a foreleg and lifts the left hind hoof"),
        ("fish", "waves both fins, raises a fin and lifts the tail"),
        ("limbless", "waves the upper part, raises the upper part and lifts the lower part"),
        (None, "waves both hands, raises an arm and lifts the left foot"),
    ],
)
def test_limbs_of_a_person_in_other_bodies(plan, words):
    assert remap("waves both hands, raises an arm and lifts the left foot", plan) == words


@pytest.mark.parametrize("plan", ["person", "bird", "paws", "hooves"])
def test_there_and_back(plan):
    said = "raises the left arm and kicks with the right leg"
    assert remap(remap(said, plan), "person") == said


@pytest.mark.parametrize("plan", WORDS)
def test_a_renamed_motion_has_no_strange_limbs(plan):
    said = "waves both hands and a fist, flaps its wings, lifts the front paws and the hind legs"
    assert not strangers(remap(said, plan), plan)


@pytest.mark.parametrize(
    ("appearance", "plan"),
    [
        ("a gray bird with colorful feathers", "bird"),
        ("a polar bear, before a plain white backdrop", "paws"),
        ("a zebu with a hump", "hooves"),
        ("a bearded Spartan spearman with a helmet and a bear skin", "person"),
        ("two small dogs in the snow", "paws"),
        ("a tuna fish", "fish"),
        ("a tall glass bottle on a table", "limbless"),
        ("a fox hunter", None),
        ("with nothing before it", None),
        ("", None),
    ],
)
def test_the_head_noun_tells_the_body(appearance, plan):
    assert plan_of(appearance) == plan
