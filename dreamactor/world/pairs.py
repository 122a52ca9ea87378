"""Pairs: the same motion by two identities, with truth for every frame of the target.

A pair has a driver, who does a motion in a driving clip, and a target, another identity who
does the same motion on the same frames. Driver and target have their own background, style,
light, body proportions, props, framing and place in the frame. The view direction is shared: a
camera that turns in the driving clip turns in the target. The reference shows the target
identity in a pose of another motion, on the target's background, at its place and size, turned
by at most REFERENCE_TURN degrees against the target's first frame.

Everything is drawn from (seed, split, index) alone. A pair of a split uses only characters and
motions of that split, so a test pair has both unseen.

Legend: T = 16 target frames; the driving clip has T + 1, one frame before the target's first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from dreamactor.errors import AssetError
from dreamactor.runs import numpy_generator
from dreamactor.world.body import pose_clip
from dreamactor.world.camera import Framing, bounds, frame_camera, posed_bounds
from dreamactor.world.cast import Array, Cast, Look, Motion, Skeleton
from dreamactor.world.pose import Proportions, joint_positions, place
from dreamactor.world.render import Renderer
from dreamactor.world.scene import Actor, Background, Colour, Joints, Light, Scene, Style

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
SPRAWLING = frozenset({"crocodile"})
"""Quadrupeds whose limbs stand so differently that they only pair with their own kind."""
RARE = ("rider", "chariot", "elephantry", "siege", "death")
"""Words in the names of motions that make odd pictures on foot; drawn less often, and hardly
ever for a reference."""
ATTEMPTS = 20

T = TypeVar("T", Look, Motion, str)


@dataclass(frozen=True)
class Side:
    """One identity's half of a pair: everything but the motion."""

    look: Look
    proportions: Proportions
    style: Style
    light: Light
    background: Background
    framing: Framing
    size: float
    centre: tuple[float, float]
    drop: frozenset[str]


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
    driving_joints: Joints
    flow: Array | None
    """(T - 1, H, W, 2) pixels, of the target, when truth was asked for."""

    @property
    def caption(self) -> str:
        """Who does what, where."""
        return self.spec.caption


