"""`bench speed`: counted operations, the run of a tiny network, goals, refusals."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import ClassifierFreeGuidance, FlowMatchEulerDiscreteScheduler
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.transformers import transformer_wan_animate_2
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache
from diffusers.modular_pipelines.modular_pipeline import BlockState, PipelineState
from diffusers.modular_pipelines.wan_animate_2.before_denoise import WanAnimate2PrepareSegmentsStep
from diffusers.modular_pipelines.wan_animate_2.denoise import (
    WanAnimate2RefExtractStep,
    WanAnimate2SegmentDenoiseInner,
)
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from dreamactor.backbones.catalogue import CATALOGUE
from dreamactor.backbones.incontext import Context, set_mode
from dreamactor.backbones.parallel import Team
from dreamactor.backbones.shapes import NETWORKS, Size, build
from dreamactor.bench import speed
from dreamactor.bench.kernels import kernel_errors
from dreamactor.bench.speed import bench_speed
from dreamactor.bench.speed_config import SpeedConfig
from dreamactor.bench.speed_report import BOUNDS, Row, Session, ratio, report, speed_goals
from dreamactor.bench.ways import MODES, Segment, Way
from dreamactor.cli import main
from dreamactor.config import from_words
from dreamactor.errors import ConfigError

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.usefixtures("one_thread")

TINY = ["shape=tiny", "sizes=32x32x5", "device=cpu", "repeats=2"]
WAYS = (
    *MODES, "one-way:none", "one-way:states", "one-way:int8", "one-way-aligned:none",
    "one-way-aligned:states",
)  # fmt: skip
META = replace(NETWORKS["wan-14b"], layers=1, every=1)
IDENTITY = {
    "shape": "wan-14b", "layers": 0, "guidance": 1, "repeats": 3, "warmup": 1, "compile": False,
    "segments": "none", "seed": 0, "dtype": "bfloat16", "hardware": "1 GPU",
    "versions": {"torch": "2"},
}  # fmt: skip


@pytest.fixture
def pairs_of_flex(monkeypatch):
    """Flex attention that only notes how many pairs of tokens its mask lets see each other.

    Torch's counter cannot look into it: compiled it is one kernel, uncompiled it does not run under
    a mode of dispatch, and where it is counted (traced) masked pairs count too.
    """
    found, real = [], transformer_wan_animate_2.dispatch_attention_fn

    def mask(seen, *_, Q_LEN, KV_LEN, **__):  # noqa: N803
        def of(start):  # some queries at a time
            queries = torch.arange(start, min(start + 512, Q_LEN))[:, None]
            return int(seen(0, 0, queries, torch.arange(KV_LEN)[None]).sum())

        return sum(map(of, range(0, Q_LEN, 512)))

    def attend(query, key, value, attn_mask, **more):
        if more["backend"] != AttentionBackendName.FLEX:
            return real(query, key, value, attn_mask=attn_mask, **more)
        found.append(attn_mask)
        return query

    monkeypatch.setattr(transformer_wan_animate_2, "create_block_mask", mask)
    monkeypatch.setattr(transformer_wan_animate_2, "dispatch_attention_fn", attend)
    return found


def attention_flops(query, key, value, *_, out_shape=None, **__):
    return sdpa_flop_count(query, key, value)


def counted(work):
    """By torch, which does not know the CPU's kernel of attention."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={kernel: attention_flops}) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("case", ["tiny on the CPU", "a block of 14B on no device"])
@pytest.mark.parametrize("name", WAYS)
@torch.no_grad()
def test_exact_operations_are_those_that_torch_counts(name, case, pairs_of_flex):
    network, size = NETWORKS["tiny"], Size(64, 32, 9)
    device = torch.device("cpu")
    way = Way.parse(name)
    if case != "tiny on the CPU":
        frames = 5 if way.mode == "wan-animate-2" else 81  # the pairs are counted one by one
        network, size, device = META, Size(832, 480, frames), torch.device("meta")
    transformer = build(network, way.kind, device, torch.float32)
    if way.kind == "wan":
        set_mode(transformer, "full" if name == "plain" else way.mode)
    step, once = way.flops(network, size)
    segment = Segment(way, transformer, network, size, device, torch.float32)
    assert counted(segment.fill) == once
    found = counted(lambda: segment.step(1))
    assert len(pairs_of_flex) == (network.layers if way.mode == "wan-animate-2" else 0)
    assert found + 4 * network.width * sum(pairs_of_flex) == step


