"""Pairs: the same motion by two identities, with truth for every frame of the target.

A pair has a driver, who does a motion in a driving clip, and a target, another identity who
does the same motion on the same frames. Driver and target have their own background, style,
light, body proportions, props, framing and place in the frame. The view direction is shared: a
camera that turns in the driving clip turns in the target. The reference shows the target
identity in a pose of another motion, on the target's background, at its place and size, turned
by at most REFERENCE_TURN degrees against the target's first frame.

Everything is drawn from (seed, split, index) alone. A pair of a split uses only characters and
motions of that split, so a test pair has both unseen.

Twins are a pair twice: each of the two drives the other, for hardly more drawing.

Legend: T target frames, 16 unless a sampler is told otherwise; the driving clip has T + 1, one
frame before the target's first.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from dreamactor.errors import AssetError
from dreamactor.runs import numpy_generator
from dreamactor.world.body import body_size, lowest, pose_clip, same_body
from dreamactor.world.camera import bounds, frame_camera, framed_points, posed_bounds
from dreamactor.world.cast import Array, Cast, Look, Motion, Skeleton
from dreamactor.world.pose import joint_positions, place, sample_motion
from dreamactor.world.render import Renderer
from dreamactor.world.scene import Actor, Joints, Scene
from dreamactor.world.staging import Side, describe, draw_azimuth, draw_framings, draw_side, where

FPS = 12.0
"""Frames a second of nano's world: drawn on twos, as hand animation is."""
TARGET_FRAMES = 16
REFERENCE_TURN = 25.0
"""Degrees at most between the reference's view and the target's first frame."""
ANIMALS = 0.4
"""Share of pairs in which both are animals."""

LIKE_HEADINGS = 35.0
"""Degrees that the trunks of driver and target may differ by in any frame; a pair that differs
more (retargeting between unlike bodies) is drawn again."""
APART = frozenset({"crocodile", "deer~2", "fox_armature", "horse_old~2", "horse_old~3"})
"""Skeletons of quadrupeds that only pair with their own kind: the crocodile and the rabbit stand
on folded legs; fox and lion are bound in poses from which other motions come out bent."""
SUNK = 0.1
"""Depth of the feet below the ground, in parts of the body's height, that is made good."""
RARE = {"rider/": 0.85, "chariot/": 0.85, "siege": 0.5, "death": 0.2}
"""Parts of the names of motions that make odd pictures, and how often these are drawn again;
riders have no mount here. In a reference they are drawn again nearly always."""
LONERS = 0.15
"""Weight of a group of looks whose motions no other group can do."""
STILL = 0.04
"""Movement of the joints, in parts of the body's size, below which a clip counts as still."""
KEEP_STILL = 0.1
"""Share of the still clips that are shown; the others are drawn again."""
SMALLEST = 0.6
"""Least part of its wanted size that a figure may have in any frame."""
ATTEMPTS = 60
CELL = 8
"""Pixels of a side of the cells in which surfaces are given."""
MIRROR = np.array([-1, 1, 1], np.float32)
"""Spots of the mirrored picture: bodies stand straight in their bind pose, the left at x > 0."""

T = TypeVar("T", Look, Motion, str)


@dataclass(frozen=True)
class PairSpec:
    """What a pair shows, before it is drawn."""

    domain: Literal["human", "animal"]
    motion: Motion
    start: float
    """Seconds into the motion of the target's first frame."""
    speed: float
    driver: Side
    target: Side
    reference_motion: Motion
    reference_time: float
    reference_turn: float
    """Degrees that the reference is turned against the target's first frame."""
    azimuth: Array  # (T + 1,) degrees, shared
    elevation: float
    travels: bool
    """Whether the figures move over the ground (a tracking camera follows them)."""
    flip: bool
    """Mirror all pictures of the pair."""
    caption: str


@dataclass(frozen=True)
class Pair:
    """A drawn pair; pictures are RGBA with the subject mask as alpha."""

    spec: PairSpec
    reference: NDArray[np.uint8]  # (H, W, 4)
    target: NDArray[np.uint8]  # (T, H, W, 4)
    driving: NDArray[np.uint8]  # (T + 1, H, W, 4)
    target_joints: Joints
    """T + 1 frames; the reference is frame 0."""
    driving_joints: Joints
    """T + 1 frames."""
    flow: Array | None
    """(T - 1, H, W, 2) pixels, of the target, when truth was asked for."""

    @property
    def caption(self) -> str:
        """Who does what, where."""
        return self.spec.caption


