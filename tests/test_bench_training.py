"""`bench training`: counted operations, one process and two, what is joined, refusals."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import starting
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKLHunyuanVideo15, HunyuanVideo15Transformer3DModel
from tiny_hunyuan import write_folder
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from dreamactor.backbones.catalogue import CATALOGUE
from dreamactor.backbones.load import load_trainee
from dreamactor.backbones.shapes import NETWORKS, Size, build, build_joint, inputs_of
from dreamactor.bench.speed_config import SpeedConfig
from dreamactor.cli import main
from dreamactor.config import from_words
from dreamactor.errors import ConfigError, DreamActorError
from dreamactor.training import measure
from dreamactor.training.examples import lay_out
from dreamactor.training.learner import _compute_as_unsharded
from dreamactor.training.measure import (
    TrainingBenchConfig,
    bench_training,
    examples,
    learner_of,
)
from dreamactor.training.measure_report import (
    PAPER,
    Row,
    add,
    difference,
    equalities,
    read,
    report,
    scalings,
    training_goals,
)
from dreamactor.training.shapes import SHAPES
from dreamactor.training.stage import draw

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = ["shape=tiny", "size=32x32x5", "rank=4", "device=cpu", "rate=1e-2"]
SHORT = [*TINY, "steps=2"]
CURVE = [*TINY, "steps=19", "batch=2"]


def _forward(query, key, value, *_, out_shape=None, **__):
    return sdpa_flop_count(query, key, value)


def _backward(gradient, query, key, value, *_, out_shape=None, **__):
    return sdpa_backward_flop_count(gradient, query, key, value)


def _counted(config: TrainingBenchConfig) -> int:
    """Operations of the trainer's own step, by torch, forward and backward, adapter and all."""
    ops = torch.ops.aten
    kernels = {  # which torch's counter does not know
        ops._scaled_dot_product_flash_attention_for_cpu: _forward,
        ops._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
    }
    learner = learner_of(config, Accelerator(cpu=True))
    batch = examples(config.built, config.canvas, 0, [0])
    with FlopCounterMode(display=False, custom_mapping=kernels) as counter:
        learner.update(batch, 0, 1e-3)
    return counter.get_total_flops()


@pytest.mark.parametrize("mode", ["full", "one-way", "one-way-aligned"])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("checkpoint", [True, False])
def test_exact_operations_of_a_step_are_those_that_torch_counts(mode, layers, checkpoint) -> None:
    """exact: of Wan, in each mode of attention."""
    config = TrainingBenchConfig(
        shape="tiny", layers=layers, size="64x32x9", rank=3, mode=mode, checkpoint=checkpoint,
        device="cpu",
    )  # fmt: skip
    assert _counted(config) == config.built.flops(config.canvas, mode, 3, checkpoint)


@pytest.mark.parametrize("glyphs", [3, 0])
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("checkpoint", [True, False])
def test_exact_operations_where_text_is_seen_by_all(glyphs, layers, checkpoint, monkeypatch):
    """exact: of HunyuanVideo-1.5, with something in quotes and without."""
    shape = SHAPES["tiny-hunyuan"]
    network = replace(shape.network, glyphs=(glyphs, shape.network.glyphs[1]))
    monkeypatch.setitem(SHAPES, "tiny-hunyuan", replace(shape, network=network))
    config = TrainingBenchConfig(
        shape="tiny-hunyuan", layers=layers, size="64x32x9", rank=3, checkpoint=checkpoint,
        device="cpu",
    )  # fmt: skip
    assert _counted(config) == config.built.flops(config.canvas, "full", 3, checkpoint)


def test_exact_hunyuan_is_the_published_one() -> None:
    """same: as diffusers makes transformer and autoencoder; the catalogue has its parameters."""
    shape = SHAPES["hunyuan-1.5"]
    network, size = shape.network, Size(832, 480, 49)
    with torch.device("meta"):
        wanted, vae = HunyuanVideo15Transformer3DModel(), AutoencoderKLHunyuanVideo15()
    made = build_joint(network, torch.device("meta"), torch.bfloat16)
    known = {"_use_default_values": None}  # which were given is no matter
    assert dict(made.config) | known == dict(wanted.config) | known
    numbers = sum(p.numel() for p in made.parameters())
    assert numbers == CATALOGUE[shape.backbone].parts["transformer"]
    strides = (vae.temporal_compression_ratio, vae.spatial_compression_ratio)
    assert (network.grid.stride_t, network.grid.stride_s) == strides
    assert network.channels == vae.config.latent_channels
    assert size.latents(network.grid) == (13, 30, 52)
    assert size.frame_tokens == 30 * 52
    example = shape.example(size, torch.Generator())
    assert {name: tuple(value.shape) for name, value in example.items()} == {
        "target": (32, 13, 30, 52), "motion": (32, 13, 30, 52), "text": (128, 3584 + 1472),
        "image": (729, 1152),
    }  # fmt: skip


