"""Blocks that are skipped: diffusers' caches on nano and on Wan, in every mode of attention."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import wan_folder
from copycat import Copycat
from diffusers import FirstBlockCacheConfig, MagCacheConfig
from filming import film, frames_of
from PIL import Image
from test_nano import NATIVE, TINY_VAE
from test_wan import FRAMES, HEIGHT, NEGATIVE, PROMPT, WIDTH, canvas_of, draws, picture
from test_wan import NATIVE as WAN_NATIVE
from torch.testing import assert_close

from dreamactor.backbones.catalogue import Keeping
from dreamactor.backbones.feature_cache import (
    FeatureCache,
    Tally,
    at_work,
    check_loaded,
    measure_magnitudes,
    parse,
    skipping,
)
from dreamactor.backbones.incontext import set_mode
from dreamactor.backbones.nano import DATA, Nano, NanoConfig, load_nano
from dreamactor.backbones.nano_vae import NanoVAE
from dreamactor.backbones.wan import Wan
from dreamactor.bench import skips
from dreamactor.bench.evaluate import Record
from dreamactor.bench.motion import NanoBenchConfig
from dreamactor.bench.systems import Animation
from dreamactor.conditioning.canvas import build_canvas, first_frame, motion_half
from dreamactor.conditioning.framing import to_half
from dreamactor.diffusion.flow import schedule
from dreamactor.diffusion.job import AnimateConfig
from dreamactor.diffusion.pipeline import animate
from dreamactor.diffusion.sampler import beside, guided, sample_euler
from dreamactor.errors import ConfigError, WeightsError
from dreamactor.image import write_png

MODES = ("full", "one-way", "one-way-aligned")
PAIRS = [("nano", mode) for mode in MODES] + [("2.1", "full"), ("2.2", "one-way-aligned")]
STEPS, LAYERS = 6, 3
NEVER, ALWAYS = FeatureCache("first-block", 0.0), FeatureCache("first-block", float("inf"))
SOME = FeatureCache("first-block", 0.31)
RATIOS = [1.0, 1.1, 1.02, 0.97, 1.04, 0.95]

pytestmark = pytest.mark.usefixtures("one_thread")


def nano_of(mode, keeping=None):
    """Three blocks whose output is not zero."""
    torch.manual_seed(0)
    shape = NanoConfig(layers=LAYERS, heads=1, ffn=32, latent_channels=8)
    vae, transformer = NanoVAE(TINY_VAE), shape.build()
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    set_mode(transformer, mode)
    return Nano(vae, transformer, NATIVE, keeping=keeping or Keeping())


def wan_of(mode, kind="2.1"):
    wan = Wan("wan2.1-i2v-14b-480p", wan_folder.pipeline(kind == "2.1", int(kind[-1])), WAN_NATIVE)
    for expert in wan.experts.values():
        set_mode(expert, mode)
    return wan


def model_of(kind, mode):
    """A backbone, a canvas of two clips, and what is said and unsaid of them."""
    if kind == "nano":
        nano, clip = nano_of(mode), draws(2, 3, 17, 64, 64).clamp(-1, 1)
        canvas = build_canvas(clip[:, :, 0], clip, nano.grid, clip.flip(2)[:, :, 1:5])
        return nano, canvas, draws(2, 32, 384), draws(2, 32, 384, seed=9)
    wan = wan_of(mode, kind)
    with torch.no_grad():
        said, unsaid = wan.encode_text(["a bird", "a fox"]), wan.encode_text(["", "blurred"])
    return wan, canvas_of(2), said, unsaid


def of_clip(canvas, k):
    return replace(canvas, pixels=canvas.pixels[k : k + 1], mask=canvas.mask[k : k + 1])


def sampled(given, cache, guidance=5.0, clip=None, noise=None):
    """Latents as `pipeline.denoise` takes them, of both clips or one, and the block calls."""
    backbone, canvas, said, unsaid = given
    tally = Tally()
    if clip is not None:
        canvas, said, unsaid = of_clip(canvas, clip), said[[clip]], unsaid[[clip]]
    with torch.no_grad():
        cond = backbone.encode(canvas, said)
        motion = motion_half(cond.latents)
        if noise is None:
            noise = draws(2, *motion.shape[1:])
        noise = noise if clip is None else noise[[clip]]

        def toward(cond):
            return beside(lambda x, sigma: backbone.velocity(x, sigma, cond), motion)

        other = replace(cond, text=unsaid, branch="uncond")
        velocity = guided(toward(cond), toward(other), guidance)
        with skipping(cache, backbone, STEPS, tally):
            found = sample_euler(velocity, noise, schedule(STEPS, 3.0))
    return found, tally


def networks(backbone):
    return list(backbone.experts.values()) if isinstance(backbone, Wan) else [backbone.transformer]


def calls_of(backbone):
    """Counts of what each kind of layer computes: a feed-forward layer is called once a block."""
    counts = []
    for network in networks(backbone):
        for number, block in enumerate(network.blocks):
            block.ffn.register_forward_hook(
                lambda *_, number=number: counts.append(number)  # runs only if the block does
            )
    return counts


# ---- what it computes ----------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "mode"), PAIRS)
def test_a_share_of_zero_skips_nothing(kind, mode):
    """exact, clip by clip, guided, across the boundary of two experts; and off again after it."""
    given = model_of(kind, mode)
    for clip in range(2):
        expected, none = sampled(given, FeatureCache(), clip=clip)
        found, tally = sampled(given, NEVER, clip=clip)
        assert torch.equal(found, expected)
        assert none == Tally()
        assert tally == Tally(2 * STEPS * len(networks(given[0])[0].blocks), 0)
    assert not any(at_work(n) or n.is_cache_enabled for n in networks(given[0]))
    assert torch.equal(sampled(given, FeatureCache(), clip=1)[0], expected)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("mode", MODES)
def test_without_a_bound_all_blocks_run_at_the_first_step_alone(mode, guidance):
    """exact: counted in the blocks themselves, in each branch; the context's pass is apart."""
    given = model_of("nano", mode)
    backbone, canvas, said, _ = given
    ran, branches = calls_of(backbone), 1 if guidance == 1 else 2
    with torch.no_grad():
        backbone.encode(of_clip(canvas, 0), said[:1])
    context = len(ran)
    assert context == (0 if mode == "full" else LAYERS)
    ran.clear()
    _, tally = sampled(given, ALWAYS, guidance, clip=0)
    ran = ran[context:]
    assert ran.count(0) == branches * STEPS
    assert [ran.count(k) for k in range(1, LAYERS)] == [branches] * (LAYERS - 1)
    assert tally.calls == branches * STEPS * LAYERS
    assert tally.skipped == tally.calls - len(ran)


