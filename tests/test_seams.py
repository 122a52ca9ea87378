"""Seams: every frame once, whatever is held back, and drift that the guards take away."""

import pytest
import torch
from copycat import GRID, NATIVE

from dreamactor.diffusion.seams import MOST, Colours, Seams, fade
from dreamactor.diffusion.segments import AUTO, as_anchor, guard_of, plan


def played(guard, frames, bias=0.0):
    """Frame numbers, and values, that come out where segment k is `bias` brighter than k - 1.

    A segment that is shown what came before goes on from its level; an anchor starts at 0 again.
    """
    seams, out = Seams(guard, NATIVE.overlap), []
    segments = [as_anchor(s, guard) for s in plan(frames, NATIVE, GRID)]
    for segment, following in zip(segments, [*segments[1:], None], strict=True):
        shown = seams.shown(segment)
        assert (shown is None) == (segment.shown == 0)
        level = 0.0 if shown is None else float(shown[0, 0, -1].mean())
        numbers = torch.arange(segment.frames) - 1 + segment.start
        clip = torch.full((1, 3, segment.frames, 2, 2), level + bias)
        clip[:, 1] = numbers[:, None, None] / 1000
        out.append(seams.join(clip, segment, following))
    whole = torch.cat(out, dim=2)
    return whole[0, 1, :, 0, 0] * 1000, whole[0, 0, :, 0, 0]


@pytest.mark.parametrize("guard", ["none", "anchor"])
@pytest.mark.parametrize("frames", [1, 16, 17, 40, 52, 53, 64, 65, 130])
def test_exact_every_frame_once_and_in_order(guard, frames):
    numbers, _ = played(guard, frames)
    assert torch.allclose(numbers, torch.arange(frames).float(), atol=1e-3)


def test_exact_what_each_guard_makes_of_a_growing_bias():
    _, drifting = played("none", 150, 0.05)
    _, matched = played("statistics", 150, 0.05)
    _, anchored = played("anchor", 150, 0.05)
    assert drifting[-1] == pytest.approx(0.05 * 13)  # 13 segments, each goes on from the last
    assert matched.max() == pytest.approx(0.05, abs=1e-5)
    assert anchored.max() == pytest.approx(0.05 * 4)
    assert anchored[-1] < 0.21


def test_exact_auto_guards_from_the_eleventh_segment_on():
    assert [guard_of("auto", count) for count in (1, 10, 11, 300)] == ["none", "none", AUTO, AUTO]
    assert [guard_of(word, 300) for word in ("none", "statistics")] == ["none", "statistics"]


def test_exact_a_fade_is_linear():
    mixed = fade(torch.zeros(1, 3, 4, 1, 1), torch.ones(1, 3, 4, 1, 1))
    assert torch.allclose(mixed[0, 0, :, 0, 0], torch.tensor([0.2, 0.4, 0.6, 0.8]))


def test_exact_colours_are_brought_back_within_limits():
    torch.manual_seed(0)
    first, colours = torch.randn(1, 3, 4, 8, 8) * 0.1, Colours()
    assert torch.equal(colours.matched(first), first)
    for clip in (first + 0.1, first * 1.2, first * 1.1 - 0.05):
        assert torch.allclose(colours.matched(clip), first, atol=1e-5)
    far = colours.matched(first + 2 * MOST)
    assert torch.allclose(far, first + MOST, atol=1e-5)
