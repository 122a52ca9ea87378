"""The plan of a long clip."""

from dataclasses import dataclass

import pytest

from dreamactor.diffusion.segments import plan
from dreamactor.errors import ConfigError


@dataclass(frozen=True)
class Lengths:
    frames: int = 17
    overlap: int = 4
    stride_t: int = 4


NANO = Lengths()


def planned(frames, lengths=NANO):
    return [(s.start, s.shown, s.new, s.frames) for s in plan(frames, lengths, lengths)]


@pytest.mark.parametrize(
    ("frames", "segments"),
    [
        (1, [(0, 0, 1, 5)]),
        (4, [(0, 0, 4, 5)]),
        (5, [(0, 0, 5, 9)]),
        (16, [(0, 0, 16, 17)]),
        (17, [(0, 0, 16, 17), (12, 4, 1, 9)]),
        (20, [(0, 0, 16, 17), (12, 4, 4, 9)]),
        (28, [(0, 0, 16, 17), (12, 4, 12, 17)]),
        (30, [(0, 0, 16, 17), (12, 4, 12, 17), (24, 4, 2, 9)]),
        (41, [(0, 0, 16, 17), (12, 4, 12, 17), (24, 4, 12, 17), (36, 4, 1, 9)]),
    ],
)
def test_exact_plans(frames, segments):
    assert planned(frames) == segments


def test_exact_plan_without_overlap():
    assert planned(20, Lengths(overlap=0)) == [(0, 0, 16, 17), (16, 0, 4, 5)]


@pytest.mark.parametrize("lengths", [NANO, Lengths(81, 20), Lengths(9, 4), Lengths(5, 0)])
def test_every_frame_is_generated_once_from_frames_that_exist(lengths):
    for frames in range(1, 200):
        done = 0
        segments = plan(frames, lengths, lengths)
        for index, segment in enumerate(segments):
            assert segment.index == index
            assert segment.first_new == done
            assert segment.shown == (lengths.overlap if index else 0) <= done
            assert segment.frames % lengths.stride_t == 1
            assert segment.frames - lengths.stride_t <= segment.shown + segment.new
            assert segment.shown + segment.new < segment.frames <= lengths.frames
            done += segment.new
        assert done == frames


def test_exact_driving_frames_beside_the_canvas():
    first, second, last = plan(30, NANO, NANO)
    assert first.driving(30) == [0, *range(16)]
    assert second.driving(30) == list(range(11, 28))
    assert last.driving(30) == [23, 24, 25, 26, 27, 28, 29, 29, 29]


@pytest.mark.parametrize(
    ("frames", "lengths", "message"),
    [
        (0, NANO, "0 frames to generate: want at least 1"),
        (9, Lengths(16), r"segments of 16 frames of which 4 overlap: want 4 \* k \+ 1"),
        (9, Lengths(17, 3), "multiple of 4"),
        (9, Lengths(17, 16), "below that"),
        (9, Lengths(1, 0), r"want 4 \* k \+ 1"),
    ],
)
def test_refuses_lengths_that_do_not_fit(frames, lengths, message):
    with pytest.raises(ConfigError, match=message):
        plan(frames, lengths, lengths)
