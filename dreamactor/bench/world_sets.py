"""Draws the sets of AW Bench World: who does what in which picture, and the stages to draw it on.

Everything is drawn from (seed, scenario, number of the set) alone, in the test split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from dreamactor.bench.manifest import Scenario
from dreamactor.bench.world_plan import CASES, Domain, Slot, age_of_member, slot_of
from dreamactor.errors import AssetError
from dreamactor.runs import numpy_generator
from dreamactor.world.axes import activity_of
from dreamactor.world.camera import Framing
from dreamactor.world.cast import Array
from dreamactor.world.crowd import Act, Group, Path, Shot, Stage, heads_agree
from dreamactor.world.pairs import FPS
from dreamactor.world.staging import Side, draw_azimuth
from dreamactor.world.troupe import TURN, Dress, Troupe, Wish, fills

ATTEMPTS = 200
EASED = 0.7
"""Part of the least size of a figure that is asked for after half of the attempts: a motion that
crouches fills no picture that holds its standing reference too."""
ORBIT = (20.0, 50.0)
"""Degrees that an orbiting camera goes round a figure in two seconds."""
ORBIT_SEVERAL = (6.0, 12.0)
"""And round several, who would come to stand before each other."""
FRONTAL = 35.0
"""Degrees at most from ahead, for upper bodies, faces and several people."""
CROSSING = (60.0, 85.0)
"""Degrees from ahead from which those are seen who walk through the picture."""
JITTER = 8.0
"""Degrees that the views of a set's two clips may lie from their middle."""
CROSSED = 0.33
"""Least part of the picture's side of somebody who walks through it."""
LOW = "anti_cavalry"
"""Part of the names of motions that are done kneeling."""
PATHS: dict[str, Path] = {"follow": "followed", "cross": "crosses"}

T = TypeVar("T")


@dataclass(frozen=True)
class Reference:
    """A reference and its truths, before they are drawn."""

    stage: Stage
    """Shot 0 is the picture; the others are truths."""
    clips: tuple[int, ...]
    """Which clip of the set each of shots 1.. belongs to; none where there is no truth."""


@dataclass(frozen=True)
class DrawnSet:
    """Two clips, four references and six cases, before they are drawn."""

    scenario: Scenario
    number: int
    slot: Slot
    drivers: tuple[Stage, ...]
    """The only shot of each is the clip."""
    references: tuple[Reference, ...]


def draw_set(
    troupe: Troupe, seed: int, scenario: Scenario, number: int, size: int, length: float = 1.0
) -> DrawnSet:
    """Set `number` of a scenario.

    Args:
        troupe: Looks and motions of the test split.
        seed: Of the suite.
        scenario: Which.
        number: Which of its sets.
        size: Pixels of a side.
        length: Factor on the plan's seconds.
    """
    return _Draw(troupe, seed, scenario, number, size, length).done()