@torch.no_grad()
def test_exact_a_second_pass_of_wan_animate_2_leaves_a_block_out(pairs_of_flex):
    network, size, device = (
        replace(NETWORKS["tiny"], layers=11),
        Size(32, 32, 5),
        torch.device("cpu"),
    )
    way = Way.parse("wan-animate-2")
    transformer = build(network, way.kind, device, torch.float32)
    segment = Segment(way, transformer, network, size, device, torch.float32)
    segment.fill()
    found = counted(lambda: segment.step(2))
    assert len(pairs_of_flex) == 11 + 10
    step, _ = way.flops(network, size, 2)
    assert found + 4 * network.width * sum(pairs_of_flex) == step


def told(value):
    """What a call was given: numbers of whole tensors, of others shape and dtype."""
    if isinstance(value, dict):
        return {name: told(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [told(inner) for inner in value]
    if isinstance(value, torch.Tensor):
        whole = not value.is_floating_point()
        return value.tolist() if whole else (tuple(value.shape), value.dtype)
    return type(value).__name__ if isinstance(value, WanAnimate2KVCache) else value


def through_pipeline(transformer, network, size):
    """A segment of three steps by the blocks of diffusers' pipeline, at its guidance."""
    (frames, rows, columns), channels = size.latents(network.grid), network.channels
    components = SimpleNamespace(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(),
        guider=ClassifierFreeGuidance(3.0), _execution_device=torch.device("cpu"),
        vae_scale_factor_spatial=8, vae_scale_factor_temporal=4,
    )  # fmt: skip
    components.scheduler.set_timesteps(3)
    state = PipelineState()
    given = {
        "reference_image_latents": torch.zeros(4 + channels, 1, rows, columns),
        "driving_video_pixels": torch.zeros(1, 3, size.frames, size.height, size.width),
        "segment_frame_length": size.frames,
    }
    for name, value in given.items():
        state.set(name, value)
    WanAnimate2PrepareSegmentsStep()(components, state)
    text, image = torch.zeros(1, *network.text), torch.zeros(1, *network.image)
    block_state = BlockState(
        **given, timesteps=components.scheduler.timesteps, num_inference_steps=3, num_segments=1,
        driving_video_latents=torch.zeros(1, channels, frames, rows, columns),
        driving_video_condition=torch.zeros(4 + channels, frames, rows, columns),
        condition_clip_context=image, prompt_ref_embeds=text, prompt_embeds=text,
        negative_prompt_embeds=text, kv_cache=WanAnimate2KVCache(network.layers), generator=None,
        latents=torch.zeros(channels, frames + 1, rows, columns),
        reference_latents=torch.zeros(4 + channels, frames + 1, rows, columns),
        denoiser_input_fields={"encoder_hidden_states_image": image},
        height=size.height, width=size.width,
        **{name: state.get(name) for name in ("max_seq_len", "max_seq_len_ref", "grid_sizes_ref")},
    )  # fmt: skip
    WanAnimate2RefExtractStep()(components, block_state, k=0)
    WanAnimate2SegmentDenoiseInner()(components, block_state, k=0)


@torch.no_grad()
def test_same_calls_of_wan_animate_2_as_of_its_pipeline(monkeypatch):
    """same: names, shapes and dtypes of all that its transformer gets, pass after pass."""
    network, size, way = NETWORKS["tiny"], Size(64, 32, 9), Way.parse("wan-animate-2")
    cpu, dtype, calls = torch.device("cpu"), torch.bfloat16, []
    transformer = build(network, way.kind, cpu, dtype)

    def spy(self, hidden_states, **more):
        calls.append(told({"hidden_states": hidden_states} | more))
        return SimpleNamespace(sample=[torch.zeros(hidden_states[0].shape)])

    spy.__signature__ = inspect.signature(type(transformer).forward)
    monkeypatch.setattr(type(transformer), "forward", spy)
    segment = Segment(way, transformer, network, size, cpu, dtype)
    segment.fill()
    segment.step(2)
    ours, theirs = list(calls), calls
    calls.clear()
    through_pipeline(transformer, network, size)
    assert len(ours) == 3
    assert theirs == [ours[0], *ours[1:] * 3]


def test_exact_shares_are_those_of_the_page():
    """exact: docs/fast.md, operations in percent of the floor's."""
    page = (Path(__file__).parent.parent / "docs" / "fast.md").read_text()
    network = NETWORKS["wan-14b"]
    sizes = [Size(832, 480, 81), Size(1280, 720, 81)]
    floors = [Way.parse("plain").flops(network, size)[0] for size in sizes]
    titles = {"wan-animate": "Wan-Animate", "wan-animate-2": "Wan-Animate-2"}
    names = ("full", "one-way", "one-way-aligned", "one-way-aligned:states", *titles)
    of_ways = {name: [Way.parse(name).flops(network, size) for size in sizes] for name in names}
    shares = {name: [step for step, _ in both] for name, both in of_ways.items()}
    shares["filling, once a segment"] = [once for _, once in of_ways["one-way"]]
    shares["Wan-Animate-2's driving clip, once a segment"] = [
        once for _, once in of_ways["wan-animate-2"]
    ]
    for name, both in shares.items():
        first, second = (f"{100 * n / floor:.0f}" for n, floor in zip(both, floors, strict=True))
        assert f"\n| {titles.get(name, name)} | {first} | {second} |\n" in page


def test_exact_shapes_are_the_published_ones():
    names = {"wan-14b": "wan2.1-i2v-14b-480p", "wan-1.3b": "wan2.1-fun-1.3b-inp", "nano": "nano"}
    for shape, backbone in names.items():
        network = replace(NETWORKS[shape], layers=1)
        less = NETWORKS[shape].layers - 1
        made = build(network, "wan", torch.device("meta"), torch.bfloat16)
        block = sum(p.numel() for p in made.blocks.parameters())
        numbers = sum(p.numel() for p in made.parameters()) + less * block
        assert numbers == CATALOGUE[backbone].parts["transformer"]


@pytest.mark.parametrize("kind", ["wan", "wan-animate-2"])
def test_same_parts_stay_in_float32_as_when_diffusers_loads_weights(tmp_path, kind):
    """same: dtype of every parameter, beside diffusers' own loading of a saved network."""
    made = build(NETWORKS["tiny"], kind, torch.device("cpu"), torch.bfloat16)
    made.save_pretrained(tmp_path)
    loaded = type(made).from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    found = {name: p.dtype for name, p in made.named_parameters()}
    assert found == {name: p.dtype for name, p in loaded.named_parameters()}
    assert set(found.values()) == {torch.float32, torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_same_kernels_as_attention_by_its_definition(device, dtype):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    errors = kernel_errors(torch.device(device), dtype)
    assert set(errors) == {"attention", "log-sum-exp", "merged"}
    assert max(errors.values()) <= BOUNDS[str(dtype).removeprefix("torch.")]


def test_a_run_writes_all_files_and_resumes_without_measuring(tmp_path, monkeypatch):
    """unchanged by: the same command again; then a way more is measured, its floor beside it."""
    modes = "modes=plain,one-way-aligned:host+states,one-way:int8,wan-animate,wan-animate-2"
    words = [*TINY, "guidance=2", modes]
    path = bench_speed(tmp_path, from_words(SpeedConfig, words))
    assert {p.name for p in tmp_path.iterdir()} == {"results.jsonl", "report.md", "speed.png"}
    first, *lines = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert first["settings"]["shape"] == "tiny"
    rows = [Row(**line["row"]) for line in lines if "row" in line]
    assert [row.way for row in rows] == modes.removeprefix("modes=").split(",")
    assert all(len(row.seconds) == 2 and min(row.seconds) > 0 for row in rows)
    assert [len(row.once) for row in rows] == [0, 2, 2, 0, 2]
    assert all(row.cache_held == row.cache_foreseen for row in rows)
    assert [row.cache_held > 0 for row in rows] == [False, True, True, False, True]
    network, size = NETWORKS["tiny"], Size(32, 32, 5)
    assert [row.flops for row in rows] == [
        Way.parse(row.way).flops(network, size, 2)[0] for row in rows
    ]
    before, said = (tmp_path / "results.jsonl").read_bytes(), path.read_text()
    measured = speed._Stand.measure
    monkeypatch.setattr(speed._Stand, "measure", None)
    (tmp_path / "speed.png").unlink()
    bench_speed(tmp_path, from_words(SpeedConfig, words))
    assert (tmp_path / "results.jsonl").read_bytes() == before
    assert path.read_text() == said
    assert (tmp_path / "speed.png").is_file()
    monkeypatch.setattr(speed._Stand, "measure", measured)
    words[-1] += ",full"
    bench_speed(tmp_path, from_words(SpeedConfig, words))
    lines = list(map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines()))
    added = [line["row"] for line in lines if "row" in line][len(rows) :]
    assert [(row["way"], row["session"]) for row in added] == [("plain", 1), ("full", 1)]
    assert sum("session" in line for line in lines) == 2


def test_other_settings_are_refused_and_a_torn_line_is_cut(tmp_path):
    """refuses: rows of another seed in one file; a line that a kill tore is measured again."""
    words = [*TINY, "modes=plain,full", "repeats=1"]
    words.remove("repeats=2")
    bench_speed(tmp_path, from_words(SpeedConfig, words))
    path = tmp_path / "results.jsonl"
    with pytest.raises(ConfigError, match=r"made with \{'seed': 0\}, now \{'seed': 1\}"):
        bench_speed(tmp_path, from_words(SpeedConfig, [*words, "seed=1"]))
    path.write_text(path.read_text()[:-20])
    bench_speed(tmp_path, from_words(SpeedConfig, words))
    rows = [line["row"] for line in map(json.loads, path.read_text().splitlines()) if "row" in line]
    assert [row["way"] for row in rows] == ["plain", "plain", "full"]
    path.write_text("{}\n")
    with pytest.raises(ConfigError, match="no results file of ours"):
        bench_speed(tmp_path, from_words(SpeedConfig, words))


def test_exact_no_row_begins_after_the_time(tmp_path):
    words = [*TINY, "modes=plain,full", "minutes=0"]
    text = bench_speed(tmp_path, from_words(SpeedConfig, words)).read_text()
    assert "Not begun in time: plain at 32x32x5, full at 32x32x5." in text
    assert "row" not in (tmp_path / "results.jsonl").read_text()


def test_memory_that_runs_out_is_a_row_in_words(tmp_path, monkeypatch):
    def of(self, transformer, given):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. GPU 0 has 1")

    monkeypatch.setattr(Context, "of", of)
    words = [*TINY, "modes=plain,one-way,full"]
    text = bench_speed(tmp_path, from_words(SpeedConfig, words)).read_text()
    assert "| 32x32x5 | one-way | out of memory |" in text
    assert "one-way at 32x32x5: CUDA out of memory. Tried to allocate 9 GiB.\n" in text
    assert "| 32x32x5 | full | 0." in text
    monkeypatch.setattr(Context, "of", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bench_speed(tmp_path, from_words(SpeedConfig, [*TINY, "modes=one-way-aligned"]))


def rows_of(aligned, **more):
    """A floor of 4 seconds and the way that is judged."""
    return [
        Row("832x480x81", "plain", 0, [4.0, 3.9, 4.1]),
        Row("832x480x81", "one-way-aligned", 0, [aligned], **more),
    ]


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        (rows_of(4.0), "pass by 6.00 %"),
        (rows_of(4.24), "pass by 0.00 %"),
        (rows_of(4.26), "miss by 0.50 %"),
        (rows_of(4.0)[1:], "not measured"),
        ([rows_of(4.0)[0], replace(rows_of(4.0)[1], session=1)], "not measured"),
        ([rows_of(4.0)[0], Row("832x480x81", "one-way-aligned", 0, failed="x")], "not measured"),
        ([], "not measured"),
    ],
)
def test_exact_verdicts_of_the_goal(rows, verdict):
    assert [goal.verdict for goal in speed_goals(rows, IDENTITY, 40)] == [verdict]


def clip_row(way, step, once=(), session=0):
    return Row("832x480x81", way, session, [step] * 2 + [step * 1.1], list(once))


def test_exact_goals_of_a_clip_are_of_the_quickest_exact_rows():
    """exact: 40 steps and what is done once; 8 bits and other beginnings do not count."""
    rows = [
        clip_row("one-way-aligned", 4.0, [2.0]), clip_row("one-way-aligned:compiled", 3.0, [1.5]),
        clip_row("one-way-aligned:int8", 0.1), clip_row("one-way", 0.1),
        clip_row("wan-animate-2", 4.0, [3.0]), clip_row("wan-animate", 3.5),
        clip_row("wan-animate:compiled", 3.0), clip_row("wan-animate:compiled", 9.0, session=1),
        Row("832x480x81", "one-way-aligned:host", 0, failed="x"),
    ]  # fmt: skip
    _, second, first = speed_goals(rows, IDENTITY, 40)
    assert second.over == "one-way-aligned:compiled over wan-animate-2, 832x480x81"
    assert second.measured.mean == pytest.approx(100 * 121.5 / 163)
    assert second.measured.low == pytest.approx(100 * 121.5 / 179)
    assert second.measured.high == pytest.approx(100 * 133.5 / 163)
    assert second.verdict == "pass by 0.46 %"
    assert first.over == "one-way-aligned:compiled over wan-animate:compiled, 832x480x81"
    assert first.verdict == "miss by 1.25 %"
    assert len(speed_goals(rows[:-3], IDENTITY, 40)) == 3
    assert len(speed_goals(rows[:4], IDENTITY, 40)) == 1
    apart = [*rows[:4], replace(rows[4], session=1)]
    assert len(speed_goals(apart, IDENTITY, 40)) == 1


def test_exact_distilled_settings_of_wan_animate_2():
    rows = [clip_row("wan-animate-2", 4.0, [3.0])]
    line = "10 steps without guidance, as of distilled weights: wan-animate-2 at 832x480x81 43 s."
    said = report([Session(8e14, {})], rows, [], "command", IDENTITY, 40)
    assert line in said
    guided = IDENTITY | {"guidance": 2}
    assert line not in report([Session(8e14, {})], rows, [], "command", guided, 40)
    caveat = "wan-animate-2 ran on the CPU, not compiled"
    assert caveat in said
    on_gpu = [replace(rows[0], peak=1 << 30)]
    assert caveat not in report([Session(8e14, {})], on_gpu, [], "command", IDENTITY, 40)


def test_segments_in_turn_are_timed_one_by_one(monkeypatch):
    """exact: so many fillings and steps, and what the report makes of them."""
    filled, stepped = [], []
    fill, step = Segment.fill, Segment.step
    monkeypatch.setattr(Segment, "fill", lambda self: filled.append(1) or fill(self))
    monkeypatch.setattr(Segment, "step", lambda self, n: stepped.append(n) or step(self, n))
    words = [*TINY, "segments=3", "steps=4", "guidance=2"]
    stand = speed._Stand(from_words(SpeedConfig, words), Team())
    row = stand.measure(Size(32, 32, 5), Way.parse("one-way-aligned"), 0)
    assert len(row.segments) == 3
    assert min(row.segments) > 0
    assert row.segment_peaks == [0] * 3
    assert (len(filled), stepped) == (3 + 3, [2] * (3 + 3 * 4))
    rows = [
        replace(row, segments=[2.0, 2.1, 2.05], segment_peaks=[3 << 29] * 3),
        replace(row, way="full", segments=[2.0, 2.2]),
    ]
    identity = IDENTITY | {"segments": "3 of 4 steps"}
    text = report([Session(8e14, {})], rows, [], "command", identity, 4)
    assert "### Segments in turn: 3 of 4 steps" in text
    assert "| 32x32x5 | one-way-aligned | 2 | 2.05 | 105.0 | 1.50 / 1.50 | constant |" in text
    assert "| 32x32x5 | full | 2 | 2.2 | 110.0 | - | NOT CONSTANT |" in text


def test_the_ways_that_say_so_are_compiled(monkeypatch):
    """exact: blocks compiled by way; a transformer that was compiled serves no other."""
    of_all = {"plain": False, "plain:compiled": True, "one-way:host+compiled": True}
    for device, rival in (("cpu", False), ("cuda", True)):
        config = from_words(SpeedConfig, [*TINY[:2], f"device={device}"])
        for name, wanted in (of_all | {"wan-animate-2": rival}).items():
            assert config.compiles(Way.parse(name)) is wanted
    compiled, built = [], []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **said: compiled.append((type(self), said))
    )
    monkeypatch.setattr(speed, "build", lambda *args: built.append(1) or build(*args))
    stand = speed._Stand(from_words(SpeedConfig, TINY), Team())
    for number, name in enumerate(("full:compiled", "one-way:compiled", "full", "one-way"), 1):
        stand.measure(Size(32, 32, 5), Way.parse(name), 0)
        assert len(compiled) == 2 * min(number, 2)
        assert len(built) == 1 + (number > 2)
    assert {block.__name__ for block, _ in compiled} == {"WanTransformerBlock"}
    assert all(said == {"dynamic": False} for _, said in compiled)


