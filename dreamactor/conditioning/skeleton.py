"""Where joints are, and how they are shown: one type for every estimator, subject and body.

People are drawn as DWPose draws them. Animals, and people whose trunk is shown, keep its colours
for the limbs - a fore limb is an arm, a hind limb a leg - and have the trunk in greys, darker to
the rear: neck to spine white, spine to pelvis grey, pelvis to tail dark.

Legend: T frames, S subjects, J joints, picture H x W pixels.
"""

from __future__ import annotations

import colorsys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dreamactor.errors import ShapeError

Array = NDArray[np.float32]
Frames = NDArray[np.uint8]
Colour = tuple[int, int, int]
Group = Literal[
    "neck",
    "face",
    "shoulders",
    "upper arms",
    "forearms",
    "hands",
    "trunk",
    "hips",
    "thighs",
    "shins",
    "tail",
]
"""Anatomical groups of bones; left and right belong to one, so that a body stays symmetrical."""

MIDDLE = ("head", "neck", "spine", "pelvis", "tail")
FORE = ("shoulder_l", "elbow_l", "wrist_l")
HIND = ("hip_l", "knee_l", "ankle_l")
JOINTS = (*MIDDLE, *(f"{joint[:-1]}{side}" for side in "lr" for joint in FORE + HIND))
"""The 17 joints of any body that the world knows, people and animals."""
BODY = (
    *("nose", "neck", "shoulder_r", "elbow_r", "wrist_r", "shoulder_l", "elbow_l", "wrist_l"),
    *("hip_r", "knee_r", "ankle_r", "hip_l", "knee_l", "ankle_l"),
    *("eye_r", "eye_l", "ear_r", "ear_l"),
)
"""The 18 joints of a person, in the order of OpenPose and DWPose."""
FINGERS = tuple(f"{f}{k}" for f in ("thumb", "index", "middle", "ring", "little") for k in "1234")
HANDS = tuple(f"{joint}_{side}" for side in "lr" for joint in ("palm", *FINGERS))
"""21 joints of the left hand, then of the right one."""
FACE = tuple(f"face{k}" for k in range(68))
"""The 68 points of iBUG's scheme; the only joints whose names do not tell their side."""
WHOLE = (*BODY, *FACE, *HANDS)
"""The 128 joints of a person that DWPose draws."""

LIMB_WIDTH = 4 / 512
"""Half the thickness of a limb and the radius of a joint, in parts of the shorter side: DWPose's
4 pixels at its usual 512."""
SHADE = 0.6
"""Limbs are darker than joints by this factor, as DWPose's are."""
SEEN = 0.3
"""Confidence from which a joint is drawn, as in DWPose."""
SUBPIXEL = 8
"""Bits behind the point of what OpenCV is told."""
AROUND = [turn(np.linspace(0, 2 * np.pi, 32, endpoint=False)[:, None]) for turn in (np.cos, np.sin)]
"""Of an outline's points: how far along, and how far across."""
RIM = 0.7
"""Pixels that OpenCV's antialiasing adds to an outline; limbs without it are 30 % too bright."""


def hue(step: float, of: int = 18) -> Colour:
    """A full colour of the wheel; OpenPose's 18 colours are its steps of 20 degrees."""
    red, green, blue = (round(255 * c) for c in colorsys.hsv_to_rgb(step / of, 1, 1))
    return red, green, blue


def grey(level: int) -> Colour:
    """A colour without hue, 0 to 255."""
    return level, level, level


def shade(colour: Colour) -> Colour:
    """The colour of a limb from that of a joint."""
    red, green, blue = (int(SHADE * c) for c in colour)
    return red, green, blue


@dataclass(frozen=True)
class Bone:
    """What ties a joint to the body."""

    parents: tuple[str, ...]
    """Joints that it may hang on, the first that the body has."""
    group: Group
    limb: Colour | None
    """Colour of the limb to its parent; None = none is drawn."""
    joint: Colour
    """Colour of the joint itself."""
    size: float = 1.0
    """Thickness against that of limbs."""


