"""Large backbones, tiny and random: a cache by each one's own encoders, then both stages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import starting
import torch
from tiny_hunyuan import write_folder
from torch.testing import assert_close
from wan_folder import BOUNDARY, write

from dreamactor.backbones.catalogue import CATALOGUE, Options
from dreamactor.backbones.incontext import set_mode
from dreamactor.backbones.load import load_backbone, load_encoder, load_trainee
from dreamactor.backbones.lora import attach, read_info
from dreamactor.backbones.stacking import join
from dreamactor.backbones.weights import load_weights
from dreamactor.cli import main
from dreamactor.conditioning.canvas import build_canvas
from dreamactor.conditioning.skeleton import JOINTS, PoseTrack
from dreamactor.diffusion.flow import sample_sigma
from dreamactor.errors import ConfigError, WeightsError
from dreamactor.training.adapt import train_adapter
from dreamactor.training.cache import Cache
from dreamactor.training.encode import CacheConfig, fill_cache
from dreamactor.training.examples import lay_out
from dreamactor.training.stage import AdaptConfig, RgbConfig, draw, in_mode, mode_for, prepare
from dreamactor.video import write_clip

pytestmark = pytest.mark.usefixtures("one_thread")
WAN, WAN22, FUN, HUNYUAN = (
    "wan2.1-i2v-14b-480p",
    "wan2.2-i2v-a14b",
    "wan2.1-fun-1.3b-inp",
    "hunyuanvideo-1.5-480p-i2v",
)
NAMES = (WAN, WAN22, FUN, HUNYUAN)
SIZE, HEIGHT, WIDTH, FRAMES = "32x48", 48, 32, 9


class Finder:
    """A head and a neck that go to and fro."""

    name = "finder"
    weights: ClassVar = {"finder.onnx": "0" * 64}

    def __call__(self, frames: np.ndarray, fps: float) -> object:
        positions = np.zeros((len(frames), 1, len(JOINTS), 2), np.float32)
        confidence = np.zeros(positions.shape[:-1], np.float32)
        for joint, down in enumerate((0.2, 0.9)):
            positions[:, 0, joint, 0] = np.linspace(0.2, 0.8, len(frames)) * WIDTH
            positions[:, 0, joint, 1] = down * HEIGHT
            confidence[:, 0, joint] = 1
        return PoseTrack(JOINTS, positions, confidence, HEIGHT, WIDTH, fps)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    one = write(root / "one")
    two = write(root / "two", clip=False, experts=2)
    return {WAN: one, FUN: one, WAN22: two, HUNYUAN: write_folder(root / "hunyuan")}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of 2.5 s, one of them with a caption."""
    folder = tmp_path_factory.mktemp("clips")
    for seed, name in enumerate(("a", "b")):
        rng = np.random.default_rng(seed)
        pictures = np.empty((60, HEIGHT, WIDTH, 3), np.uint8)
        pictures[:] = rng.integers(0, 256, 3)
        for k, picture in enumerate(pictures):
            picture[k % 30 : k % 30 + 16, 4:20] = rng.integers(0, 256, 3)
        write_clip(folder / f"{name}.mp4", list(pictures), 24)
    (folder / "b.txt").write_text('a "red" square falls\n')
    return folder


