"""The reader of the network's middle leaves its predictions alone, and teaches what lies below."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from dreamactor.backbones.nano import NanoConfig
from dreamactor.conditioning.skeleton import JOINTS
from dreamactor.training.reader import CELLS, FEATURES, Reader


def test_without_a_motion_half_every_token_is_of_the_clip() -> None:
    """same: what seeks on the left is read off the same tokens, with the columns behind it too."""
    torch.manual_seed(0)
    transformer = NanoConfig(2, 1, 16, 32, 4).build()
    both, alone = Reader(transformer, 16), Reader(transformer, 16, halves=1)
    alone.load_state_dict(both.state_dict())
    given = torch.randn(1, 12, 5, 4, 8), torch.tensor([500.0]), torch.zeros(1, 2, 384)
    left, whole = both(*given), alone(*given)
    assert whole.seek.shape == (1, 4, 2, 4, 4 * CELLS * FEATURES)
    assert_close(whole.seek[:, :, :, :2], left.seek)
    assert_close(whole.offer[:, :, :2], left.offer)
    assert_close(whole.joints, left.joints)


@pytest.mark.filterwarnings("default")  # Dynamo looks at .grad of what it traces
@pytest.mark.parametrize("compiled", [False, True])
def test_reader_leaves_the_prediction_as_it_is(compiled: bool) -> None:
    """unchanged by: the reader; and its gradients reach the blocks below, compiled or not."""
    torch.manual_seed(0)
    transformer = NanoConfig(6, 1, 16, 32, 4).build()
    torch.nn.init.normal_(transformer.proj_out.weight)
    x, text = torch.randn(1, 12, 5, 4, 8), torch.zeros(1, 2, 384)
    sigma = torch.tensor([500.0])
    expected = transformer(
        hidden_states=x, timestep=sigma, encoder_hidden_states=text, return_dict=False
    )[0]
    reader = Reader(transformer, 16)
    if compiled:
        for block in transformer.blocks:
            block.compile(backend="eager", dynamic=False)
    read = reader(x, sigma, text)
    assert_close(read.latents, expected)
    assert read.joints.shape == (1, 5, 2, 4, 4 * len(JOINTS))
    assert read.seek.shape == (1, 4, 2, 2, 4 * CELLS * FEATURES)
    assert read.offer.shape == (1, 2, 2, CELLS * FEATURES)
    for loss, reached in ((read.seek, 3), (read.offer, 3), (read.joints, 4)):
        grads = torch.autograd.grad(
            loss.square().mean(),
            [block.ffn.net[2].weight for block in transformer.blocks],
            retain_graph=True,
            allow_unused=True,
        )
        assert [grad is not None for grad in grads] == [k < reached for k in range(6)]
