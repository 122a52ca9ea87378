"""Ways to bring the driver in besides the canvas: what each starts as, sees, learns and keeps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from dreamactor.backbones.base import Cond, Native
from dreamactor.backbones.catalogue import Injection, Mode
from dreamactor.backbones.headers import read_header
from dreamactor.backbones.incontext import mode_of, set_mode
from dreamactor.backbones.injection import BESIDE, injected, injection_of, set_injection
from dreamactor.backbones.load import load_backbone
from dreamactor.backbones.lora import (
    AdapterInfo,
    adapt,
    adapter_state,
    attach,
    load_adapter,
    read_info,
    save_adapter,
)
from dreamactor.backbones.nano import DATA, Nano, NanoConfig, load_trainee, predict
from dreamactor.backbones.nano_vae import NanoVAE, NanoVAEConfig
from dreamactor.backbones.weights import load_weights, save_weights
from dreamactor.conditioning.canvas import motion_half, reference_half
from dreamactor.errors import ConfigError, WeightsError
from dreamactor.provenance import sha256
from dreamactor.training.adapt import train_adapter
from dreamactor.training.cache import CacheHeader, open_cache, shard_path, write_examples
from dreamactor.training.plan import plan
from dreamactor.training.stage import AdaptConfig, RgbConfig

OTHERS: Sequence[Injection] = ("temporal", "channel", "cross-attention")
NEW: Sequence[Injection] = ("channel", "cross-attention")
"""Those with layers of their own."""
TINY = NanoVAEConfig(4, (8, 8, 8), (1, 1, 1), (8, 8, 8, 8), (1, 1, 1, 1))
SHAPE = NanoConfig(2, 1, 16, 32, 4)
NANO = NanoConfig(**read_header(DATA / "transformer.safetensors")["config"])
"""What ships."""
NATIVE = Native(32, 32, 12.0, 9, 4, 2, 3.0, 1.0)
pytestmark = pytest.mark.usefixtures("one_thread")


def _draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _network(injection: Injection = "canvas") -> WanTransformer3DModel:
    torch.manual_seed(0)
    transformer = SHAPE.build()
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.1)
    set_injection(transformer, injection)
    return transformer


def _ask(transformer: WanTransformer3DModel, canvas: Tensor) -> Tensor:
    """What is predicted of a network input (2, 12, F, h, ...)."""
    with torch.no_grad():
        found: Tensor = transformer(
            hidden_states=canvas,
            timestep=torch.tensor([500.0, 900.0]),
            encoder_hidden_states=_draws(2, 3, 384, seed=7),
            return_dict=False,
        )[0]
    return found


def _canvas(seed: int = 0, motion: int = 1) -> Tensor:
    """(2, 12, 3, 4, 8) noise | mask | canvas, the driver where noise would be too."""
    own, driver = _draws(2, 12, 3, 4, 4, seed=seed), _draws(2, 4, 3, 4, 4, seed=motion)
    beside = torch.cat([driver, torch.ones(2, 4, 3, 4, 4), driver], dim=1)
    return torch.cat([own, beside], dim=4)


# ---- what each way is ---------------------------------------------------------------------------


@pytest.mark.parametrize("injection", NEW)
def test_new_layers_start_as_the_base_with_one_half(injection: Injection) -> None:
    """exact: with an adapter that has learnt nothing, the base on the reference half alone."""
    canvas, transformer = _canvas(), _network()
    expected = _ask(transformer, reference_half(canvas))
    info = AdapterInfo("rgb", "nano", "f" * 64, 4, injection=injection)
    trained = attach(transformer, info)
    found = _ask(transformer, canvas)
    assert found.shape == (2, 4, 3, 4, 8)
    assert torch.equal(reference_half(found), expected)
    assert torch.equal(motion_half(found), motion_half(canvas[:, -4:]))
    new = injected(transformer)
    assert len(trained) == 4 * SHAPE.layers + len(new)
    assert {id(p) for p in new.values()} <= {id(p) for p in trained}
    frozen = {id(p) for p in transformer.parameters()} - {id(p) for p in trained}
    assert len(frozen) == len(list(_network().parameters()))


def test_in_time_the_driver_s_frames_come_after_the_reference_s() -> None:
    """exact: diffusers' own forward on six frames where the canvas has three, laid back."""
    canvas = _canvas()
    long = torch.cat([reference_half(canvas), motion_half(canvas)], dim=2)
    expected = _ask(_network(), long)
    transformer = _network("temporal")
    found = _ask(transformer, canvas)
    assert torch.equal(reference_half(found), expected[:, :, :3])
    assert torch.equal(motion_half(found), expected[:, :, 3:])
    assert not injected(transformer)
    assert (found - _ask(_network(), canvas)).abs().max() > 1e-3  # not what the canvas gives