def _bones() -> dict[str, Bone]:
    bones = {
        "nose": Bone(("neck",), "neck", shade(hue(12)), hue(0)),
        "head": Bone(("neck",), "neck", shade(hue(12)), hue(0)),
        "neck": Bone((), "neck", None, hue(1)),
        "spine": Bone(("neck", "head"), "trunk", shade(grey(255)), grey(255)),
        "pelvis": Bone(("spine", "neck", "head"), "trunk", shade(grey(190)), grey(190)),
        "tail": Bone(("pelvis", "spine"), "tail", shade(grey(125)), grey(125)),
    }
    for k, side in enumerate("rl"):
        limbs: tuple[tuple[str, str, Group, int], ...] = (
            ("shoulder", "neck spine head", "shoulders", k),
            ("elbow", f"shoulder_{side}", "upper arms", 2 + 2 * k),
            ("wrist", f"elbow_{side} shoulder_{side}", "forearms", 3 + 2 * k),
            ("hip", "pelvis spine neck", "hips", 6 + 3 * k),
            ("knee", f"hip_{side}", "thighs", 7 + 3 * k),
            ("ankle", f"knee_{side} hip_{side}", "shins", 8 + 3 * k),
            ("eye", "nose head", "face", 13 + 2 * k),
            ("ear", f"eye_{side}", "face", 14 + 2 * k),
        )
        for joint, parents, group, step in limbs:
            name = f"{joint}_{side}"
            colours = shade(hue(step)), hue(BODY.index(name))
            bones[name] = Bone(tuple(parents.split()), group, *colours)
        bones[f"palm_{side}"] = Bone((f"wrist_{side}",), "hands", None, hue(12), 0.5)
        for step, finger in enumerate(FINGERS):
            parent = "palm" if finger.endswith("1") else FINGERS[step - 1]
            colour = hue(step, len(FINGERS))
            bones[f"{finger}_{side}"] = Bone((f"{parent}_{side}",), "hands", colour, hue(12), 0.5)
    face = Bone(("nose", "head"), "face", None, grey(255), 0.5)
    return {**bones, **dict.fromkeys(FACE, face)}


BONES = _bones()
"""By the name of the joint at its far end. The colours of a person's limbs and joints are those
of OpenPose's 18 in their order, hands and face as in DWPose."""


@dataclass(frozen=True)
class PoseTrack:
    """Named joints of one or several subjects in every frame of a clip."""

    names: tuple[str, ...]
    """Of the joints; names of sides end in _l and _r, the subject's own left and right."""
    positions: Array
    """(T, S, J, 2) pixels, x right, y down; the top left pixel's centre is (0.5, 0.5). Finite
    also where nothing was found."""
    confidence: Array
    """(T, S, J) in [0, 1]; 0 = not found, not in the picture, or the body lacks this joint."""
    height: int
    width: int
    fps: float

    def __post_init__(self) -> None:
        shape = (*self.confidence.shape, 2)
        if self.confidence.ndim != 3 or self.positions.shape != shape:
            raise ShapeError(
                f"positions {self.positions.shape} and confidence {self.confidence.shape}: "
                "want (T, S, J, 2) and (T, S, J)"
            )
        if self.confidence.shape[2] != len(self.names):
            raise ShapeError(f"{self.confidence.shape[2]} joints with {len(self.names)} names")

    def __getitem__(self, which: slice) -> PoseTrack:
        """Some of the frames."""
        return replace(self, positions=self.positions[which], confidence=self.confidence[which])

    @property
    def frames(self) -> int:
        """T."""
        return len(self.confidence)

    @property
    def subjects(self) -> int:
        """S."""
        return self.confidence.shape[1]


def select(track: PoseTrack, names: Sequence[str]) -> PoseTrack:
    """The same track in another order of joints; those that it lacks are not found."""
    index = [track.names.index(n) if n in track.names else -1 for n in names]
    known = np.array(index) >= 0
    positions = np.where(known[:, None], track.positions[:, :, index], 0)
    confidence = np.where(known, track.confidence[:, :, index], 0)
    return replace(
        track,
        names=tuple(names),
        positions=positions.astype(np.float32),
        confidence=confidence.astype(np.float32),
    )


def tree(names: Sequence[str], has: Collection[str]) -> dict[str, str]:
    """Joint -> the joint that it hangs on, for a body that has only some of the joints.

    Args:
        names: Joints in question.
        has: Those of them that the body has.

    Returns:
        Without the roots, and without joints that the body lacks.

    Example:
        >>> tree(JOINTS, {"head", "spine", "tail"})  # a fish
        {'spine': 'head', 'tail': 'spine'}
    """
    out = {}
    for name in names:
        if name in has and name in BONES:
            parent = next((p for p in BONES[name].parents if p in has), None)
            if parent is not None:
                out[name] = parent
    return out


