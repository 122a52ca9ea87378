"""The statistics of a study, pure: arrays in, numbers out.

Legend: R raters, C cases, S systems, B resamples. Cells are (R, C): what each rater said of each
case, NaN where they said nothing. Everything is a mean over cells: of scores, of differences of
two systems' scores, of 1 and 0 for a share, of 1, 0 and -1 for a lead.

Two intervals answer two questions. Over cases: how far would the mean move had these raters seen
other cases? Over raters and cases crossed: and had other people rated them? Only the second one
says something about people in general.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dreamactor.bench.agreement import Level, alpha_of, coincidences
from dreamactor.bench.stats import EDGES, NONE, RESAMPLES, Interval

Floats = NDArray[np.float64]
Over = Literal["cases", "both"]


@dataclass(frozen=True)
class Draws:
    """How often every rater and case comes in each resample; shared by all numbers of a report."""

    raters: Floats
    """(B, R), rows sum to R."""
    cases: Floats
    """(B, C), rows sum to C."""


@dataclass(frozen=True)
class Spread:
    """The paper's mean ± std."""

    mean: float
    """Of the raters' own means."""
    std: float
    """Between the raters' own means, with R - 1; NaN for one rater."""
    raters: int


def draw(raters: int, cases: int, seed: int = 0, resamples: int = RESAMPLES) -> Draws:
    """Draw raters and cases with replacement, each by itself."""
    rng = np.random.default_rng(seed)
    return Draws(*(_counts(rng, n, resamples) for n in (raters, cases)))


def mean_interval(cells: Floats, draws: Draws, over: Over) -> Interval:
    """Mean of all cells, and its interval of 95 % by the bootstrap.

    A resample gives the cell of rater r and case c the weight w_r v_c, of counts w and v that
    are drawn independently (over "both"), or the weight v_c (over "cases"). The percentiles are
    those of `edges`, with C - 1 degrees of freedom over cases, and by Satterthwaite's rule for
    the variances of the raters' and the cases' means over both.

    Args:
        cells: (R, C), NaN where nothing was said.
        draws: Of R raters and C cases.
        over: What is drawn anew.

    Returns:
        The interval; `clips` counts the cases with an answer. All NaN without an answer; without
        ends where there is but one case, or one rater (over "both").

    Source:
        Owen and Eckles 2012, Bootstrapping data arrays of arbitrary order: mildly conservative,
        while no exact bootstrap exists (McCullagh 2000).
    """
    known = ~np.isnan(cells)
    if not known.any():
        return NONE
    mean, cases = float(cells[known].mean()), int(known.any(0).sum())
    if cases == 1 or (over == "both" and known.any(1).sum() == 1):
        return Interval(mean, float("nan"), float("nan"), cases)
    x, m = np.where(known, cells, 0.0), known.astype(np.float64)
    weights = draws.raters if over == "both" else np.ones((1, len(cells)))  # (B or 1, R)
    top, bottom = ((weights @ k * draws.cases).sum(1) for k in (x, m))  # (B)
    means = top[bottom > 0] / bottom[bottom > 0]
    low, high = np.quantile(means, edges(cases - 1 if over == "cases" else freedom(cells)))
    return Interval(mean, float(low), float(high), cases)


def freedom(cells: Floats) -> float:
    """Degrees of freedom of the mean's variance, s²_r / R + s²_c / C, of raters' and cases' means.

    Source:
        Satterthwaite 1946: (a + b)² / (a² / (R - 1) + b² / (C - 1)).
    """
    top, bottom = 0.0, 0.0
    for rows in (cells, cells.T):
        means = [float(row[~np.isnan(row)].mean()) for row in rows if (~np.isnan(row)).any()]
        part = float(np.var(means, ddof=1)) / len(means)
        top, bottom = top + part, bottom + part**2 / (len(means) - 1)
    return top**2 / bottom if bottom > 0 else math.inf


def edges(freedom: float) -> tuple[float, float]:
    """Percentiles between which 95 % intervals lie, wider than 2.5 and 97.5 for few draws.

    A bootstrap of n is narrow by sqrt((n - 1) / n), and by the normal distribution where that
    of Student is meant; P = Phi(-sqrt(n / (n - 1)) t) makes up for both, n = freedom + 1.

    Source:
        Hesterberg 2015, What teachers should know about the bootstrap: expanded percentiles.
    """
    z = NormalDist().inv_cdf(EDGES[1])
    if math.isinf(freedom):
        return EDGES
    t = (  # Cornish and Fisher's series; 1 % short at 3, less above
        z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    )
    low = NormalDist().cdf(-math.sqrt((freedom + 1) / freedom) * t)
    return low, 1 - low


def spread(cells: Floats) -> Spread:
    """Mean and standard deviation over raters of each one's mean over their cases."""
    means = [float(row[~np.isnan(row)].mean()) for row in cells if (~np.isnan(row)).any()]
    std = float(np.std(means, ddof=1)) if len(means) > 1 else float("nan")
    return Spread(float(np.mean(means)) if means else float("nan"), std, len(means))


def alpha_interval(ratings: Floats, values: Floats, draws: Draws, level: Level) -> Interval:
    """Krippendorff's alpha over all clips, with cases drawn anew.

    Args:
        ratings: (R, C, S); a unit is the clip of one case and system, and the clips of a case
            are drawn together.
        values: (V) that can be said.
        draws: Of R raters and C cases.
        level: What differences between values mean.

    Returns:
        The interval, without ends for one case; `clips` counts the cases of which two raters
        said something.
    """
    raters, cases, systems = ratings.shape
    units = coincidences(ratings.reshape(raters, -1), values)  # (C * S, V, V)
    own = units.reshape(cases, systems, *units.shape[1:]).sum(1)  # (C, V, V)
    alpha = float(alpha_of(own.sum(0), values, level))
    if np.isnan(alpha):
        return NONE
    sums = np.tensordot(draws.cases, own, 1)  # (B, V, V)
    found = alpha_of(sums, values, level)
    known = int((own.sum((1, 2)) > 0).sum())
    if known == 1:
        return Interval(alpha, float("nan"), float("nan"), known)
    low, high = np.nanquantile(found, edges(known - 1))
    return Interval(alpha, float(low), float(high), known)


@dataclass(frozen=True)
class Again:
    """How alike a rater's two answers to the same clip are, over all that were repeated."""

    count: int
    same: float
    """Share of equal scores; NaN without any."""
    near: float
    """Share of scores at most 1 apart."""
    apart: float
    """Mean difference, points."""


def again(first: Floats, second: Floats) -> Again:
    """Compare first and second scores, (N) each."""
    if not len(first):
        return Again(0, *[float("nan")] * 3)
    apart = np.abs(np.asarray(first) - np.asarray(second))
    return Again(
        len(apart), float((apart == 0).mean()), float((apart <= 1).mean()), float(apart.mean())
    )


def _counts(rng: np.random.Generator, n: int, resamples: int) -> Floats:
    return rng.multinomial(n, np.full(n, 1 / n), resamples).astype(np.float64)
