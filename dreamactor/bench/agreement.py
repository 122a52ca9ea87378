"""How well verdicts agree: a number with the truth, and people with each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dreamactor.errors import ShapeError

Floats = NDArray[np.float64]
Level = Literal["nominal", "ordinal", "interval"]
"""Of measurement: values are names, an order, or numbers whose differences count."""


@dataclass(frozen=True)
class Roc:
    """Finding what is bad by a suspicion: everything from a bar upwards is reported."""

    bars: Floats
    """Falling, the first above all suspicions; equal suspicions share one bar."""
    found: Floats
    """Share of the bad that is reported at each bar: recall."""
    alarms: Floats
    """Share of the good that is reported."""

    @property
    def area(self) -> float:
        """Chance that a bad one is more suspicious than a good one, ties counting half."""
        steps, heights = np.diff(self.alarms), (self.found[1:] + self.found[:-1]) / 2
        return float((steps * heights).sum())


def roc(suspicion: Sequence[float], bad: Sequence[bool]) -> Roc:
    """Receiver operating characteristic.

    Args:
        suspicion: Larger is worse; one for each clip.
        bad: What the truth says.

    Raises:
        ShapeError: Not as many, or not both good and bad ones.
    """
    x, y = np.asarray(suspicion, np.float64), np.asarray(bad, bool)
    if x.shape != y.shape or not 0 < y.sum() < len(y):
        raise ShapeError(f"{x.shape} suspicions, {y.sum()} bad of {y.shape}: want some of both")
    order = np.argsort(-x, kind="stable")
    x, y = x[order], y[order]
    ends = np.append(np.flatnonzero(np.diff(x)), len(x) - 1)
    found, alarms = (np.append(0.0, np.cumsum(k)[ends] / k.sum()) for k in (y, ~y))
    return Roc(np.append(np.inf, x[ends]), found, alarms)


@dataclass(frozen=True)
class Found:
    """Counts of reports against the truth; what is looked for is bad clips."""

    hits: int
    """Bad and reported."""
    misses: int
    """Bad and not reported."""
    alarms: int
    """Good and reported."""
    rest: int
    """Good and not reported."""

    @property
    def precision(self) -> float:
        """Share of the reports that are bad; NaN without reports."""
        return _share(self.hits, self.hits + self.alarms)

    @property
    def recall(self) -> float:
        """Share of the bad that is reported; NaN if nothing is bad."""
        return _share(self.hits, self.hits + self.misses)

    @property
    def false_alarms(self) -> float:
        """Share of the good that is reported; NaN if nothing is good."""
        return _share(self.alarms, self.alarms + self.rest)


def count_found(reported: Sequence[bool], bad: Sequence[bool]) -> Found:
    """Counts of reports against the truth."""
    pairs = list(zip(map(bool, reported), map(bool, bad), strict=True))
    cells = [(True, True), (False, True), (True, False), (False, False)]
    return Found(*(pairs.count(cell) for cell in cells))


def cohen_kappa(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Agreement of two people beyond chance: 1 = always, 0 = as by chance, below = less.

    (p_o - p_e) / (1 - p_e), p_o the share of equal answers, p_e that of two who answer yes as
    often as they do, but independently.

    Returns:
        NaN without answers, and where both gave one and the same answer throughout (p_e = 1).

    Source:
        Cohen 1960.
    """
    x, y = np.asarray(a, bool), np.asarray(b, bool)
    if x.shape != y.shape:
        raise ShapeError(f"{len(x)} and {len(y)} answers: want the same items")
    if not len(x):
        return float("nan")
    observed = float((x == y).mean())
    chance = float(x.mean() * y.mean() + (1 - x.mean()) * (1 - y.mean()))
    return (observed - chance) / (1 - chance) if chance < 1 else float("nan")


