"""One-way attention behind the backbones: nano and Wan, their files, and a whole clip."""

from __future__ import annotations

import json
import weakref
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import wan_folder
from filming import film, frames_of
from test_nano import NATIVE, TINY, save, tiny_nano
from test_wan import NATIVE as WAN_NATIVE
from test_wan import canvas_of, draws
from torch.testing import assert_close

from dreamactor.backbones import nano as nano_module
from dreamactor.backbones.catalogue import Keeping, Options
from dreamactor.backbones.folder import place
from dreamactor.backbones.incontext import mode_of, predicted_bytes, set_mode
from dreamactor.backbones.load import load_backbone, load_trainee
from dreamactor.backbones.lora import AdapterInfo, adapt, adapter_state, attach, save_adapter
from dreamactor.backbones.nano import Nano, load_nano
from dreamactor.backbones.stacking import save_layers, swap
from dreamactor.backbones.wan import Wan, load_wan
from dreamactor.backbones.weights import save_weights
from dreamactor.conditioning.canvas import build_canvas, motion_half, reference_half
from dreamactor.diffusion.flow import schedule
from dreamactor.diffusion.pipeline import animate
from dreamactor.diffusion.sampler import beside, guided, sample_euler
from dreamactor.errors import ConfigError, WeightsError
from dreamactor.image import write_png

ONE_WAY = ("one-way", "one-way-aligned")
NAME = "wan2.1-i2v-14b-480p"
NOTHING = Keeping("none")

pytestmark = pytest.mark.usefixtures("one_thread")


def wan_of(mode, kind, keeping=None):
    """Wan 2.1 or 2.2 in small."""
    pipe = wan_folder.pipeline(clip=kind == "2.1", experts=1 if kind == "2.1" else 2)
    wan = Wan("wan", pipe, WAN_NATIVE, keeping=keeping or Keeping())
    for expert in wan.experts.values():
        set_mode(expert, mode)
    return wan


def nano_of(mode, keeping=None):
    nano = tiny_nano()
    set_mode(nano.transformer, mode)
    return Nano(nano.vae, nano.transformer, NATIVE, keeping=keeping or Keeping())


def sampled(backbone, canvas, text, other, guidance=5.0):
    """Latents (B, C, F, h, w) after six steps, as `pipeline.denoise` takes them."""
    with torch.no_grad():
        cond = backbone.encode(canvas, text)
        motion = motion_half(cond.latents)

        def toward(cond):
            return beside(lambda x, sigma: backbone.velocity(x, sigma, cond), motion)

        velocity = guided(toward(cond), toward(replace(cond, text=other)), guidance)
        return sample_euler(velocity, draws(*motion.shape), schedule(6, 3.0))


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("kind", ["2.1", "2.2"])
@pytest.mark.parametrize("mode", ONE_WAY)
def test_samples_of_wan_are_unchanged_by_the_cache(mode, kind, guidance):
    """same: two clips, guided or not, with CLIP and across the boundary of two experts."""
    anew, kept = wan_of(mode, kind, NOTHING), wan_of(mode, kind)
    with torch.no_grad():
        said, unsaid = anew.encode_text(["a bird", "a fox"]), anew.encode_text(["", "blurred"])
    expected = sampled(anew, canvas_of(2), said, unsaid, guidance)
    filled = [count_fills(expert) for expert in kept.experts.values()]
    assert_close(
        sampled(kept, canvas_of(2), said, unsaid, guidance), expected, atol=1e-5, rtol=1e-5
    )
    assert [sum(times) for times in filled] == [1] * len(filled)
    full = sampled(wan_of("full", kind), canvas_of(2), said, unsaid, guidance)
    assert (full - expected).abs().max() > 1e-3


