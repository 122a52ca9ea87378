"""Draws acts, people and groups of a split for stages, and twins of several subjects.

As in `pairs`, everything is drawn from (seed, split, index) alone. `Troupe` is for benchmarks,
which ask for what they want to see; `PluralSampler` gives training pairs of the kinds that
`PairSampler` has not: one driver for many, many for as many, an upper body for a whole one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dreamactor.errors import AssetError
from dreamactor.runs import numpy_generator
from dreamactor.world import pairs
from dreamactor.world.axes import (
    NOT_SHOWN,
    Activity,
    Age,
    activity_of,
    child_proportions,
    is_child,
    is_old,
)
from dreamactor.world.body import body_size
from dreamactor.world.camera import Framing
from dreamactor.world.cast import Array, Look, Motion
from dreamactor.world.crowd import Act, Group, Shot, Stage, heads_agree, repeated
from dreamactor.world.pairs import ATTEMPTS, CELL, MIRROR, PairSampler, movement
from dreamactor.world.pose import Proportions
from dreamactor.world.scene import Joints, Scene
from dreamactor.world.staging import (
    Side,
    describe,
    draw_azimuth,
    draw_background,
    draw_side,
    where,
)

Kind = Literal["one2many", "many2many", "half2full"]
Dress = Literal["textured", "toon"]
LEAST_MOVED = 0.05
"""Movement of the joints over a clip, in parts of the body's size, of what is not still."""
FILLED = 0.55
"""Least part of its wanted size that a lone figure may have in any frame."""
SMALLEST = 0.25
"""Least side of the box of one of several, in parts of the picture's."""
TURN = 20.0
"""Degrees at most between a reference's view and that of the clips that drive it."""
ALONE = frozenset({"weapon", "tool", "shield"})
"""Parts that several people leave at home, for they would cut through their neighbours."""


@dataclass(frozen=True)
class Wish:
    """How somebody shall be shown."""

    framing: Framing = "full"
    dress: Dress = "textured"
    age: Age | None = None
    """None takes whoever comes."""
    outdoors: bool | None = None
    """On the ground, or before a backdrop; None leaves it open."""
    several: bool = False
    """Whether others stand beside."""


class Troupe:
    """Looks and motions of one split, drawn by what shall be seen.

    Args:
        sampler: Holds them; draws nothing here.
    """

    def __init__(self, sampler: PairSampler) -> None:
        self.sampler, self.cast = sampler, sampler.cast
        self._acts: dict[tuple[str, str], dict[str, list[Motion]]] = {}
        for kin, groups in sampler.motions.items():
            for name, motions in groups.items():
                for motion in motions:
                    if not NOT_SHOWN.search(motion.name):
                        row = self._acts.setdefault((kin, activity_of(motion)), {})
                        row.setdefault(name, []).append(repeated(motion))

    def activities(self, kin: str) -> list[Activity]:
        """What a family can be seen doing."""
        return [a for a in get_args(Activity) if (kin, a) in self._acts]

    def families(self, domain: str) -> dict[str, list[str]]:
        """Family -> groups of looks of a domain that have motions."""
        out: dict[str, list[str]] = {}
        for group, looks in sorted(self.sampler.looks[domain].items()):
            kin = self.sampler.kin[looks[0].skeleton]
            if self.activities(kin):
                out.setdefault(kin, []).append(group)
        if not out:
            raise AssetError(f"the cast has no {domain} of this split that can move; take another")
        return out

    def look(
        self,
        rng: np.random.Generator,
        domain: str,
        kin: str | None = None,
        age: Age | None = None,
        avoid: Sequence[Collection[str]] = (),
    ) -> Look:
        """Somebody of a domain.

        Args:
            rng: What the draw is made from.
            domain: human or animal.
            kin: Family; None takes any.
            age: Of a person; None takes whoever comes.
            avoid: Groups to keep clear of; where nobody is left, the next of these sets counts.
        """
        groups = self.families(domain)
        names = groups[kin] if kin else sorted(name for all_ in groups.values() for name in all_)
        table = self.sampler.looks[domain]
        if age == "elderly":
            names = [n for n in names if any(is_old(k) for k in table[n])] or names
        elif age is not None and len(names) > 1:
            names = [n for n in names if not all(is_old(k) for k in table[n])]
        for barred in avoid:
            if free := [n for n in names if n not in barred]:
                names = free
                break
        looks = table[names[int(rng.integers(len(names)))]]
        fitting = [k for k in looks if age is None or is_old(k) == (age == "elderly")]
        if age == "child":
            fitting = [k for k in fitting if "beard" not in k.caption] or fitting
        fitting = fitting or looks
        return fitting[int(rng.integers(len(fitting)))]

    def act(
        self,
        rng: np.random.Generator,
        kin: str,
        activity: Activity | None = None,
        avoid: Collection[str] = (),
    ) -> Act:
        """What somebody of a family does; where nobody can do the activity, another one."""
        able = self.activities(kin)
        if activity not in able:
            lively = [a for a in able if a != "still"] or able
            activity = lively[int(rng.integers(len(lively)))]
        groups = self._acts[kin, activity]
        names = sorted(groups)
        free = [n for n in names if n not in avoid] or names
        motions = groups[free[int(rng.integers(len(free)))]]
        motion = motions[int(rng.integers(len(motions)))]
        length = len(motion.positions) / motion.fps
        return Act(motion, float(rng.uniform(0, length)), float(rng.uniform(0.85, 1.15)))

    def moves(self, act: Act, frames: int) -> bool:
        """Whether one sees it."""
        return movement(self.cast, act.motion, act.times(frames)) > LEAST_MOVED

    def side(self, rng: np.random.Generator, look: Look, wish: Wish) -> Side:
        """Somebody, staged as wished."""
        side = draw_side(rng, look, wish.framing, self.cast.terrains)
        if wish.outdoors is not None:
            background = draw_background(rng, self.cast.terrains, wish.outdoors)
            side = replace(side, background=background)
        child = child_proportions(rng)
        proportions, drop = side.proportions, side.drop
        if wish.age == "child":
            proportions, drop = child, drop | ALONE | {"cape"}
        elif wish.age is not None and is_child(proportions):
            proportions = Proportions()
        if wish.several:
            drop = drop | ALONE
            side = replace(side, size=min(side.size, 0.88), centre=(0.0, side.centre[1]))
        drop = drop & {part.role for part in look.parts}
        style = replace(side.style, kind=wish.dress)
        if look.domain == "animal" and wish.dress == "textured":
            style = replace(style, recolour=0.0)  # a green camel is no camel
        return replace(side, proportions=proportions, style=style, drop=frozenset(drop))