def coincidences(ratings: Floats, values: Floats) -> Floats:
    """How often two raters gave one unit the values c and k, for every unit.

    Args:
        ratings: (R, U) raters by units, NaN where a rater did not say anything.
        values: (V) all values that can be, rising.

    Returns:
        (U, V, V), symmetric: of a unit's m answers every ordered pair of two raters counts
        1 / (m - 1), so that the unit counts m in all. Units with fewer than two are 0.

    Raises:
        ShapeError: A rating is none of the values.
    """
    x = np.asarray(ratings, np.float64)
    counts = (x[:, :, None] == values).sum(0).astype(np.float64)  # (U, V)
    if counts.sum() != (~np.isnan(x)).sum():
        raise ShapeError(f"ratings besides the values {values.tolist()}")
    pairs = counts[:, :, None] * counts[:, None, :]  # (U, V, V)
    pairs -= counts[:, :, None] * np.eye(len(values))  # nobody is paired with themselves
    answers = counts.sum(1)[:, None, None]
    return np.divide(pairs, answers - 1, out=np.zeros_like(pairs), where=answers > 1)


def alpha_of(coincidence: Floats, values: Floats, level: Level) -> Floats:
    """Krippendorff's alpha of sums of `coincidences`.

    Args:
        coincidence: (..., V, V).
        values: (V) as of `coincidences`; only their order counts unless they are of intervals.
        level: What differences between values mean.

    Returns:
        (...): 1 = always the same, 0 = as by chance; NaN where all answers are one value.
    """
    o = np.asarray(coincidence, np.float64)
    n = o.sum(-1)  # (..., V) how often each value was given, among those that can be paired
    apart: Floats
    if level == "nominal":
        apart = (values[:, None] != values[None, :]).astype(np.float64)  # (V, V)
    elif level == "interval":
        apart = np.square(values[:, None] - values[None, :])
    else:  # the answers from the one value to the other, of both ends the half
        middle = n.cumsum(-1) - n / 2  # (..., V)
        apart = np.square(middle[..., :, None] - middle[..., None, :])
    total = n.sum(-1)
    observed = (o * apart).sum((-1, -2))
    expected = (n[..., :, None] * n[..., None, :] * apart).sum((-1, -2))
    known = expected > 0
    share = np.divide((total - 1) * observed, expected, out=np.zeros_like(total), where=known)
    return np.where(known, 1 - share, np.nan)


def krippendorff_alpha(ratings: Floats, level: Level) -> float:
    """Agreement of any number of raters beyond chance, some answers missing or not.

    alpha = 1 - D_o / D_e: D_o is the mean squared difference of two raters' answers to the same
    unit, D_e that of any two answers. The difference of c and k is 1 (nominal), c - k
    (interval), or the number of answers that lie between them (ordinal).

    Args:
        ratings: (R, U) raters by units, NaN where a rater did not say anything.
        level: What differences between values mean.

    Returns:
        1 = always the same, 0 = as by chance, below = less; NaN where that is not defined: no
        unit has two answers, or all answers are one value.

    Source:
        Krippendorff 2011, Computing Krippendorff's Alpha-Reliability; equal to its worked
        examples (tests/test_agreement.py).
    """
    x = np.asarray(ratings, np.float64)
    values = np.unique(x[~np.isnan(x)])
    return float(alpha_of(coincidences(x, values).sum(0), values, level))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def spearman(a: Sequence[float] | Floats, b: Sequence[float] | Floats) -> float:
    """Rank correlation: 1 = one order, -1 = the reverse; equal values share their mean rank.

    Args:
        a: Values; pairs in which either is NaN are left out.
        b: As many.

    Returns:
        NaN for less than 3 pairs, or where either is the same throughout.

    Source:
        Spearman 1904: Pearson's correlation of the ranks.
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.shape != y.shape:
        raise ShapeError(f"{x.shape} and {y.shape} values: want as many of both")
    both = ~(np.isnan(x) | np.isnan(y))
    if both.sum() < 3:
        return float("nan")
    ranks = [ranked(v[both]) for v in (x, y)]
    u, v = (r - r.mean() for r in ranks)
    lengths = float(np.sqrt((u * u).sum() * (v * v).sum()))
    return float((u * v).sum() / lengths) if lengths > 0 else float("nan")


def ranked(values: Floats) -> Floats:
    """Rank of each value from 0 up, equal ones with the mean of their ranks."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return np.asarray((last - (count + 1) / 2)[place], np.float64)