@dataclass(frozen=True)
class Twins:
    """Two identities in one motion, each with what it takes to drive the other or be driven."""

    specs: tuple[PairSpec, PairSpec]
    """The pair, and the pair with its roles changed."""
    clips: tuple[NDArray[np.uint8], NDArray[np.uint8]]
    """(T + 2, H, W, 4) RGBA of each spec's target: its reference, the frame before, T frames."""
    joints: tuple[Joints, Joints]
    """On the same T + 2 frames."""
    surfaces: tuple[Array, Array]
    """(T + 2, H / CELL, W / CELL, 3) the spot of the body at each cell's centre, on the same
    frames: as `Renderer.surface`, in parts of the body's size, so that a foal's is a horse's."""


class PairSampler:
    """Draws pairs of one split.

    Args:
        cast: Characters and motions.
        split: Which of them may appear.
        size: Pixels of a side.
        device: EGL device, on machines with several GPUs.
        frames: T. Other lengths draw other pairs.
    """

    def __init__(
        self,
        cast: Cast,
        split: str,
        size: int = 256,
        device: int | None = None,
        frames: int = TARGET_FRAMES,
    ) -> None:
        self.cast, self.split, self.size, self.frames = cast, split, size, frames
        self.renderer = Renderer(cast, device)
        self.looks = {  # domain -> group -> looks
            domain: _by_group(
                [k for k in cast.looks.values() if k.split == split and k.domain == domain]
            )
            for domain in ("human", "animal")
        }
        motions = [m for m in cast.motions.values() if m.split == split]
        self.kin = {name: family(skeleton) for name, skeleton in cast.skeletons.items()}
        self.motions: dict[str, dict[str, list[Motion]]] = {}  # family -> group -> motions
        for name in {self.kin[m.skeleton] for m in motions}:
            self.motions[name] = _by_group([m for m in motions if self.kin[m.skeleton] == name])
        if not any(self.looks.values()) or not motions:
            raise AssetError(f"the cast has no {split} characters and motions; use the full pack")

    def pair(self, seed: int, index: int, truth: bool = False) -> Pair:
        """Draw pair `index`; with `truth` its optical flow and joint visibility too."""
        return self.draw(self.spec(seed, index), truth)

    def twins(self, seed: int, index: int) -> Twins:
        """Draw pair `index` so that it can be used both ways round."""
        spec = self.spec(seed, index)
        rng = numpy_generator(seed, f"twins/{self.split}", index)
        pose = self._motion(rng, spec.driver.look, 0.95)
        swapped = replace(
            spec,
            driver=spec.target,
            target=spec.driver,
            reference_motion=pose,
            reference_time=float(rng.uniform(0, len(pose.positions) / pose.fps)),
            reference_turn=float(rng.uniform(-REFERENCE_TURN, REFERENCE_TURN)),
            caption=caption_of(spec.driver, spec.motion),
        )
        a, b = self._twin(spec), self._twin(swapped)
        return Twins((spec, swapped), (a[0], b[0]), (a[1], b[1]), (a[2], b[2]))

    # ---- what is shown --------------------------------------------------------------------

    def spec(self, seed: int, index: int) -> PairSpec:
        """What pair `index` of `seed` shows."""
        for attempt in range(ATTEMPTS):
            rng = numpy_generator(seed, f"pair/{self.split}/{attempt}", index)
            spec = self._draw_spec(rng)
            if (self._moves(spec) or rng.random() < KEEP_STILL) and self._sound(spec):
                return spec
        raise AssetError(f"pair {index}: no sound pair in {ATTEMPTS} draws; is the pack damaged?")

    def _draw_spec(self, rng: np.random.Generator) -> PairSpec:
        domain: Literal["human", "animal"] = "animal" if rng.random() < ANIMALS else "human"
        if not self.looks[domain]:
            domain = "human" if domain == "animal" else "animal"
        target, driver = self._identities(rng, domain)
        motion = self._motion(rng, driver)
        sides = [
            draw_side(rng, look, framing, self.cast.terrains)
            for look, framing in zip((driver, target), draw_framings(rng, domain), strict=True)
        ]
        speed = float(rng.uniform(0.8, 1.25))
        length = len(motion.positions) / motion.fps
        clip = self.frames / FPS * speed
        sweep = 0.0 if rng.random() < 0.7 else float(rng.choice([-1, 1]) * rng.uniform(15, 60))
        ramp = np.arange(self.frames + 1, dtype=np.float32) / TARGET_FRAMES
        pose = self._motion(rng, target, 0.95)
        return PairSpec(
            domain=domain,
            motion=motion,
            start=float(rng.uniform(0, length if motion.loops else max(0.0, length - clip))),
            speed=speed,
            driver=sides[0],
            target=sides[1],
            reference_motion=pose,
            reference_time=float(rng.uniform(0, len(pose.positions) / pose.fps)),
            reference_turn=float(rng.uniform(-REFERENCE_TURN, REFERENCE_TURN)),
            azimuth=(draw_azimuth(rng, domain) + sweep * ramp).astype(np.float32),
            elevation=float(rng.uniform(-2, 16)),
            travels=bool(rng.random() < 0.25),
            flip=bool(self.split == "train" and rng.random() < 0.5),
            caption=caption_of(sides[1], motion),
        )

    def _identities(self, rng: np.random.Generator, domain: str) -> tuple[Look, Look]:
        """Target and driver: two groups of one family wherever there are two."""
        groups = self.looks[domain]
        kin = {name: self.kin[looks[0].skeleton] for name, looks in groups.items()}
        names = [name for name in sorted(groups) if kin[name] in self.motions]
        circles = Counter(kin[name] for name in names)
        weights = np.array([1.0 if circles[kin[name]] > 1 else LONERS for name in names])
        chosen = names[int(rng.choice(len(names), p=weights / weights.sum()))]
        others = [name for name in names if name != chosen and kin[name] == kin[chosen]]
        target = _pick(rng, groups[chosen])
        drivers = groups[_pick(rng, others or [chosen])]
        return target, _pick(rng, [look for look in drivers if look is not target] or drivers)

    def _motion(
        self, rng: np.random.Generator, look: Look, redraw_rare: float | None = None
    ) -> Motion:
        """A motion made for this look if the split has one (mostly), else of its family."""
        groups, made = self.motions[self.kin[look.skeleton]], set(look.motions)
        own = {n: ms for n in sorted(groups) if (ms := [m for m in groups[n] if m.name in made])}
        use = own if own and rng.random() < 0.7 else groups
        motion = _pick(rng, use[_pick(rng, sorted(use))])
        rare = [share for word, share in RARE.items() if word in motion.name]
        if rare and rng.random() < (redraw_rare or max(rare)):
            return self._motion(rng, look, redraw_rare)
        return motion

    # ---- which draws are shown ------------------------------------------------------------

    def _moves(self, spec: PairSpec) -> bool:
        """Whether one sees the figure move: the joints' mean path is as long as `STILL` says."""
        least = STILL * self.frames / TARGET_FRAMES
        return movement(self.cast, spec.motion, _times(spec)[1:]) > least

    def _sound(self, spec: PairSpec) -> bool:
        """Whether the bodies stay whole, agree in their heading, and fill their pictures."""
        skeletons, motion = self.cast.skeletons, spec.motion
        bodies = [skeletons[side.look.skeleton] for side in (spec.driver, spec.target)]
        if "death" in motion.name and bodies[0].body_plan != "biped":
            # A fall is made for one body; on another the legs end up in the air.
            source = skeletons[motion.skeleton]
            if not all(same_body(source, body) for body in bodies):
                return False
        driver, target = self._poses(spec)
        shown = [(spec.driver, driver), (spec.target, target)]
        if not all(is_whole(self.cast, side.look, pose) for side, pose in shown):
            return False
        if not agree(self.cast, *((side.look, pose[1:]) for side, pose in shown)):
            return False
        return all(self._fills(spec, side, pose) for side, pose in shown)

    def _fills(self, spec: PairSpec, side: Side, pose: Array) -> bool:
        """Whether the figure is large enough in every frame."""
        scene = self._scene(spec, side, pose, _views(spec, side))
        points = framed_points(self.cast, scene.actors[0], side.framing)  # (T + 1, N, 3)
        pixels, _ = scene.camera.project(points, 1, 1)
        extent = np.ptp(pixels, axis=1).max(axis=-1)  # (T + 1,)
        return bool(extent.min() > SMALLEST * side.size)

    # ---- drawing --------------------------------------------------------------------------

    def draw(self, spec: PairSpec, truth: bool = False) -> Pair:
        """Draw what a spec says."""
        sides = zip((spec.driver, spec.target), self._poses(spec), strict=True)
        driver, target = (self._scene(spec, s, pose, _views(spec, s)) for s, pose in sides)
        driving, driving_joints, _ = self._shoot(spec, driver)
        clip, joints, flow = self._shoot(spec, target, truth)
        flow = None if flow is None else flow[1:]
        return Pair(spec, clip[0], clip[1:], driving, joints, driving_joints, flow)

    def _twin(self, spec: PairSpec) -> tuple[NDArray[np.uint8], Joints, Array]:
        """The target's part of `Twins`: its reference, the frame before, T frames."""
        pose = self._pose(spec.target, spec.motion, _times(spec), stay=not spec.travels)
        pose = np.concatenate([self._reference_pose(spec, pose[1])[None], pose])
        azimuth = np.concatenate([spec.azimuth[1:2], spec.azimuth])
        scene = self._scene(spec, spec.target, pose, azimuth)
        clip, joints, _ = self._shoot(spec, scene)
        cells = self.size // CELL
        surface = self.renderer.surface(replace(scene, height=cells, width=cells))
        surface = surface / body_size(self.cast.skeletons[spec.target.look.skeleton])
        return clip, joints, surface[:, :, ::-1] * MIRROR if spec.flip else surface

    def _shoot(
        self, spec: PairSpec, scene: Scene, truth: bool = False
    ) -> tuple[NDArray[np.uint8], Joints, Array | None]:
        """A scene's frames (N, H, W, 4) with the subject as alpha, its joints, and its flow."""
        drawn = self.renderer.render(scene, "all" if truth else "none")
        step = -1 if spec.flip else 1
        clip = np.empty((*drawn.mask.shape, 4), np.uint8)
        for channel in range(3):  # numpy is slow where it copies three bytes at a time
            clip[..., channel] = drawn.rgb[:, :, ::step, channel]
        clip[..., 3] = np.uint8(255) * (drawn.mask[:, :, ::step] > 0)
        joints, flow = drawn.joints[0], drawn.flow
        if spec.flip:
            joints = mirrored(joints, self.size)
            if flow is not None:
                flow = np.asarray(flow[:, :, ::-1] * np.array([-1, 1]), np.float32)
        return clip, joints, flow

    def _poses(self, spec: PairSpec) -> tuple[Array, Array]:
        """(T + 1, J, 4, 4) the driver's, and the target's with the reference as frame 0."""
        times = _times(spec)
        driver, target = (
            self._pose(side, spec.motion, times, stay=not spec.travels)
            for side in (spec.driver, spec.target)
        )
        target[0] = self._reference_pose(spec, target[1])
        return driver, target

    def _pose(self, side: Side, motion: Motion, times: Array, stay: bool = True) -> Array:
        return pose_side(self.cast, side, motion, times, stay)

    def _reference_pose(self, spec: PairSpec, first: Array) -> Array:
        """(J, 4, 4) the target identity in another pose, where its first frame stands."""
        step = np.float32(1 / FPS)
        times = np.float32(spec.reference_time) + np.arange(5, dtype=np.float32) * step
        pose = self._pose(spec.target, spec.reference_motion, times)[2:3]
        root = self.cast.skeletons[spec.target.look.skeleton].joints.get("pelvis", 0)
        turned = place(pose, (0, 0, 0), np.radians(spec.reference_turn))[0]
        shift = first[root, :3, 3] - turned[root, :3, 3]
        turned[:, [0, 2], 3] += shift[[0, 2]]
        return turned

    def _scene(self, spec: PairSpec, side: Side, pose: Array, azimuth: Array) -> Scene:
        actor = Actor(side.look, pose, side.style, side.drop)
        camera = frame_camera(
            self.cast,
            actor,
            side.framing,
            azimuth,
            spec.elevation,
            side.size,
            side.centre,
            follow=spec.travels,
        )
        return Scene((actor,), camera, side.light, side.background, self.size, self.size)


