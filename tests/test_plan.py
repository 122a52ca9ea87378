"""What a training is predicted to take: arithmetic on what was measured, and nothing but that."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from diffusers import HunyuanVideo15Transformer3DModel, WanTransformer3DModel
from peft import LoraConfig
from test_backbones import SHAPES, WAN

from dreamactor.backbones.catalogue import CATALOGUE, GIB
from dreamactor.backbones.hunyuan import PackedAttention
from dreamactor.backbones.lora import MODULES
from dreamactor.backbones.nano import NanoConfig
from dreamactor.cli import main
from dreamactor.errors import ConfigError
from dreamactor.training.cache import CacheHeader, open_cache, shard_path, write_examples
from dreamactor.training.plan import (
    ALIGNED,
    FORWARD,
    MEASURED,
    SAVED,
    adapter_size,
    forward_rates,
    memory,
    plan,
    step_seconds,
    tokens_of,
)
from dreamactor.training.stage import AdaptConfig, share_of

pytestmark = pytest.mark.usefixtures("one_thread")
WAN14, HUNYUAN = "wan2.1-i2v-14b-480p", "hunyuanvideo-1.5-480p-i2v"


def _config(name: str = WAN14, **more: object) -> AdaptConfig:
    known = {"attention": "full", **more}
    return AdaptConfig(cache=Path("nowhere"), base=Path("nowhere"), backbone=name, **known)


def _network(name: str) -> torch.nn.Module:
    if name == "nano":
        return NanoConfig().build()
    if CATALOGUE[name].family == "hunyuan":
        return HunyuanVideo15Transformer3DModel()
    return WanTransformer3DModel(**WAN, **SHAPES[name])


@pytest.mark.parametrize("name", list(CATALOGUE))
@pytest.mark.parametrize("targets", ["ff", "attention"])
def test_adapters_are_as_large_as_peft_makes_them(name: str, targets: str) -> None:
    """same: at the published shapes, on the meta device."""
    with torch.device("meta"):
        network = _network(name).requires_grad_(False)
        network.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=MODULES[targets]), "a")
    found = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert adapter_size(CATALOGUE[name].shape, 16, targets) == found


@pytest.mark.parametrize("name", [WAN14, HUNYUAN])
def test_forward_passes_that_were_measured_come_back(name: str) -> None:
    """exact: the curve goes through both."""
    rates = forward_rates(CATALOGUE[name])
    assert rates is not None
    for tokens, seconds in zip(MEASURED, FORWARD[CATALOGUE[name].family][1:], strict=True):
        assert rates[0] * tokens + rates[1] * tokens**2 == pytest.approx(seconds)
    assert min(rates) > 0
    assert forward_rates(CATALOGUE["nano"]) is None


def test_other_sizes_of_a_family_are_scaled() -> None:
    """exact: linear layers by parameters, attention by layers and width."""
    large, small = (CATALOGUE[n] for n in (WAN14, "wan2.1-fun-1.3b-inp"))
    a, b = (forward_rates(entry) or (0, 0) for entry in (large, small))
    assert b[0] / a[0] == pytest.approx(1_564_428_608 / 16_394_878_784)
    assert b[1] / a[1] == pytest.approx(30 * 1536 / (40 * 5120))


def test_a_step_is_worked_out_by_hand() -> None:
    """exact: the formula of the module's page, at 480 x 832 x 49."""
    entry, config, tokens = CATALOGUE[WAN14], _config(), tokens_of(49, 480, 832)
    assert tokens == 13 * 30 * 104
    a, b = forward_rates(entry) or (0, 0)
    adapter = 40 * 256 * 2 * (5120 + 13824)
    linear = (3 + 4 * adapter / 16_394_878_784) * a * tokens
    one = linear + 4.5 * b * tokens**2
    assert step_seconds(entry, config, tokens, 1) == pytest.approx(one)
    assert step_seconds(entry, config, tokens, 2) == pytest.approx(2 * one)
    kept = step_seconds(entry, _config(checkpoint=False), tokens, 1)
    assert kept == pytest.approx(one - a * tokens - b * tokens**2)


