"""The loss of joints: labels stand where joints are; the reader leaves the network alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from dreamactor.backbones.nano import NanoConfig
from dreamactor.conditioning.skeleton import JOINTS
from dreamactor.training.poses import PoseReader, pose_loss

NECK = JOINTS.index("neck")


def _joints(frame: int, x: float, y: float) -> torch.Tensor:
    """(1, 34, 17, 2) with the neck on one frame."""
    joints = torch.full((1, 34, len(JOINTS), 2), math.nan)
    joints[0, frame, NECK] = torch.tensor([x, y])
    return joints


@pytest.mark.parametrize(
    ("frame", "latent_frame", "within", "column"),
    [(1, 1, 0, 3), (16, 4, 3, 3), (17, 0, slice(None), 8 + 3), (17 + 6, 2, 1, 8 + 3)],
    ids=["target 1", "target 16", "driver 0", "driver 6"],
)
def test_label_stands_at_the_joint(
    frame: int, latent_frame: int, within: int | slice, column: int
) -> None:
    """exact: half width 8, x = .4 is token 3, y = .99 the last row; driver on the right."""
    scores = torch.zeros(1, 5, 6, 16, 4, len(JOINTS))
    scores[0, latent_frame, 5, column, within, NECK] = 50.0
    assert pose_loss(scores.flatten(-2), _joints(frame, 0.4, 0.99)).item() < 1e-6


def test_knowing_nothing_costs_the_logarithm_of_the_tokens() -> None:
    scores = torch.zeros(1, 5, 6, 16, 4 * len(JOINTS))
    assert_close(pose_loss(scores, _joints(3, 0.1, 0.1)), torch.tensor(math.log(6 * 8)))


def test_no_joint_no_loss() -> None:
    nothing = torch.full((2, 34, len(JOINTS), 2), math.nan)
    assert pose_loss(torch.randn(2, 5, 4, 8, 4 * len(JOINTS)), nothing).item() == 0


@pytest.mark.filterwarnings("default")  # Dynamo looks at .grad of what it traces
@pytest.mark.parametrize("compiled", [False, True])
def test_reader_leaves_the_prediction_as_it_is(compiled: bool) -> None:
    """unchanged by: the reader; and its gradient reaches the blocks below it, compiled or not."""
    torch.manual_seed(0)
    transformer = NanoConfig(3, 1, 16, 32, 4).build()
    torch.nn.init.normal_(transformer.proj_out.weight)
    x, text = torch.randn(1, 12, 5, 4, 8), torch.zeros(1, 2, 384)
    sigma = torch.tensor([500.0])
    expected = transformer(
        hidden_states=x, timestep=sigma, encoder_hidden_states=text, return_dict=False
    )[0]
    reader = PoseReader(transformer, 16)
    if compiled:
        for block in transformer.blocks:
            block.compile(backend="eager", dynamic=False)
    predicted, scores = reader(x, sigma, text)
    assert_close(predicted, expected)
    assert scores.shape == (1, 5, 2, 4, 4 * len(JOINTS))
    scores.square().mean().backward()
    moved = [block.ffn.net[2].weight.grad is not None for block in transformer.blocks]
    assert moved == [True, True, False]