def movement(cast: Cast, motion: Motion, times: Array) -> float:
    """Mean path of the joints within times (T,) of a motion, in parts of the body's size."""
    skeleton = cast.skeletons[motion.skeleton]
    track = sample_motion(motion, times)
    joints = track.positions[:, sorted(skeleton.joints.values())]  # (T, N, 3)
    moved = np.linalg.norm(np.ptp(joints, axis=0), axis=-1).mean()
    return float(moved / np.ptp(joints, axis=1).max())


def is_whole(cast: Cast, look: Look, pose: Array) -> bool:
    """Whether a body in a pose (T, J, 4, 4) is not stretched."""
    size = np.ptp(posed_bounds(cast, look, pose), axis=1).max()
    return bool(size < 2.5 * np.ptp(bounds(cast, look).points, axis=0).max())


def agree(cast: Cast, one: tuple[Look, Array], other: tuple[Look, Array]) -> bool:
    """Whether the trunks of two posed looks point alike, where their skeletons know them."""
    trunks = [_trunk(cast.skeletons[look.skeleton], pose) for look, pose in (one, other)]
    if trunks[0] is None or trunks[1] is None:
        return True
    return bool((trunks[0] * trunks[1]).sum(axis=-1).min() >= np.cos(np.radians(LIKE_HEADINGS)))