@pytest.fixture(scope="module")
def caches(
    folders: dict[str, Path], clips: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Of every backbone, by the command."""
    root, made = tmp_path_factory.mktemp("caches"), {}
    patch = pytest.MonkeyPatch()
    patch.setattr("dreamactor.backbones.load.load_estimator", lambda *a, **k: Finder())
    for name in NAMES:
        made[name] = root / name
        words = [f"backbone={name}", f"weights={folders[name]}", f"clips={clips}", "lead=0.1"]
        words += [f"size={SIZE}", f"frames={FRAMES}"]
        command = ["dreamactor", "train", "cache", "--task", "pose", "--out", str(made[name])]
        patch.setattr(sys, "argv", [*command, *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code in (0, None)
    patch.undo()
    return made


def _config(name: str, folders: dict[str, Path], caches: dict[str, Path], **more: object):
    expert = "high" if name == WAN22 else None
    config = AdaptConfig(
        cache=caches[name],
        base=folders[name],
        backbone=name,
        expert=expert,
        rank=4,
        steps=2,
        batch=1,
        rate=1e-2,
        warmup=1,
        held=4,
        log_every=1,
        look_every=100,
    )
    return replace(config, **more)


def _losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    return [row["loss"] for row in rows if "loss" in row]


# ---- caches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_laid_out_as_at_inference(name, folders, caches):
    """same: a canvas from the cache is the canvas that `animate` encodes, text and image too."""
    cache = Cache(caches[name])
    assert cache.header.backbone == name
    assert cache.header.fps == CATALOGUE[name].native["fps"]
    assert cache.header.settings["estimator"] == {"name": "finder", "weights": Finder.weights}
    assert cache.header.settings["size"] == SIZE
    encoder = load_encoder(name, folders[name], "cpu", Options(size=SIZE, frames=FRAMES))
    backbone = load_backbone(name, folders[name], options=Options(size=SIZE, frames=FRAMES))
    assert not set(CATALOGUE[name].experts) & {k.split("/")[0] for k in encoder.weights}

    draws = torch.Generator().manual_seed(0)
    clip, driving = torch.rand(2, 1, 3, FRAMES, HEIGHT, WIDTH, generator=draws) * 2 - 1
    from dreamactor.training.encode import examples_of

    with torch.no_grad():
        text = encoder.encode_text(["a dog runs"])
        batch = examples_of(encoder, clip, driving, text)
        canvas = build_canvas(clip[:, :, 0], driving, backbone.grid)
        cond = backbone.encode(canvas, backbone.encode_text(["a dog runs"]))
    config = _config(name, folders, caches, no_text=0.0)
    drawn = draw(config, batch["target"], [0])
    made = lay_out(batch, drawn, "clean")
    assert_close(made.cond.latents, cond.latents.float(), atol=1e-5, rtol=1e-5)
    assert_close(made.cond.mask, cond.mask.float())
    assert_close(made.cond.text, cond.text)
    assert (made.cond.image is None) == (cond.image is None)
    if cond.image is not None:
        assert_close(made.cond.image, cond.image)
    trainee = load_trainee(name, folders[name], config.expert)
    with torch.no_grad():
        sigma = torch.tensor([0.95])
        expected = made.x - 0.95 * backbone.velocity(made.x, sigma, cond)
        found = trainee.predict(trainee.transformer, made.x, sigma, made.cond)
    assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", ["one-way", "one-way-aligned"])
def test_a_trainee_in_a_one_way_mode_is_what_animates(mode, folders, caches):
    """same: of the target what the sampler gets, with its empty prompt; what is given, exactly."""
    backbone = load_backbone(WAN, folders[WAN], options=Options(size=SIZE, frames=FRAMES))
    set_mode(backbone.pipe.transformer, mode)
    config, cache = _config(WAN, folders, caches, no_text=0.0), Cache(caches[WAN])
    batch = cache.batch([7])
    drawn = draw(config, batch["target"], [0])
    made = lay_out(batch, drawn, "clean")
    trainee = in_mode(load_trainee(WAN, folders[WAN]), mode, cache.silence)
    with torch.no_grad():
        expected = made.x - 0.95 * backbone.velocity(made.x, torch.tensor([0.95]), made.cond)
        found = trainee.predict(trainee.transformer, made.x, torch.tensor([0.95]), made.cond)
    half = found.shape[-1] // 2
    target = found[:, :, 1:, :, :half]
    assert_close(target, expected[:, :, 1:, :, :half], atol=1e-3, rtol=1e-3)
    assert torch.equal(found[..., half:], made.cond.latents[..., half:])
    assert torch.equal(found[:, :, 0], made.cond.latents[:, :, 0])


def test_only_what_can_be_is_trained_in_a_one_way_mode(folders, caches):
    """exact: the mode of each backbone; refuses: HunyuanVideo's in another than full."""
    for name in NAMES:
        config = _config(name, folders, caches)
        trainee = load_trainee(name, folders[name], config.expert)
        wanted = "full" if name == HUNYUAN else "one-way-aligned"
        assert mode_for(config, trainee) == wanted
    with pytest.raises(ConfigError, match=f"attention=one-way: {HUNYUAN} has only full"):
        mode_for(replace(config, attention="one-way"), trainee)


@pytest.mark.parametrize("name", NAMES)
def test_no_text_is_what_the_sampler_takes_for_it(name, folders, caches):
    """same: a silent example is asked with the states that guidance leads away from."""
    cache = Cache(caches[name])
    batch = cache.batch([0, 7])  # one without a caption, one with
    drawn = draw(_config(name, folders, caches, no_text=1.0), batch["target"], [0, 1])
    silent = lay_out(batch, drawn, "clean").cond.text
    encoder = load_encoder(name, folders[name], "cpu", Options(size=SIZE, frames=FRAMES))
    with torch.no_grad():
        nothing = encoder.encode_text([""])
    length = nothing.shape[1]
    assert_close(silent[:, :length], nothing.expand(2, -1, -1), atol=2e-3, rtol=2e-3)
    assert not silent[:, length:].any()
    said = lay_out(batch, replace(drawn, silent=torch.tensor([False, False])), "clean").cond.text
    assert said[1].any()
    assert not torch.equal(said[1], said[0])


def test_another_estimator_or_backbone_refuses_to_go_on(folders, clips, caches, monkeypatch):
    """refuses: other weights of who finds the joints, under the same name."""
    other = Finder()
    other.weights = {"finder.onnx": "1" * 64}
    monkeypatch.setattr("dreamactor.backbones.load.load_estimator", lambda *a, **k: other)
    config = CacheConfig(
        backbone=WAN, weights=folders[WAN], clips=clips, lead=0.1, size=SIZE, frames=FRAMES
    )
    with pytest.raises(ConfigError, match="made with another estimator"):
        fill_cache(config, "pose", caches[WAN], "cpu")
    with pytest.raises(ConfigError, match=f"latents of {WAN} .*want {FUN}'s"):
        train_adapter(_config(FUN, folders, {FUN: caches[WAN]}), "pose", caches[WAN] / "run")


# ---- runs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_train_feed_forward_layers_alone(name, folders, caches, tmp_path):
    """The command's path: finite losses; the file loads by name and changes what is predicted."""
    config = _config(name, folders, caches)
    path = train_adapter(config, "pose", tmp_path / "run")
    losses = _losses(tmp_path / "run")
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    looks = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    at = "0.7" if name == HUNYUAN else "1"
    assert {f"missed_{at}", f"swapped_{at}"} < looks[0].keys()
    layers = load_weights(path)[0]
    assert all(".lora_" in key and (".ffn." in key or ".ff." in key) for key in layers)
    assert any(value.any() for key, value in layers.items() if ".lora_B." in key)
    info = read_info(path)
    assert (info.backbone, info.variant, info.rank) == (name, "pose", 4)
    if name == WAN22:
        return  # it takes two, below
    options = Options(size=SIZE, frames=FRAMES)
    plain = load_backbone(name, folders[name], options=options)
    adapted = load_backbone(name, folders[name], adapter=path, options=options)
    assert adapted.variant == "pose"
    assert adapted.lead == info.lead
    _differ(plain, adapted, 0.95)


def _differ(plain, adapted, sigma: float) -> None:
    draws = torch.Generator().manual_seed(0)
    clip, driving = torch.rand(2, 1, 3, FRAMES, HEIGHT, WIDTH, generator=draws) * 2 - 1
    with torch.no_grad():
        canvas = build_canvas(clip[:, :, 0], driving, plain.grid)
        cond = plain.encode(canvas, plain.encode_text(["a dog runs"]))
        x = torch.randn(cond.latents.shape, generator=draws)
        one, two = (b.velocity(x, torch.tensor([sigma]), cond) for b in (plain, adapted))
    assert not torch.allclose(one, two, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_adapter_and_nothing_else(name, folders, caches):
    """exact: after one backward pass every layer of the adapter has one, no frozen weight has."""
    config = _config(name, folders, caches)
    cache = Cache(config.cache)
    trainee = load_trainee(name, folders[name], config.expert)
    prepare(trainee, config, cache.header, "0" * 16)
    batch = cache.batch([0])
    drawn = draw(config, batch["target"], [0], trainee.levels)
    made = lay_out(batch, drawn, "clean")
    trainee.transformer.enable_gradient_checkpointing()
    trainee.predict(trainee.transformer, made.x, drawn.sigma, made.cond).square().mean().backward()
    named = dict(trainee.transformer.named_parameters())
    with_gradient = {name for name, p in named.items() if p.grad is not None}
    assert with_gradient == {name for name in named if ".lora_" in name}
    assert with_gradient
    assert all(".ffn." in name or ".ff." in name for name in with_gradient)


def test_each_expert_learns_at_its_own_noise_and_both_are_joined(folders, caches, tmp_path):
    """The two of Wan 2.2: levels above and below the boundary, one file of both in the end."""
    made = {}
    for expert in ("high", "low"):
        config = _config(WAN22, folders, caches, expert=expert)
        made[expert] = train_adapter(config, "pose", tmp_path / expert)
        trainee = load_trainee(WAN22, folders[WAN22], expert)
        drawn = draw(config, torch.zeros(200, 1, 3, 1, 1), list(range(200)), trainee.levels)
        low, high = (0.0, BOUNDARY) if expert == "low" else (BOUNDARY, 1.0)
        assert trainee.levels == (low, high)
        assert drawn.sigma.min() >= low
        assert drawn.sigma.max() <= high
    assert read_info(made["high"]).weights != read_info(made["low"]).weights
    both = tmp_path / "both.safetensors"
    join(made["high"], made["low"], both)
    options = Options(size=SIZE, frames=FRAMES)
    plain = load_backbone(WAN22, folders[WAN22], options=options)
    adapted = load_backbone(WAN22, folders[WAN22], adapter=both, options=options)
    for sigma in (0.95, 0.5):
        _differ(plain, adapted, sigma)
    with pytest.raises(WeightsError, match="layers of another transformer"):
        join(made["low"], made["high"], both)
    with pytest.raises(WeightsError, match=r"layers of transformer, .*want all"):
        load_backbone(WAN22, folders[WAN22], adapter=made["high"], options=options)
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(made["high"], folder / "transformer.safetensors")
    shutil.copy(made["low"], folder / "transformer_2.safetensors")
    again = load_backbone(WAN22, folders[WAN22], adapter=folder, options=options)
    _differ(plain, again, 0.5)


def test_levels_of_an_expert_keep_their_shape():
    """same: as the levels of all draws that lie within, by their quartiles."""
    u = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    every = sample_sigma(u, 6.0)
    quarters = torch.tensor([0.25, 0.5, 0.75])
    for low, high in ((0.9, 1.0), (0.0, 0.9)):
        mine = every[(every >= low) & (every <= high)]
        found = sample_sigma(u, 6.0, (low, high))
        assert_close(found.quantile(quarters), mine.quantile(quarters), atol=3e-3, rtol=0)


@pytest.mark.parametrize("name", [WAN, HUNYUAN])
def test_a_run_goes_on_and_the_second_stage_starts_from_the_first(name, folders, caches, tmp_path):
    """unchanged by: an end after two of four steps; step 0 of stage 2 is the adapter given."""
    whole = _config(name, folders, caches, steps=4)
    train_adapter(whole, "pose", tmp_path / "whole")
    broken = _Stops(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dreamactor.training.adapt._Run._log", broken)
        patch.setattr("dreamactor.training.adapt._Run._agree", lambda self, flag: broken.saves)
        with pytest.raises(KeyboardInterrupt):
            train_adapter(whole, "pose", tmp_path / "parts")
    path = train_adapter(whole, "pose", tmp_path / "parts")
    assert _losses(tmp_path / "parts")[-2:] == _losses(tmp_path / "whole")[-2:]
    first, second = (
        load_weights(tmp_path / r / "adapter.safetensors")[0] for r in ("whole", "parts")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    header = json.loads((caches[name] / "cache.json").read_text())
    rgb = tmp_path / "rgb_cache"
    shutil.copytree(caches[name], rgb)
    (rgb / "cache.json").write_text(json.dumps({**header, "task": "rgb"}))
    settings = {**vars(whole), "cache": rgb, "start": path, "steps": 1, "rate": 0.0}
    later = train_adapter(RgbConfig(**settings), "rgb", tmp_path / "rgb")
    assert read_info(later).variant == "rgb"
    for key, value in load_weights(later)[0].items():
        assert_close(value, second[key], atol=1e-3, rtol=1e-3)


class _Stops:
    """In the log's place: ends the run at a step, once the state has been written."""

    def __init__(self, step: int) -> None:
        self.step, self.saves = step, False

    def __get__(self, run: object, kind: type) -> object:
        def log(loss: torch.Tensor) -> None:
            if run.step == self.step:  # type: ignore[attr-defined]
                run._save()  # type: ignore[attr-defined]
                raise KeyboardInterrupt

        return log


def test_adapters_stay_float32_on_a_base_of_bfloat16(folders):
    """exact: steps of 5e-5 would be lost in bfloat16."""
    trainee = load_trainee(WAN, folders[WAN])
    transformer = trainee.transformer.to(torch.bfloat16)
    from dreamactor.backbones.lora import AdapterInfo

    trained = attach(transformer, AdapterInfo("rgb", WAN, trainee.weights, rank=4))
    assert {p.dtype for p in trained} == {torch.float32}
    assert {p.dtype for p in transformer.blocks.parameters() if not p.requires_grad} == {
        torch.bfloat16
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": WAN22, "expert": None}, "two transformers: want expert=high or expert=low"),
        ({"backbone": WAN, "expert": "low"}, "expert=low: .* has one transformer; leave it out"),
        ({"backbone": WAN, "expert": None, "targets": "full"}, "targets=full: only nano"),
        ({"backbone": WAN, "expert": None, "precision": "float32"}, "precision=float32: .*bf16"),
        ({"backbone": WAN, "expert": None, "continued": 0.2}, "want continued=0"),
        ({"backbone": WAN, "expert": None, "base": Path("gone")}, "gone: no such folder"),
    ],
)
def test_what_cannot_be_is_refused(change, message, folders, caches, tmp_path):
    config = replace(_config(change["backbone"], folders, caches), **change)
    with pytest.raises((ConfigError, WeightsError), match=message):
        train_adapter(config, "pose", tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---- processes --------------------------------------------------------------------------------


def _words(config: AdaptConfig, run: Path) -> list[str]:
    """The command of a run."""
    names = ("cache", "base", "backbone", "rank", "steps", "batch", "rate", "warmup", "held")
    names = (*names, "log_every", "look_every", "attention")
    words = [f"{name}={getattr(config, name)}" for name in names]
    return ["train", "pose", "--out", str(run), *words]


@pytest.mark.parametrize("how", ["ddp", "sharded"])
def test_two_processes_are_one_run(how, folders, caches, tmp_path):
    """unchanged by: a copy in each of two processes, or the network shared out to them."""
    mode = "full" if how == "sharded" else "one-way-aligned"  # which cannot be
    config = _config(WAN, folders, caches, steps=20, batch=2, look_every=10, attention=mode)
    train_adapter(config, "pose", tmp_path / "one")
    words = _words(config, tmp_path / "two")
    if how == "ddp":  # `accelerate launch --cpu` starts one process, whatever --num_processes says
        torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
        done = subprocess.run(
            [sys.executable, *torchrun, "-m", "dreamactor.cli", *words],
            env={**os.environ, **starting.ALONE}, capture_output=True, timeout=180, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    else:
        script = Path(__file__).parent / "sharded_run.py"
        starting.run_together([script, *words], tmp_path / "two.txt")
    one, two = (_losses(tmp_path / run) for run in ("one", "two"))
    assert len(one) == len(two) == 20
    assert_close(two, one, rtol=1e-3, atol=0)
    a, b = (load_weights(tmp_path / r / "adapter.safetensors")[0] for r in ("one", "two"))
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert_close(b[name], value, atol=1e-3, rtol=1e-3)