def fills(stage: Stage, index: int, ease: float = 1.0) -> bool:
    """Whether everybody is large enough in every frame of a shot; `ease` lowers the bar."""
    extents = stage.extents(index)
    if len(stage.group) > 1:
        return bool(extents.min() > SMALLEST * ease)
    return bool(extents.min() > FILLED * stage.group.sides[0].size * ease)


def shot_caption(group: Group, shot: Shot) -> str:
    """Who does what, where."""
    who = [describe(side) for side in group.sides]
    does = [shot.act(k).motion.caption for k in range(len(who))]
    place = where(group.sides[0])
    if len(who) == 1:
        return f"{who[0]} {does[0]}, {place}"
    if len(set(does)) == 1:
        listed = ", ".join(who[:-1]) + " and " + who[-1]
        return f"side by side, {listed}: each {does[0]}, {place}"
    acting = [f"{name} {verb}" for name, verb in zip(who, does, strict=True)]
    return "side by side, " + ", ".join(acting[:-1]) + " and " + acting[-1] + f", {place}"


def group_caption(group: Group) -> str:
    """Who is shown, where; not what they do."""
    who = [describe(side) for side in group.sides]
    place = where(group.sides[0])
    if len(who) == 1:
        return f"{who[0]}, {place}"
    return f"side by side, {', '.join(who[:-1])} and {who[-1]}, {place}"


@dataclass(frozen=True)
class PluralTwins:
    """As `pairs.Twins`, of groups: either drives the other."""

    kind: Kind
    stages: tuple[Stage, Stage]
    """Shot 0 is the reference, shot 1 T + 1 frames."""
    captions: tuple[str, str]
    clips: tuple[NDArray[np.uint8], NDArray[np.uint8]]
    """(T + 2, H, W, 4) RGBA: reference, the frame before, T frames; alpha is all subjects."""
    joints: tuple[tuple[Joints, ...], tuple[Joints, ...]]
    """One a subject, on the same T + 2 frames."""
    surfaces: tuple[Array, Array]
    """(T + 2, H / CELL, W / CELL, 3) as of `pairs.Twins`, each by the size of its own body."""