@pytest.mark.parametrize(("kind", "mode"), PAIRS)
def test_a_clip_is_unchanged_by_its_batch(kind, mode):
    """same: two clips that skip other steps, as each of them by itself."""
    given, noise = model_of(kind, mode), None
    if kind == "nano":  # clips apart, so that their steps differ
        noise = draws(2, 8, 5, 8, 8) * torch.tensor([1.0, 0.05]).view(2, 1, 1, 1, 1)
    both, tally = sampled(given, SOME, noise=noise)
    alone = [sampled(given, SOME, clip=k, noise=noise) for k in range(2)]
    assert_close(both, torch.cat([found for found, _ in alone]), atol=1e-5, rtol=1e-5)
    assert tally.skipped == sum(one.skipped for _, one in alone)
    assert 0 < tally.skipped < tally.calls
    assert (both - sampled(given, FeatureCache(), noise=noise)[0]).abs().max() > 1e-5
    if kind == "nano":
        assert alone[0][1] != alone[1][1]


@pytest.mark.parametrize("keeping", [Keeping("device", "int8"), Keeping("device", holds="states")])
def test_it_reads_a_context_however_that_is_kept(keeping):
    """exact: 8 bits and states, of one clip's part of two."""
    given = (nano_of("one-way-aligned", keeping), *model_of("nano", "full")[1:])
    both, alone = sampled(given, NEVER)[0], sampled(given, FeatureCache(), clip=1)[0]
    assert_close(both[1:], alone, atol=1e-5, rtol=1e-5)


def test_branches_of_guidance_have_states_of_their_own():
    """exact: with guidance 0 what the other branch computes does not count."""
    backbone, canvas, said, unsaid = model_of("nano", "one-way")
    away = sampled((backbone, canvas, said, unsaid), SOME, 0.0, clip=0)[0]
    alone = sampled((backbone, canvas, unsaid, unsaid), SOME, 1.0, clip=0)[0]
    assert torch.equal(away, alone)


