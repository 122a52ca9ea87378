"""The loss of decoded pictures: what it sees, and where it looks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dreamactor.backbones.nano_vae import NanoVAE, NanoVAEConfig
from dreamactor.bench.perceptual import Perceptual
from dreamactor.errors import WeightsError
from dreamactor.runs import generator
from dreamactor.training.pictures import WINDOW, PictureLoss, window, window_corners


def _loss() -> PictureLoss:
    torch.manual_seed(0)
    vae = NanoVAE(NanoVAEConfig(4, (8, 8, 8), (1, 1, 1), (8, 8, 8, 8), (1, 1, 1, 1)))
    torch.nn.init.normal_(vae.decoder.out.weight, std=0.1)
    try:
        return PictureLoss(vae.requires_grad_(False), Perceptual.load("vgg"))
    except WeightsError:
        pytest.skip("stlpips_pytorch is not installed")


def test_equal_latents_lose_nothing_and_others_learn() -> None:
    """exact: 0 for the target itself; a gradient everywhere but on the frame that is given."""
    loss = _loss()
    target = torch.randn(2, 4, 2, 4, 4)
    subject = torch.ones(2, 1, 2, 4, 4)
    assert loss(target, target, subject, generator(0, "x", 0)).item() < 1e-3
    predicted = (target + 1).requires_grad_()
    value = loss(predicted, target, subject, generator(0, "x", 0))
    assert value.item() > 0.05
    value.backward()
    assert predicted.grad is not None
    assert not predicted.grad[:, :, 0].any()
    assert predicted.grad[:, :, 1].abs().min() > 0


def test_windows_lie_about_the_subject_and_inside() -> None:
    """exact: a subject of one cell is in its window, at the middle where there is room."""
    subject = torch.zeros(3, 1, 2, 32, 32)
    for clip, (row, column) in enumerate([(0, 31), (20, 16), (31, 5)]):
        subject[clip, 0, 1, row, column] = 1
    corners = window_corners(subject, generator(0, "x", 0))
    assert corners.tolist() == [[0, 16], [12, 8], [16, 0]]
    cut = window(subject, corners)
    assert cut.shape == (3, 1, 2, WINDOW, WINDOW)
    assert_close(cut.sum(dim=(1, 2, 3, 4)), torch.ones(3))


def test_a_small_half_is_its_own_window() -> None:
    small: Tensor = torch.rand(2, 1, 2, 8, 8)
    assert torch.equal(window(small, window_corners(small, generator(0, "x", 0))), small)
