"""What is said of backbones and of this machine: numbers from shapes, advice from numbers."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLWan,
    HunyuanVideo15Transformer3DModel,
    WanTransformer3DModel,
)
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from dreamactor import cli, doctor
from dreamactor.backbones.catalogue import CATALOGUE, GIB, table
from dreamactor.backbones.load import HUNYUAN, load_backbone
from dreamactor.doctor import Gpu, Machine, advice, report
from dreamactor.mllm import VARIABLES

WAN = {"in_channels": 36, "out_channels": 16, "text_dim": 4096}
SHAPES = {
    "wan2.1-i2v-14b-480p": {"image_dim": 1280, "added_kv_proj_dim": 5120},
    "wan2.1-i2v-14b-720p": {"image_dim": 1280, "added_kv_proj_dim": 5120},
    "wan2.2-i2v-a14b": {},
    "wan2.1-fun-1.3b-inp": {
        "num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30,
        "image_dim": 1280, "added_kv_proj_dim": 1536,
    },
}  # fmt: skip
H100 = Gpu("H100", 79.2, True)


def numbers(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameters_are_those_of_the_published_shapes():
    """same: the networks themselves, on the meta device."""
    with torch.device("meta"):
        shared = {
            "vae": numbers(AutoencoderKLWan()),
            "text_encoder": numbers(
                UMT5EncoderModel(
                    UMT5Config(
                        vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24,
                        num_heads=64,
                    )
                )
            ),
            "image_encoder": numbers(
                CLIPVisionModel(
                    CLIPVisionConfig(
                        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32,
                        num_attention_heads=16, patch_size=14, image_size=224, hidden_act="gelu",
                    )
                )
            ),
        }  # fmt: skip
        for name, shape in SHAPES.items():
            transformer = numbers(WanTransformer3DModel(**WAN, **shape))
            for part, count in CATALOGUE[name].parts.items():
                assert count == shared.get(part, transformer), (name, part)
        hunyuan = {
            "transformer": HunyuanVideo15Transformer3DModel(),
            "vae": AutoencoderKLHunyuanVideo15(),
            "text_encoder": Qwen2_5_VLTextModel(
                Qwen2_5_VLTextConfig(
                    vocab_size=152064, hidden_size=3584, intermediate_size=18944,
                    num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
                )
            ),
            "text_encoder_2": T5EncoderModel(
                T5Config(
                    vocab_size=1510, d_model=1472, d_kv=64, d_ff=3584, num_layers=12, num_heads=6,
                    feed_forward_proj="gated-gelu",
                )
            ),
            "image_encoder": SiglipVisionModel(
                SiglipVisionConfig(
                    hidden_size=1152, intermediate_size=4304, num_hidden_layers=27,
                    num_attention_heads=16, image_size=384, patch_size=14,
                )
            ),
        }  # fmt: skip
    for name in HUNYUAN:
        assert CATALOGUE[name].parts == {part: numbers(model) for part, model in hunyuan.items()}
    assert {*SHAPES, *HUNYUAN, "nano"} == set(CATALOGUE)
    nano = load_backbone("nano")
    assert CATALOGUE["nano"].parts == {
        "transformer": numbers(nano.transformer), "vae": numbers(nano.vae)
    }  # fmt: skip


def test_needs_by_offload():
    """exact: weights by their bytes, and what one H100 measured for a pass over the canvas."""
    entry = CATALOGUE["wan2.1-i2v-14b-480p"]
    transformer, text = entry.bytes_of("transformer") / GIB, entry.bytes_of("text_encoder") / GIB
    vae, clip = entry.bytes_of("vae") / GIB, entry.bytes_of("image_encoder") / GIB
    assert transformer + 7.1 == pytest.approx(37.6, abs=0.1)  # GPU peak of the canvas, gpu.md
    assert entry.needs("none") == pytest.approx(transformer + text + vae + clip + 7.1)
    assert entry.needs("model") == pytest.approx(transformer + vae + 7.1)
    assert entry.needs("group") < 11
    assert entry.needs("model", storage="float8") == pytest.approx(transformer / 2 + vae + 7.1)
    assert entry.needs("model", "float32") == pytest.approx(2 * transformer + vae + 7.1)
    fun = CATALOGUE["wan2.1-fun-1.3b-inp"]
    assert fun.needs("model") == pytest.approx(text)  # the text encoder is the largest there


@pytest.mark.parametrize(
    ("name", "machine", "line"),
    [
        ("nano", Machine(2, 8), "yes, on the CPU"),
        ("nano", Machine(2, 8, (H100,)), "yes, on the CPU or with --device cuda"),
        ("wan2.1-i2v-14b-480p", Machine(2, 8), "no: wants a GPU of 10 GiB or more"),
        ("wan2.1-i2v-14b-480p", Machine(16, 128, (H100,)), "yes: --device cuda"),
        ("wan2.2-i2v-a14b", Machine(16, 128, (H100,)), "yes: --device cuda"),
        (
            "wan2.1-i2v-14b-480p",
            Machine(16, 128, (Gpu("A6000", 47.5, True),)),
            "yes: --device cuda --offload model",
        ),
        (
            "wan2.2-i2v-a14b",
            Machine(16, 128, (Gpu("RTX 4090", 23.6, True),)),
            "yes: --device cuda --offload model --storage float8",
        ),
        (
            "wan2.1-i2v-14b-480p",
            Machine(16, 128, (Gpu("RTX 4090", 23.6, True),)),
            "yes: --device cuda --preset low-memory",
        ),
        (
            "wan2.2-i2v-a14b",
            Machine(16, 32, (Gpu("RTX 4080", 15.6, True),)),
            "no: --preset low-memory keeps 64 GiB in the host's memory, here are 32",
        ),
        (
            "wan2.1-i2v-14b-720p",
            Machine(16, 128, (Gpu("T4", 14.6, False),)),
            "no: wants 21 GiB of GPU memory, here are 15",
        ),
        (
            "hunyuanvideo-1.5-480p-i2v",
            Machine(16, 128, (Gpu("RTX 4090", 23.6, True),)),
            "yes: --device cuda --offload model --storage float8",
        ),
        (
            "wan2.1-fun-1.3b-inp",
            Machine(16, 128, (Gpu("V100", 31.7, False),)),
            "yes: --device cuda --dtype float32 --offload model",
        ),
    ],
)
def test_advice(name, machine, line):
    assert advice(CATALOGUE[name], machine) == line


def test_the_doctor_fits_a_screen_and_never_fails(monkeypatch):
    """Without a GPU, without OpenGL, without an encoder, and with a broken environment."""
    lines = list(report(doctor.look()))
    assert len(lines) < 25
    assert max(map(len, lines)) <= 110
    assert [line.split()[0] for line in lines if line and line[0] != " "] == [
        "dreamactor", "machine", "torch", "clips", "drawing", "prompts", "marks", "extras",
        "backbones",
    ]  # fmt: skip
    for name in CATALOGUE:
        assert any(line.strip().startswith(name) for line in lines)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor, "ENCODERS", {"libnothing": "mp4"})
    monkeypatch.setenv(VARIABLES[0], "no address")
    bare = "\n".join(report(Machine(1, 0.0, (Gpu("T4", 14.6, False),))))
    assert "no libnothing for mp4" in bare
    assert "T4 of 15 GiB; no bfloat16" in bare
    assert "extras       none" in bare
    assert "marks        a watermark, but no C2PA manifest: c2pa-python is not installed" in bare


def test_commands(monkeypatch, capsys):
    for verb, word in (("backbones", "Apache-2.0"), ("doctor", "torch")):
        monkeypatch.setattr(sys, "argv", ["dreamactor", verb])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 0
        assert word in capsys.readouterr().out


def test_the_table_needs_no_torch():
    lines = list(table())
    assert all(any(line.startswith(name) for line in lines) for name in CATALOGUE)
    assert max(map(len, lines)) <= 100
    code = "import sys, dreamactor.backbones.catalogue as c; list(c.table()); "
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