def test_memory_is_worked_out_by_hand() -> None:
    """exact: and 80 GB hold the paper's adapter on 14B at 49 frames, one example at once."""
    entry, config, tokens = CATALOGUE[WAN14], _config(), tokens_of(49, 480, 832)
    found = memory(entry, config, tokens, 1)
    assert found.weights == pytest.approx(2 * 16_394_878_784 / GIB)
    assert found.adapter == pytest.approx(20 * 40 * 256 * 2 * (5120 + 13824) / GIB)
    assert found.kept == pytest.approx(40 * tokens * 5120 * 2 / GIB)
    room = 7.1 * tokens / tokens_of(81, 480, 832)
    assert found.block == pytest.approx(tokens * 5120 * SAVED["wan"] / GIB + room)
    assert found.total < 0.94 * 79.2
    assert memory(entry, config, tokens, 2).total > 79.2
    four = memory(entry, config, tokens, 1, shards=4)
    assert four.adapter == pytest.approx(found.adapter / 4)
    assert four.weights == pytest.approx(found.weights * (1 / 4 + 2 / 40))
    assert (four.kept, four.block) == (found.kept, found.block)
    assert memory(entry, _config(checkpoint=False), tokens, 1).kept > 10 * found.kept


def _saved(block: torch.nn.Module, *given: torch.Tensor | tuple[torch.Tensor, ...]) -> float:
    """Bytes that a block saves for its backward pass, a token and channel."""
    weights = {p.untyped_storage().data_ptr() for p in block.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x
        return x

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x),
        torch.autocast("cpu", torch.bfloat16),
    ):
        out = block(*given)
    assert out is not None
    return sum(x.untyped_storage().nbytes() for x in kept.values()) / given[0].numel()


