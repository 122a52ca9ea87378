"""A motion in words, without any model: from a pose track, or from optical flow alone.

Which limb moves, in which direction, how fast and how often; a verb phrase whose subject is left
open, near to the captions that the world writes: "walks to the left", "raises both arms".

Legend: T frames, J joints, h x w pixels. All lengths are in torsos (neck to pelvis), with flow in
heights of the moving region, all times in seconds; x right, y down, as seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dreamactor.conditioning.looks import find_subject
from dreamactor.conditioning.skeleton import PoseTrack
from dreamactor.image import Rgb, resize

Floats = NDArray[np.float64]

STILL = "stands still"
SURE = 0.3  # confidence from which a joint counts as found
SWING = 0.3  # torsos that a limb's end moves before it is spoken of
TRAVEL = 1.0  # torsos that the body moves before it is spoken of
STRIDE = 0.6  # torsos that a walker's feet come apart, at least
RUN, TROT = 3.2, 2.0  # torsos a second of the feet from which a biped runs, an animal trots
SLOW, FAST = 0.9, 4.0  # torsos a second of a hand
SIDE = 96  # pixels of the longer side at which flow is measured
QUIET = 0.004  # of the longer side, a frame: slower pixels do not count as moving
TORSOS = 2.2  # that count as the height of a figure: a person has 3.3, flow falls short of it
MOVING = 0.004  # of the picture: less is noise


@dataclass(frozen=True)
class _Swing:
    """One limb's end against its root over the clip."""

    path: Floats
    """(T, 2) torsos."""
    span: float
    """Torsos between its far points, along its main direction."""
    times: float
    """How often it went there and back."""
    speed: float
    """Torsos a second, 90th percentile."""


@dataclass(frozen=True)
class _Body:
    """One subject's motion in its own measure."""

    joints: dict[str, Floats]
    """(T, 2) torsos each."""
    swings: dict[str, _Swing]
    """Of wrist_l, wrist_r, ankle_l, ankle_r, where they are seen."""
    trunk: Floats
    """(T, 2) torsos, where it is."""
    four_legs: bool
    seconds: float

    def legs(self, end: str) -> list[_Swing]:
        """Of both sides, or none."""
        found = [self.swings[f"{end}_{side}"] for side in "lr" if f"{end}_{side}" in self.swings]
        return found if len(found) == 2 else []


def from_track(track: PoseTrack) -> str:
    """What the best-seen subject of a track does.

    Joints are looked up by name: neck, pelvis, head (else nose), and with _l and _r shoulder,
    wrist, hip, ankle; those missing are left out. Of one frame only a stance is told.

    Args:
        track: At least one frame; any subjects.

    Returns:
        A verb phrase of one or two clauses, such as "walks to the left and raises both arms";
        nothing where no torso is seen.
    """
    body = _body(track)
    if body is None:
        return ""
    first = _gait(body) or _whole(body)
    second = "" if body.four_legs else _arms(body, walking=first.startswith(("walks", "runs")))
    if first and second:
        return f"{first} and {second}"
    if second or first.endswith("head"):
        return f"stands and {second or first}"
    active = max((swing.span for swing in body.swings.values()), default=0.0)
    return first or (STILL if active < SWING else "stands and moves a little")


def _body(track: PoseTrack) -> _Body | None:
    """The best-seen subject; None without a torso."""
    found = _joints(track)
    if not {"neck", "pelvis"} <= found.keys():
        return None
    torso = float(np.percentile(np.hypot(*(found["neck"] - found["pelvis"]).T), 75))
    every = np.stack(list(found.values()))  # (J, T, 2)
    # seen from the front an animal's torso is short, its height is not; a person has 3.3 torsos
    unit = max(torso, 0.3 * float(np.median(np.hypot(*np.ptp(every, axis=0).T))), 1.0)
    joints = {name: path / unit for name, path in found.items()}
    swings = {
        f"{end}_{side}": _swing(joints[f"{end}_{side}"] - joints[f"{root}_{side}"], track.fps)
        for end, root in (("wrist", "shoulder"), ("ankle", "hip"))
        for side in "lr"
        if {f"{end}_{side}", f"{root}_{side}"} <= joints.keys()
    }
    trunk = np.mean([path for name, path in joints.items() if name in _TRUNK], axis=0)
    seconds = max(track.frames - 1, 1) / track.fps
    return _Body(joints, swings, trunk, _four_legs(joints), seconds)


