"""Noise schedule, noising and loss against closed forms."""

import pytest
import torch
from torch.testing import assert_close

from dreamactor.diffusion.flow import (
    MOTION_WEIGHT,
    add_noise,
    flow_loss,
    sample_sigma,
    schedule,
    shifted,
)

SHAPE = (2, 3, 2, 4, 8)


def normal(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_exact_schedule():
    assert_close(schedule(4, 1.0), torch.tensor([1, 0.75, 0.5, 0.25, 0]))
    assert_close(schedule(4, 3.0), torch.tensor([1, 0.9, 0.75, 0.5, 0]))
    assert schedule(50, 3.0)[[0, -1]].tolist() == [1, 0]


def test_shift_keeps_the_ends_and_multiplies_the_odds():
    u = torch.tensor([0.0, 0.2, 0.9, 1.0])
    sigma = shifted(u, 3.0)
    assert sigma[[0, -1]].tolist() == [0, 1]
    assert_close(sigma[1:3] / (1 - sigma[1:3]), 3 * u[1:3] / (1 - u[1:3]))


def test_sigma_of_a_draw_of_zero_is_the_shifted_middle():
    assert_close(sample_sigma(torch.zeros(2), 3.0), torch.full((2,), 0.75))
    sigma = sample_sigma(normal(0, (1000,)), 3.0)
    assert 0 < sigma.min() < sigma.max() < 1


@pytest.mark.parametrize("motion", ["clean", "noised"])
def test_noise_at_its_ends_and_in_the_middle(motion):
    latents, noise = normal(0), normal(1)
    for sigma in (0.0, 0.25, 1.0):
        x = add_noise(latents, noise, torch.full((2,), sigma), motion)
        mixed = (1 - sigma) * latents + sigma * noise
        assert_close(x[..., :4], mixed[..., :4])
        assert_close(x[..., 4:], (latents if motion == "clean" else mixed)[..., 4:])


def test_loss_of_the_true_velocity_is_zero():
    latents, noise, weight = normal(0), normal(1), torch.rand(2, 1, 2, 4, 4)
    for motion in ("clean", "noised"):
        assert_close(flow_loss(noise - latents, latents, noise, weight, motion), torch.zeros(2))


def test_exact_loss_of_a_constant_error():
    latents, noise, weight = normal(0), normal(1), torch.rand(2, 1, 2, 4, 4)
    velocity = noise - latents
    velocity[..., :4] += torch.tensor([2.0, 3.0]).view(2, 1, 1, 1, 1)
    velocity[..., 4:] -= 1
    left = torch.tensor([4.0, 9.0])  # whatever the weight: its scale is divided out
    assert_close(flow_loss(velocity, latents, noise, weight, "clean"), left)
    assert_close(flow_loss(velocity, latents, noise, weight, "noised"), left + MOTION_WEIGHT)


def test_exact_loss_where_one_cell_counts():
    latents, noise = normal(0), normal(1)
    weight = torch.zeros(2, 1, 2, 4, 4)
    weight[:, :, 1, 2, 3] = 5
    error = normal(2)
    expected = error[:, :, 1, 2, 3].square().mean(dim=1)
    assert_close(flow_loss(noise - latents + error, latents, noise, weight, "clean"), expected)


def test_loss_of_one_clip_is_unchanged_by_the_batch():
    latents, noise, velocity, weight = normal(0), normal(1), normal(2), torch.rand(2, 1, 2, 4, 4)
    together = flow_loss(velocity, latents, noise, weight, "noised")
    alone = [
        flow_loss(velocity[k : k + 1], latents[k : k + 1], noise[k : k + 1], weight[k : k + 1],
                  "noised")
        for k in range(2)
    ]  # fmt: skip
    assert_close(together, torch.cat(alone))
