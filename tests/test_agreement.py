"""Agreement of verdicts: known tables and the library's own numbers."""

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from dreamactor.bench.agreement import cohen_kappa, count_found, roc
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
