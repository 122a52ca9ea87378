"""Raters that do not exist, with known opinions: to hold the statistics against the truth.

A score is round(m + a + b + c + g + f), cut to 1..5: m the system's mean, a the rater's leniency, b
how easy the case is, c how well the system did on it, g what this rater thinks of this clip, f what
changes when they are asked again; all but m are normal. Nothing here says anything about real
people or systems.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from dreamactor.bench.study.answers import Answer, Said
from dreamactor.bench.study.plan import CHOICES, DIMENSIONS, SCALE, Item, Plan, Rater
from dreamactor.bench.study.scores import Draws, Floats, draw, mean_interval
from dreamactor.runs import numpy_generator

SAME = 0.5
"""Difference below which two clips are about the same."""
SPOILT = 1.2
"""What a spoilt clip is worth."""


@dataclass(frozen=True)
class People:
    """Standard deviations, points."""

    lenient: float = 0.35
    """Between raters."""
    hard: float = 0.5
    """Between cases."""
    luck: float = 0.5
    """Between the clips of a system, beyond what is hard."""
    taste: float = 0.6
    """Of one rater and clip."""
    mood: float = 0.5
    """Between two answers of a rater to one clip."""

    @property
    def within(self) -> float:
        """Of one rater's answers, over cases."""
        return math.hypot(self.hard, self.luck, self.taste, self.mood)


@dataclass(frozen=True)
class Coverage:
    """Share of the simulated studies whose 95 % interval holds the truth."""

    both: float
    """Interval over raters and cases; truth of all people and cases."""
    cases: float
    """Interval over cases; truth of these raters, all cases."""
    cases_of_all: float
    """Interval over cases; truth of all people and cases, which it does not claim."""
    lead: float
    """Interval of G - B over raters and cases."""


def expected(mean: float | Floats, spread: float) -> Floats:
    """Mean score where what is felt has a normal distribution: 1 + P(> 1.5) + ... + P(> 4.5)."""
    below = np.vectorize(NormalDist(0, spread).cdf)
    edges = [score + 0.5 for score in SCALE[:-1]]
    means = np.asarray(mean, np.float64)
    return 1 + np.sum([1 - below(edge - means) for edge in edges], axis=0)


def coverage(
    people: People, raters: int, cases: int, runs: int, seed: int = 0, resamples: int = 1000
) -> Coverage:
    """Simulate a rating and a pair of two systems many times, and count the intervals that hold."""
    draws = draw(raters, cases, seed, resamples)
    means = (3.9, 3.5)
    truth = float(expected(means[0], math.hypot(people.lenient, people.within)))
    lead = _true_lead(people, means)
    hits = np.zeros(4)
    for run in range(runs):
        rng = numpy_generator(seed, "study/coverage", run)
        lenient = rng.normal(0, people.lenient, (raters, 1))
        hard = rng.normal(0, people.hard, (1, cases))
        own = math.hypot(people.taste, people.mood)
        felt = [
            m + lenient + hard + rng.normal(0, people.luck, (1, cases))
            + rng.normal(0, own, (raters, cases))
            for m in means
        ]  # fmt: skip
        these = float(expected(means[0] + lenient, people.within).mean())
        apart = felt[0] - felt[1]
        sides = np.where(np.abs(apart) < SAME, 0.0, np.sign(apart))
        hits += _held(_scores(felt[0]), sides, draws, truth, these, lead)
    return Coverage(*(hits / runs))


def answer_study(
    plan: Plan,
    means: Sequence[float],
    people: People,
    careless: Collection[int] = (),
    seed: int = 0,
) -> Said:
    """Everybody's answers to all their items; the careless ones press anything."""
    rng, worth = numpy_generator(seed, "study/worth", 0), {}
    for case in plan.scenarios:
        hard = rng.normal(0, people.hard)
        for system, mean in zip(plan.systems, means, strict=True):
            worth[case, system] = mean + hard + rng.normal(0, people.luck)
    answers = {}
    for rater in plan.raters:
        rng = numpy_generator(seed, "study/person", rater.number)
        if rater.number in careless:
            answers[rater.number] = {item.id: _anything(rng, item) for item in rater.items}
        else:
            answers[rater.number] = _answers(rng, rater, people, worth)
    return Said({rater.number: "simulated" for rater in plan.raters}, answers)


def _held(
    ratings: Floats, sides: Floats, draws: Draws, truth: float, these: float, lead: float
) -> Floats:
    """(4) whether the intervals of one study hold what they should, in `Coverage`'s order."""
    both, cases = (mean_interval(ratings, draws, over) for over in ("both", "cases"))
    pairs = mean_interval(sides, draws, "both")
    wanted = ((both, truth), (cases, these), (cases, truth), (pairs, lead))
    return np.array([x.low <= value <= x.high for x, value in wanted], np.float64)


def _true_lead(people: People, means: Sequence[float]) -> float:
    """P(better) - P(worse); leniency and hardness cancel."""
    own = math.hypot(people.luck, people.taste, people.mood)
    apart = NormalDist(means[0] - means[1], math.sqrt(2) * own)
    return (1 - apart.cdf(SAME)) - apart.cdf(-SAME)


def _answers(
    rng: np.random.Generator,
    rater: Rater,
    people: People,
    worth: dict[tuple[str, str], float],
) -> dict[str, Answer]:
    """Of one careful rater."""
    lenient, taste = rng.normal(0, people.lenient), {}
    found = {}
    for item in rater.items:
        felt = []
        for system in item.systems:
            key = (item.case, system)
            if key not in taste:
                taste[key] = rng.normal(0, people.taste, len(DIMENSIONS))
            felt.append(worth[key] + lenient + taste[key])
        if item.check in ("noise", "frozen"):
            felt = [np.full(len(DIMENSIONS), SPOILT + lenient / 2)]
        mood = rng.normal(0, people.mood, (len(felt), len(DIMENSIONS)))
        seen = np.array(felt) + mood  # (1 or 2, 3)
        if item.kind == "rate":
            found[item.id] = _answer(dict(zip(DIMENSIONS, map(int, _scores(seen[0])), strict=True)))
            continue
        apart = 0.0 if item.check == "identical" else float((seen[0] - seen[1]).mean())
        choice = "same" if abs(apart) < SAME else "a" if apart > 0 else "b"
        found[item.id] = _answer({"choice": choice})
    return found


def _anything(rng: np.random.Generator, item: Item) -> Answer:
    if item.kind == "pair":
        return _answer({"choice": str(rng.choice(CHOICES))})
    return _answer({name: int(rng.choice(SCALE)) for name in DIMENSIONS})


def _answer(said: dict[str, object]) -> Answer:
    return Answer(said, 10.0, 2, "simulated")


def _scores(felt: Floats) -> Floats:
    return np.clip(np.round(felt), SCALE[0], SCALE[-1])