@pytest.fixture(scope="module")
def hunyuan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("hunyuan"))


def test_hunyuan_predicts_as_what_the_trainer_loads(hunyuan_folder: Path) -> None:
    """same: latents, once the random transformer has the weights of a folder."""
    shape = SHAPES["tiny-hunyuan"]
    shape = replace(shape, network=replace(shape.network, ffn=128))
    loaded = load_trainee(shape.backbone, hunyuan_folder)
    mine = shape.trainee("full", torch.device("cpu"), torch.float32)
    assert mine.grid == loaded.grid
    assert mine.name == loaded.name
    mine.transformer.load_state_dict(loaded.transformer.state_dict())
    config = TrainingBenchConfig(shape="tiny-hunyuan", batch=2, device="cpu").recipe
    batch = examples(shape, Size(48, 32, 9), 0, [0, 1])
    drawn = draw(replace(config, no_text=0.0), batch["target"], [0, 1])
    made = lay_out(batch, drawn, "clean")
    with torch.no_grad():
        found, wanted = (
            one.predict(one.transformer, made.x, drawn.sigma, made.cond) for one in (mine, loaded)
        )
    assert torch.equal(found, wanted)
    assert found.std() > 0.1


def test_no_step_of_hunyuan_has_a_mask() -> None:
    """exact: several at once neither, one of them without text."""
    config = TrainingBenchConfig(
        shape="tiny-hunyuan", size="32x32x5", rank=2, batch=8, at_once=8, device="cpu"
    )
    learner = learner_of(config, Accelerator(cpu=True))
    samples = learner.samples(0)
    batch = examples(config.built, config.canvas, 0, samples)
    silent = draw(config.recipe, batch["target"], samples).silent
    assert silent.any()
    assert not silent.all()
    learner.update(batch, 0, 1e-3)
    processors = [block.attn.processor for block in learner.trainee.transformer.transformer_blocks]
    assert [processor.padded for processor in processors] == [False, False]


@pytest.fixture(scope="module")
def curve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one process's row of 20 steps."""
    out = tmp_path_factory.mktemp("training")
    bench_training(out, from_words(TrainingBenchConfig, CURVE))
    return out


@pytest.mark.parametrize("way", ["DDP", "FSDP2"])
def test_two_processes_have_the_losses_of_one(way: str, curve: Path, tmp_path: Path) -> None:
    """unchanged by: copies in two processes, or shards; the report says so, with the scaling."""
    script = {"DDP": [], "FSDP2": [Path(__file__).parent / "sharded_run.py"]}[way]
    words = [*script, "bench", "training", "--out", curve, *CURVE]
    starting.run_together(words, tmp_path / "said.txt")
    rows = read(curve)
    two = next(row for row in rows if row.way == f"2 {way}")
    assert len(two.losses) == 20
    assert len(two.seconds) == 19
    assert difference(rows[0], two) < 1e-3
    assert f"| 1 and 2 {way} | 20 |" in (curve / "report.md").read_text()


def test_shards_are_computed_in_what_copies_are() -> None:
    """same: as under autocast, timesteps in float32; accelerate alone would round them."""
    torch.manual_seed(0)
    network = NETWORKS["tiny"]
    transformer = build(network, "wan", torch.device("cpu"), torch.bfloat16)
    given = inputs_of(network, Size(32, 32, 5), "wan", 2, torch.device("cpu"), torch.float32)
    given["timestep"][:] = 724.3
    seen = []
    transformer.condition_embedder.timesteps_proj.register_forward_pre_hook(
        lambda _, arguments: seen.append(arguments[0])
    )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        wanted = transformer(**given).sample
    plugin = SimpleNamespace(mixed_precision_policy="accelerate's")
    accelerator = SimpleNamespace(device=torch.device("cpu"), mixed_precision="bf16")
    _compute_as_unsharded(transformer, plugin, accelerator)
    with torch.no_grad():
        assert torch.equal(transformer(**given).sample, wanted)
    assert plugin.mixed_precision_policy.param_dtype is None
    assert not plugin.mixed_precision_policy.cast_forward_inputs
    assert [t.dtype for t in seen] == [torch.float32] * 2


