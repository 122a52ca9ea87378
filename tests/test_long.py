"""Drift over a long clip: closed forms, and the whole command on a few frames."""

import numpy as np
import pytest

from dreamactor.bench.long import FIRST, LongConfig, drift_of
from dreamactor.errors import ConfigError


def rows(values):
    return [[t, *np.atleast_1d(v)] for t, v in enumerate(values)]


def test_exact_no_drift_without_change():
    found = drift_of(rows([[1.0, -2.0, 3.0]] * 100))
    assert (found.within, found.whole) == (0, 0)


def test_exact_a_constant_error_is_no_drift_and_a_growing_one_is():
    growing = drift_of(rows(0.5 + 0.01 * np.arange(100)))
    assert growing.within == pytest.approx(0.01 * FIRST / 2)
    assert growing.whole == pytest.approx(0.01 * (100 - FIRST))


def test_exact_what_comes_and_goes_in_the_middle_is_none():
    values = np.zeros(100)
    values[40:60] = 5
    assert drift_of(rows(values)).whole == 0


def test_exact_frames_may_be_sparse():
    sparse = [[t, 0.01 * t] for t in (*range(0, 16, 4), 24, 36, *range(84, 100, 4))]
    assert drift_of(sparse).whole == pytest.approx(0.84)


def test_refuses_guards_that_are_none():
    with pytest.raises(ConfigError, match="want some of none, statistics, anchor"):
        LongConfig(guards="none,colour")
