"""Samplers and guidance against closed forms."""

import pytest
import torch
from torch.testing import assert_close

from dreamactor.diffusion.flow import schedule
from dreamactor.diffusion.sampler import guided, sample_euler

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