class _Draw:
    """One set being drawn: what comes later keeps clear of whom came before."""

    def __init__(
        self, troupe: Troupe, seed: int, scenario: Scenario, number: int, size: int, length: float
    ) -> None:
        self.troupe, self.seed, self.size = troupe, seed, size
        self.scenario, self.number, self.slot = scenario, number, slot_of(scenario, number)
        self.frames = max(2, round(self.slot.seconds * length * FPS))
        self.kin = self._largest_family(self.slot.domain)
        rng = self._rng("view", 0)
        self.azimuth, self.elevation = self._view(rng), float(rng.uniform(-2, 12))
        self.ease = 1.0
        self.drivers: list[Stage] = []
        self.references: list[Reference] = []

    def done(self) -> DrawnSet:
        for clip in range(2):
            self.drivers.append(self._sound(f"driver/{clip}", partial(self._driver, clip)))
        for place in range(4):
            self.references.append(
                self._sound(f"reference/{place}", partial(self._reference, place))
            )
        return DrawnSet(
            self.scenario, self.number, self.slot, tuple(self.drivers), tuple(self.references)
        )

    def _rng(self, part: str, attempt: int) -> np.random.Generator:
        return numpy_generator(self.seed, f"aw/{self.scenario}/{part}/{attempt}", self.number)

    def _sound(self, part: str, draw: Callable[[np.random.Generator], T | None]) -> T:
        """Draw until it is sound."""
        for attempt in range(ATTEMPTS):
            self.ease = EASED if attempt >= ATTEMPTS // 2 else 1.0
            found = draw(self._rng(part, attempt))
            if found is not None:
                return found
        raise AssetError(
            f"{self.scenario} {self.number}: no sound {part} in {ATTEMPTS} draws; "
            "want the full cast pack"
        )

    def _largest_family(self, domain: str) -> str:
        families = self.troupe.families(domain)
        return max(families, key=lambda name: len(families[name]))

    # ---- from where, and how it is shown --------------------------------------------------

    def _view(self, rng: np.random.Generator) -> float:
        """Degrees about the figures, shared by the set up to a few."""
        slot, domain = self.slot, self.slot.domain
        if slot.camera == "cross":
            return float(rng.choice([-1, 1]) * rng.uniform(*CROSSING))
        azimuth = draw_azimuth(rng, domain)
        close = slot.region != "full" or slot.subjects > 1
        if domain == "human" and close:
            return float(np.clip(azimuth, -FRONTAL, FRONTAL))
        return azimuth

    def _azimuths(self, rng: np.random.Generator) -> Array:
        """(T,) degrees of a clip."""
        slot, frames = self.slot, self.frames
        start = self.azimuth + rng.uniform(-JITTER, JITTER)
        sweep = 0.0
        if slot.camera == "orbit":
            span = ORBIT if slot.subjects == 1 else ORBIT_SEVERAL
            sweep = float(rng.choice([-1, 1]) * rng.uniform(*span))
        return np.linspace(start, start + sweep, frames, dtype=np.float32)

    def _dress(self, driving: bool) -> Dress:
        toon = self.scenario == "toon2toon" or (self.scenario == "human2toon" and not driving)
        return "toon" if toon else "textured"

    def _region(self, driving: bool) -> Framing:
        if self.scenario == "half2full":
            return "upper" if driving else "full"
        animal = self.scenario == "human2animal" and not driving
        return "full" if animal else self.slot.region

    def _outdoors(
        self, rng: np.random.Generator, driving: bool, acts: Sequence[Act]
    ) -> bool | None:
        """Who walks on the spot does it before a backdrop; the ground shows a walk that is one."""
        if self.slot.camera in PATHS:
            return True if driving else bool(rng.random() < 0.6)
        done = {*self.slot.activities, *(activity_of(act.motion) for act in acts)}
        return False if "travel" in done else None

    def _group(
        self, rng: np.random.Generator, kin: str, first: int, driving: bool,
        avoid: Sequence[Sequence[set[str]]], acts: Sequence[Act], domain: Domain | None = None,
    ) -> Group:  # fmt: skip
        """Those of a picture; `avoid` says of each whom to keep clear of, see `Troupe.look`."""
        sides = list[Side]()
        outdoors, domain = self._outdoors(rng, driving, acts), domain or self.slot.domain
        for k, barred in enumerate(avoid):
            member = first + k
            age = age_of_member(self.scenario, self.number, member) if domain == "human" else None
            beside = {side.look.group for side in sides}
            look = self.troupe.look(rng, domain, kin, age, [b | beside for b in barred])
            wish = Wish(self._region(driving), self._dress(driving), age, outdoors, len(avoid) > 1)
            sides.append(self.troupe.side(rng, look, wish))
        return Group(tuple(sides))

    # ---- clips and references -------------------------------------------------------------

    def _driver(self, clip: int, rng: np.random.Generator) -> Stage | None:
        slot, acts = self.slot, list[Act]()
        done = {act.motion.group for stage in self.drivers for act in stage.shots[0].acts}
        wanted = slot.activities[clip]
        for k in range(slot.subjects if self.scenario == "many2many" else 1):
            avoid = done | {act.motion.group for act in acts}
            avoid |= self._too_low() if self._region(True) != "full" else set()
            activity = slot.activities[(clip + k) % 2]
            acts.append(self.troupe.act(rng, self.kin, activity, avoid))
        azimuth = self._azimuths(rng)
        if wanted != "still" and not all(self.troupe.moves(act, len(azimuth)) for act in acts):
            return None
        before = {side.look.group for stage in self.drivers for side in stage.group.sides}
        group = self._group(rng, self.kin, clip, True, [[before, set()]] * len(acts), acts)
        shot = Shot(tuple(acts), azimuth, PATHS.get(slot.camera, "stays"))
        stage = Stage(self.troupe.cast, group, (shot,), self.elevation, self.size)
        sound = stage.is_whole() and self._fills(stage, 0) and self._crops(stage, True)
        return stage if sound else None

    def _too_low(self) -> set[str]:
        """Groups of motions in which knees come as high as hips: an upper body shows them."""
        groups = self.troupe.sampler.motions[self.kin]
        return {name for name in groups if LOW in name}

    def _reference(self, place: int, rng: np.random.Generator) -> Reference | None:
        others = {s.look.group for r in self.references for s in r.stage.group.sides}
        if self.scenario == "human2animal":
            return self._animal(place, others, rng)
        clips = tuple(clip for clip, reference in CASES if reference == place)
        avoid = []
        for k in range(self.slot.subjects):
            drivers = [self.drivers[clip].group.sides for clip in clips]
            own = {sides[min(k, len(sides) - 1)].look.group for sides in drivers}
            all_ = {side.look.group for sides in drivers for side in sides}
            avoid.append([all_ | others, all_, own, set()])
        performed = tuple(self.drivers[clip].shots[0] for clip in clips)
        acts = [act for shot in performed for act in shot.acts]
        group = self._group(rng, self.kin, 2 + place, False, avoid, acts)
        others = {act.motion.group for act in acts}
        poses = tuple(self.troupe.act(rng, self.kin, None, others) for _ in group.sides)
        view = self.azimuth + rng.uniform(-TURN, TURN) / 2
        shots = (Shot(poses, np.array([view], np.float32)), *performed)
        stage = Stage(self.troupe.cast, group, shots, self.elevation, self.size)
        found = Reference(stage, clips)
        return found if self._is_sound(found) else None

    def _animal(self, place: int, others: set[str], rng: np.random.Generator) -> Reference | None:
        """A reference that a person drives: what it should do nobody knows, so it has no truth."""
        families = self.troupe.families("animal")
        kin = {group: name for name, groups in families.items() for group in groups}
        left = sorted(kin.keys() - others) or sorted(kin)
        chosen = left[int(rng.integers(len(left)))]
        same = set(families[kin[chosen]]) - {chosen}
        group = self._group(rng, kin[chosen], 2 + place, False, [[same]], (), "animal")
        view = np.array([draw_azimuth(rng, "animal")], np.float32)
        shot = Shot((self.troupe.act(rng, kin[chosen]),), view)
        stage = Stage(self.troupe.cast, group, (shot,), self.elevation, self.size)
        sound = stage.is_whole() and stage.stands(0) and fills(stage, 0)
        return Reference(stage, ()) if sound else None

    def _is_sound(self, reference: Reference) -> bool:
        stage = reference.stage
        if not (stage.is_whole() and stage.stands(0) and self._crops(stage, False)):
            return False
        count = len(stage.group)
        for place, clip in enumerate(reference.clips, 1):
            driver = self.drivers[clip]
            several = len(driver.group) > 1
            paired = tuple((k if several else 0, k) for k in range(count))
            if not heads_agree(driver, 0, stage, place, paired):
                return False
            if not self._fills(stage, place):
                return False
        return self._fills(stage, 0)

    def _crops(self, stage: Stage, driving: bool) -> bool:
        """Whether an upper body is one: who crouches and rises again shows feet in between."""
        if self._region(driving) != "upper" or self.slot.domain != "human":
            return True
        return bool((stage.heights(0, "ankle") > 1).all())

    def _fills(self, stage: Stage, place: int) -> bool:
        if self.slot.camera == "cross":
            return bool(stage.extents(place).min() > CROSSED * self.ease)
        return fills(stage, place, self.ease)
