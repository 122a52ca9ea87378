"""The design of a study: which cases, who rates what, in which order, with which checks.

Everything is drawn by the study's seed and the rater's number, so one rater more changes nothing
for the others. Ratings come before pairs: who has seen two clips side by side rates the next one
against what they saw.

    ratings   as many rounds as there are systems; in each of them every case of the rater comes
              once, under a system that it has not had yet, and every system equally often
    pairs     the same with the others in the place of the systems; left and right as often, +-1
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dreamactor.bench.study.plan import Check, Item, Kind, Rater, blind, code
from dreamactor.config import check_least
from dreamactor.errors import ConfigError
from dreamactor.runs import numpy_generator


@dataclass(frozen=True)
class StudyConfig:
    """Settings of `dreamactor study make`."""

    systems: str | None = None
    """Names parted by commas; none = every folder in CLIPS."""
    gsb: str | None = None
    """System that is held against every other one in pairs; none = there are no pairs."""
    cases: int = 100
    """Cases at most; the paper has 100."""
    raters: int = 12
    """People; the paper has 12."""
    per_rater: int | None = None
    """Cases that each of them sees; none = all."""
    checks: float = 0.1
    """Checks as a share of the items, half of them repeated items; 0 = none, at most 0.5."""
    side: int = 720
    """Pixels of the longer side of what is shown, at most; larger clips are scaled down."""
    fails: float = 0.34
    """Share of failed checks above which a rater is left out."""
    repeat: float = 1.0
    """Points by which repeated ratings may differ in the mean."""
    least: float = 0.5
    """Share of the items that a rater must have answered."""
    seed: int = 0
    """Of all draws."""

    def __post_init__(self) -> None:
        check_least(self, {"cases": 1, "raters": 1, "side": 64, "checks": 0, "repeat": 0})
        if self.per_rater is not None:
            check_least(self, {"per_rater": 1})
        for name, most in (("checks", 0.5), ("fails", 1), ("least", 1)):
            if not 0 <= getattr(self, name) <= most:
                raise ConfigError(f"{name}={getattr(self, name)}: want 0 to {most}")

    @property
    def wanted(self) -> int:
        """Cases that are of use: all of them are seen by somebody."""
        return min(self.cases, self.raters * (self.per_rater or self.cases))


@dataclass(frozen=True)
class Shown:
    """A case, as raters meet it."""

    scenario: str
    reference: str
    """File in media/."""
    driving: str


@dataclass(frozen=True)
class Deck:
    """What items are made of."""

    config: StudyConfig
    secret: str
    systems: Sequence[str]
    cases: Mapping[str, Shown]
    """Chosen ones, in the order of `choose_cases`."""
    spoilt: Sequence[tuple[Check, str, str]]
    """Check, case and system of clips that were spoilt."""
    twins: Sequence[tuple[str, str]]
    """Case and system of clips that are there twice."""

    def clip(self, what: str, case: str, system: str) -> str:
        """File of a clip: `what` is result, noise, frozen or twin."""
        return blind(self.secret, what, case, system) + ".mp4"


def choose_cases(scenarios: Mapping[str, str], count: int, seed: int) -> list[str]:
    """Cases in turns of the scenarios, so that any first ones of them are balanced.

    Args:
        scenarios: Of every case that could be taken.
        count: How many are wanted at most.
        seed: Of the study.
    """
    of: dict[str, list[str]] = {}
    for name in sorted(scenarios):
        of.setdefault(scenarios[name], []).append(name)
    queues = []
    for scenario in sorted(of):
        rng = numpy_generator(seed, f"study/cases/{scenario}", 0)
        queues.append([of[scenario][k] for k in rng.permutation(len(of[scenario]))])
    turns = max(map(len, queues), default=0)
    found = [queue[k] for k in range(turns) for queue in queues if k < len(queue)]
    return found[:count]


def share_out(
    scenarios: Mapping[str, str], raters: int, per_rater: int | None, seed: int
) -> list[list[str]]:
    """The cases of every rater: all cases are seen equally often, +-1.

    Each takes those that were seen least so far; among equals, of the scenario they have the
    fewest of.
    """
    names = list(scenarios)
    count = min(per_rater or len(names), len(names))
    if count == len(names):
        return [names] * raters
    seen, found = dict.fromkeys(names, 0), []
    for number in range(1, raters + 1):
        rng = numpy_generator(seed, "study/share", number)
        luck = dict(zip(names, rng.random(len(names)), strict=True))
        own: list[str] = []
        have: dict[str, int] = {}
        for _ in range(count):
            rest = (name for name in names if name not in own)
            best = min(rest, key=lambda n: (seen[n], have.get(scenarios[n], 0), luck[n]))
            own.append(best)
            have[scenarios[best]] = have.get(scenarios[best], 0) + 1
        for name in own:
            seen[name] += 1
        found.append(own)
    return found


def planted(
    config: StudyConfig, systems: Sequence[str], motion: Mapping[str, float]
) -> tuple[list[tuple[Check, str, str]], list[tuple[str, str]]]:
    """Clips to spoil, and clips to have twice; every rater meets all of them once.

    Args:
        config: Of the study.
        systems: Their names.
        motion: How much moves in the driving clip of every case: where nothing does, a frozen
            result would not be a bad one.
    """
    own = min(config.per_rater or len(motion), len(motion))
    _, spoilt = _split(config.checks, own * len(systems))
    names, rng = list(motion), numpy_generator(config.seed, "study/planted", 0)
    lively = sorted(names, key=lambda name: -motion[name])[: max(1, len(names) // 2)]

    def some(among: Sequence[str], count: int) -> list[tuple[str, str]]:
        every = [(name, system) for name in among for system in systems]
        return [every[k] for k in rng.permutation(len(every))[:count]]

    frozen: list[tuple[Check, str, str]] = [("frozen", *x) for x in some(lively, (spoilt + 1) // 2)]
    noise: list[tuple[Check, str, str]] = [("noise", *x) for x in some(names, spoilt // 2)]
    pairs = own * (len(systems) - 1) if config.gsb else 0
    return frozen + noise, some(names, math.ceil(config.checks * pairs))


def draw_raters(deck: Deck) -> tuple[Rater, ...]:
    """Everybody's items in their order."""
    config = deck.config
    scenarios = {name: shown.scenario for name, shown in deck.cases.items()}
    found = []
    for k, cases in enumerate(share_out(scenarios, config.raters, config.per_rater, config.seed)):
        items = [*_ratings(deck, k + 1, cases), *(_pairs(deck, k + 1, cases) if config.gsb else [])]
        ids = (blind(deck.secret, "item", str(k + 1), str(place)) for place in range(len(items)))
        named = [replace(item, id=name) for item, name in zip(items, ids, strict=True)]
        of = {item.id: fresh.id for item, fresh in zip(items, named, strict=True)}
        linked = (item if item.of is None else replace(item, of=of[item.of]) for item in named)
        found.append(Rater(k + 1, code(deck.secret, k + 1), tuple(linked)))
    return tuple(found)