@pytest.mark.parametrize("kind", ["2.1", "2.2"])
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 1e9])
@pytest.mark.parametrize("method", ["first-block", "magcache"])
def test_latents_equal_diffusers_with_its_cache(kind, threshold, method):
    """same: its image-to-video pipeline with `enable_cache`, guided, one expert and two."""
    wan = wan_of("full", kind)
    wan.magnitudes = RATIOS
    rule = {
        "first-block": FirstBlockCacheConfig(threshold=threshold),
        "magcache": MagCacheConfig(threshold, num_inference_steps=STEPS, mag_ratios=RATIOS),
    }[method]
    pipe, noise = wan.pipe, draws(1, 16, 3, HEIGHT // 8, WIDTH // 8)
    for expert in wan.experts.values():
        expert.enable_cache(rule)
    with torch.no_grad():
        theirs = pipe(
            image=Image.fromarray(picture()), prompt=PROMPT, negative_prompt=NEGATIVE,
            height=HEIGHT, width=WIDTH, num_frames=FRAMES, num_inference_steps=STEPS,
            guidance_scale=5.0, latents=noise, output_type="latent", return_dict=False,
        )[0]  # fmt: skip
    for expert in wan.experts.values():
        expert.disable_cache()
    canvas, tally = first_frame(to_half(picture())[None], FRAMES, wan.grid), Tally()
    with torch.no_grad():
        said = wan.encode(canvas, wan.encode_text([PROMPT]))
        unsaid = replace(said, text=wan.encode_text([NEGATIVE]), branch="uncond")
        velocity = guided(
            lambda x, sigma: wan.velocity(x, sigma, said),
            lambda x, sigma: wan.velocity(x, sigma, unsaid),
            5.0,
        )
        with skipping(FeatureCache(method, threshold), wan, STEPS, tally):
            ours = sample_euler(velocity, noise, pipe.scheduler.sigmas)
    assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert (tally.skipped > 0) == (threshold > 0.05)


@pytest.mark.parametrize("mode", MODES)
def test_magnitudes_say_which_steps_are_skipped(mode):
    """exact: none of the first fifth, three in a row at most, by all blocks; 0 skips nothing."""
    given = model_of("nano", mode)
    given[0].magnitudes = [1.0] * 32  # nothing ever changes
    _, tally = sampled(given, FeatureCache("magcache", 0.0), 1.0, clip=0)
    assert tally == Tally(STEPS * LAYERS, 4 * LAYERS)  # of steps 0 to 5 those but 0 and 4
    given[0].magnitudes = RATIOS
    found, tally = sampled(given, FeatureCache("magcache", 0.0), clip=0)
    assert tally == Tally(2 * STEPS * LAYERS, 0)
    assert torch.equal(found, sampled(given, FeatureCache(), clip=0)[0])
    both = sampled(given, FeatureCache("magcache", 0.15))[0]
    alone = sampled(given, FeatureCache("magcache", 0.15), clip=1)[0]
    assert_close(both[1:], alone, atol=1e-5, rtol=1e-5)


def test_magnitudes_are_those_of_what_blocks_add(capsys):
    """exact: taken from the blocks' inputs and outputs by hooks; and nothing is left behind."""
    given = model_of("nano", "full")
    backbone, added = given[0], []
    blocks = backbone.transformer.blocks
    before = blocks[0].register_forward_pre_hook(lambda _, args: added.append(args[0]))
    after = blocks[-1].register_forward_hook(lambda *args: added.append(args[2] - added.pop()))
    plain = sampled(given, FeatureCache(), 1.0, clip=0)[0]
    before.remove()
    after.remove()
    sizes = [each.norm(dim=-1) for each in added]
    wanted = [1.0, *((b / a).mean().item() for a, b in itertools.pairwise(sizes))]

    def sample():
        assert torch.equal(sampled(given, FeatureCache(), 1.0, clip=0)[0], plain)

    assert_close(measure_magnitudes(backbone, STEPS, sample), wanted, atol=1e-4, rtol=1e-4)
    assert not at_work(backbone.transformer)
    assert not backbone.transformer.is_cache_enabled
    assert capsys.readouterr().out == ""


def test_nano_that_ships_knows_its_magnitudes(tmp_path):
    """Those of its own weights, and of no others; a file that is none is one line."""
    nano = load_nano(DATA)
    assert len(nano.magnitudes) == 32
    assert nano.magnitudes[0] == 1
    check_loaded(FeatureCache("magcache"), nano, STEPS)
    nano.adapter = {"sha256": "0"}
    with pytest.raises(ConfigError, match="its ratios are not known for these weights of nano"):
        check_loaded(FeatureCache("magcache"), nano, STEPS)
    with pytest.raises(ConfigError, match="only for those that ship with nano; want first-block"):
        check_loaded(FeatureCache("magcache"), wan_of("full"), STEPS)
    for path in DATA.iterdir():
        (tmp_path / path.name).symlink_to(path)
    stated = json.loads((DATA / "magnitudes.json").read_text())
    (tmp_path / "magnitudes.json").unlink()
    (tmp_path / "magnitudes.json").write_text(json.dumps({**stated, "transformer": "0"}))
    assert load_nano(tmp_path).magnitudes is None
    (tmp_path / "magnitudes.json").write_text("[]")
    with pytest.raises(WeightsError, match="no ratios of magnitudes"):
        load_nano(tmp_path)


# ---- animate -------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """Animate a clip of two segments by a tiny nano."""
    write_png(
        tmp_path / "who.png", np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)
    )
    clip = film(tmp_path / "driving.mp4", 20, 12)

    def run(name, backbone, **settings):
        return animate(
            reference=tmp_path / "who.png", driving=clip, out=tmp_path / name, backbone=backbone,
            threads=1, prompt="", steps=STEPS, watermark=False, manifest=False, **settings,
        )  # fmt: skip

    return run