_TRUNK = ("neck", "pelvis", "shoulder_l", "shoulder_r", "hip_l", "hip_r", "spine")


def _joints(track: PoseTrack) -> dict[str, Floats]:
    """Joint -> (T, 2) pixels of the best-seen subject; gaps filled, joints rarely seen left out."""
    weight = track.confidence.mean(axis=(0, 2))  # (S,)
    subject = int(weight.argmax()) if weight.size else 0
    frames = np.arange(track.frames)
    found = {}
    for j, name in enumerate(track.names if weight.size else ()):
        seen = track.confidence[:, subject, j] > SURE
        if seen.any() and seen.sum() * 2 >= track.frames:
            where = track.positions[:, subject, j].astype(np.float64)
            found[name] = np.stack(
                [np.interp(frames, frames[seen], where[seen, axis]) for axis in (0, 1)], axis=1
            )
    stand_ins = {
        "pelvis": ("hip_l", "hip_r"),
        "neck": ("shoulder_l", "shoulder_r"),
        "head": ("nose",),
    }
    for name, others in stand_ins.items():
        both = [found[other] for other in others if other in found]
        if name not in found and both:
            found[name] = np.mean(both, axis=0)
    return found


def _four_legs(joints: dict[str, Floats]) -> bool:
    """Whether the arms are legs: they end below the middle of the legs, or the torso lies."""
    level = {}
    for name in ("wrist", "hip", "ankle"):
        paths = [joints[f"{name}_{side}"] for side in "lr" if f"{name}_{side}" in joints]
        level[name] = float(np.median([path[:, 1] for path in paths])) if paths else np.nan
    spine = np.abs(np.median(joints["neck"] - joints["pelvis"], axis=0))
    middle = (level["hip"] + level["ankle"]) / 2
    return bool(level["wrist"] > middle if np.isfinite(middle) else spine[0] > spine[1])


def _swing(path: Floats, fps: float) -> _Swing:
    main = _along(path)
    speed = np.hypot(*np.diff(path, axis=0).T) * fps if len(path) > 1 else np.zeros(1)
    span = _span(main)
    return _Swing(path, span, _times(main, span), float(np.percentile(speed, 90)))


def _along(path: Floats) -> Floats:
    """(T,) of (T, 2): along the direction in which most happens."""
    centred = path - path.mean(axis=0)
    return np.asarray(centred @ np.linalg.svd(centred, full_matrices=False)[2][0])


def _span(signal: Floats) -> float:
    low, high = np.percentile(signal, (5, 95))
    return float(high - low)


def _times(signal: Floats, span: float) -> float:
    """How often a signal goes there and back: half its turns, those of a third of its span."""
    turns, rising, high, low = 0, None, signal[0], signal[0]
    for value in signal:
        high, low = max(high, value), min(low, value)
        if rising is not False and value < high - span / 3:
            turns, rising, low = turns + (rising is True), False, value
        elif rising is not True and value > low + span / 3:
            turns, rising, high = turns + (rising is False), True, value
    return turns / 2


def _gait(body: _Body) -> str:
    """Walking, trotting, running; empty where the legs do not take turns."""
    legs = body.legs("ankle") or (body.legs("wrist") if body.four_legs else [])
    if not legs or min(leg.span for leg in legs) < SWING / 2:
        return ""
    apart = _span(_along(legs[0].path - legs[1].path))
    together = _span(_along(legs[0].path + legs[1].path))
    speed = max(leg.speed for leg in legs)
    if body.four_legs and together > max(apart, STRIDE):
        verb = "runs"
    elif apart < max(together, STRIDE * (0.55 if body.four_legs else 1)):
        return ""
    elif body.four_legs:
        verb = "trots" if speed > TROT else "walks"
    else:
        verb = "runs" if speed > RUN else "walks"
    return verb + _direction(body.trunk)


