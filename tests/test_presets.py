"""Presets and compiled blocks: what is chosen, what goes over it, and that frames stay."""

import json
import signal
import sys
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
import wan_folder
from copycat import Copycat
from filming import film, frames_of
from test_nano import save, tiny_nano
from test_oneway import nano_of, sampled, wan_of
from test_wan import canvas_of, draws
from torch.testing import assert_close

from dreamactor import cli
from dreamactor.backbones import compiled
from dreamactor.backbones.catalogue import Options
from dreamactor.backbones.folder import place
from dreamactor.backbones.load import load_backbone
from dreamactor.backbones.lora import AdapterInfo, attach
from dreamactor.backbones.presets import LARGE, NANO, Choice, Preset, chosen, offered
from dreamactor.backbones.stacking import save_layers
from dreamactor.backbones.wan import Wan
from dreamactor.conditioning.canvas import build_canvas
from dreamactor.diffusion.job import AnimateConfig, settled
from dreamactor.diffusion.pipeline import animate
from dreamactor.diffusion.watch import Watch
from dreamactor.errors import ConfigError
from dreamactor.image import write_png
from dreamactor.studio.settings import Setup
from dreamactor.studio.worker import Pipelines

WAN = "wan2.1-i2v-14b-480p"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def backend(monkeypatch):
    """Graphs are made and run, but no program is compiled from them."""
    torch.compiler.reset()
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")


