"""Frames between frames."""

from fractions import Fraction

import cv2
import numpy as np
import pytest

from dreamactor.errors import MediaError
from dreamactor.interpolate import Between, at_rate, frames_needed


def disc(x, y=48, size=96):
    """A textured disc at (x, y) on a textured ground."""
    draws = np.random.default_rng(0)
    ground = cv2.resize(draws.integers(60, 110, (12, 12, 3), dtype=np.uint8), (size, size))
    skin = cv2.resize(draws.integers(120, 255, (12, 12, 3), dtype=np.uint8), (size, size))
    move = np.float32([[1, 0, x - size / 2], [0, 1, y - size / 2]])
    skin = cv2.warpAffine(skin, move, (size, size))
    mask = np.zeros((size, size, 1), np.float32)
    cv2.circle(mask, (round(x * 16), round(y * 16)), 20 * 16, 1, -1, cv2.LINE_AA, 4)
    return (ground + mask * (skin.astype(np.float32) - ground)).astype(np.uint8)


def numbered(count):
    return [np.full((16, 16, 3), k, np.uint8) for k in range(count)]


def shown(count, source, fps, want, mode="nearest"):
    frames = at_rate(numbered(count), Fraction(source), Fraction(fps), want, mode)
    return [int(frame[0, 0, 0]) for frame in frames]


def test_exact_nearest_frames():
    assert shown(5, 12, 12, 5) == [0, 1, 2, 3, 4]
    assert shown(5, 12, 6, 3) == [0, 2, 4]
    assert shown(4, 12, 24, 7) == [0, 0, 1, 1, 2, 2, 3]  # ties go to the earlier
    assert shown(7, 12, 25, 13) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6]
    assert shown(2, 12, 12, 5) == [0, 1, 1, 1, 1]  # the last one stays


@pytest.mark.parametrize("mode", ["flow", "nearest"])
def test_frames_on_time_are_untouched(mode):
    clip = [disc(x) for x in (30, 34, 38)]
    between = list(at_rate(iter(clip), Fraction(12), Fraction(24), 5, mode))
    assert len(between) == 5
    for k in range(3):
        assert between[2 * k] is clip[k]


@pytest.mark.parametrize("source", [12, 16, Fraction(24000, 1001)])
@pytest.mark.parametrize("fps", [Fraction(30000, 1001), 25, 6, Fraction(7, 2), 240])
def test_the_last_frame_needed_is_nearest_to_the_last_shown(source, fps):
    for count in (1, 2, 7, 100, 7500):
        frames = frames_needed(count, Fraction(fps), Fraction(source))
        last = (count - 1) / Fraction(fps)
        assert frames >= 1
        assert abs((frames - 1) / Fraction(source) - last) <= Fraction(1, 2) / Fraction(source)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_flow_puts_a_moving_disc_where_it_is(share):
    before, after, truth = disc(36), disc(48), disc(36 + 12 * share)
    nearest = before if share <= 0.5 else after
    blend = before + share * (after.astype(float) - before)

    def error(frame):
        return np.square(frame.astype(float) - truth).mean()

    found = Between(before, after).at(share)
    assert found.shape == before.shape
    assert found.dtype == np.uint8
    assert error(found) < 0.25 * error(blend) < 0.25 * error(nearest)  # 6 dB better


def test_still_frames_stay_bit_for_bit():
    assert np.array_equal(Between(disc(40), disc(40)).at(0.3), disc(40))


def test_a_cut_shows_no_double_picture():
    before, after = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)
    assert np.array_equal(Between(before, after).at(0.4), before)
    assert np.array_equal(Between(before, after).at(0.6), after)


def test_tiny_frames_are_blended():
    before, after = np.zeros((2, 40, 3), np.uint8), np.full((2, 40, 3), 20, np.uint8)
    assert (Between(before, after).at(0.5) == 10).all()


def test_unchanged_by_the_number_of_threads():
    before = cv2.getNumThreads()
    results = []
    for threads in (1, 2, 3):
        cv2.setNumThreads(threads)
        results.append(Between(disc(36), disc(46, 50)).at(0.4))
    cv2.setNumThreads(before)
    assert all(np.array_equal(results[0], other) for other in results)


def test_reads_no_more_than_one_frame_ahead():
    read = []

    def source():
        for k, frame in enumerate(numbered(10)):
            read.append(k)
            yield frame

    frames = at_rate(source(), Fraction(12), Fraction(12), 10)
    for k in range(10):
        next(frames)
        assert len(read) <= k + 2


def test_refuses_no_frames():
    with pytest.raises(MediaError, match="no frames"):
        next(at_rate([], Fraction(12), Fraction(12), 1))