def _whole(body: _Body) -> str:
    """What the body does as a whole; empty where it stays."""
    fifth = max(1, len(body.trunk) // 5)
    start, end = body.trunk[:fifth].mean(axis=0), body.trunk[-fifth:].mean(axis=0)
    across, down = end - start
    upright = -(body.joints["neck"] - body.joints["pelvis"])[:, 1]  # (T,) torsos
    lift = start[1] - float(body.trunk[:, 1].min())
    if upright[0] > 0.7 and upright[-1] < 0.3 and down > 0.3:
        return "falls down" if down > 0.8 else "bends down"
    if body.four_legs and upright[-1] - upright[0] > 0.5:
        return "rears up"
    if lift > 0.6 and abs(down) < lift / 2:
        return "jumps"
    if np.hypot(across, down) > TRAVEL:
        return "moves" + _direction(body.trunk)
    if down > 0.4:
        return "crouches"
    if body.four_legs and "head" in body.joints:
        dip = (body.joints["head"] - body.joints["pelvis"])[:, 1]
        if _span(dip) > SWING:
            return "lowers its head" if dip[-1] > dip[0] else "raises its head"
    return ""


def _direction(trunk: Floats) -> str:
    x, y = trunk[-1] - trunk[0]
    if max(abs(x), abs(y)) < TRAVEL:
        return ""
    if abs(x) >= abs(y):
        return " to the right" if x > 0 else " to the left"
    return " downwards" if y > 0 else " upwards"


def _arms(body: _Body, walking: bool) -> str:
    """What the arms do; those that swing as a walker's do are not spoken of."""
    did = {
        side: (verb, swing)
        for side in "lr"
        if (swing := body.swings.get(f"wrist_{side}")) and (verb := _arm(swing, walking))
    }
    if not did:
        return ""
    side, (verb, swing) = max(did.items(), key=lambda item: item[1][1].span)
    both = len(did) == 2 and len({verb for verb, _ in did.values()}) == 1
    limb = "both arms" if both else f"the {'left' if side == 'l' else 'right'} arm"
    return f"{verb} {limb}{_manner(swing, body.seconds) if verb in ('waves', 'swings') else ''}"


def _arm(swing: _Swing, walking: bool) -> str:
    """A verb for one arm, empty where nothing is worth saying."""
    height = -swing.path[:, 1]  # torsos of the wrist above the shoulder
    fifth = max(1, len(height) // 5)
    start, end = float(height[:fifth].mean()), float(height[-fifth:].mean())
    if swing.span > SWING and swing.times >= 1.5 and np.median(height) > -0.2:
        return "waves"
    if height.max() > 0.1 and height.max() - start > 0.7:
        return "raises"
    if start > 0 and end < start - 0.7:
        return "lowers"
    if swing.span > 1.5 * SWING and swing.speed > 1.5 and not walking:
        return "swings"
    return "holds up" if np.median(height) > 0.2 and not walking else ""


def _manner(swing: _Swing, seconds: float) -> str:
    """How fast, and how often."""
    pace = " slowly" if swing.speed < SLOW else " fast" if swing.speed > FAST else ""
    number = _rounded(swing.times)
    if number < 2:
        return pace
    rate = _rounded(number / seconds)
    return f"{pace} {_often(number)}" + (f", {_often(rate)} a second" if rate else "")


# ---- without a track ------------------------------------------------------------------------


def from_flow(frames: Sequence[Rgb], fps: float) -> str:
    """What moves in a clip, as far as optical flow alone tells: the region, not the limb.

    The camera is what the picture's border does (the median of its flow); the rest of the motion
    is the subject's.

    Args:
        frames: (H, W, 3) each, of one shape.
        fps: Frames a second.

    Returns:
        A verb phrase, such as "moves the upper body up and down twice".
    """
    seen = [
        flow for before, after in pairwise(map(_grey, frames)) if (flow := _Flow.of(before, after))
    ]
    moved = float(np.mean([flow.share for flow in seen])) if seen else 0.0
    if moved < MOVING:
        return STILL
    energy = np.mean([flow.energy for flow in seen], axis=0)  # (h, w)
    rows, columns = _box(_colour(frames[len(frames) // 2]), energy)
    tall = float(rows[1] - rows[0])
    pace = float(np.percentile([flow.pace for flow in seen], 75)) * fps / tall
    how = " slowly" if pace < 0.25 else " fast" if pace > 1.5 else ""
    drift = [flow.drift * min(flow.share / moved, 1) / tall for flow in seen]
    path = np.concatenate([np.zeros((1, 2)), np.cumsum(drift, axis=0)])  # (T, 2) heights
    far = np.hypot(*path[-1])
    if far > TRAVEL / TORSOS and far > 0.8 * np.hypot(*np.ptp(path, axis=0)):
        return "moves" + _direction(path * 2 * TRAVEL / far) + how
    main = _along(path)
    number = _rounded(_times(main, _span(main)))
    across, along = np.sum([flow.ways for flow in seen], axis=0)
    sway = " from side to side" if across > along else " up and down"
    often = f" {_often(number)}" if number > 1 else ""
    where = _region(energy, rows, columns) + (sway if number else "")
    return f"moves{where or ' on the spot'}{how}{often}"


@dataclass(frozen=True)
class _Flow:
    """What is kept of the flow between two frames, the camera's taken away."""

    energy: NDArray[np.float32]
    """(h, w) pixels a frame; 0 where nothing moves."""
    share: float
    """Of the picture that moves."""
    drift: Floats
    """(2,) pixels: mean motion, faster pixels counting more."""
    ways: Floats
    """(2,) pixels: sums of the motion across and along, whatever its sign."""
    pace: float
    """Pixels a frame of the faster pixels."""

    @classmethod
    def of(cls, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> _Flow | None:
        """None for pictures too small for DIS, which works on patches of 8 at half size."""
        if min(before.shape) < 16:
            return None
        method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        flow = np.asarray(method.calc(before, after, None), np.float32)  # (h, w, 2)
        rim = np.ones(before.shape, bool)
        rim[4:-4, 4:-4] = False
        own = flow - np.median(flow[rim], axis=0)
        speed = np.hypot(own[..., 0], own[..., 1])
        moving = speed > QUIET * max(before.shape)
        energy = np.where(moving, speed, 0)
        drift = (own * energy[..., None]).sum(axis=(0, 1)) / max(float(energy.sum()), 1e-9)
        pace = float(np.percentile(speed[moving], 90)) if moving.any() else 0.0
        ways = np.abs(own[moving]).sum(axis=0)
        return cls(energy, float(moving.mean()), drift, ways, pace)


def _colour(frame: Rgb) -> Rgb:
    """With a longer side of `SIDE`."""
    scale = SIDE / max(frame.shape[:2])
    size = (max(1, round(frame.shape[0] * scale)), max(1, round(frame.shape[1] * scale)))
    return resize(frame, size)


def _grey(frame: Rgb) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(_colour(frame), cv2.COLOR_RGB2GRAY), np.uint8)


def _box(frame: Rgb, energy: NDArray[np.floating[Any]]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns of the subject, if one is found where the motion is; else of the motion."""
    subject = find_subject(frame)
    shown = subject if energy[subject].sum() > energy.sum() / 4 else energy
    return _extent(shown.sum(axis=1)), _extent(shown.sum(axis=0))


def _rounded(times: float) -> int:
    return int(times + 0.5)


def _often(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{number} times")


def _extent(profile: NDArray[np.floating[Any]]) -> tuple[int, int]:
    """Where a profile has all but 2 % of its sum on either side."""
    share = np.cumsum(profile) / profile.sum()
    first, last = int(np.searchsorted(share, 0.02)), int(np.searchsorted(share, 0.98))
    return first, max(last, first + 8)


def _region(
    energy: NDArray[np.floating[Any]], rows: tuple[int, int], columns: tuple[int, int]
) -> str:
    """The part of the moving region that moves most, empty where all of it does."""
    inside = energy[slice(*rows), slice(*columns)]
    height, width = inside.shape
    whole = float(inside.sum())
    if whole <= 0:
        return ""
    upper, left = float(inside[: height // 2].sum()), float(inside[:, : width // 2].sum())
    upper, left = upper / whole, left / whole
    if max(left, 1 - left) > max(upper, 1 - upper, 0.7):
        return " on the left" if left > 0.5 else " on the right"
    if max(upper, 1 - upper) > 0.7:
        return " the upper body" if upper > 0.5 else " the lower body"
    return ""