def _trunk(skeleton: Skeleton, pose: Array) -> Array | None:
    """(T, 3) unit vectors from hips to neck, where the skeleton knows them."""
    joints = joint_positions(skeleton, pose)
    if "pelvis" not in joints or "neck" not in joints:
        return None
    along = joints["neck"] - joints["pelvis"]
    return np.asarray(along / np.linalg.norm(along, axis=-1, keepdims=True), np.float32)


def pose_side(cast: Cast, side: Side, motion: Motion, times: Array, stay: bool = True) -> Array:
    """Pose (T, J, 4, 4) of a staged identity; see `pose_clip`. Nobody is under the ground."""
    pose = pose_clip(cast, side.look, motion, times, side.proportions, stay=stay)
    depth = -float(lowest(cast, side.look, pose).min())
    if depth > SUNK * np.ptp(bounds(cast, side.look).points[:, 1]):
        pose[..., 1, 3] += depth  # riders sit at the height of their saddle's origin
    return pose


def _views(spec: PairSpec, side: Side) -> Array:
    """(T + 1,) azimuths; the reference is seen as the target's first frame is, and turned there."""
    if side is spec.target:
        return np.concatenate([spec.azimuth[1:2], spec.azimuth[1:]])
    return spec.azimuth


def caption_of(side: Side, motion: Motion) -> str:
    """Who does what, where."""
    return f"{describe(side)} {motion.caption}, {where(side)}"