def test_exact_other_shapes_have_no_goal():
    assert speed_goals(rows_of(4.0), IDENTITY | {"shape": "tiny"}, 40) == []
    assert speed_goals(rows_of(4.0), IDENTITY | {"layers": 4}, 40) == []


def test_exact_figures_of_the_table():
    """exact: ratio, clip, share and cache of made-up rows."""
    bytes_of = {"cache_foreseen": 3 << 29, "cache_held": 3 << 29, "peak": 5 << 30}
    rows = rows_of(4.2, once=[2.0], flops=2 * 10**15, flops_once=1, **bytes_of)
    found = ratio(rows[1], rows)
    assert found.mean == pytest.approx(105)
    assert (found.low, found.high) == pytest.approx((100 * 4.2 / 4.1, 100 * 4.2 / 3.9))
    sessions = [Session(8e14, {"float32": {"attention": 1e-6, "log-sum-exp": 1e-6, "merged": 1}})]
    text = report(sessions, rows, [("832x480x81", "full", 1)], "command", IDENTITY, 40)
    figures = "4.2 [4.2, 4.2] | 105.0 | 2 [2, 2] | 170 | 2000 | 60 | 5.0 | 1.5 / 1.5 |"
    assert f"| 832x480x81 | one-way-aligned | {figures}" in text
    assert "| 1 | 800 | float32 | 1.0e-06 | 1.0e-06 | 1.0e+00 | 0.0001 | WRONG |" in text
    assert "Not begun in time: full at 832x480x81." in text


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("shape=wan-41b", "shape 'wan-41b': want one of .*; nearest is wan-14b"),
        ("modes=plain,oneway", "mode 'oneway': want one of .*; nearest is one-way"),
        ("modes=plain:int8", "mode 'plain:int8': keeps no context; nearest is plain"),
        ("modes=wan-animate-2:compiled+host", "'wan-animate-2:compiled.host': keeps no context"),
        ("modes=one-way:int4", "what is kept 'int4': want one of .*; nearest is int8"),
        ("modes=one-way:host+none", "mode 'one-way:host.none': want one of none, device, host"),
        ("sizes=832x480", "size '832x480': want WIDTHxHEIGHTxFRAMES, such as 832x480x81"),
        ("sizes=830x480x80", r"size 830x480x80: want .* frames, nearest is 832x480x81"),
        ("sizes=0x480x81", "nearest is 16x480x81"),
        ("guidance=3", "guidance=3: want 1 or 2"),
        ("repeats=0", "repeats=0: want 1 or more"),
        ("layers=7", "layers=7: wan-animate wants a multiple of 5, nearest is 5"),
        ("device=gpu", "device='gpu': want cpu, cuda"),
    ],
)
def test_refuses_settings_that_cannot_work(word, message):
    with pytest.raises(ConfigError, match=message):
        from_words(SpeedConfig, [word])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_refuses_a_device_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="device=cuda: torch sees no CUDA device here; want cpu"):
        bench_speed(tmp_path, SpeedConfig())
    assert not list(tmp_path.iterdir())


def test_same_figures_by_the_command_line(tmp_path, monkeypatch, capsys):
    """same: the command writes the report and says where; a fault is one line."""
    monkeypatch.setattr("sys.argv", ["dreamactor", "bench", "speed", "--out", str(tmp_path), *TINY,
                                     "modes=wan-animate"])  # fmt: skip
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.md")
    assert "| 32x32x5 | wan-animate | 0." in (tmp_path / "report.md").read_text()


def test_the_command_repeats_the_run():
    """exact: only what differs is stated, and it reads back."""
    config = from_words(SpeedConfig, [*TINY, "compile=true"])
    words = config.command.split()
    assert words[:5] == ["dreamactor", "bench", "speed", "--out", "FOLDER"]
    assert from_words(SpeedConfig, words[5:]) == config