def count_fills(transformer):
    """A list that gets True whenever the context is computed."""
    times = []
    transformer.register_forward_pre_hook(
        lambda _, __, given: times.append(given.get("fill", False)), with_kwargs=True
    )
    return times


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("mode", ONE_WAY)
def test_samples_of_nano_are_unchanged_by_the_cache(mode, guidance):
    """same: two clips, of which frames of an earlier segment are shown."""
    clip = draws(2, 3, 17, 64, 64).clamp(-1, 1)
    canvas = build_canvas(clip[:, :, 0], clip, tiny_nano().grid, clip.flip(2)[:, :, 1:5])
    said, unsaid = draws(2, 32, 384), torch.zeros(2, 32, 384)
    expected = sampled(nano_of(mode, NOTHING), canvas, said, unsaid, guidance)
    kept = nano_of(mode)
    filled = count_fills(kept.transformer)
    assert_close(sampled(kept, canvas, said, unsaid, guidance), expected, atol=1e-5, rtol=1e-5)
    assert sum(filled) == 1


def test_clips_on_both_sides_of_the_boundary_are_computed_anew():
    """same: as each of them by itself."""
    wan = wan_of("one-way", "2.2")
    with torch.no_grad():
        cond = wan.encode(canvas_of(2), wan.encode_text(["a bird", "a fox"]))
        x, sigma = draws(*cond.latents.shape), torch.tensor([0.95, 0.5])
        both = wan.velocity(x, sigma, cond)
        for k in range(2):
            apart = wan.velocity(x, sigma[k].expand(2), cond)
            assert_close(both[k], apart[k], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["2.1", "2.2"])
def test_the_context_of_wan_reads_the_empty_prompt(kind):
    """exact: whatever the prompt, with a cache and without."""
    for keeping in (NOTHING, Keeping()):
        wan, read = wan_of("one-way", kind, keeping), []
        for expert in wan.experts.values():
            expert.register_forward_pre_hook(
                lambda _, __, given, read=read: read.append(given["silence"]), with_kwargs=True
            )
        with torch.no_grad():
            cond = wan.encode(canvas_of(2), wan.encode_text(["a bird", "a fox"]))
            wan.velocity(draws(*cond.latents.shape), torch.tensor(0.5), cond)
            empty = wan.encode_text([""])
        assert len(read) >= 1
        assert all(torch.equal(silence, empty) for silence in read)
        assert empty.any()


@pytest.mark.parametrize("mode", ONE_WAY)
def test_bfloat16_keeps_what_it_computes(mode, tmp_path):
    """same: in the number format of large models; and the size that was said."""
    folder = wan_folder.write(tmp_path)
    found = []
    for options in (Options("bfloat16", cache="none"), Options("bfloat16")):
        wan = load_wan(NAME, folder, options=options, mode=mode)
        with torch.no_grad():
            cond = wan.encode(canvas_of(2), wan.encode_text(["a bird", "a fox"]))
            found.append(wan.velocity(draws(*cond.latents.shape), torch.tensor(0.5), cond))
    assert torch.equal(*found)
    assert cond.context is not None
    kept = cond.context.of(wan.pipe.transformer, {})  # of this canvas already: nothing is computed
    canvas = torch.empty(2, 36, *cond.latents.shape[2:], dtype=torch.bfloat16)
    assert kept.bytes == predicted_bytes(wan.pipe.transformer, canvas, wan.keeping)


def test_nothing_is_kept_in_full():
    """exact."""
    wan, nano = wan_of("full", "2.1"), nano_of("full")
    with torch.no_grad():
        assert wan.encode(canvas_of(), wan.encode_text([""])).context is None
        canvas = build_canvas(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 5, 64, 64), nano.grid)
        assert nano.encode(canvas, nano.encode_text([""])).context is None