@pytest.mark.parametrize(("mode", "share"), [("full", 0.7), ("one-way-aligned", 0.4)])
def test_clips_and_segments_leave_nothing_behind(run, mode, share):
    """exact: a clip made after another, and after one without a cache; the record counts."""
    nano, setting = nano_of(mode), f"first-block:{share}"
    first = run("a.mp4", nano, feature_cache=setting)
    plain = run("b.mp4", nano)
    again = run("c.mp4", nano, feature_cache=setting, seed=1)
    third = run("d.mp4", nano, feature_cache=setting)
    fresh = run("e.mp4", nano_of(mode), feature_cache=setting)
    assert np.array_equal(frames_of(first.out), frames_of(third.out))
    assert np.array_equal(frames_of(first.out), frames_of(fresh.out))
    counted = json.loads(first.record.read_text())["feature_cache"]
    assert counted == third.facts["feature_cache"] == fresh.facts["feature_cache"]
    assert counted["setting"] == setting
    assert counted["block_calls"] == first.facts["segments"] * STEPS * LAYERS == 2 * STEPS * LAYERS
    assert 0 < counted["skipped"] < counted["block_calls"]
    assert first.facts["settings"]["feature_cache"] == setting
    assert "feature_cache" not in plain.facts
    assert plain.facts["settings"]["feature_cache"] == "none"
    assert not np.array_equal(frames_of(first.out), frames_of(again.out))
    unbounded = run("f.mp4", nano, feature_cache="first-block:inf").facts["feature_cache"]
    assert unbounded["skipped"] == 2 * (STEPS - 1) * (LAYERS - 1)  # each segment has a first step


def test_an_error_leaves_nothing_behind():
    nano = nano_of("full")
    given = (nano, *model_of("nano", "full")[1:3], None)  # nothing to lead away from
    with pytest.raises(AttributeError):
        sampled(given, SOME)
    assert not at_work(nano.transformer)
    assert not nano.transformer.is_cache_enabled


# ---- what is refused -----------------------------------------------------------------------------


def test_words():
    assert parse("none") == FeatureCache()
    assert parse("first-block") == FeatureCache("first-block", 0.1)
    assert parse("first-block:0.31") == SOME
    assert parse("magcache") == FeatureCache("magcache", 0.06)
    for cache in (FeatureCache(), SOME, NEVER, ALWAYS, FeatureCache("magcache", 0.2)):
        assert parse(str(cache)) == cache


@pytest.mark.parametrize(
    "word",
    ["", "tea", "none:0.1", "first-block:", "first-block:-1", "first-block:nan", "magcache:x"],
)
def test_refuses_words_that_are_none(word):
    with pytest.raises(ConfigError, match="want none, or first-block:SHARE or magcache:ERROR"):
        parse(word)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feature_cache": "odd"}, "feature_cache='odd': want none, or first-block"),
        ({"steps": 1}, "with steps=1 there is no step before; want 2 or more"),
        ({"compile": True}, "feature_cache=first-block:0.1: not with compile=true"),
        (
            {"feature_cache": "magcache", "guidance_span": "0.5:1"},
            "not with guidance_span=0.5:..., which begins late; want 0:...",
        ),
        ({"backbone": "hunyuanvideo-1.5-480p-i2v"}, "blocks are none that diffusers' cache knows"),
        (
            {"backbone": "wan2.1-i2v-14b-480p", "device": "cuda", "offload": "group"},
            "not with offload=group, never tried; want none or model",
        ),
    ],
)
def test_refuses_settings(settings, message):
    settings = {"feature_cache": "first-block", **settings}
    with pytest.raises(ConfigError, match=message):
        AnimateConfig("a.png", "b.mp4", "c.mp4", **settings)


