"""The loss of joints: labels stand where joints are."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from dreamactor.conditioning.skeleton import JOINTS
from dreamactor.training.poses import pose_loss

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


def test_a_clip_by_itself_has_all_columns() -> None:
    """exact: 16 tokens wide, x = .4 is token 6."""
    scores = torch.zeros(1, 5, 6, 16, 4, len(JOINTS))
    scores[0, 1, 5, 6, 0, NECK] = 50.0
    joints = _joints(1, 0.4, 0.99)[:, :17]
    assert pose_loss(scores.flatten(-2), joints).item() < 1e-6
    assert_close(pose_loss(0 * scores.flatten(-2), joints), torch.tensor(math.log(6 * 16)))


def test_knowing_nothing_costs_the_logarithm_of_the_tokens() -> None:
    scores = torch.zeros(1, 5, 6, 16, 4 * len(JOINTS))
    assert_close(pose_loss(scores, _joints(3, 0.1, 0.1)), torch.tensor(math.log(6 * 8)))


def test_no_joint_no_loss() -> None:
    nothing = torch.full((2, 34, len(JOINTS), 2), math.nan)
    assert pose_loss(torch.randn(2, 5, 4, 8, 4 * len(JOINTS)), nothing).item() == 0
