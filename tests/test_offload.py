"""Offload by groups, with streams: what of a transformer comes to the device when."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers.hooks import group_offloading
from safetensors.torch import save_file
from test_oneway import wan_of
from test_wan import canvas_of, draws

from dreamactor.backbones.folder import place
from dreamactor.backbones.stacking import stack

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def moves(monkeypatch):
    """(leader of a group, its tensors) in the order in which groups come, by diffusers' own hooks.

    They take the CPU for a device that has streams; nothing moves.
    """
    events: list[tuple[torch.nn.Module, set[int]]] = []
    stream = SimpleNamespace(synchronize=lambda: None)
    device = SimpleNamespace(stream=lambda _: nullcontext(), current_stream=lambda: stream)
    apply = group_offloading._apply_group_offloading

    def with_stream(module, config):  # "cpu:0": else all would seem to be away when it is needed
        apply(module, replace(config, stream=stream, offload_device=torch.device("cpu", 0)))

    def comes(group):
        inside = [tensor for module in group.modules for tensor in module.parameters()]
        events.append((group.onload_leader, {id(p) for p in (*inside, *group.parameters)}))

    monkeypatch.setattr(group_offloading, "_apply_group_offloading", with_stream)
    monkeypatch.setattr(group_offloading, "TorchDeviceBackend", lambda _: device)
    monkeypatch.setattr(group_offloading.ModuleGroup, "onload_", comes)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    return events


@pytest.mark.parametrize("mode", ["full", "one-way-aligned"])
def test_a_block_comes_while_the_one_before_computes_from_the_first_pass_on(mode, moves, tmp_path):
    """exact: in every pass, the context's too, and with layers that came after the hooks."""
    layers, shape = tmp_path / "layers.safetensors", {"A": (2, 24), "B": (24, 2)}
    query = "attn1.to_q.lora_"
    save_file({f"blocks.0.{query}{k}.weight": torch.ones(s) for k, s in shape.items()}, layers)
    wan = wan_of(mode, "2.1")
    place(wan.pipe, "cpu", "group")
    stack(wan, str(layers))
    transformer = wan.pipe.transformer
    weights = [{id(p) for p in block.parameters()} for block in transformer.blocks]
    rest = {id(p) for p in transformer.parameters()}.difference(*weights)
    names = {transformer: "rest"}
    for n, block in enumerate(transformer.blocks):
        names |= {block: f"{n} comes", block.attn1: f"{n} computes"}
        block.attn1.register_forward_pre_hook(lambda part, _: moves.append((part, set())))
    with torch.no_grad():
        cond = wan.encode(canvas_of(), wan.encode_text(["a bird"]))
        for sigma in (0.7, 0.3):
            wan.velocity(draws(1, 16, 3, 6, 8), torch.tensor(sigma), cond)
    found = [(names[leader], tensors) for leader, tensors in moves if leader in names]
    placed = [("rest", rest)] * 2  # by each of the two, and never after
    one = [("rest", set()), ("0 comes", weights[0]), ("1 comes", weights[1])]
    one += [("0 computes", set()), ("1 computes", set())]
    assert found == placed + one * (2 if mode == "full" else 3)