def test_the_losses_hang_on_what_was_learnt(curve: Path, tmp_path: Path) -> None:
    """exact: equal at the first step alone where nothing is learnt; so equality says something."""
    words = [word for word in CURVE if not word.startswith("rate")]
    bench_training(tmp_path, from_words(TrainingBenchConfig, [*words, "rate=0"]))
    learnt, still = read(curve)[0].losses, read(tmp_path)[0].losses
    assert learnt[0] == still[0]
    assert max(abs(a - b) / b for a, b in zip(learnt, still, strict=True)) > 1e-2


def test_rows_add_up_and_are_not_measured_twice(tmp_path: Path, monkeypatch) -> None:
    """The command's path."""
    for words in (SHORT, [*SHORT, "mode=one-way"], SHORT):
        command = ["dreamactor", "bench", "training", "--out", str(tmp_path), *words]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code in (0, None)
    rows = read(tmp_path)
    assert [row.settings["mode"] for row in rows] == ["full", "one-way"]
    text = (tmp_path / "report.md").read_text()
    assert text.count("- 1: `bench training --out FOLDER shape=tiny") == 2
    assert all(row.ceiling > 0 and min(row.seconds) > 0 for row in rows)
    assert all((len(row.seconds), len(row.losses)) == (2, 3) for row in rows)
    assert rows[0].trained == 2 * 4 * 2 * (24 + 32)
    (tmp_path / "results.jsonl").write_text((tmp_path / "results.jsonl").read_text() + '{"half')
    assert len(read(tmp_path)) == 2