@pytest.fixture
def inputs(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    write_png(tmp_path / "who.png", picture)
    film(tmp_path / "driving.mp4", 20, 12)
    return tmp_path / "who.png", tmp_path / "driving.mp4"


@pytest.fixture
def weights(tmp_path):
    """A folder of nano in small."""
    folder = tmp_path / "nano"
    folder.mkdir()
    save(tiny_nano(), folder)
    return folder


@pytest.fixture
def command(tmp_path, inputs, weights, monkeypatch, capsys):
    handler = signal.getsignal(signal.SIGTERM)

    def command(*words, out="out.mp4"):
        given = ["--reference", inputs[0], "--driving", inputs[1], "--out", tmp_path / out]
        fixed = ["--weights", weights, "--threads", 1, "--prompt", ""]
        argv = ["dreamactor", "animate", *given, *fixed, *words]
        monkeypatch.setattr(sys, "argv", [str(word) for word in argv])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    yield command
    signal.signal(signal.SIGTERM, handler)


def config(**settings):
    return AnimateConfig("a.png", "b.mp4", "c.mp4", **settings)


# ---- what is chosen --------------------------------------------------------------------------


def test_the_table():
    """exact: as docs/fast.md has it."""
    assert {name: choice.steps for name, choice in NANO.items()} == {
        "quality": 16, "balanced": 8, "fast": 4, "low-memory": 4,
    }  # fmt: skip
    assert {replace(choice, steps=None) for choice in NANO.values()} == {Choice()}
    assert dict(LARGE) == {
        "quality": Choice(None, False, "none", "device"),
        "balanced": Choice(None, True, "none", "device"),
        "fast": Choice(None, True, "none", "device"),
        "low-memory": Choice(None, False, "group", "host"),
    }
    assert tuple(NANO) == tuple(LARGE) == get_args(Preset)


def test_on_the_cpu_nothing_is_compiled_or_offloaded_by_a_preset():
    """exact; and what has no use there is refused."""
    assert chosen("balanced", WAN, "cpu") == Choice() != chosen("balanced", WAN, "cuda:1")
    assert offered(WAN, "cpu") == ("quality", "balanced", "fast")
    assert offered(WAN, "cuda") == offered("nano", "cpu") == get_args(Preset)
    with pytest.raises(ConfigError, match=r"preset=low-memory: wants --device cuda.*CPU wan2"):
        config(backbone=WAN, preset="low-memory")


def test_what_is_named_by_hand_goes_over_a_preset():
    """exact: each setting by itself; a preset gives way where two would not go together."""
    assert config(preset="quality").choice.steps == 16
    assert config(preset="quality", steps=3).choice.steps == 3
    large = {"backbone": WAN, "device": "cuda"}
    assert config(**large, preset="fast").choice.words("device") == (
        "the model's steps, blocks compiled, cache device"
    )
    assert not config(**large, preset="balanced", compile=False).choice.compile
    assert config(**large, preset="quality", compile=True).choice.compile
    assert config(**large, preset="low-memory", offload="none").choice.offload == "none"
    yielding = config(**large, preset="fast", offload="group").choice
    assert (yielding.offload, yielding.compile) == ("group", False)
    with pytest.raises(ConfigError, match="storage=float8: not with offload=group"):
        config(**large, preset="low-memory", storage="float8")
    for named in ({"preset": "low-memory"}, {"offload": "group"}):
        with pytest.raises(ConfigError, match="compile=true: not with offload=group"):
            config(**large, **named, compile=True)


def test_without_a_preset_everything_is_as_it_was():
    """unchanged by: presets, where none is named."""
    for backbone in ("nano", WAN):
        found = settled(config(backbone=backbone))
        assert (found.steps, found.offload, found.compile, found.cache) == (
            None, "none", False, None,
        )  # fmt: skip
        assert found.options == Options()


@pytest.mark.parametrize(("mode", "cache"), [("full", None), ("one-way-aligned", "host")])
def test_the_place_of_the_context_is_chosen_where_there_is_one(mode, cache, tmp_path):
    """exact: adapters of mode full would be refused a place."""
    adapter = tmp_path / "rgb.safetensors"
    info = AdapterInfo("rgb", WAN, "f" * 64, rank=2, attention=mode)
    wan = wan_of(mode, "2.1")
    attach(wan.pipe.transformer, info)
    save_layers(adapter, wan.experts, info)
    named = {"backbone": WAN, "device": "cuda", "adapter": adapter, "preset": "low-memory"}
    assert settled(config(**named)).cache == cache
    assert settled(config(**named)).offload == "group"
    if cache:
        assert settled(config(**named, cache="device")).cache == "device"


# ---- animate ---------------------------------------------------------------------------------


def test_the_record_and_the_plan_name_preset_and_settings(command, tmp_path):
    """exact: what is stated, and what that means."""
    code, _, error = command("--preset", "balanced", "--steps", 3)
    assert (code, error.splitlines()[0]) == (0, "preset balanced: 3 steps")
    settings = json.loads((tmp_path / "out.json").read_text())["settings"]
    wanted = {
        "preset": "balanced", "steps": 3, "compile": False, "offload": "none", "cache": None,
    }  # fmt: skip
    assert {name: settings[name] for name in wanted} == wanted
    code, shown, _ = command("--preset", "balanced", "--dry-run", out="plan.mp4")
    assert code == 0
    assert json.loads(shown)["settings"] == settings | {
        "steps": 8, "out": str(tmp_path / "plan.mp4"),
    }  # fmt: skip


def test_an_unknown_preset_is_one_line(command):
    """refuses: with the nearest name."""
    code, shown, error = command("--preset", "balance")
    assert (code, shown) == (2, "")
    assert error == (
        "error: preset='balance': no such preset, nearest is balanced; known: quality, balanced, "
        "fast, low-memory\n"
    )


def test_a_backbone_that_is_loaded_takes_no_more_than_steps(inputs, tmp_path):
    """refuses: what had to be known when it was loaded."""
    named = {"reference": inputs[0], "driving": inputs[1], "out": tmp_path / "out.mp4"}
    result = animate(**named, backbone=Copycat(), preset="fast", prompt="", threads=1)
    assert result.facts["settings"]["steps"] == 4
    named["overwrite"] = True
    with pytest.raises(ConfigError, match=f"preset=fast: {WAN} is loaded already"):
        animate(**named, backbone=Copycat(name=WAN), preset="fast")
    with pytest.raises(ConfigError, match="compile=true: the backbone is loaded already, and not"):
        animate(**named, backbone=Copycat(), compile=True)
    tiny = tiny_nano()
    tiny.compiled = True
    with pytest.raises(ConfigError, match=r"compile=false: .* loaded already, and compiled; want"):
        animate(**named, backbone=tiny)


# ---- compiled --------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "mode"), [("nano", "full"), ("wan", "one-way-aligned")])
def test_samples_are_unchanged_by_compiling(family, mode, backend):
    """same: six guided steps of two clips, Wan's with offload model; not one break in a block."""
    if family == "wan":
        pytest.importorskip("accelerate")
        plain, quick = wan_of(mode, "2.1"), wan_of(mode, "2.1")
        canvas = canvas_of(2)
        with torch.no_grad():
            said, unsaid = plain.encode_text(["a bird", "a fox"]), plain.encode_text(["", "bad"])
        networks = list(quick.experts.values())
        place(quick.pipe, "cpu", "model")
    else:
        plain, quick = nano_of(mode), nano_of(mode)
        clip = draws(2, 3, 17, 64, 64).clamp(-1, 1)
        canvas = build_canvas(clip[:, :, 0], clip, plain.grid, clip.flip(2)[:, :, 1:5])
        said, unsaid = draws(2, 32, 384), torch.zeros(2, 32, 384)
        networks = [quick.transformer]
    expected = sampled(plain, canvas, said, unsaid)
    compiled.compile_blocks(networks)
    torch._dynamo.utils.counters.clear()
    assert_close(sampled(quick, canvas, said, unsaid), expected, atol=1e-5, rtol=1e-5)
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == (1 if mode == "full" else 2)


def test_compiling_by_the_command_changes_no_frame(command, tmp_path, backend, caplog):
    """same: clip and settings but for the one; a last segment that is shorter is compiled too."""
    bare = "--no-watermark"  # which says how a clip was made
    assert command(bare)[0] == 0
    assert command(bare, "--compile", out="quick.mp4")[0] == 0
    assert "compiled at their first pass" in caplog.text
    records = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("out", "quick")]
    assert [record["settings"].pop("compile") for record in records] == [False, True]
    clips = [np.stack(list(frames_of(tmp_path / f"{n}.mp4"))).astype(int) for n in ("out", "quick")]
    assert np.abs(clips[0] - clips[1]).max() <= 2  # levels: rounding, then the codec
    shown = command("--compile", "--dry-run", out="plan.mp4")[1]
    assert json.loads(shown)["estimate_basis"].startswith("compiling blocks, and one encoding")