@pytest.mark.parametrize("mode", ONE_WAY)
def test_offloaded_blocks_come_for_the_context_and_for_the_target(mode):
    """unchanged by: blocks that come and go, here on the CPU from the CPU."""
    plain, moving = wan_of(mode, "2.1"), wan_of(mode, "2.1")
    place(moving.pipe, "cpu", "group")
    with torch.no_grad():
        text = plain.encode_text(["a bird"])
        x, sigma = draws(1, 16, 3, 6, 8), torch.tensor(0.5)
        found = [wan.velocity(x, sigma, wan.encode(canvas_of(), text)) for wan in (plain, moving)]
    assert_close(*found, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("mode", ONE_WAY)
def test_a_clip_of_segments_is_unchanged_by_the_cache(mode, tmp_path):
    """same: `animate` with a cache of each segment, and without."""
    noise = np.random.default_rng(0)
    write_png(tmp_path / "who.png", noise.integers(0, 256, (40, 80, 3), dtype=np.uint8))
    film(tmp_path / "driving.mp4", 30, 12)
    clips = []
    for keeping in (NOTHING, Keeping()):
        out = tmp_path / f"{keeping.place}.mp4"
        result = animate(
            reference=tmp_path / "who.png", driving=tmp_path / "driving.mp4", out=out,
            backbone=nano_of(mode, keeping), prompt="a fox", guidance=3, threads=1,
        )  # fmt: skip
        assert result.facts["segments"] == 3
        clips.append(np.stack(list(frames_of(out))).astype(int))
    assert np.abs(clips[0] - clips[1]).max() <= 2  # levels: rounding, then the codec


def test_there_is_never_more_than_one_segment_s_context(tmp_path, monkeypatch):
    """exact: the one before has gone when the next one is encoded."""
    write_png(tmp_path / "who.png", np.full((40, 80, 3), 90, np.uint8))
    nano, contexts, encode = nano_of("one-way"), [], Nano.encode

    def watched(*given):
        assert not any(context() for context in contexts)
        cond = encode(*given)
        contexts.append(weakref.ref(cond.context))
        return cond

    monkeypatch.setattr(Nano, "encode", watched)
    animate(
        reference=tmp_path / "who.png", driving=film(tmp_path / "driving.mp4", 30, 12),
        out=tmp_path / "out.mp4", backbone=nano, prompt="a fox", guidance=3, threads=1,
    )  # fmt: skip
    assert len(contexts) == 3


# ---- files -------------------------------------------------------------------------------------


def nano_folder(folder, mode):
    """Weights of nano whose header names a mode."""
    folder.mkdir(exist_ok=True)
    files, path = save(tiny_nano(), folder), folder / "transformer.safetensors"
    header = {"model": "nano", "config": asdict(TINY), "predicts": "latents", "attention": mode}
    files[path.name] = save_weights(path, tiny_nano().transformer.state_dict(), header)
    manifest = {"files": files, "native": asdict(NATIVE)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_nano_runs_in_the_mode_of_its_weights(tmp_path):
    """exact, to be animated or trained; refuses: a mode that there is not."""
    for mode in ONE_WAY:
        model = load_backbone("nano", nano_folder(tmp_path / mode, mode))
        assert isinstance(model, Nano)
        assert mode_of(model.transformer) == mode
        trainee = load_trainee("nano", tmp_path / mode / "transformer.safetensors")
        assert mode_of(trainee.transformer) == mode
    assert mode_of(load_nano().transformer) == "one-way-aligned"  # what ships
    with pytest.raises(WeightsError, match=r"attention 'odd', want full or one-way or one-way-al"):
        load_backbone("nano", nano_folder(tmp_path / "odd", "odd"))


def test_nano_runs_in_the_mode_of_its_adapter(tmp_path):
    """exact: as the adapter was trained, whatever the weights beneath it."""
    folder = nano_folder(tmp_path, "full")
    digest = json.loads((folder / "manifest.json").read_text())["files"]["transformer.safetensors"]
    transformer, info = TINY.build(), AdapterInfo("rgb", "nano", digest, 2, attention="one-way")
    attach(transformer, info)
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, adapter_state(transformer), info)
    model = load_backbone("nano", folder, adapter=path, options=Options(cache_dtype="int8"))
    assert isinstance(model, Nano)
    assert mode_of(model.transformer) == "one-way"
    assert model.keeping == Keeping("device", "int8")
    assert model.adapter is not None
    assert model.adapter["attention"] == "one-way"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(cache="device", cache_dtype="int8"), "attention full, of which nothing can be"),
        (Options(cache_holds="states"), "attention full, of which nothing can be kept"),
        (Options(cache="host"), "cache=host: wants --device cuda"),
    ],
)
def test_refuses_a_cache_of_nothing(options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        load_backbone("nano", nano_folder(tmp_path, "full"), options=options)


def test_refuses_words_that_are_none():
    for field in ("cache", "cache_dtype", "cache_holds"):
        with pytest.raises(ConfigError, match=f"{field}='odd': want"):
            Options(**{field: "odd"})
    with pytest.raises(ConfigError, match="attention='odd': want full or one-way"):
        AdapterInfo("rgb", "nano", "f" * 64, attention="odd")


def wan_adapter(path, folder, mode):
    """An adapter of Wan that was trained in a mode."""
    wan, info = load_wan(NAME, folder), AdapterInfo("rgb", NAME, "f" * 64, 2, attention=mode)
    for expert in wan.experts.values():
        attach(expert, info)
    save_layers(path, wan.experts, info)
    return path


def test_wan_is_loaded_in_the_mode_of_its_adapter(tmp_path):
    """exact; refuses: to swap it for one of another mode."""
    folder = wan_folder.write(tmp_path / "wan")
    one_way = wan_adapter(tmp_path / "one_way.safetensors", folder, "one-way")
    full = wan_adapter(tmp_path / "full.safetensors", folder, "full")
    wan = load_backbone(NAME, folder, adapter=one_way, options=Options(cache_holds="states"))
    assert isinstance(wan, Wan)
    assert wan.mode == "one-way"
    assert wan.keeping.holds == "states"
    swap(wan, one_way)
    with pytest.raises(WeightsError, match=r"'full', here wan2.1\S+ has 'one-way'; want it loaded"):
        swap(wan, full)
    plain = load_backbone(NAME, folder, adapter=full)
    assert isinstance(plain, Wan)
    assert plain.mode == "full"
    with pytest.raises(WeightsError, match=r"trained with attention 'one-way', here wan\S+ has 'f"):
        swap(plain, one_way)
    with pytest.raises(ConfigError, match="cache=none: with attention one-way and offload=group"):
        load_wan(NAME, folder, "cpu", Options(cache="none", offload="group"), "one-way")


def test_the_trainer_s_way_of_asking():
    """exact: `set_mode`, then the call as ever; latents come out where they were given."""
    nano = nano_of("one-way-aligned")
    latents, sigma = draws(2, 8, 5, 8, 16), torch.tensor([1.0, 0.4])
    cond = nano_module.Cond(
        draws(2, 8, 5, 8, 16, seed=4), torch.ones(2, 4, 5, 8, 16), draws(2, 32, 384)
    )
    inputs = nano_module.inputs_of(latents, sigma, cond)
    found = nano.transformer(**inputs, return_dict=False)[0]
    assert torch.equal(found, nano_module.predict(nano.transformer, latents, sigma, cond))
    assert torch.equal(reference_half(found)[:, :, 0], reference_half(cond.latents)[:, :, 0])
    assert torch.equal(motion_half(found), motion_half(cond.latents))


def test_refuses_an_adapter_in_a_mode_that_its_backbone_cannot_have(tmp_path):
    """refuses: HunyuanVideo-1.5's transformer is another."""
    info = AdapterInfo("rgb", "hunyuan", "f" * 64, 2, attention="one-way")
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, {}, info)
    other = SimpleNamespace(name="hunyuan", transformer=torch.nn.Linear(1, 1), weights={})
    with pytest.raises(
        WeightsError, match="trained with attention 'one-way'; hunyuan has only ful"
    ):
        adapt(other, path)
