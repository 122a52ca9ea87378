"""The reader of the network's middle leaves its predictions alone, and teaches what lies below."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.transformers import transformer_wan
from torch.testing import assert_close

from dreamactor.backbones import sight
from dreamactor.backbones.catalogue import Mode
from dreamactor.backbones.incontext import join, set_mode
from dreamactor.backbones.nano import NanoConfig
from dreamactor.conditioning.skeleton import JOINTS
from dreamactor.training.reader import GUIDED, SPOTS, Reader

WIDTH = 32  # two heads


def _given() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(1, 12, 5, 4, 8), torch.tensor([500.0]), torch.zeros(1, 2, 384)


def test_without_a_motion_half_every_token_is_of_the_clip() -> None:
    """same: what is asked on the left is asked there too, with the columns behind it besides."""
    torch.manual_seed(0)
    transformer = NanoConfig(2, 2, 16, 32, 4).build()
    both, alone = Reader(transformer, WIDTH), Reader(transformer, WIDTH, halves=1)
    alone.load_state_dict(both.state_dict())
    given = _given()
    left, whole = both(*given), alone(*given)
    assert whole.reference.query.shape == (1, GUIDED, 4, 2 * 4, 16)
    narrow = whole.reference.query.unflatten(3, (2, 4))[:, :, :, :, :2].flatten(3, 4)
    assert_close(narrow, left.reference.query)
    assert_close(whole.reference.key, left.reference.key)
    assert_close(whole.joints, left.joints)
    assert_close(whole.spots, left.spots)


def test_queries_and_keys_are_those_of_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """same: diffusers' own attention is given the same, in the blocks that are guided."""
    torch.manual_seed(0)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    attend: Callable[..., Any] = transformer_wan.dispatch_attention_fn

    def watch(query: torch.Tensor, key: torch.Tensor, *args: object, **more: object) -> Any:
        seen.append((query, key))
        return attend(query, key, *args, **more)

    monkeypatch.setattr(transformer_wan, "dispatch_attention_fn", watch)
    read = Reader(NanoConfig(12, 2, 16, 32, 4).build(), WIDTH)(*_given())
    for block, look in ((4, read.driver), (7, read.reference)):
        query, key = (side.transpose(1, 2) for side in seen[2 * block])  # self, then text
        assert_close(look.key, key)
        left = query.unflatten(2, (5, 2, 4))[:, :, 1:, :, :2]
        assert_close(look.query, left.flatten(3, 4))


@pytest.mark.parametrize("mode", ["one-way", "one-way-aligned"])
def test_target_and_context_are_read_as_one_canvas(
    mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """same: keys are those that attention makes of context and target, each at its place."""
    torch.manual_seed(0)
    seen: list[torch.Tensor] = []
    keys: Callable[..., Any] = sight._keys

    def watch(*given: Any) -> Any:
        found = keys(*given)
        seen.append(found[0])
        return found

    monkeypatch.setattr(sight, "_keys", watch)
    transformer = NanoConfig(12, 2, 16, 32, 4).build()
    torch.nn.init.normal_(transformer.proj_out.weight)
    set_mode(transformer, mode)
    x, sigma, text = _given()
    expected = transformer(x, sigma, text)[0]
    seen.clear()
    read = Reader(transformer, WIDTH)(x, sigma, text)
    assert_close(read.latents, expected)
    for block, look in ((4, read.driver), (7, read.reference)):
        context, target = seen[2 * block : 2 * block + 2]
        assert_close(look.key, join(target, context, (5, 2, 4)).transpose(1, 2))
        assert look.query.shape == (1, GUIDED, 4, 2 * 2, 16)
    assert read.joints.shape == (1, 5, 2, 4, 4 * len(JOINTS))
    moved = torch.autograd.grad(read.driver.query.sum(), transformer.blocks[0].ffn.net[2].weight)
    assert moved[0].abs().sum() > 0


@pytest.mark.filterwarnings("default")  # Dynamo looks at .grad of what it traces
@pytest.mark.parametrize("compiled", [False, True])
def test_reader_leaves_the_prediction_as_it_is(compiled: bool) -> None:
    """unchanged by: the reader; and its gradients reach the blocks below, compiled or not."""
    torch.manual_seed(0)
    transformer = NanoConfig(6, 2, 16, 32, 4).build()
    torch.nn.init.normal_(transformer.proj_out.weight)
    x, sigma, text = _given()
    expected = transformer(
        hidden_states=x, timestep=sigma, encoder_hidden_states=text, return_dict=False
    )[0]
    reader = Reader(transformer, WIDTH)
    if compiled:
        for block in transformer.blocks:
            block.compile(backend="eager", dynamic=False)
    read = reader(x, sigma, text)
    assert_close(read.latents, expected)
    assert read.joints.shape == (1, 5, 2, 4, 4 * len(JOINTS))
    assert read.spots.shape == (1, 5, 2, 4, SPOTS)
    assert read.driver.query.shape == (1, GUIDED, 4, 2 * 2, 16)
    assert read.driver.key.shape == (1, GUIDED, 5 * 2 * 4, 16)
    reached = (
        (read.spots, 4),
        (read.driver.key, 2),
        (read.reference.query, 4),
        (read.joints, 4),
    )
    for loss, below in reached:
        grads = torch.autograd.grad(
            loss.square().mean(),
            [block.ffn.net[2].weight for block in transformer.blocks],
            retain_graph=True,
            allow_unused=True,
        )
        assert [grad is not None for grad in grads] == [k < below for k in range(6)]