def test_overlaid_halves_have_the_same_positions() -> None:
    """exact: those that the base has for one half; so halves that change places are foreseen alike,
    each where it is then."""
    canvas, transformer = _canvas(), _network("overlaid")
    for found, one in zip(
        transformer.rope(canvas), _network().rope(reference_half(canvas)), strict=True
    ):
        rows = found.unflatten(1, (3, 2, 4))
        assert torch.equal(rows[:, :, :, :2].flatten(1, 3), one)
        assert torch.equal(rows[:, :, :, 2:].flatten(1, 3), one)
    other = torch.cat([canvas[..., 4:], canvas[..., :4]], dim=4)
    expected, changed = _ask(transformer, canvas), _ask(transformer, other)
    assert_close(torch.cat([changed[..., 4:], changed[..., :4]], dim=4), expected)
    assert not injected(transformer)
    beside = _network()
    expected, changed = _ask(beside, canvas), _ask(beside, other)
    assert (torch.cat([changed[..., 4:], changed[..., :4]], dim=4) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("mode", get_args(Mode))
def test_overlaid_is_not_the_canvas_in_any_mode(mode: Mode) -> None:
    found = []
    for injection in BESIDE:
        transformer = _network()
        set_mode(transformer, mode)
        set_injection(transformer, injection)
        assert mode_of(transformer) == mode
        found.append(reference_half(_ask(transformer, _canvas())))
    assert (found[0] - found[1]).abs().max() > 1e-3


@pytest.mark.parametrize("injection", [*OTHERS, "overlaid"])
def test_the_target_is_driven(injection: Injection) -> None:
    """sees: the driver, each clip its own, and where its parts are."""
    transformer = _network(injection)
    for parameter in injected(transformer).values():
        torch.nn.init.normal_(parameter, std=0.5)
    found, other = (reference_half(_ask(transformer, _canvas(motion=m))) for m in (1, 2))
    assert (found - other).abs().amax(dim=(1, 2, 3, 4)).min() > 1e-3
    mixed = torch.cat([_canvas()[:1], _canvas(motion=2)[1:]])
    assert_close(reference_half(_ask(transformer, mixed)), torch.cat([found[:1], other[1:]]))
    turned = _canvas()
    turned[:, :, :, :, 4:] = turned[:, :, :, :, 4:].flip(2)  # the same frames, backwards
    assert (reference_half(_ask(transformer, turned)) - found).abs().max() > 1e-3


def test_channels_are_added_in_their_own_places() -> None:
    """exact: tokens are the base's and the new embedding's of the same cells."""
    transformer, canvas = _network("channel"), _canvas()
    embedding = transformer.patch_embedding
    torch.nn.init.normal_(embedding.injected.weight)
    seen: list[Tensor] = []
    transformer.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    _ask(transformer, canvas)
    own = _network().patch_embedding(reference_half(canvas))
    driver = embedding.injected(motion_half(canvas[:, -4:]))
    assert_close(seen[0], (own + driver).flatten(2).transpose(1, 2))


@pytest.mark.parametrize("injection", OTHERS)
def test_activations_computed_twice_give_the_same_gradients(injection: Injection) -> None:
    """unchanged by: checkpoints; and every number that may learn gets a gradient."""
    found = []
    for checkpoint in (False, True):
        transformer = _network()
        attach(transformer, AdapterInfo("rgb", "nano", "f" * 64, 4, injection=injection))
        generator = torch.Generator().manual_seed(2)
        trained = {n: p for n, p in transformer.named_parameters() if p.requires_grad}
        for parameter in trained.values():
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
        if checkpoint:
            transformer.enable_gradient_checkpointing()
        out = transformer(_canvas(), torch.tensor([500.0, 900.0]), _draws(2, 3, 384), None, False)
        reference_half(out[0]).square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in trained.values())
        found.append({name: p.grad for name, p in trained.items()})
    assert_close(found[1], found[0])