def test_no_memory_is_a_row_and_is_tried_again(tmp_path: Path, monkeypatch) -> None:
    config = from_words(TrainingBenchConfig, SHORT)

    def full(*_):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of")

    with monkeypatch.context() as patch:
        patch.setattr(measure, "learner_of", full)
        text = bench_training(tmp_path, config).read_text()
    assert "| out of memory |" in text
    assert "Tried to allocate 2.00 GiB." in text
    bench_training(tmp_path, config)
    assert [row.failed for row in read(tmp_path)] == [""]

    def other(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(measure, "learner_of", other)
    with pytest.raises(RuntimeError, match="mat1"):
        bench_training(tmp_path, replace(config, seed=1))


def test_one_of_several_that_runs_out_of_memory_does_not_wait(tmp_path: Path, monkeypatch) -> None:
    """refuses: others would wait at the next exchange; the row is there before it goes."""
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    monkeypatch.setattr(Accelerator, "is_main_process", False)
    monkeypatch.setattr(
        measure, "_measure", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory"))
    )
    config = from_words(TrainingBenchConfig, [*SHORT, "batch=2"])
    with pytest.raises(DreamActorError, match="process 0: out of memory"):
        bench_training(tmp_path, config)
    assert [row.failed for row in read(tmp_path)] == ["out of memory"]


def test_a_loss_that_is_no_number_is_no_row(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        "dreamactor.training.learner.Learner.update", lambda *_: torch.tensor(float("nan"))
    )
    with pytest.raises(DreamActorError, match=r"losses are .*nan.*want a lower rate than 0\.01"):
        bench_training(tmp_path, from_words(TrainingBenchConfig, SHORT))
    assert not read(tmp_path)


# ---- reports ----------------------------------------------------------------------------------


def _row(processes: int, batch: int, seconds: float, **more: object) -> Row:
    settings = {
        **PAPER, "batch": batch, "at_once": 1, "checkpoint": True, "compile": False,
        "precision": "bf16",
    }  # fmt: skip
    given = {
        "seconds": [0.9 * seconds, seconds, 1.2 * seconds],
        "losses": [1.0] * 20,
        "flops": int(batch * 6e15),
        "flops_once": int(batch * 4e15),
        "ceiling": 6e14,
        "peak": 70 << 30,
        "reserved": 75 << 30,
    }
    row = Row(settings, "bench training", processes, False, "1 GPU", {"torch": "2"})
    return replace(row, **{**given, **more})


def test_rows_of_one_and_four_are_joined() -> None:
    """exact: by hand."""
    rows = [_row(1, 1, 20), _row(4, 4, 25), _row(1, 4, 80, losses=[1.0] * 19 + [1.0005])]
    ((one, many, times),) = scalings(rows)
    assert (one.processes, many.processes) == (1, 4)
    assert (times.mean, times.low, times.high) == pytest.approx((3.2, 2.4, 4 * 24 / 22.5))
    ((_, _, apart),) = equalities(rows)
    assert apart == pytest.approx(5e-4 / 1.0005)
    share, scaling, equal = training_goals(rows)
    assert share.measured.mean == pytest.approx(100 * 6e15 * 4 / (80 * 6e14))
    assert share.verdict.startswith("pass by 10.00")
    assert scaling.verdict == "miss by 0.20"
    assert equal.verdict.startswith("pass")
    assert "| 50 (33) | 70.0 (75.0) |" in report(rows)


def test_only_what_is_alike_is_joined() -> None:
    """refuses: other sizes, machines and shorter curves."""
    one = _row(1, 4, 20)
    other = _row(4, 4, 25)
    assert list(equalities([one, other]))
    assert not list(equalities([one, replace(other, hardware="2 GPU")]))
    assert not list(equalities([one, replace(other, settings={**other.settings, "rank": 8})]))
    assert not list(scalings([one, other]))
    short = [replace(row, losses=row.losses[:19]) for row in (one, other)]
    assert training_goals(short)[2].verdict == "not measured"
    assert training_goals([replace(one, peak=0)])[0].verdict == "not measured"
    assert "None: want a row of one process" in report([one])


def test_what_was_predicted_stands_beside(monkeypatch) -> None:
    """same: the numbers of `train pose --dry-run`, in train_your_own.md's table."""
    from dreamactor.training.measure import _foreseen

    config = replace(TrainingBenchConfig(device="cpu"), precision="float32")
    row = _foreseen(config, Accelerator(cpu=True))
    assert row.peak_foreseen / (1 << 30) == pytest.approx(67, abs=0.5)
    assert row.foreseen * 100_000 / 3600 == pytest.approx(493, abs=1)
    assert row.trained == 40 * 256 * 2 * (5120 + 13824)
    assert row.flops > row.flops_once > 0
    assert not _foreseen(replace(config, mode="one-way"), Accelerator(cpu=True)).foreseen
    hunyuan = replace(config, shape="hunyuan-1.5", size="848x480x49")
    row = _foreseen(hunyuan, Accelerator(cpu=True))
    assert row.peak_foreseen / (1 << 30) == pytest.approx(35, abs=0.5)
    assert row.foreseen * 100_000 / 3600 == pytest.approx(257, abs=1)
    assert row.trained == 54 * 256 * 2 * (2048 + 8192)
    short = _foreseen(replace(hunyuan, layers=2), Accelerator(cpu=True))
    assert (short.foreseen, short.peak_foreseen, short.trained) == (0, 0, 0)


# ---- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("shape=wan-15b", "shape 'wan-15b': want one of .*nearest is wan-1"),
        ("size=833x480x49", "size 833x480x49: .*nearest is 832x480x49"),
        ("size=832x480x1", "size 832x480x1: .*nearest is 832x480x5"),
        ("rank=0", "rank=0: want 1 or more"),
        ("mode=two-way", "mode=two-way: want one of full"),
        ("shape=hunyuan-1.5 mode=one-way", "mode=one-way: hunyuan-1.5 has only full"),
        ("shape=hunyuan-1.5 size=840x480x49", "size 840x480x49: .*nearest is 832x480x49"),
        ("device=cuda:1", "device=cuda:1: want one of cuda, cpu"),
    ],
)
def test_what_cannot_be_is_refused(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_words(TrainingBenchConfig, word.split())


def test_a_clip_of_hunyuan_is_not_measured() -> None:
    """refuses: `bench speed` has the modes of Wan's networks alone."""
    known = "wan-14b, wan-1.3b, nano, tiny"
    with pytest.raises(ConfigError, match=f"shape 'hunyuan-1.5': want one of {known}; nearest is"):
        from_words(SpeedConfig, ["shape=hunyuan-1.5"])


def test_what_does_not_fit_the_processes_is_refused(tmp_path: Path, monkeypatch) -> None:
    config = from_words(TrainingBenchConfig, [*SHORT, "batch=3"])
    with pytest.raises(ConfigError, match="at_once=2: each of 1 processes has 3"):
        bench_training(tmp_path / "a", replace(config, at_once=2))
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(ConfigError, match="batch=3 over 2 processes: want a multiple, such as 4"):
        bench_training(tmp_path / "a", config)
    monkeypatch.setattr(Accelerator, "is_fsdp2", True)
    with pytest.raises(ConfigError, match="attention one-way: cannot be sharded; want full"):
        bench_training(tmp_path / "a", replace(config, batch=2, mode="one-way"))
    assert not (tmp_path / "a").exists()
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device=cuda: torch sees no CUDA"):
            bench_training(tmp_path / "a", replace(config, device="cuda"))


def test_another_file_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text(json.dumps({"settings": {}}) + "\n")
    with pytest.raises(ConfigError, match="no results file of ours"):
        add(tmp_path, None)
    assert not (tmp_path / "report.md").exists()