class PairSampler:
    """Draws pairs of one split.

    Args:
        cast: Characters and motions.
        split: Which of them may appear.
        size: Pixels of a side.
        device: EGL device, on machines with several GPUs.
    """

    def __init__(self, cast: Cast, split: str, size: int = 256, device: int | None = None) -> None:
        self.cast, self.split, self.size = cast, split, size
        self.renderer = Renderer(cast, device)
        self._looks = {
            domain: _by_group(
                [k for k in cast.looks.values() if k.split == split and k.domain == domain]
            )
            for domain in ("human", "animal")
        }
        motions = [m for m in cast.motions.values() if m.split == split]
        self._family = {name: family(skeleton) for name, skeleton in cast.skeletons.items()}
        self._motions: dict[str, dict[str, list[Motion]]] = {}
        for name in {self._family[m.skeleton] for m in motions}:
            self._motions[name] = _by_group(
                [m for m in motions if self._family[m.skeleton] == name]
            )
        if not any(self._looks.values()) or not motions:
            raise AssetError(f"the cast has no {split} characters and motions; use the full pack")

    def pair(self, seed: int, index: int, truth: bool = False) -> Pair:
        """Draw pair `index`; with `truth` its optical flow and joint visibility too."""
        return self.draw(self.spec(seed, index), truth)

    # ---- what is shown --------------------------------------------------------------------

    def spec(self, seed: int, index: int) -> PairSpec:
        """What pair `index` of `seed` shows."""
        for attempt in range(ATTEMPTS):
            rng = numpy_generator(seed, f"pair/{self.split}/{attempt}", index)
            spec = self._draw_spec(rng)
            if self._sound(spec):
                return spec
        raise AssetError(f"pair {index}: no sound pair in {ATTEMPTS} draws; is the pack damaged?")

    def _draw_spec(self, rng: np.random.Generator) -> PairSpec:
        domain: Literal["human", "animal"] = "animal" if rng.random() < ANIMALS else "human"
        if not self._looks[domain]:
            domain = "human" if domain == "animal" else "animal"
        target, driver = self._identities(rng, domain)
        motion = self._motion(rng, driver, 0.65)
        framings = _framings(rng, domain)
        sides = [
            self._side(rng, look, framing)
            for look, framing in zip((driver, target), framings, strict=True)
        ]
        speed = float(rng.uniform(0.8, 1.25))
        length = len(motion.positions) / motion.fps
        clip = TARGET_FRAMES / FPS * speed
        sweep = 0.0 if rng.random() < 0.7 else float(rng.choice([-1, 1]) * rng.uniform(15, 60))
        ramp = np.arange(TARGET_FRAMES + 1, dtype=np.float32) / TARGET_FRAMES
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
            azimuth=(_azimuth(rng, domain) + sweep * ramp).astype(np.float32),
            elevation=float(rng.uniform(-2, 16)),
            travels=bool(rng.random() < 0.25),
            flip=bool(self.split == "train" and rng.random() < 0.5),
            caption=f"{target.caption} {motion.caption}, {_where(sides[1])}",
        )

    def _sound(self, spec: PairSpec) -> bool:
        """Whether both bodies keep their size and their trunks point the same way."""
        times = _times(spec)
        poses = [self._pose(spec, side, times) for side in (spec.driver, spec.target)]
        reference = self._reference_pose(spec, poses[1][1])[None]
        for side, pose in zip(
            (spec.driver, spec.target, spec.target), (*poses, reference), strict=True
        ):
            size = np.ptp(posed_bounds(self.cast, side.look, pose), axis=1).max()
            bind = bounds(self.cast, side.look).points
            if not size < 2.5 * np.ptp(bind, axis=0).max():
                return False
        trunks = [
            self._trunk(side.look, pose)
            for side, pose in zip((spec.driver, spec.target), poses, strict=True)
        ]
        if trunks[0] is None or trunks[1] is None:
            return True
        agreement = (trunks[0] * trunks[1]).sum(axis=-1).min()
        return bool(agreement > np.cos(np.radians(LIKE_HEADINGS)))

    def _trunk(self, look: Look, pose: Array) -> Array | None:
        """(T, 3) unit vectors from hips to neck, where the skeleton knows them."""
        joints = joint_positions(self.cast.skeletons[look.skeleton], pose)
        if "pelvis" not in joints or "neck" not in joints:
            return None
        along = joints["neck"] - joints["pelvis"]
        return np.asarray(along / np.linalg.norm(along, axis=-1, keepdims=True), np.float32)

    def _identities(self, rng: np.random.Generator, domain: str) -> tuple[Look, Look]:
        """Target and driver: two groups of one family wherever there are two."""
        groups = self._looks[domain]
        kin = {name: self._family[looks[0].skeleton] for name, looks in groups.items()}
        names = [name for name in sorted(groups) if kin[name] in self._motions]
        chosen = _pick(rng, names)
        others = [name for name in names if name != chosen and kin[name] == kin[chosen]]
        target = _pick(rng, groups[chosen])
        return target, _pick(rng, groups[_pick(rng, others or [chosen])])

    def _motion(self, rng: np.random.Generator, look: Look, redraw: float) -> Motion:
        """A motion made for this look if the split has one (mostly), else of its family.

        Rare kinds are drawn again with probability `redraw`.
        """
        groups = self._motions[self._family[look.skeleton]]
        own = {
            n: ms
            for n in sorted(groups)
            if (ms := [m for m in groups[n] if m.name in look.motions])
        }
        use = own if own and rng.random() < 0.7 else groups
        motion = _pick(rng, use[_pick(rng, sorted(use))])
        if any(word in motion.name for word in RARE) and rng.random() < redraw:
            return self._motion(rng, look, redraw)
        return motion

    def _side(self, rng: np.random.Generator, look: Look, framing: Framing) -> Side:
        size = {"full": (0.74, 0.94), "upper": (0.8, 1.0), "face": (0.62, 0.82)}[framing]
        kind: Literal["textured", "toon"] = "toon" if rng.random() < 0.3 else "textured"
        recolour = float(rng.uniform(0.3, 1)) if rng.random() < 0.4 else 0.0
        roles = sorted({p.role for p in look.parts} & {"weapon", "shield", "cape", "tool"})
        return Side(
            look=look,
            proportions=_proportions(rng),
            style=Style(kind=kind, recolour=recolour, seed=int(rng.integers(1 << 30))),
            light=_light(rng),
            background=self._background(rng),
            framing=framing,
            size=float(rng.uniform(*size)),
            centre=(float(rng.uniform(-0.08, 0.08)), float(rng.uniform(-0.04, 0.04))),
            drop=frozenset(r for r in roles if rng.random() < 0.25),
        )

    def _background(self, rng: np.random.Generator) -> Background:
        kinds = ("plain", "gradient", "noise", "stripes", "checker", "bokeh", "terrain")
        kind = str(rng.choice(kinds, p=(0.14, 0.2, 0.1, 0.05, 0.03, 0.13, 0.35)))
        colours = _palette(rng)
        if kind == "terrain" and self.cast.terrains:
            sky = ((0.75, 0.82, 0.9), (0.45, 0.62, 0.85))
            return Background(
                "terrain",
                colours if rng.random() < 0.3 else sky,
                texture=_pick(rng, list(self.cast.terrains)),
                tile=float(rng.uniform(5, 12)),
            )
        flat: Literal["plain", "gradient", "noise", "stripes", "checker", "bokeh"] = (
            "gradient" if kind == "terrain" else kind  # type: ignore[assignment]
        )
        return Background(
            flat, colours, seed=int(rng.integers(1 << 30)), scale=float(rng.uniform(0.7, 2))
        )

    # ---- drawing --------------------------------------------------------------------------

    def draw(self, spec: PairSpec, truth: bool = False) -> Pair:
        """Draw what a spec says."""
        times = _times(spec)
        driver = self._pose(spec, spec.driver, times)
        target = self._pose(spec, spec.target, times)
        target[0] = self._reference_pose(spec, target[1])
        driving = self.renderer.render(self._scene(spec, spec.driver, driver, spec.azimuth))
        azimuth = spec.azimuth.copy()
        azimuth[0] = azimuth[1]  # the reference is the target's first view; its figure is turned
        result = self.renderer.render(
            self._scene(spec, spec.target, target, azimuth), "all" if truth else "none"
        )
        clips = [
            np.concatenate([r.rgb, np.where(r.mask > 0, 255, 0)[..., None].astype(np.uint8)], -1)
            for r in (result, driving)
        ]
        flow = None if result.flow is None else result.flow[1:]
        if spec.flip:
            assert flow is None, "mirrored pairs are for training and carry no flow"
            clips = [np.ascontiguousarray(clip[:, :, ::-1]) for clip in clips]
        return Pair(
            spec, clips[0][0], clips[0][1:], clips[1], result.joints[0], driving.joints[0], flow
        )

    def _pose(self, spec: PairSpec, side: Side, times: Array) -> Array:
        return pose_clip(
            self.cast,
            side.look,
            spec.motion,
            times,
            side.proportions,
            stay=not spec.travels,
        )

    def _reference_pose(self, spec: PairSpec, first: Array) -> Array:
        """(J, 4, 4) the target identity in another pose, where its first frame stands."""
        step = np.float32(1 / FPS)
        times = np.float32(spec.reference_time) + np.arange(5, dtype=np.float32) * step
        pose = pose_clip(
            self.cast, spec.target.look, spec.reference_motion, times, spec.target.proportions
        )[2:3]
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