def test_the_page_s_numbers_are_those_of_nano() -> None:
    """exact: new numbers, and operations of a step over those of the canvas, by torch's counter."""
    ways = ((way, "full") for way in ("canvas", *OTHERS))
    modes: list[tuple[Injection, Mode]] = [*ways, ("canvas", "one-way-aligned")]
    whole, half = [1, 1, 0.40, 0.54, 0.81], [1, 1, 0.47, 0.56, 0.92]  # scripts/claims.sh has both
    for side, wanted in ((32, whole), (16, half)):
        costs = []
        for injection, attention in modes:
            two, three = (_operations(injection, attention, layers, side) for layers in (2, 3))
            costs.append(two + (NANO.layers - 2) * (three - two))  # each block as the one before
        assert [round(cost / costs[0], 2) for cost in costs] == wanted
    for injection, count in zip(NEW, (98_688, 3_651_456), strict=True):
        with torch.device("meta"):
            transformer = NANO.build()
            set_injection(transformer, injection)
        assert sum(p.numel() for p in injected(transformer).values()) == count
    page = (Path(__file__).parent.parent / "docs" / "recipe.md").read_text()
    for line in ("| - | 2,560 | 1 (one-way-aligned: .81) |", "| 98,688 | 1,280 | .40 |"):
        assert line in page
    assert "| 3,651,456 | 1,280, and 1,280 that are read | .54 |" in page


def _operations(injection: Injection, attention: Mode, layers: int, side: int) -> int:
    """Of a step over one example of side x side cells, of nano with so many blocks."""
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH):
        transformer = replace(NANO, layers=layers).build()
        set_mode(transformer, attention)
        info = AdapterInfo("rgb", "nano", "", 256, attention=attention, injection=injection)
        attach(transformer, info)
        transformer.enable_gradient_checkpointing()
        with FlopCounterMode(display=False) as count:
            canvas, text = torch.empty(1, 132, 5, side, 2 * side), torch.empty(1, 32, 384)
            found = transformer(canvas, torch.empty(1), text, None, return_dict=False)[0]
            reference_half(found).sum().backward()
    return count.get_total_flops()


