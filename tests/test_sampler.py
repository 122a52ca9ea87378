"""Samplers and guidance against closed forms."""

import pytest
import torch
from torch.testing import assert_close

from dreamactor.diffusion.flow import schedule
from dreamactor.diffusion.sampler import guided, sample_euler
from dreamactor.diffusion.span import in_span, parse_span
from dreamactor.errors import ConfigError

DRAWS = torch.Generator().manual_seed(0)
NOISE, LATENTS = torch.randn(2, 4, 3, 2, 2, generator=DRAWS), torch.randn(2, 4, 3, 2, 2)


@pytest.mark.parametrize("steps", [1, 3, 8])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_is_exact_on_a_straight_flow(steps, shift):
    x = sample_euler(lambda x, sigma: NOISE - LATENTS, NOISE, schedule(steps, shift))
    assert_close(x, LATENTS)


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_euler_reaches_the_latents_that_the_velocity_points_at(steps):
    """v = (x - latents) / sigma is the velocity of a model that knows the answer."""
    x = sample_euler(lambda x, sigma: (x - LATENTS) / sigma, NOISE, schedule(steps, 3.0))
    assert_close(x, LATENTS)


def test_euler_on_a_linear_flow_has_its_closed_form():
    """dx/dsigma = x gives x (1 + sigma' - sigma) at every step."""
    sigmas = schedule(4, 1.0)
    x = sample_euler(lambda x, sigma: x, NOISE, sigmas)
    assert_close(x, NOISE * 0.75**4)


def test_euler_keeps_float32_between_half_precision_steps():
    small = torch.full((1,), 2.0**-12)  # lost when added to 1 in bfloat16
    seen = []

    def velocity(x, sigma):
        seen.append(x.dtype)
        return -small.to(x.dtype) * 64

    x = sample_euler(velocity, torch.ones(1, dtype=torch.bfloat16), torch.linspace(1, 0, 65))
    assert set(seen) == {torch.bfloat16}
    assert x.dtype == torch.bfloat16
    assert_close(x.float(), torch.tensor([1 + 2.0**-6]))


def test_guidance_by_its_formula():
    def cond(x, sigma):
        return x + sigma

    def uncond(x, sigma):
        return 2 * x

    sigma = torch.tensor(0.5)
    for guidance in (0.0, 0.5, 1.0, 3.0):
        expected = 2 * NOISE + guidance * (NOISE + 0.5 - 2 * NOISE)
        assert_close(guided(cond, uncond, guidance)(NOISE, sigma), expected)


def test_guidance_of_one_asks_only_once():
    def never(x, sigma):
        raise AssertionError

    assert guided(torch.add, never, 1.0) is torch.add


def test_guidance_within_a_share_of_the_steps():
    """exact: both are asked at the levels named, and the prompt alone at the others."""
    asked = []

    def said(x, sigma):
        asked.append("said")
        return x

    def unsaid(x, sigma):
        asked.append("unsaid")
        return 2 * x

    sigmas = schedule(4, 2.0)
    span = in_span(4, parse_span("0.25:0.75"))
    assert list(span) == [1, 2]
    sample_euler(guided(said, unsaid, 3.0, sigmas[list(span)]), NOISE, sigmas)
    assert asked == ["said", "unsaid", "said", "unsaid", "said", "said"]
    asked.clear()
    whole, none = guided(said, unsaid, 3.0), guided(said, unsaid, 3.0, sigmas[:0])
    assert_close(whole(NOISE, sigmas[0]), -NOISE)
    assert_close(none(NOISE, sigmas[0]), NOISE)
    assert asked == ["unsaid", "said", "said"]


def test_shares_of_steps():
    assert [list(in_span(5, span)) for span in ((0.0, 1.0), (0.0, 0.5), (0.5, 1.0))] == [
        [0, 1, 2, 3, 4], [0, 1, 2], [3, 4],
    ]  # fmt: skip
    assert list(in_span(40, parse_span("0:0.1"))) == [0, 1, 2, 3]
    for word in ("", "1", "0.5:0.5", "0.5:0.2", "-0.1:1", "0:1.1", "a:b", "0:nan", "0:1:2"):
        with pytest.raises(ConfigError, match="want FROM:TO, shares of the steps from 0 to 1"):
            parse_span(word)