def family(skeleton: Skeleton) -> str:
    """Name of the set of skeletons that may share motions.

    Bipeds and upright quadrupeds form one family each; their motions are retargeted by joint
    names. All others, and skeletons bound facing backwards, only share with equal bones.
    """
    forward = skeleton.body_plan == "biped"
    if {"pelvis", "neck", "shoulder_l", "hip_l"} <= skeleton.joints.keys():
        at = skeleton.bind_position
        along = at[skeleton.joints["neck"]] - at[skeleton.joints["pelvis"]]
        forward = forward or along[2] > 0.5 * float(np.linalg.norm(along))
    kind = skeleton.name.split("~")[0]
    if forward and skeleton.body_plan in ("biped", "quadruped") and kind not in SPRAWLING:
        return skeleton.body_plan
    return "/".join(skeleton.bones)


def _times(spec: PairSpec) -> Array:
    """(T + 1,) seconds into the motion, one frame before the target's first to its last."""
    steps = np.arange(TARGET_FRAMES + 1, dtype=np.float32) - 1
    return np.asarray(spec.start + steps * spec.speed / FPS, np.float32)


def _by_group(items: list[T]) -> dict[str, list[T]]:
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(item if isinstance(item, str) else item.group, []).append(item)
    return groups


def _pick(rng: np.random.Generator, items: list[T]) -> T:
    return items[int(rng.integers(len(items)))]


