"""Wan's backbones from their folders: by name, what is missing, and one clip from end to end."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import wan_folder
from filming import film
from safetensors.torch import load_file, save_file
from test_wan import canvas_of
from torch.testing import assert_close

from dreamactor import cli
from dreamactor.backbones.catalogue import CATALOGUE, Options
from dreamactor.backbones.folder import find_folder, place
from dreamactor.backbones.load import HUNYUAN, load_backbone
from dreamactor.backbones.lora import AdapterInfo, attach
from dreamactor.backbones.stacking import save_layers, stack
from dreamactor.backbones.wan import Wan
from dreamactor.conditioning.canvas import first_frame
from dreamactor.errors import ConfigError, WeightsError
from dreamactor.image import write_png
from dreamactor.provenance import sha256
from dreamactor.video import probe

LARGE = [name for name, entry in CATALOGUE.items() if entry.hub and name not in HUNYUAN]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny ones: with CLIP and one transformer, without CLIP and two."""
    root = tmp_path_factory.mktemp("wan")
    return {
        1: wan_folder.write(root / "one", clip=True, experts=1),
        2: wan_folder.write(root / "two", clip=False, experts=2),
    }


def folder_of(folders, name):
    return folders[len(CATALOGUE[name].experts)]


@pytest.mark.parametrize("name", LARGE)
def test_every_name_loads_its_layout_and_refuses_the_other(name, folders):
    folder = folder_of(folders, name)
    wan = load_backbone(name, folder)
    native = CATALOGUE[name].native
    assert isinstance(wan, Wan)
    assert wan.name == name
    assert (wan.native.height, wan.native.width) == (native["height"], native["width"])
    assert (wan.grid.stride_t, wan.grid.stride_s, wan.grid.channels) == (4, 8, 16)
    assert wan.boundary == CATALOGUE[name].boundary
    assert list(wan.experts) == list(CATALOGUE[name].experts)
    file = "transformer/diffusion_pytorch_model.safetensors"
    assert wan.weights[file] == sha256(folder / file)
    assert {path.split("/")[0] for path in wan.weights} == set(CATALOGUE[name].parts)
    other = folders[3 - len(CATALOGUE[name].experts)]
    with pytest.raises(WeightsError, match=f"that is not {name}|of {name} are missing"):
        load_backbone(name, other)


def test_what_is_missing_is_named_with_its_size(folders, tmp_path):
    name = "wan2.1-i2v-14b-480p"
    with pytest.raises(WeightsError) as error:
        load_backbone(name, tmp_path)
    for part in (
        "model_index.json", "transformer (32.8 GB in bfloat16, 65.6 in float32)",
        "text_encoder (11.4 GB in bfloat16", "image_encoder (2.5 GB)", "vae (0.5 GB)",
        "tokenizer (small)", f"hf download {CATALOGUE[name].hub} --local-dir {tmp_path}",
    ):  # fmt: skip
        assert part in str(error.value)
    copy = tmp_path / "copy"
    for path in folders[1].rglob("*"):
        if path.is_file():
            target = copy / path.relative_to(folders[1])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    whole = copy / "transformer/diffusion_pytorch_model.safetensors"
    index = {"metadata": {"total_size": 6e9}, "weight_map": {"a": whole.name, "b": "2.safetensors"}}
    (copy / "transformer/diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps(index)
    )
    with pytest.raises(WeightsError, match=r"missing: transformer/2.safetensors \(about 3.0 GB\);"):
        load_backbone(name, copy)
    (copy / "transformer/diffusion_pytorch_model.safetensors.index.json").unlink()
    whole.write_bytes(whole.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"its transformer cannot be read"):
        load_backbone(name, copy)


@pytest.mark.parametrize("part", ["text_encoder", "image_encoder", "transformer", "vae"])
def test_a_tensor_that_is_missing_is_refused(part, folders, tmp_path):
    """It would be random else."""
    shutil.copytree(folders[1], tmp_path, dirs_exist_ok=True)
    (path,) = (tmp_path / part).glob("*.safetensors")
    tensors = load_file(path)
    gone = sorted(tensors)[3]
    save_file({k: v for k, v in tensors.items() if k != gone}, path, {"format": "pt"})
    with pytest.raises(WeightsError, match=rf"{part}: no numbers for 1 "):
        load_backbone(LARGE[0], tmp_path)


