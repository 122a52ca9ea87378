"""Low-rank layers on Wan: every key layout, several at once, swapped without touching the base."""

from __future__ import annotations

from dataclasses import replace

import peft
import pytest
import torch
import wan_folder
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from dreamactor.backbones.base import Native
from dreamactor.backbones.lora import AdapterInfo, attach, save_adapter
from dreamactor.backbones.stacking import read_layers, save_layers, stack, swap
from dreamactor.backbones.wan import Wan
from dreamactor.conditioning.canvas import first_frame
from dreamactor.errors import ConfigError, WeightsError

NATIVE = Native(48, 32, 16.0, 9, 4, 6, 3.0, 5.0)
INFO = AdapterInfo("pose", "wan", "f" * 64, rank=4, lead=4)
WIDTH = wan_folder.HEADS * wan_folder.HEAD
CLOSE = {"atol": 2e-5, "rtol": 2e-5}


@pytest.fixture(autouse=True)
def _quiet():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


def wan_of(experts=1):
    """Wan 2.1 in small, or Wan 2.2."""
    return Wan("wan", wan_folder.pipeline(clip=experts == 1, experts=experts), NATIVE)


def predicted(wan):
    """Velocities of every expert at the same place."""
    canvas = first_frame(torch.zeros(1, 3, 48, 32), 9, wan.grid)
    cond = wan.encode(canvas, wan.encode_text(["a bird"]))
    x = torch.randn(1, 16, 3, 6, 4, generator=torch.Generator().manual_seed(4))
    return torch.cat([wan._pass(e, x, torch.tensor([700.0]), cond) for e in wan.experts.values()])


def trained(wan, info, seed):
    """Attach an adapter with random values to all experts."""
    torch.manual_seed(seed)
    with torch.enable_grad():
        for expert in wan.experts.values():
            for parameter in attach(expert, info):
                torch.nn.init.normal_(parameter.data, std=0.2)
    return wan


def adapter(path, experts=1, seed=1, **change):
    """An adapter's file, and what the model it was made on predicts."""
    wan = trained(wan_of(experts), INFO, seed)
    for module in wan.experts.values():
        for name, parameter in module.named_parameters():
            if "lora_" in name:
                parameter.copy_(parameter.half().float())  # as the file holds them
    save_layers(path, wan.experts, replace(INFO, **change))
    return predicted(wan)


def distilled(path, seed=7, blocks=2, prefix="diffusion_model.", image=True, alpha=2.0):
    """Random layers with the names of the published 4-step distillations; and their deltas."""
    torch.manual_seed(seed)
    state, deltas = {}, {}

    def layer(theirs, ours, fan_in, fan_out, rank=4):
        down, up = torch.randn(rank, fan_in) * 0.1, torch.randn(fan_out, rank) * 0.1
        bias = torch.randn(fan_out) * 0.1
        state[f"{prefix}{theirs}.lora_down.weight"] = down
        state[f"{prefix}{theirs}.lora_up.weight"] = up
        state[f"{prefix}{theirs}.alpha"] = torch.tensor(alpha)
        state[f"{prefix}{theirs}.diff_b"] = bias
        deltas[ours] = (up @ down * alpha / rank, bias)

    for k in range(blocks):
        for theirs, ours in (("self_attn", "attn1"), ("cross_attn", "attn2")):
            for a, b in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0")):
                layer(f"blocks.{k}.{theirs}.{a}", f"blocks.{k}.{ours}.{b}", WIDTH, WIDTH)
            state[f"{prefix}blocks.{k}.{theirs}.norm_q.diff"] = torch.zeros(WIDTH)
        if image:
            for a, b in (("k_img", "add_k_proj"), ("v_img", "add_v_proj")):
                layer(f"blocks.{k}.cross_attn.{a}", f"blocks.{k}.attn2.{b}", WIDTH, WIDTH)
        layer(f"blocks.{k}.ffn.0", f"blocks.{k}.ffn.net.0.proj", WIDTH, 32)
        layer(f"blocks.{k}.ffn.2", f"blocks.{k}.ffn.net.2", 32, WIDTH)
    save_file(state, path)
    return deltas


def merged(transformer, deltas, scale=1.0):
    """The deltas of weights and biases added by hand; places that are not there are left out."""
    modules = dict(transformer.named_modules())
    for name, (weight, bias) in deltas.items():
        if name in modules and modules[name] is not None:
            place = getattr(modules[name], "base_layer", modules[name])
            place.weight += scale * weight
            place.bias += scale * bias


@pytest.mark.parametrize("experts", [1, 2])
def test_an_adapter_comes_back_from_one_file(tmp_path, experts):
    """same: as it was trained, from our reader and from diffusers' pipeline."""
    path = tmp_path / "adapter.safetensors"
    expected = adapter(path, experts)
    names = {key.split(".")[0] for key in load_file(path)}
    assert names == {"transformer", "transformer_2"} if experts == 2 else {"transformer"}
    wan = wan_of(experts)
    plain = predicted(wan)
    swap(wan, path)
    assert_close(predicted(wan), expected, **CLOSE)
    assert (predicted(wan) - plain).abs().max() > 0.01
    assert (wan.variant, wan.lead, wan.adapter["rank"]) == ("pose", 4, 4)
    theirs = wan_of(experts)
    theirs.pipe.load_lora_weights(path)
    assert_close(predicted(theirs)[:1], expected[:1], **CLOSE)