class PluralSampler:
    """Draws training pairs in which one drives many, many drive many, or half a body a whole one.

    Args:
        sampler: Of the split; T, size and renderer are its.
    """

    def __init__(self, sampler: PairSampler) -> None:
        self.sampler, self.troupe = sampler, Troupe(sampler)

    def is_due(self, seed: int, index: int, share: float) -> bool:
        """Whether twins `index` of a pool with this share of plural ones are plural."""
        rng = numpy_generator(seed, f"plural share/{self.sampler.split}", index)
        return bool(rng.random() < share)

    def twins(self, seed: int, index: int) -> PluralTwins:
        """Draw twins `index`."""
        for attempt in range(ATTEMPTS):
            stream = f"plural/{self.sampler.split}/{attempt}"
            rng = numpy_generator(seed, stream, index)
            kind = get_args(Kind)[int(rng.integers(3))]
            stages = self._draw(rng, kind)
            if stages is not None:
                return self._film(kind, stages, bool(rng.random() < 0.5))
        raise AssetError(f"twins {index}: nothing sound in {ATTEMPTS} draws; is the pack damaged?")

    def _draw(self, rng: np.random.Generator, kind: Kind) -> tuple[Stage, Stage] | None:
        domain = "animal" if kind != "half2full" and rng.random() < 0.2 else "human"
        domain = domain if self.sampler.looks[domain] else "human"
        families = self.troupe.families(domain)
        kin = max(families, key=lambda name: len(families[name]))
        count = int(rng.integers(2, 4))
        sizes = {"one2many": (1, count), "many2many": (count, count), "half2full": (1, 1)}[kind]
        frames = self.sampler.frames + 1
        acts: list[Act] = []
        for _ in range(count if kind == "many2many" else 1):
            taken = {a.motion.group for a in acts}
            acts.append(self.troupe.act(rng, kin, None, taken))
        if not all(self.troupe.moves(act, frames) for act in acts):
            return None
        azimuth = np.full(frames, draw_azimuth(rng, domain), np.float32)
        elevation = float(rng.uniform(-2, 12))
        stages, taken = [], set()
        framings: tuple[Framing, Framing] = (
            ("upper", "full") if kind == "half2full" else ("full", "full")
        )
        for size, framing in zip(sizes, framings, strict=True):
            sides = []
            for _ in range(size):
                look = self.troupe.look(rng, domain, kin, avoid=[taken])
                taken.add(look.group)
                dress: Dress = "toon" if rng.random() < 0.3 else "textured"
                wish = Wish(framing=framing, dress=dress, several=size > 1)
                sides.append(self.troupe.side(rng, look, wish))
            view = azimuth[:1] + np.float32(rng.uniform(-TURN, TURN))
            poses = tuple(self.troupe.act(rng, kin) for _ in range(size))
            shots = (Shot(poses, view), Shot(tuple(acts), azimuth))
            stages.append(
                Stage(self.sampler.cast, Group(tuple(sides)), shots, elevation, self.sampler.size)
            )
        one, other = stages
        paired = tuple((min(k, sizes[0] - 1), k) for k in range(sizes[1]))
        sound = all(stage.is_whole() and fills(stage, 1) for stage in stages)
        return (one, other) if sound and heads_agree(one, 1, other, 1, paired) else None

    def _film(self, kind: Kind, stages: tuple[Stage, Stage], flip: bool) -> PluralTwins:
        flip = flip and self.sampler.split == "train"
        taken = [self._shoot(stage, flip) for stage in stages]
        captions = (
            shot_caption(stages[0].group, stages[0].shots[1]),
            shot_caption(stages[1].group, stages[1].shots[1]),
        )
        return PluralTwins(
            kind,
            stages,
            captions,
            (taken[0][0], taken[1][0]),
            (taken[0][1], taken[1][1]),
            (taken[0][2], taken[1][2]),
        )

    def _shoot(
        self, stage: Stage, flip: bool
    ) -> tuple[NDArray[np.uint8], tuple[Joints, ...], Array]:
        """Frames (T + 2, H, W, 4), joints a subject, and spots of the bodies."""
        scenes = [stage.scene(index) for index in range(2)]
        drawn = [self.sampler.renderer.render(scene) for scene in scenes]
        rgb = np.concatenate([d.rgb for d in drawn])
        mask = np.concatenate([d.mask for d in drawn])
        joints = tuple(_joined(*parts) for parts in zip(*(d.joints for d in drawn), strict=True))
        surface = np.concatenate(
            [self._surface(stage, s, d.mask) for s, d in zip(scenes, drawn, strict=True)]
        )
        clip = np.concatenate([rgb, np.uint8(255) * (mask > 0)[..., None]], axis=-1)
        if flip:
            clip, surface = clip[:, :, ::-1], surface[:, :, ::-1] * MIRROR
            joints = tuple(pairs.mirrored(j, self.sampler.size) for j in joints[::-1])
        return np.ascontiguousarray(clip), joints, np.asarray(surface, np.float32)

    def _surface(self, stage: Stage, scene: Scene, mask: NDArray[np.uint8]) -> Array:
        cells = self.sampler.size // CELL
        surface = self.sampler.renderer.surface(replace(scene, height=cells, width=cells))
        skeletons = self.sampler.cast.skeletons
        sizes = [body_size(skeletons[side.look.skeleton]) for side in stage.group.sides]
        who = mask[:, CELL // 2 :: CELL, CELL // 2 :: CELL].astype(int)
        by = np.array([max(sizes), *sizes], np.float32)[who]  # (T, h, w)
        return np.asarray(surface / by[..., None], np.float32)


def _joined(*parts: Joints) -> Joints:
    """Joints of shots one after the other."""
    first = parts[0]
    return replace(
        first,
        pixels=np.concatenate([p.pixels for p in parts]),
        depth=np.concatenate([p.depth for p in parts]),
        visible=np.concatenate([p.visible for p in parts]),
    )