def test_refuses_backbones(run):
    one_block = nano_of("full")
    one_block.transformer.blocks = one_block.transformer.blocks[:1]
    compiled = nano_of("full")
    compiled.compiled = True
    anew = nano_of("one-way", Keeping("none"))
    for backbone, message in (
        (one_block, "nano has one block, none to skip"),
        (compiled, "not with compile=true"),
        (anew, "attention one-way with cache=none computes its context in every block; want cache"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_loaded(SOME, backbone, STEPS)
    check_loaded(FeatureCache(), anew, 1, 4)
    with pytest.raises(ConfigError, match="4 processes each see a part of the tokens"):
        check_loaded(SOME, nano_of("one-way"), STEPS, 4)
    with pytest.raises(ConfigError, match="want cache device or host"):
        run("a.mp4", anew, feature_cache="first-block")
    stranger = SimpleNamespace(name="nano", transformer=torch.nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="no blocks of Wan's kind"):
        check_loaded(SOME, stranger, STEPS)


# ---- bench ---------------------------------------------------------------------------------------


def test_rows_of_the_bench():
    config = NanoBenchConfig(steps="1,8,16", caches="none,first-block:0.4, first-block@32")
    assert list(config.skip_rows) == [
        "nano, 8 steps, first-block:0.4",
        "nano, 16 steps, first-block:0.4",
        "nano, 32 steps, first-block:0.1",
    ]
    assert NanoBenchConfig().skip_rows == {}
    for words in ("first-block@1", "first-block@x", "first-block:0.1@"):
        with pytest.raises(
            ConfigError, match=r"want steps of 2 or more, such as first-block:0\.1@"
        ):
            NanoBenchConfig(caches=words)


def test_the_bench_says_how_much_was_skipped(tmp_path):
    """exact: what `skipping` counts, a clip that was done twice once; differences by clip."""
    path = tmp_path / "skipped.jsonl"
    cases = [
        SimpleNamespace(name=name, index=k, reference=frames[0], driving=frames[1:], before=None,
                        mask=np.ones((16, 64, 64), bool), caption="")
        for k, name in enumerate("ab")
        for frames in [np.random.default_rng(k).integers(0, 255, (17, 64, 64, 3), np.uint8)]
    ]  # fmt: skip
    nano, told = nano_of("one-way-aligned"), skips.noting(path, "cached")
    system = Animation(nano, STEPS, skips=parse("first-block:0.4"), told=told)
    one = [system.animate([case])[0] for case in cases]
    again = system.animate(cases[:1])[0]
    with path.open("a") as file:
        file.write('{"system": "cac')
    tally = skips.read(path)["cached"]
    assert np.array_equal(again, one[0])
    assert tally.calls == 2 * STEPS * LAYERS
    assert 0 < tally.skipped < tally.calls
    levels = np.stack(system.animate(cases)).astype(int) - np.stack(one)
    assert abs(levels).max() <= 1  # two at once, as each by itself

    def record(case, system, value):
        values = {"psnr": 20.0 + value, "lpips": 0.5, "flow_epe": value}
        return Record(case, system, "human", "toon", "full", 1.0, values)

    shares = {"cached": 1.0, "eight": 3.0, "four": 1.5}
    records = [
        record(case, name, k * v) for k, case in enumerate("ab") for name, v in shares.items()
    ]
    rows = {"cached": skips.SkipRow(8, SOME)}
    text = skips.table(records, rows, {8: "eight", 4: "four"}, {"cached": Tally(240, 96)})
    lines = text.splitlines()[2:]
    assert [line.split(" | ")[:4] for line in lines] == [
        ["| cached", "40%", "4.8", "8 steps"],
        ["| cached", "40%", "4.8", "4 steps"],
    ]
    with pytest.raises(ConfigError, match="no line of 'cached', though it was measured"):
        skips.table(records, rows, {8: "eight"}, {})
    assert "-1.00 [" in lines[0]
    assert "-0.25 [" in lines[1]


def test_a_backbone_without_networks_runs_as_ever(run):
    assert "feature_cache" not in run("a.mp4", Copycat()).facts