def test_two_experts_come_from_two_files_too(tmp_path):
    path, folder = tmp_path / "both.safetensors", tmp_path / "folder"
    expected = adapter(path, 2)
    folder.mkdir()
    state = load_file(path)
    for expert in ("transformer", "transformer_2"):
        one = {k: v for k, v in state.items() if k.startswith(f"{expert}.")}
        save_adapter(folder / f"{expert}.safetensors", one, INFO)
    wan = wan_of(2)
    swap(wan, folder)
    assert_close(predicted(wan), expected, **CLOSE)
    with pytest.raises(WeightsError, match=r"layers of transformer, wan has transformer and"):
        swap(wan, folder / "transformer.safetensors")
    assert_close(predicted(wan), expected, **CLOSE)


@pytest.mark.parametrize("experts", [1, 2])
def test_pose_and_rgb_take_turns_on_the_same_weights(tmp_path, experts):
    """unchanged by: what was on it before; the base is the same bit for bit throughout."""
    pose, rgb = tmp_path / "pose.safetensors", tmp_path / "rgb.safetensors"
    expected = {
        pose: adapter(pose, experts, 1),
        rgb: adapter(rgb, experts, 2, variant="rgb", lead=None),
    }
    wan = wan_of(experts)
    plain, base = predicted(wan), weights_of(wan)
    for path in (pose, rgb, pose):
        swap(wan, path)
        assert_close(predicted(wan), expected[path], **CLOSE)
        assert wan.variant == path.stem
        assert wan.lead == (4 if path == pose else 0)
    after = weights_of(wan)
    assert base.keys() == after.keys()
    assert all(torch.equal(base[name], after[name]) for name in base)
    for expert in wan.experts.values():
        expert.disable_lora()
    assert torch.equal(predicted(wan), plain)


def test_a_distilled_adapter_brings_its_schedule_and_takes_it_away(tmp_path):
    """unchanged by: an adapter with a schedule before; exact: that schedule, without guidance."""
    quick, plain = tmp_path / "quick.safetensors", tmp_path / "plain.safetensors"
    adapter(quick, sampling=(4, 2.0))
    adapter(plain)
    wan = wan_of(1)
    own = wan.native
    for path, wanted in (
        (quick, replace(own, steps=4, shift=2.0, guidance=1.0)), (plain, own),
    ):  # fmt: skip
        swap(wan, path)
        assert wan.native == wanted


def weights_of(wan):
    return {
        f"{expert}.{name.replace('.base_layer', '')}": value.clone()
        for expert, module in wan.experts.items()
        for name, value in module.state_dict().items()
        if "lora_" not in name
    }


def test_a_distillation_stacks_on_an_adapter(tmp_path):
    """same: as adding the deltas, and the biases, to the weights by hand; diffusers' pipeline."""
    path, turbo = tmp_path / "pose.safetensors", tmp_path / "turbo.safetensors"
    adapter(path)
    deltas = distilled(turbo)
    wan = wan_of()
    swap(wan, path)
    with_adapter = predicted(wan)
    assert stack(wan, f"{turbo}@0.5") == []
    by_hand = wan_of()
    swap(by_hand, path)
    merged(by_hand.pipe.transformer, deltas, 0.5)
    assert_close(predicted(wan), predicted(by_hand), **CLOSE)
    assert (predicted(wan) - with_adapter).abs().max() > 0.01
    assert "lora/turbo.safetensors@0.5" in wan.weights
    theirs = wan_of()
    theirs.pipe.load_lora_weights(turbo)
    ours = wan_of()
    stack(ours, str(turbo))
    assert_close(predicted(ours), predicted(theirs), **CLOSE)

    rgb = tmp_path / "rgb.safetensors"
    adapter(rgb, seed=2, variant="rgb", lead=None)
    swap(wan, rgb)  # the distillation stays, at its scale
    swap(by_hand, rgb)
    assert_close(predicted(wan), predicted(by_hand), **CLOSE)