def _framings(rng: np.random.Generator, domain: str) -> tuple[Framing, Framing]:
    """Driver's and target's; the target never shows what the driver hides."""
    draw, crop = rng.random(), rng.random()
    if domain == "animal":
        return ("upper", "upper") if draw < 0.12 else ("full", "full")
    if draw < 0.12:
        return "face", "face"
    if draw < 0.38:
        return "upper", "upper"
    return "full", "upper" if crop < 0.1 else "full"


def _azimuth(rng: np.random.Generator, domain: str) -> float:
    """Mostly frontal for humans, mostly from the side for animals, sometimes from anywhere."""
    if rng.random() < 0.15:
        return float(rng.uniform(-180, 180))
    if domain == "human":
        return float(np.clip(rng.normal(0, 35), -90, 90))
    return float(rng.choice([-1, 1]) * np.clip(rng.normal(60, 30), 0, 120))


def _proportions(rng: np.random.Generator) -> Proportions:
    draw = rng.random()
    if draw < 0.5:
        return Proportions()
    if draw < 0.62:
        return Proportions(
            head=float(rng.uniform(1.35, 1.8)),
            legs=float(rng.uniform(0.6, 0.8)),
            arms=float(rng.uniform(0.75, 0.9)),
            girth=float(rng.uniform(1, 1.2)),
        )
    around = rng.uniform(0.85, 1.15, 5)
    return Proportions(
        head=float(rng.uniform(0.95, 1.3)),
        torso=float(around[0]),
        arms=float(around[1]),
        legs=float(around[2]),
        neck=float(around[3]),
        girth=float(around[4]),
    )


def _light(rng: np.random.Generator) -> Light:
    warm = float(rng.uniform(-0.08, 0.08))
    direction = (
        float(rng.uniform(-0.9, 0.9)),
        float(rng.uniform(0.4, 1)),
        float(rng.uniform(0.3, 1)),
    )
    return Light(
        direction=direction,
        colour=(1 + min(warm, 0), 0.96, 0.9 - max(warm, 0)),
        strength=float(rng.uniform(0.8, 1.15)),
        ambient=float(rng.uniform(0.75, 1.0)),
        exposure=float(rng.uniform(1.2, 1.5)),
    )


def _palette(rng: np.random.Generator) -> tuple[Colour, ...]:
    """Two related colours; often pale, as studio backdrops are."""
    base = rng.uniform(0.15, 0.95, 3) if rng.random() < 0.6 else rng.uniform(0.6, 0.95, 3)
    other = np.clip(base + rng.uniform(-0.35, 0.35, 3), 0.05, 1)
    return tuple(map(float, base)), tuple(map(float, other))  # type: ignore[return-value]


def _where(side: Side) -> str:
    ground = side.background.texture.removeprefix("terrain-").replace("_", " ").replace("-", " ")
    for word in ("grass", "sand", "dirt", "snow", "paving", "tile", "rocks", "gravel"):
        if word in ground:
            return f"on {word}"
    return "cartoon" if side.style.kind == "toon" else "before a plain backdrop"