def test_wan_is_compiled_from_a_folder(tmp_path, backend, monkeypatch):
    """exact: every transformer's blocks, once."""
    blocks = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **said: blocks.append((type(self).__name__, said))
    )
    folder = wan_folder.write(tmp_path / "two", clip=False, experts=2)
    wan = load_backbone("wan2.2-i2v-a14b", folder, options=Options(compile=True))
    assert isinstance(wan, Wan)
    assert wan.compiled
    assert blocks == [("WanTransformerBlock", {"dynamic": False, "backend": "aot_eager"})] * 4


def test_what_compiling_needs(monkeypatch):
    """refuses: in a line, before weights are read."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"on the CPU it needs a C\+\+ compiler"):
        load_backbone("nano", options=Options(compile=True))
    monkeypatch.setattr(compiled, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs triton"):
        compiled.check_compiler("cuda")


# ---- serve -----------------------------------------------------------------------------------


def test_a_server_offers_what_its_devices_can():
    """exact: of a server's own settings too, and within its limit."""
    found = Setup().presets("cpu", 50)
    assert {name: said["steps"] for name, said in found.items()} == {
        "quality": 16, "balanced": 8, "fast": 4, "low-memory": 4,
    }  # fmt: skip
    assert found["fast"]["means"] == "4 steps"
    assert list(Setup().presets("cpu", 8)) == ["balanced", "fast", "low-memory"]
    large = Setup(WAN)
    assert list(large.presets("cpu", 50)) == ["quality", "balanced", "fast"]
    assert large.presets("cuda", 50)["low-memory"] == {
        "steps": 40, "means": "the model's steps, offload group",
    }  # fmt: skip
    assert "low-memory" not in Setup(WAN, compile=True).presets("cuda", 50)
    assert Setup(WAN, offload="model").choice("fast", "cuda") == Choice(None, True, "model")


def test_a_worker_loads_anew_only_for_other_options(inputs, weights, tmp_path, monkeypatch):
    """exact: one model at a time."""
    loaded = []

    def load(name, weights, device, adapter, options):
        loaded.append(options.compile)
        model = Copycat()
        model.compiled = options.compile
        return model

    monkeypatch.setattr("dreamactor.backbones.load.load_backbone", load)
    work = Pipelines()
    for preset, given in (("fast", None), ("quality", None), (None, True), (None, True)):
        job = AnimateConfig(
            *inputs, tmp_path / "out.mp4", preset=preset, compile=given, overwrite=True,
            prompt="", threads=1, steps=1,
        )  # fmt: skip
        work(job, Watch())
    assert loaded == [False, True]