def family(skeleton: Skeleton) -> str:
    """Name of the set of skeletons that may share motions.

    Bipeds and upright quadrupeds form one family each; their motions are retargeted by joint
    names. All others only share with equal bones.
    """
    limbs = {"pelvis", "neck", "shoulder_l", "knee_l"} <= skeleton.joints.keys()
    if skeleton.body_plan == "biped" or (
        skeleton.body_plan == "quadruped" and limbs and skeleton.name not in APART
    ):
        return skeleton.body_plan
    return "/".join(skeleton.bones)


def mirrored(joints: Joints, width: int) -> Joints:
    """Joints of the mirrored picture: what was a left hand is a right one."""
    swap = {"_l": "_r", "_r": "_l"}
    names = tuple(name[:-2] + swap.get(name[-2:], name[-2:]) for name in joints.names)
    pixels = joints.pixels * np.array([-1, 1], np.float32) + np.array([width, 0], np.float32)
    return replace(joints, names=names, pixels=pixels)


def _times(spec: PairSpec) -> Array:
    """(T + 1,) seconds into the motion, one frame before the target's first to its last."""
    steps = np.arange(len(spec.azimuth), dtype=np.float32) - 1
    return np.asarray(spec.start + steps * spec.speed / FPS, np.float32)


def _by_group(items: list[T]) -> dict[str, list[T]]:
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(item if isinstance(item, str) else item.group, []).append(item)
    return groups


def _pick(rng: np.random.Generator, items: list[T]) -> T:
    return items[int(rng.integers(len(items)))]
