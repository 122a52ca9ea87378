"""Noise schedule, noising and loss against closed forms."""

import pytest
import torch
from torch.testing import assert_close

from dreamactor.backbones.nano import velocity_of
from dreamactor.diffusion.flow import (
    LEAST_SIGMA,
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


@pytest.mark.parametrize("motion", ["clean", "noised", "none"])
def test_noise_at_its_ends_and_in_the_middle(motion):
    latents, noise = normal(0), normal(1)
    for sigma in (0.0, 0.25, 1.0):
        x = add_noise(latents, noise, torch.full((2,), sigma), motion)
        mixed = (1 - sigma) * latents + sigma * noise
        assert_close(x[..., :4], mixed[..., :4])
        assert_close(x[..., 4:], (latents if motion == "clean" else mixed)[..., 4:])


ONES = torch.ones(2)


def test_loss_of_the_true_latents_is_zero():
    latents, weight = normal(0), torch.rand(2, 1, 2, 4, 4)
    for motion in ("clean", "noised"):
        assert_close(flow_loss(latents, latents, ONES, weight, motion), torch.zeros(2))


def test_loss_is_the_squared_error_of_the_velocity():
    """exact: from LEAST_SIGMA up; below, the error of latents weighs as it does there."""
    latents, noise, predicted, weight = normal(0), normal(1), normal(2), torch.rand(2, 1, 2, 4, 4)
    sigma = torch.tensor([0.9, LEAST_SIGMA])
    x = add_noise(latents, noise, sigma, "noised")
    error = velocity_of(predicted, x, sigma) - (noise - latents)
    squares = error[..., :4].square() * weight
    expected = squares.mean((1, 2, 3, 4)) / weight.mean((1, 2, 3, 4))
    assert_close(flow_loss(predicted, latents, sigma, weight, "clean"), expected)
    lower = torch.tensor([0.9, 0.01])
    assert_close(flow_loss(predicted, latents, lower, weight, "clean"), expected)


def test_exact_loss_of_a_constant_error():
    latents, weight = normal(0), torch.rand(2, 1, 2, 4, 4)
    predicted = latents.clone()
    predicted[..., :4] += torch.tensor([2.0, 3.0]).view(2, 1, 1, 1, 1)
    predicted[..., 4:] -= 1
    left = torch.tensor([4.0, 9.0])  # whatever the weight: its scale is divided out
    assert_close(flow_loss(predicted, latents, ONES, weight, "clean"), left)
    assert_close(flow_loss(predicted, latents, ONES, weight, "noised"), left + MOTION_WEIGHT)


def test_without_a_motion_half_every_cell_counts():
    """exact: errors of 2 on the left and 1 on the right, the right weighing three times as much."""
    latents, weight = normal(0), torch.ones(2, 1, 2, 4, 8)
    predicted = latents + 1
    predicted[..., :4] += 1
    weight[..., 4:] = 3
    loss = flow_loss(predicted, latents, ONES, weight, "none")
    assert_close(loss, torch.full((2,), (4 + 3) / 4))


def test_exact_loss_where_one_cell_counts():
    latents = normal(0)
    weight = torch.zeros(2, 1, 2, 4, 4)
    weight[:, :, 1, 2, 3] = 5
    error = normal(2)
    expected = error[:, :, 1, 2, 3].square().mean(dim=1)
    assert_close(flow_loss(latents + error, latents, ONES, weight, "clean"), expected)


def test_loss_of_one_clip_is_unchanged_by_the_batch():
    latents, predicted, weight = normal(0), normal(2), torch.rand(2, 1, 2, 4, 4)
    sigma = torch.tensor([0.9, 0.4])
    together = flow_loss(predicted, latents, sigma, weight, "noised")
    alone = [
        flow_loss(predicted[k : k + 1], latents[k : k + 1], sigma[k : k + 1], weight[k : k + 1],
                  "noised")
        for k in range(2)
    ]  # fmt: skip
    assert_close(together, torch.cat(alone))