def _split(checks: float, items: int) -> tuple[int, int]:
    """Repeated and spoilt ones of so many ratings; one and one of both kinds at least, or none."""
    count = math.ceil(checks * items)
    repeated = (count + 1) // 2
    return repeated, max(count - repeated, 2) if count else 0


def _ratings(deck: Deck, number: int, cases: Sequence[str]) -> list[Item]:
    """Ratings of one rater; ids are places until they get their own."""
    rng = numpy_generator(deck.config.seed, "study/ratings", number)
    real: list[Item] = []
    for case, system in _rounds(rng, cases, deck.systems):
        clip = deck.clip("result", case, system)
        real.append(_item(deck, f"real {len(real)}", "rate", case, (clip,), (system,)))
    places = {item.id: float(k) for k, item in enumerate(real)}
    repeated, _ = _split(deck.config.checks, len(real))
    early = max(1, len(real) // 3)  # a third of the ratings lies between both, so they are new
    for k in rng.choice(early, size=min(repeated, early), replace=False):
        again = replace(real[k], id=f"again {k}", check="repeat", of=real[k].id)
        real.append(again)
        places[again.id] = rng.uniform(2 / 3, 1) * len(places)
    for check, case, system in deck.spoilt if deck.config.checks else ():
        clip = deck.clip(check, case, system)
        name = f"{check} {case} {system}"
        real.append(_item(deck, name, "rate", case, (clip,), (system,), check))
        places[name] = rng.uniform(1, len(places))
    return sorted(real, key=lambda item: places[item.id])


def _pairs(deck: Deck, number: int, cases: Sequence[str]) -> list[Item]:
    """Pairs of one rater: the system of `gsb` against each other one."""
    rng, ours = numpy_generator(deck.config.seed, "study/pairs", number), deck.config.gsb
    assert ours is not None
    others = [name for name in deck.systems if name != ours]
    left = {  # half of them, and where that is odd, one more for every second
        name: list(rng.permutation(np.arange(len(cases)) % 2 == (number + k) % 2))
        for k, name in enumerate(others)
    }
    items: list[Item] = []
    for case, other in _rounds(rng, cases, others):
        sides = (ours, other) if left[other].pop() else (other, ours)
        clips = tuple(deck.clip("result", case, name) for name in sides)
        items.append(_item(deck, f"pair {len(items)}", "pair", case, clips, sides))
    places = {item.id: float(k) for k, item in enumerate(items)}
    for case, system in deck.twins:
        clips = tuple(deck.clip(what, case, system) for what in ("result", "twin"))
        name = f"twin {case} {system}"
        sides = (system, system)
        items.append(_item(deck, name, "pair", case, clips, sides, "identical"))
        places[name] = rng.uniform(1, len(places))
    return sorted(items, key=lambda item: places[item.id])


def _rounds(
    rng: np.random.Generator, cases: Sequence[str], systems: Sequence[str]
) -> list[tuple[str, str]]:
    """All cases with all systems, no case twice in a round nor, where that can be, in a row."""
    cases = [cases[k] for k in rng.permutation(len(cases))]
    systems = [systems[k] for k in rng.permutation(len(systems))]
    found: list[tuple[str, str]] = []
    for k in range(len(systems)):
        turn = [(case, systems[(k + i) % len(systems)]) for i, case in enumerate(cases)]
        turn = [turn[i] for i in rng.permutation(len(turn))]
        if found and found[-1][0] == turn[0][0]:
            turn = [*turn[1:], turn[0]]
        found += turn
    return found


def _item(
    deck: Deck,
    name: str,
    kind: Kind,
    case: str,
    clips: tuple[str, ...],
    systems: tuple[str, ...],
    check: Check | None = None,
) -> Item:
    shown = deck.cases[case]
    return Item(name, kind, case, shown.reference, shown.driving, clips, systems, check)
