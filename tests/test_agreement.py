"""Agreement of verdicts: known tables and the library's own numbers."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn import metrics as sk

from dreamactor.bench.agreement import (
    alpha_of,
    cohen_kappa,
    coincidences,
    count_found,
    krippendorff_alpha,
    roc,
    spearman,
)
from dreamactor.errors import ShapeError


def test_same_roc_as_scikit_learn():
    rng = np.random.default_rng(0)
    for _ in range(20):
        bad = rng.random(60) < 0.4
        suspicion = np.round(rng.normal(size=60) + bad, 1)  # with ties
        curve = roc(suspicion, bad)
        alarms, found, bars = sk.roc_curve(bad, suspicion, drop_intermediate=False)
        np.testing.assert_allclose(curve.alarms, alarms)
        np.testing.assert_allclose(curve.found, found)
        np.testing.assert_allclose(curve.bars, bars)
        assert curve.area == pytest.approx(sk.roc_auc_score(bad, suspicion))


def test_same_kappa_as_scikit_learn():
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 50)) < 0.6
    assert cohen_kappa(a, b) == pytest.approx(sk.cohen_kappa_score(a, b))
    assert cohen_kappa(a, a) == 1
    assert math.isnan(cohen_kappa([True, True], [True, True]))
    assert math.isnan(cohen_kappa([], []))


def test_exact_counts():
    found = count_found([True, True, False, False, True], [True, False, True, False, True])
    assert (found.hits, found.alarms, found.misses, found.rest) == (2, 1, 1, 1)
    assert (found.precision, found.recall, found.false_alarms) == (2 / 3, 2 / 3, 1 / 2)
    assert math.isnan(count_found([False], [False]).recall)


def test_refuses_one_sided_truth_and_other_lengths():
    with pytest.raises(ShapeError, match="want some of both"):
        roc([1, 2], [True, True])
    with pytest.raises(ShapeError, match="the same items"):
        cohen_kappa([True], [True, False])


def table(*rows):
    """Ratings (R, U) from lines of digits, - for none."""
    return np.array([[np.nan if c == "-" else float(c) for c in row.split()] for row in rows])


# Krippendorff 2011, parts A to C, and the three coders that Wikipedia works through
TWO = table("0 1 0 0 0 0 0 0 1 0", "1 1 1 0 0 1 0 0 0 0")
NAMES = table("1 1 2 2 4 3 3 3 5 4 4 1", "2 1 2 2 2 3 3 3 5 4 4 4")
FOUR = table(
    "1 2 3 3 2 1 4 1 2 - - -",
    "1 2 3 3 2 2 4 1 2 5 - 3",
    "- 3 3 3 2 3 4 2 2 5 1 -",
    "1 2 3 3 2 4 4 1 2 5 1 -",
)
THREE = table(
    "- - - - - 3 4 1 2 1 1 3 3 - 3",
    "1 - 2 1 3 3 4 3 - - - - - - -",
    "- - 2 1 3 4 4 - 2 1 1 3 3 - 4",
)


@pytest.mark.parametrize(
    ("ratings", "level", "alpha"),
    [
        (TWO, "nominal", 0.095),
        (NAMES, "nominal", 0.692),
        (FOUR, "nominal", 0.743),
        (FOUR, "ordinal", 0.815),
        (FOUR, "interval", 0.849),
        (THREE, "nominal", 0.691),
        (THREE, "interval", 0.811),
    ],
)
def test_exact_alpha_of_published_examples(ratings, level, alpha):
    assert krippendorff_alpha(ratings, level) == pytest.approx(alpha, abs=5e-4)


def test_same_alpha_as_by_its_definition():
    """Pair by pair: slow, and without a matrix of coincidences."""
    rng = np.random.default_rng(2)
    ratings = rng.integers(1, 6, (4, 30)).astype(float)
    ratings[rng.random(ratings.shape) < 0.3] = np.nan
    units = [u[~np.isnan(u)] for u in ratings.T]
    units = [u for u in units if len(u) > 1]
    answers = np.concatenate(units)

    def apart(c, k):
        low, high = min(c, k), max(c, k)
        between = ((answers >= low) & (answers <= high)).sum()
        return (between - ((answers == low).sum() + (answers == high).sum()) / 2) ** 2

    observed = sum(
        apart(u[i], u[j]) / (len(u) - 1)
        for u in units
        for i in range(len(u))
        for j in range(len(u))
        if i != j and u[i] != u[j]
    )
    n = len(answers)
    expected = sum(apart(c, k) for c in answers for k in answers if c != k) / (n - 1)
    assert krippendorff_alpha(ratings, "ordinal") == pytest.approx(1 - observed / expected)


def test_exact_alpha_at_its_ends():
    same = np.tile([1.0, 3, 5, 2], (3, 1))
    for level in ("nominal", "ordinal", "interval"):
        assert krippendorff_alpha(same, level) == 1
        assert math.isnan(krippendorff_alpha(np.full((3, 4), 2.0), level))
        assert math.isnan(krippendorff_alpha(np.full((3, 4), np.nan), level))
        assert math.isnan(krippendorff_alpha(np.array([[1.0, np.nan], [np.nan, 2]]), level))
    values = np.arange(1.0, 6)
    units = coincidences(FOUR, values)
    assert units.sum((1, 2)).tolist() == [3, 4, 4, 4, 4, 4, 4, 4, 4, 3, 2, 0]
    both = alpha_of(np.stack([units.sum(0), 2 * units.sum(0)]), values, "ordinal")
    assert both[0] == pytest.approx(0.815, abs=5e-4)
    with pytest.raises(ShapeError, match="besides the values"):
        coincidences(FOUR, np.arange(1.0, 4))


def test_same_rank_correlation_as_scipy():
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(0, 4, (2, 9))
        if len(set(x)) > 1 and len(set(y)) > 1:
            assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)