def draw(
    track: PoseTrack, *, trunk: bool = True, over: Frames | None = None, seen: float = SEEN
) -> Frames:
    """Draw all subjects in every frame, antialiased, on black.

    Args:
        track: As for `drawings`.
        trunk: As for `drawings`.
        over: (T, H, W, 3) uint8 to draw over instead, for looking at an estimator's work.
        seen: As for `drawings`.

    Returns:
        (T, H, W, 3) uint8, sRGB.

    Raises:
        ShapeError: `over` is of another shape.
    """
    shape = (track.frames, track.height, track.width, 3)
    if over is not None and over.shape != shape:
        raise ShapeError(f"skeletons over frames {over.shape}: want {shape}")
    out = np.zeros(shape, np.uint8)
    for t, picture in enumerate(drawings(track, trunk=trunk, over=over, seen=seen)):
        out[t] = picture
    return out


def drawings(
    track: PoseTrack,
    *,
    trunk: bool = True,
    over: Iterable[Frames] | None = None,
    seen: float = SEEN,
) -> Iterator[Frames]:
    """The frames of `draw` one by one, for clips of any length.

    Args:
        track: Joints; any names, those without a `Bone` are dots. Which joint hangs on which is
            the same in all frames: it depends on what the whole track shows.
        trunk: Show spine, pelvis and tail where they are known. False hangs the hips on the neck:
            people as DWPose shows them, whatever estimator found them.
        over: T frames (H, W, 3) to draw over, None for black.
        seen: Joints of lower confidence are not drawn.

    Returns:
        Iterator of T pictures (H, W, 3) uint8, sRGB.
    """
    shown = np.isin(track.names, MIDDLE[2:], invert=True) | trunk  # (J,)
    found = (track.confidence >= seen) & shown  # (T, S, J)
    width = max(1.0, LIMB_WIDTH * min(track.height, track.width))
    trees = [
        tree(track.names, {n for n, any_ in zip(track.names, has, strict=True) if any_})
        for has in found.any(axis=0)
    ]
    black = np.zeros((track.height, track.width, 3), np.uint8)
    for t, ground in enumerate(repeat(black, track.frames) if over is None else over):
        picture = ground.copy()
        for subject, limbs in enumerate(trees):
            here = {
                name: track.positions[t, subject, j]
                for j, name in enumerate(track.names)
                if found[t, subject, j]
            }
            _draw_body(picture, here, limbs, width)
        yield picture


def _draw_body(picture: Frames, joints: dict[str, Array], limbs: dict[str, str], w: float) -> None:
    """Limbs, then joints; w is the half width in pixels."""
    for name, parent in limbs.items():
        bone = BONES[name]
        if bone.limb is not None and name in joints and parent in joints:
            _fill(picture, _ellipse(joints[parent], joints[name], w * bone.size), bone.limb)
    for name, at in joints.items():
        bone = BONES.get(name, BONES[FACE[0]])
        radius = np.array([w * bone.size, 0], np.float32)
        _fill(picture, _ellipse(at - radius, at + radius, w * bone.size), bone.joint)


def _ellipse(a: Array, b: Array, w: float) -> Array:
    """(32, 2) outline of the ellipse that reaches from a to b and is 2 w wide."""
    along = (b - a) / 2
    length = float(np.hypot(*along))
    unit = along / length if length > 1e-6 else np.array([1, 0], np.float32)
    normal = np.array([-unit[1], unit[0]])
    length, w = max(0.0, length - RIM), max(0.0, w - RIM)
    outline = (a + b) / 2 + length * AROUND[0] * unit + w * AROUND[1] * normal
    return np.asarray(outline, np.float32)


def _fill(picture: Frames, outline: Array, colour: Colour) -> None:
    """Fill a convex outline, given in pixels with (0.5, 0.5) at the first one's centre."""
    import cv2

    far = 2 * max(picture.shape)  # beyond what is seen, within what OpenCV's fixed point holds
    points = np.rint((outline - 0.5).clip(-far, far) * 2**SUBPIXEL).astype(np.int32)
    cv2.fillConvexPoly(picture, points, colour, cv2.LINE_AA, SUBPIXEL)