def test_hub_ids_go_through_the_hub_alone(monkeypatch, tmp_path):
    """The published id from its cache, another one from the net; one line where it gives none."""
    entry, asked = CATALOGUE["wan2.2-i2v-a14b"], []

    def snapshot(hub, allow_patterns, local_files_only):
        asked.append((hub, local_files_only))
        assert "transformer_2/*" in allow_patterns
        if hub == "someone/nothing":
            raise FileNotFoundError("no way to huggingface.co\nand a second line")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert find_folder(entry, None) == tmp_path
    assert find_folder(entry, tmp_path / "..") == tmp_path / ".."
    assert find_folder(entry, Path("someone/wan")) == tmp_path
    assert asked == [(entry.hub, True), ("someone/wan", False)]
    with pytest.raises(WeightsError, match=r"does not give it \(no way to huggingface.co\); want"):
        find_folder(entry, Path("someone/nothing"))
    with pytest.raises(WeightsError, match=r"no such folder; want weights of wan2\.2.*about 69 GB"):
        find_folder(entry, tmp_path / "a" / "b")


def test_without_weights_it_says_where_they_are(monkeypatch):
    def snapshot(*words, **more):
        raise FileNotFoundError("not cached")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(WeightsError, match=r"about 47 GB in bfloat16, are not in the hub's cache"):
        load_backbone("wan2.1-i2v-14b-720p")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nano", {"dtype": "bfloat16"}, "nano runs in float32"),
        ("nano", {"size": "512x512"}, "size=512x512: only for large backbones"),
        ("nano", {"offload": "group"}, "nano is small"),
        ("nano", {"storage": "float8"}, "nano is small"),
        (LARGE[0], {"storage": "float8", "compile": True}, "not with storage=float8"),
        (LARGE[0], {"offload": "model"}, "wants --device cuda"),
        (LARGE[0], {"size": "100x96"}, "size=100x96: want multiples of 16, nearest is 96x96"),
        (LARGE[0], {"frames": 80}, r"want 4 \* k \+ 1, 9 or more, nearest is 81"),
        (LARGE[0], {"frames": 5}, "nearest is 9"),
    ],
)
def test_refuses_options(name, options, message, folders):
    with pytest.raises(ConfigError, match=message):
        load_backbone(name, folders[1] if name != "nano" else None, options=Options(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "half"}, "dtype='half': want auto, float32, bfloat16"),
        ({"offload": "disk"}, "want none, model, group"),
        ({"storage": "int4"}, "want auto, float8"),
        ({"size": "832"}, "want WIDTHxHEIGHT, such as 832x480"),
    ],
)
def test_refuses_words(options, message):
    with pytest.raises(ConfigError, match=message):
        Options(**options)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run `dreamactor animate` on a picture and a clip of 20 frames at 16 a second."""
    handler = signal.getsignal(signal.SIGTERM)
    picture = np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    write_png(tmp_path / "reference.png", picture)
    film(tmp_path / "driving.mp4", 20, fps=16)

    def command(*words):
        given = ["--reference", tmp_path / "reference.png", "--driving", tmp_path / "driving.mp4"]
        argv = ["dreamactor", "animate", *given, "--out", tmp_path / "out.mp4", *words]
        monkeypatch.setattr(sys, "argv", [str(word) for word in argv])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    yield command
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.parametrize("name", ["wan2.1-i2v-14b-480p", "wan2.2-i2v-a14b"])
def test_animates_from_end_to_end(name, folders, command, tmp_path):
    words = (
        "--backbone",
        name,
        "--weights",
        folder_of(folders, name),
        "--steps",
        2,
        "--threads",
        1,
    )
    sizes = ("--size", wan_folder.SIZE, "--frames", wan_folder.FRAMES, "--prompt", "a bird")
    code, shown, error = command(*words, *sizes, "--negative", "blurred")
    assert code == 0, error
    assert "20 frames of 32 x 16" in shown
    assert f"note: {name} without an --adapter" in error
    assert probe(tmp_path / "out.mp4").frames == 20
    record = json.loads((tmp_path / "out.json").read_text())
    settings = record["settings"]
    assert (settings["dtype"], settings["offload"], settings["negative"]) == (
        "auto", "none", "blurred",
    )  # fmt: skip
    assert record["segments"] > 1
    assert record["backbone"]["name"] == name
    assert settings["guidance"] == CATALOGUE[name].native["guidance"]


def test_animates_with_an_adapter_and_a_distillation(folders, command, tmp_path):
    """The record names both; a file with layers that the model lacks says so."""
    name, folder = "wan2.2-i2v-a14b", folders[2]
    info = AdapterInfo("rgb", name, "f" * 64, rank=2)
    wan = load_backbone(name, folder)
    assert isinstance(wan, Wan)
    for expert in wan.experts.values():
        attach(expert, info)
    save_layers(tmp_path / "rgb.safetensors", wan.experts, info)
    layers = {}
    for layer in ("self_attn.q", "cross_attn.k_img", "cross_attn.v_img"):
        start = f"diffusion_model.blocks.0.{layer}"
        layers[f"{start}.lora_down.weight"] = torch.ones(2, 24)
        layers[f"{start}.lora_up.weight"] = torch.ones(24, 2)
    save_file(layers, tmp_path / "turbo.safetensors")
    words = ("--backbone", name, "--weights", folder, "--steps", 1, "--threads", 1, "--prompt", "")
    sizes = ("--size", wan_folder.SIZE, "--frames", wan_folder.FRAMES)
    added = ("--adapter", tmp_path / "rgb.safetensors", "--lora", tmp_path / "turbo.safetensors@.5")
    with pytest.warns(UserWarning, match=r"4 layers that wan2\.2.* transformer\.blocks\.0\.attn2"):
        code, _, error = command(*words, *sizes, *added)
    assert code == 0, error
    assert "note:" not in error
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["backbone"]["adapter"]["variant"] == "rgb"
    assert record["backbone"]["adapter"]["sha256"] == sha256(tmp_path / "rgb.safetensors")
    digest = sha256(tmp_path / "turbo.safetensors")
    assert record["backbone"]["weights"]["lora/turbo.safetensors@0.5"] == digest


def test_plans_without_writing(folders, command, tmp_path):
    words = ("--backbone", LARGE[0], "--weights", folders[1], "--threads", 1, "--dry-run")
    code, shown, _ = command(*words, "--size", wan_folder.SIZE, "--frames", wan_folder.FRAMES)
    assert code == 0
    assert json.loads(shown)["settings"]["steps"] == 40
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize("offload", ["model", "group"])
def test_offload_changes_nothing(offload, folders, tmp_path):
    """unchanged by: where networks wait; here on the CPU, from the CPU. Layers come and go."""
    pytest.importorskip("accelerate")
    torch.set_num_threads(1)
    layers = tmp_path / "layers.safetensors"
    shape = {"A": (2, 24), "B": (24, 2)}
    save_file(
        {f"blocks.0.attn1.to_q.lora_{k}.weight": torch.ones(s) / 5 for k, s in shape.items()},
        layers,
    )
    results = []
    for way in ("none", offload):
        wan = load_backbone(LARGE[0], folders[1])
        assert isinstance(wan, Wan)
        if offload == "model":
            stack(wan, str(layers))
        place(wan.pipe, "cpu", way)
        if offload == "group":
            stack(wan, str(layers))
        with torch.inference_mode():
            text = wan.encode_text(["a bird"])
            x = torch.ones(1, 16, 3, 6, 8)
            cond = wan.encode(first_frame(torch.zeros(1, 3, 48, 64), 9, wan.grid), text)
            results.append((text, wan.velocity(x, torch.tensor(0.5), cond), wan.decode(x)))
    for plain, offloaded in zip(*results, strict=True):
        assert_close(plain, offloaded, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["full", "one-way-aligned"])
def test_layers_in_float8_take_a_byte_and_predict_nearly_the_same(mode, folders, tmp_path):
    """Embeddings and norms stay, and what comes as low-rank layers is not rounded."""
    name, path = "wan2.1-i2v-14b-480p", tmp_path / "adapter.safetensors"
    info = AdapterInfo("rgb", name, "f" * 64, rank=2, attention=mode)
    plain = load_backbone(name, folders[1])
    torch.manual_seed(0)
    for layer in attach(plain.experts["transformer"], info):
        torch.nn.init.normal_(layer, std=0.3)
    save_layers(path, plain.experts, info)
    weights, predicted = {}, {}
    for storage in ("auto", "float8"):
        wan = load_backbone(name, folders[1], adapter=path, options=Options(storage=storage))
        weights[storage] = dict(wan.experts["transformer"].named_parameters())
        with torch.inference_mode():
            cond = wan.encode(canvas_of(), wan.encode_text(["a fox runs"]))
            noise = torch.randn(cond.latents.shape, generator=torch.Generator().manual_seed(0))
            predicted[storage] = wan.velocity(noise, torch.tensor(0.7), cond)
    small = weights["float8"]
    sizes = {name: small[name].element_size() for name in small}
    assert sizes["blocks.0.attn1.to_q.weight"] == 1
    assert sizes["blocks.0.ffn.net.2.base_layer.weight"] == 1
    assert sizes["patch_embedding.weight"] == sizes["blocks.0.norm2.weight"] == 4
    low_rank = [name for name in small if "lora" in name]
    assert len(low_rank) == 8
    assert all(torch.equal(small[name], weights["auto"][name]) for name in low_rank)
    error = (predicted["float8"] - predicted["auto"]).std() / predicted["auto"].std()
    assert 1e-4 < error < 0.05