def test_two_experts_take_a_file_each_or_one_for_both(tmp_path):
    high, low = tmp_path / "high.safetensors", tmp_path / "low.safetensors"
    deltas = [distilled(high, 7), distilled(low, 8)]
    wan = wan_of(2)
    left_out = stack(wan, f"{high},{low}")
    assert "transformer.blocks.0.attn2.add_k_proj" in left_out  # Wan 2.2 reads no CLIP
    assert len(left_out) == 2 * 2 * 2
    by_hand = wan_of(2)
    for expert, delta in zip(by_hand.experts.values(), deltas, strict=True):
        merged(expert, delta)
    assert_close(predicted(wan), predicted(by_hand), **CLOSE)
    one = wan_of(2)
    stack(one, str(high))
    by_hand = wan_of(2)
    for expert in by_hand.experts.values():
        merged(expert, deltas[0])
    assert_close(predicted(one), predicted(by_hand), **CLOSE)
    both = tmp_path / "both.safetensors"
    adapter(both, 2)
    assert stack(wan_of(), str(both))[0] == "transformer_2.blocks.0.ffn.net.0.proj"
    with pytest.raises(ConfigError, match="two files, wan has one transformer"):
        stack(wan_of(), f"{high},{low}")


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_writes_and_we_read(tmp_path, rslora):
    """same: peft's own model, with an alpha that is not the rank and one layer of another."""
    torch.manual_seed(3)
    wan = wan_of()
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=rslora,
        target_modules=["to_q", "ffn.net.2"],
        rank_pattern={"blocks.1.ffn.net.2": 2},
        alpha_pattern={"blocks.1.ffn.net.2": 5},
        init_lora_weights=False,
    )
    model = peft.get_peft_model(wan.pipe.transformer, config)
    model.save_pretrained(str(tmp_path / "peft"))
    assert next(iter(load_file(tmp_path / "peft/adapter_model.safetensors"))).startswith("base_")
    ours = wan_of()
    stack(ours, str(tmp_path / "peft"))
    assert_close(predicted(ours), predicted(wan), **CLOSE)


def test_diffusers_writes_and_we_read(tmp_path):
    """same: with the alpha in the file's metadata."""
    wan = wan_of()
    torch.manual_seed(3)
    config = peft.LoraConfig(r=4, lora_alpha=2, target_modules=["to_k"], init_lora_weights=False)
    wan.pipe.transformer.add_adapter(config, "other")
    expert = wan.pipe.transformer
    state = peft.get_peft_model_state_dict(expert, adapter_name="other")
    config = config.to_dict() | {"target_modules": ["to_k"]}
    wan.pipe.save_lora_weights(tmp_path, state, transformer_lora_adapter_metadata=config)
    ours = wan_of()
    stack(ours, str(tmp_path))
    assert_close(predicted(ours), predicted(wan), **CLOSE)


def test_musubi_keys_are_read(tmp_path):
    """same: the same layers by the names of musubi-tuner."""
    torch.manual_seed(0)
    plain, flat = tmp_path / "plain.safetensors", tmp_path / "flat.safetensors"
    distilled(plain)
    state = {
        key: value
        for key, value in load_file(plain).items()
        if not key.endswith((".diff", ".diff_b"))
    }
    save_file(state, plain)
    renamed = {}
    for key, value in state.items():
        name, dot, kind = key.removeprefix("diffusion_model.").partition(".lora_")
        if not dot:
            name, kind = name.removesuffix(".alpha"), "alpha"
        end = kind if kind == "alpha" else f"lora_{kind}"
        renamed[f"lora_unet_{name.replace('.', '_')}.{end}"] = value
    save_file(renamed, flat)
    first, second = read_layers(plain)["transformer"], read_layers(flat)["transformer"]
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path):
    path = tmp_path / "a.safetensors"
    expected = adapter(path)
    wan = wan_of()
    swap(wan, path)
    cases = {
        "missing.safetensors": "low-rank layers are missing",
        "text.safetensors": "not a readable safetensors file",
        "plain.safetensors": "no DreamActor header, so nothing says what drives it",
        "other.safetensors": "an adapter of hunyuan, here is wan",
        "canvas.safetensors": "canvas version 99",
        "shape.safetensors": "does not fit 24",
        "place.safetensors": r"transformer of wan has no blocks\.9\.ffn\.net",
    }
    (tmp_path / "text.safetensors").write_text("layers")
    state = load_file(path)
    save_file(state, tmp_path / "plain.safetensors")
    save_adapter(tmp_path / "other.safetensors", state, replace(INFO, backbone="hunyuan"))
    save_adapter(tmp_path / "canvas.safetensors", state, replace(INFO, canvas=99))
    name = "transformer.blocks.0.ffn.net.2.lora_B.weight"
    save_adapter(tmp_path / "shape.safetensors", {**state, name: state[name][:5]}, INFO)
    moved = {key.replace("blocks.1.", "blocks.9."): value for key, value in state.items()}
    save_adapter(tmp_path / "place.safetensors", moved, INFO)
    for file, message in cases.items():
        with pytest.raises(WeightsError, match=message):
            swap(wan, tmp_path / file)
    assert_close(predicted(wan), expected, **CLOSE)
    save_file({"blocks.0.ffn.weight": torch.zeros(2)}, tmp_path / "full.safetensors")
    save_file({"head.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "head.safetensors")
    for file, message in {
        "full.safetensors": "is no low-rank layer",
        "head.safetensors": "none of its layers is one of wan",
    }.items():
        with pytest.raises(WeightsError, match=message):
            stack(wan, str(tmp_path / file))
    with pytest.raises(ConfigError, match="want FILE"):
        stack(wan, "a,b,c")
    assert_close(predicted(wan), expected, **CLOSE)