# ---- runs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights of an image-to-video model, and a cache whose driver tells the target."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    vae = folder / "vae.safetensors"
    header = {"model": "nano-vae", "config": vars(TINY)}
    digests = {vae.name: save_weights(vae, NanoVAE(TINY).state_dict(), header)}
    base, name = _network(), "transformer.safetensors"
    header = {"model": "nano", "config": vars(SHAPE), "predicts": "latents", "task": "video"}
    digests[name] = save_weights(folder / name, base.state_dict(), header)
    manifest = {"files": digests, "native": asdict(NATIVE)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    cache = CacheHeader("rgb", "nano", digests[vae.name], 12.0, {})
    open_cache(folder / "rgb", cache)
    motion = _draws(8, 4, 3, 4, 4)
    tensors = {"target": -motion, "motion": motion, "text": _draws(8, 2, 384)}
    write_examples(shard_path(folder / "rgb", 0), [str(k) for k in range(8)], tensors)
    return folder


def _config(files: Path, **changes: object) -> RgbConfig:
    config = RgbConfig(
        cache=files / "rgb",
        base=files / "transformer.safetensors",
        vae=files / "vae.safetensors",
        start=None,
        rank=4,
        steps=2,
        rate=1e-2,
        warmup=1,
        average=0.5,
        held=4,
        log_every=1,
        look_every=100,
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def _lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").open()]


@pytest.mark.parametrize(
    ("injection", "attention"),
    [*((way, "full") for way in OTHERS), ("overlaid", "one-way-aligned"), ("overlaid", "full")],
)
def test_what_a_run_writes_is_what_animates(
    files: Path, tmp_path: Path, injection: Injection, attention: Mode
) -> None:
    """same: the adapter's way from its header alone, and what the training network predicts."""
    stated = attention if injection == "overlaid" and attention == "full" else None
    config = _config(files, injection=injection, attention=stated)
    path = train_adapter(config, "rgb", tmp_path / "run")
    assert (read_info(path).injection, read_info(path).attention) == (injection, attention)
    x, latents = _draws(2, 4, 3, 4, 8), _draws(2, 4, 3, 4, 8, seed=3)
    x[..., 4:] = latents[..., 4:]
    cond, sigma = Cond(latents, torch.ones(2, 4, 3, 4, 8), _draws(2, 3, 384)), torch.ones(2)

    trainee = load_trainee(files / "transformer.safetensors")
    set_mode(trainee.transformer, attention)
    load_adapter(trainee.transformer, path, "nano", trainee.weights)
    model = load_backbone("nano", files, adapter=path)
    assert isinstance(model, Nano)
    assert injection_of(model.transformer) == injection
    assert model.adapter is not None
    assert model.adapter["injection"] == injection
    with torch.no_grad():
        trained = predict(trainee.transformer, x, sigma, cond)
        found = predict(model.transformer, x, sigma, cond)
    assert_close(found, trained, atol=1e-5, rtol=1e-4)
    assert not any(p.requires_grad for p in model.transformer.parameters())

    written = load_weights(path)[0]
    new = injected(model.transformer)
    assert {name for name in written if ".lora_" not in name} == new.keys()
    if new:
        assert all(written[n].any() for n in new if "injected.to_v" in n or "embedding" in n)
    counted = [line["trained"] for line in _lines(tmp_path / "run") if "trained" in line]
    assert counted == 2 * [sum(value.numel() for value in written.values())]


@pytest.mark.parametrize("injection", [*OTHERS, "overlaid"])
def test_a_run_learns_from_the_driver(files: Path, tmp_path: Path, injection: Injection) -> None:
    """What is missed of the target falls; the next stage starts where this one ended."""
    config = _config(files, steps=30, injection=injection, look_every=30, pure=1.0, rank=8)
    path = train_adapter(config, "rgb", tmp_path / "run")
    losses = [line["loss"] for line in _lines(tmp_path / "run") if "loss" in line]
    assert sum(losses[-10:]) < 0.97 * sum(losses[:10])
    looks = [line for line in _lines(tmp_path / "run") if "missed_1" in line]
    assert looks[-1]["missed_1"] < looks[0]["missed_1"]
    if injection in NEW:  # a network this small, its attention random, hardly looks ahead in time
        assert looks[-1]["swapped_1"] > looks[-1]["missed_1"]
    again = replace(config, start=path, steps=1, rate=0.0)
    second = train_adapter(again, "rgb", tmp_path / "on")
    first, other = (load_weights(file)[0] for file in (path, second))
    assert first.keys() == other.keys()
    assert_close(other, first, atol=1e-3, rtol=1e-3)
    with pytest.raises(ConfigError, match=f"injection={injection}, here injection=canvas; want"):
        train_adapter(replace(again, injection="canvas"), "rgb", tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_run_from_before_goes_on(files: Path, tmp_path: Path) -> None:
    """exact: what makes a run of the canvas the same run names no injection."""
    train_adapter(_config(files, steps=1), "rgb", tmp_path / "run")
    assert "injection" not in json.loads((tmp_path / "run" / "config.json").read_text())
    with pytest.raises(ConfigError, match="another injection"):
        train_adapter(_config(files, steps=1, injection="temporal"), "rgb", tmp_path / "run")


def test_a_plan_has_mode_and_tokens_of_the_way(files: Path) -> None:
    """exact: 3 latent frames of 2 x 2 tokens a half."""
    ways = {"canvas": ("one-way-aligned", 24), "temporal": ("full", 24), "channel": ("full", 12)}
    ways["overlaid"] = ways["canvas"]
    for injection, (mode, tokens) in ways.items():
        lines = list(plan(_config(files, injection=injection)))
        assert {f"injection  {injection}", f"attention  {mode}"} <= set(lines)
        assert any(line.startswith(f"example    {tokens} tokens") for line in lines)


# ---- files and refusals -------------------------------------------------------------------------


def test_an_adapter_that_names_no_way_is_of_the_canvas(files: Path, tmp_path: Path) -> None:
    """same: as one that names it."""
    transformer, digest = _network(), sha256(files / "transformer.safetensors")
    info = AdapterInfo("rgb", "nano", digest, 4)
    for parameter in attach(transformer, info):
        torch.nn.init.normal_(parameter, std=0.1)
    path, header = tmp_path / "old.safetensors", {"model": "adapter", **asdict(info)}
    assert header.pop("injection") == "canvas"
    save_weights(path, adapter_state(transformer), header)
    assert read_info(path) == info
    model = load_backbone("nano", files, adapter=path)
    assert isinstance(model, Nano)
    assert type(model.transformer) is WanTransformer3DModel
    assert_close(
        _ask(model.transformer, _canvas()), _ask(transformer, _canvas()), atol=2e-3, rtol=0
    )


@pytest.mark.parametrize("injection", NEW)
def test_layers_that_are_missing_or_do_not_fit_are_refused(
    tmp_path: Path, injection: Injection
) -> None:
    transformer, path = _network(), tmp_path / "adapter.safetensors"
    info = AdapterInfo("rgb", "nano", "f" * 64, 4, injection=injection)
    attach(transformer, info)
    state = adapter_state(transformer)
    name = next(iter(injected(transformer)))
    save_adapter(path, {k: v for k, v in state.items() if k != name}, info)
    with pytest.raises(WeightsError, match="its layers are not those of nano"):
        load_adapter(_network(), path, "nano", "f" * 64)
    save_adapter(path, {**state, name: torch.zeros(3)}, info)
    with pytest.raises(WeightsError, match="its layers do not fit nano"):
        load_adapter(_network(), path, "nano", "f" * 64)
    save_adapter(path, state, replace(info, injection="canvas"))
    with pytest.raises(WeightsError, match="its layers"):
        load_adapter(_network(), path, "nano", "f" * 64)


@pytest.mark.parametrize("injection", OTHERS)
def test_refuses_what_does_not_go_with_it(files: Path, injection: Injection) -> None:
    """refuses: other backbones, one-way attention, noise on the driver, and no adapter."""
    for changes, message in (
        ({"backbone": "wan2.1-i2v-14b-480p"}, "want backbone=nano, or injection=canvas"),
        ({"attention": "one-way-aligned"}, "attention=one-way-aligned: want attention=full"),
        ({"motion": "noised"}, "motion=noised: want motion=clean"),
        ({"targets": "full"}, "targets=full: want targets=ff"),
    ):
        with pytest.raises(ConfigError, match=message):
            _config(files, injection=injection, **changes)
    with pytest.raises(ConfigError, match="want attention=full"):
        AdapterInfo("rgb", "nano", "f" * 64, attention="one-way", injection=injection)


def test_refuses_words_that_are_none_and_other_backbones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="injection='odd': want canvas or overlaid or"):
        AdapterInfo("rgb", "nano", "f" * 64, injection="odd")  # type: ignore[arg-type]
    info = AdapterInfo("rgb", "wan", "f" * 64, injection="channel")
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, {}, info)
    other = SimpleNamespace(
        name="wan", transformer=_network(), weights={"transformer.safetensors": "f" * 64}
    )
    with pytest.raises(WeightsError, match="trained with injection 'channel'; wan has only canvas"):
        adapt(other, path)


def test_overlaid_refuses_what_the_canvas_may_have(files: Path) -> None:
    """refuses: other backbones, noise on the driver, and no adapter; not modes of attention."""
    for changes, message in (
        ({"backbone": "wan2.1-i2v-14b-480p"}, "want backbone=nano, or injection=canvas"),
        ({"motion": "noised", "attention": "full"}, "motion=noised: want motion=clean"),
        ({"targets": "full"}, "targets=full: want targets=ff"),
    ):
        with pytest.raises(ConfigError, match=message):
            _config(files, injection="overlaid", **changes)
    assert AdapterInfo("rgb", "nano", "f" * 64, attention="one-way", injection="overlaid").rank


def test_a_way_stands_on_full_attention_alone() -> None:
    transformer = _network()
    set_mode(transformer, "one-way")
    with pytest.raises(AssertionError):
        set_injection(transformer, "channel")
    assert AdaptConfig(cache=Path("a"), base=Path("b")).injection == "canvas"
