"""Adapters: they start as nothing, come back from their file, and stay with their backbone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch.testing import assert_close

from dreamactor.backbones.lora import (
    AdapterInfo,
    Targets,
    adapter_state,
    attach,
    load_adapter,
    merge,
    read_info,
    save_adapter,
)
from dreamactor.backbones.nano import NanoConfig
from dreamactor.backbones.weights import save_weights
from dreamactor.errors import ConfigError, WeightsError

INFO = AdapterInfo("pose", "nano", "f" * 64, rank=4, lead=4)
SHAPE = NanoConfig(2, 1, 16, 32, 4)


def _network() -> WanTransformer3DModel:
    torch.manual_seed(0)
    transformer = SHAPE.build()
    torch.nn.init.normal_(transformer.proj_out.weight)
    return transformer


def _predict(transformer: WanTransformer3DModel) -> torch.Tensor:
    draws = torch.Generator().manual_seed(1)
    out: torch.Tensor = transformer(
        hidden_states=torch.randn(1, 12, 2, 4, 8, generator=draws),
        timestep=torch.tensor([500.0]),
        encoder_hidden_states=torch.randn(1, 3, 384, generator=draws),
        return_dict=False,
    )[0]
    return out.detach()


def _trained(info: AdapterInfo = INFO) -> WanTransformer3DModel:
    transformer = _network()
    for parameter in attach(transformer, info):
        torch.nn.init.normal_(parameter, std=0.1)
    return transformer


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        ("ff", {"ffn.net.0.proj", "ffn.net.2"}),
        ("attention", {"attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"}),
    ],
)
def test_a_fresh_adapter_changes_nothing(targets: Targets, layers: set[str]) -> None:
    """exact: it stands on the layers it should, and only it learns."""
    transformer = _network()
    expected = _predict(transformer)
    trained = attach(transformer, replace(INFO, targets=targets))
    assert_close(_predict(transformer), expected)
    names = {name.partition(".lora_")[0] for name in adapter_state(transformer)}
    assert names == {f"blocks.{k}.{layer}" for k in range(2) for layer in layers}
    assert len(trained) == 2 * len(names)


def test_a_file_brings_it_back_and_merging_keeps_it(tmp_path: Path) -> None:
    """same: from a file, from the file by diffusers itself, and merged into the weights."""
    path = tmp_path / "adapter.safetensors"
    first = _trained()
    expected = _predict(first)
    assert not torch.allclose(expected, _predict(_network()))
    save_adapter(path, adapter_state(first), INFO)
    assert read_info(path) == INFO

    again = _network()
    assert load_adapter(again, path, "nano", "f" * 64) == INFO
    assert_close(_predict(again), expected, atol=2e-3, rtol=2e-3)  # halves
    foreign = _network()
    foreign.load_lora_adapter(str(path), prefix=None)
    assert_close(_predict(foreign), _predict(again))
    merge(again)
    assert_close(_predict(again), _predict(foreign), atol=1e-5, rtol=1e-4)
    assert again.state_dict().keys() == _network().state_dict().keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "wan"}, "an adapter of wan .* here is nano"),
        ({"weights": "0" * 64}, "want the backbone it was trained on"),
        ({"canvas": 99}, "canvas version 99"),
    ],
)
def test_another_backbone_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, adapter_state(_trained()), replace(INFO, **change))  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match=message):
        load_adapter(_network(), path, "nano", "f" * 64)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    with pytest.raises(WeightsError, match="missing"):
        read_info(path)
    save_weights(path, {"x": torch.zeros(1)}, {"model": "nano"})
    with pytest.raises(WeightsError, match="weights of 'nano', want 'adapter'"):
        read_info(path)
    state = adapter_state(_trained())
    save_adapter(path, state, replace(INFO, rank=3))
    with pytest.raises(WeightsError, match="its layers do not fit nano"):
        load_adapter(_network(), path, "nano", "f" * 64)
    name = next(iter(state))
    save_adapter(path, {**state, name: state[name] * torch.nan}, INFO)
    with pytest.raises(WeightsError, match=f"{name} has numbers that are none"):
        load_adapter(_network(), path, "nano", "f" * 64)
    state.pop(name)
    save_adapter(path, state, INFO)
    with pytest.raises(WeightsError, match="its layers are not those of nano"):
        load_adapter(_network(), path, "nano", "f" * 64)


@pytest.mark.parametrize("change", [{"rank": 0}, {"variant": "depth"}, {"targets": "all"}])
def test_settings_that_cannot_work_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="want"):
        replace(INFO, **change)  # type: ignore[arg-type]