def test_saved_bytes_are_counted() -> None:
    """same: as `SAVED` says, to 3 %, on blocks of the published proportions."""
    heads, head, tokens = 4, 128, 1024
    width = heads * head
    x = torch.randn(1, tokens, width, dtype=torch.bfloat16, requires_grad=True)
    text = torch.randn(1, 16, width, dtype=torch.bfloat16)
    wan = WanTransformer3DModel(**{**WAN, "num_attention_heads": heads, "num_layers": 1,
        "ffn_dim": 27 * width // 10})  # fmt: skip
    hunyuan = HunyuanVideo15Transformer3DModel(num_attention_heads=heads, num_layers=1)
    for network in (wan, hunyuan):
        for parameter in network.requires_grad_(False).parameters():
            parameter.data = parameter.data.bfloat16()
        rank = width // 20
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=MODULES["ff"])
        network.add_adapter(config, "a")
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    rope = wan.rope(torch.zeros(1, 36, 1, 64, 64))
    steps = torch.randn(1, 6, width, dtype=torch.bfloat16)
    found = _saved(wan.blocks[0], x, text, steps, rope)
    assert found == pytest.approx(SAVED["wan"], rel=0.03)
    attention = PackedAttention()
    attention.padded = False
    block = hunyuan.transformer_blocks[0]
    block.attn.set_processor(attention)
    rope = hunyuan.rope(torch.zeros(1, 65, 1, 32, 32))
    step = torch.randn(1, width, dtype=torch.bfloat16)
    found = _saved(block, x, text, step, torch.ones(1, 16, dtype=torch.bool), rope)
    assert found == pytest.approx(SAVED["hunyuan"], rel=0.03)


def test_examples_are_shared_out() -> None:
    """exact: all of nano's at once, one of a large backbone's; what does not divide is refused."""
    assert share_of(_config("nano", batch=8), 2) == (4, 4)
    assert share_of(_config(batch=8), 2) == (4, 1)
    assert share_of(_config(batch=8, at_once=8), 4) == (2, 2)
    with pytest.raises(ConfigError, match="batch=2 over 4 processes: want a multiple, such as 4"):
        share_of(_config(), 4)
    with pytest.raises(ConfigError, match="at_once=3"):
        share_of(_config(batch=8, at_once=3), 1)


# ---- the command ------------------------------------------------------------------------------


def _cache(folder: Path) -> Path:
    open_cache(folder, CacheHeader("pose", WAN14, "0" * 64, 16.0, {"lead": 1.0}))
    motion = torch.randn(3, 16, 3, 6, 4)
    tensors = {"target": -motion, "motion": motion, "text": torch.randn(3, 2, 8)}
    write_examples(shard_path(folder, 0), list("abc"), tensors)
    return folder


@pytest.mark.parametrize("verb", ["pose", "rgb"])
def test_it_plans_without_a_gpu_or_weights(
    verb: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """exact: nothing is asked of CUDA, loaded or written."""

    def refuse(*_: object) -> None:
        raise AssertionError("the GPU was asked")

    for name in ("is_available", "device_count", "init"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    cache = _cache(tmp_path / "cache")
    words = [f"cache={cache}", "base=gone", f"backbone={WAN14}", "start=none"]
    run = tmp_path / "run"
    command = ["dreamactor", "train", verb, "--out", str(run), "--dry-run", *words]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code in (0, None)
    said = capsys.readouterr().out
    assert "rank 256 on ff: 388.0 million numbers" in said
    assert "36 tokens (3 in " in said  # 3 x 3 x 4
    assert "50,000 steps of 2" in said
    assert "Predicted, not measured" in said
    assert not run.exists()


def test_without_a_cache_it_takes_the_backbones_own_size() -> None:
    lines = list(plan(_config(batch=8, steps=12_500)))
    assert any("40,560 tokens (832x480, 49 frames; no cache at nowhere yet)" in x for x in lines)
    rows = [line.split() for line in lines if line[:4].strip().isdigit()]
    assert [row[0] for row in rows] == ["1", "2", "4", "8"]
    hours = [float(row[5].replace(",", "")) for row in rows]
    assert hours[0] == pytest.approx(8 * hours[3], rel=0.01)
    paper = next(line for line in lines if line.startswith("The paper's"))
    assert paper.split()[-5].replace(",", "") == str(round(hours[0]))  # as many examples in all


def test_a_step_of_one_way_aligned_is_a_share_of_a_full_one() -> None:
    """exact: and it is what settings that say nothing have, of backbones that can."""
    entry, tokens = CATALOGUE[WAN14], tokens_of(49, 480, 832)
    said = step_seconds(entry, _config(attention="one-way-aligned"), tokens, 1)
    unsaid = step_seconds(entry, _config(attention=None), tokens, 1)
    full = step_seconds(entry, _config(), tokens, 1)
    assert said == unsaid == pytest.approx(ALIGNED * (full or 0))
    assert step_seconds(entry, _config(attention="one-way"), tokens, 1) is None
    hunyuan = CATALOGUE[HUNYUAN]
    assert step_seconds(hunyuan, _config(HUNYUAN, attention=None), tokens, 1) == step_seconds(
        hunyuan, _config(HUNYUAN), tokens, 1
    )
    assert "attention  one-way-aligned" in list(plan(_config(attention=None, batch=8)))
    rows = [x.split() for x in plan(_config(attention=None, batch=8)) if x[:4].strip().isdigit()]
    assert {row[3] for row in rows} == {"-"}  # one-way modes cannot be sharded


def test_unknown_is_said(tmp_path: Path) -> None:
    assert any("unknown" in line for line in plan(_config("nano")))
    with pytest.raises(ConfigError, match="only adapters are predicted"):
        list(plan(_config("nano", targets="full")))
    with pytest.raises(ConfigError, match=f"latents of {WAN14}, want nano's"):
        list(plan(AdaptConfig(cache=_cache(tmp_path / "c"), base=Path("x"))))
