"""Both stages: they start as the base, learn, go on after a kill, and are one run on any number
of processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import starting
import torch
from accelerate import Accelerator
from diffusers import HunyuanVideo15Transformer3DModel, WanTransformer3DModel
from tiny_stage import SHAPE, write_files
from torch.testing import assert_close

from dreamactor.backbones.catalogue import Mode
from dreamactor.backbones.headers import read_header
from dreamactor.backbones.lora import AdapterInfo, adapter_state, attach, read_info, save_adapter
from dreamactor.backbones.nano import load_transformer
from dreamactor.backbones.weights import load_weights, save_weights
from dreamactor.cli import main
from dreamactor.errors import ConfigError, WeightsError
from dreamactor.provenance import sha256
from dreamactor.training.adapt import _Run, train_adapter
from dreamactor.training.cache import Cache, shard_path
from dreamactor.training.stage import AdaptConfig, RgbConfig, draw, order
from dreamactor.training.state import (
    State,
    load_state,
    placed,
    put_back,
    read_out,
    save_state,
    whole,
)

NOTHING = State({}, [])
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vae, base, and a cache of either stage whose target can be told from the driver."""
    return write_files(tmp_path_factory.mktemp("files"), ("pose", "rgb"), 0.1)


def _config(files: Path, **changes: object) -> AdaptConfig:
    config = AdaptConfig(
        cache=files / "pose",
        base=files / "base.safetensors",
        vae=files / "vae.safetensors",
        rank=4,
        steps=8,
        rate=1e-2,
        warmup=1,
        held=2,
        log_every=1,
        look_every=100,
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def _losses(run: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    assert len(losses) == len({step for step, _ in losses})
    return dict(losses)


def _looks(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    return [row for row in rows if "missed_1" in row]


# ---- what a step sees -------------------------------------------------------------------------


def test_every_example_comes_once_an_epoch_in_another_order() -> None:
    """exact: ten samples of five are each of them twice; a part is the part of the whole."""
    whole_run = order(0, 5, 0, 10)
    assert Counter(whole_run) == dict.fromkeys(range(5), 2)
    assert whole_run[:5] != whole_run[5:]
    assert order(0, 5, 3, 4) == whole_run[3:7]


def test_draws_belong_to_the_sample(files: Path) -> None:
    """unchanged by: the batch that a sample is in."""
    config = _config(files, continued=0.5, pure=0.5)
    target = torch.zeros(8, 4, 3, 4, 4)
    whole_batch = draw(config, target, list(range(8)))
    part = draw(config, target[:3], [5, 6, 7])
    for name, value in vars(part).items():
        assert torch.equal(value, getattr(whole_batch, name)[5:]), name
    assert len(whole_batch.sigma.unique()) > 2
    assert not torch.equal(whole_batch.noise[0], whole_batch.noise[1])


def test_shares_are_met(files: Path) -> None:
    config = _config(files, continued=0.4, pure=0.25, no_text=0.1)
    drawn = draw(config, torch.zeros(3000, 1, 3, 1, 1), list(range(3000)))
    for value, share in ((drawn.sigma == 1, 0.25), (drawn.continued, 0.4), (drawn.silent, 0.1)):
        assert abs(value.float().mean().item() - share) < 0.03
    assert drawn.sigma.min() > 0
    short = draw(config, torch.zeros(50, 1, 2, 1, 1), list(range(50)))
    assert not short.continued.any()  # there is nothing to go on from


# ---- runs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [None, "full", "one-way"])
def test_a_run_learns_and_writes_an_adapter_of_its_base(
    files: Path, tmp_path: Path, mode: Mode | None
) -> None:
    """The whole stage at tiny size: the loss falls, the base stays, the file says what it is."""
    config = _config(files, steps=60, look_every=20, average=0.9, attention=mode)
    path = train_adapter(config, "pose", tmp_path / "run")
    losses = list(_losses(tmp_path / "run").values())
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    info = read_info(path)
    base = sha256(config.base)
    assert (info.variant, info.backbone, info.weights, info.rank) == ("pose", "nano", base, 4)
    assert info.attention == (mode or "one-way-aligned")
    assert info.lead == 4  # a third of a second at 12 frames a second
    assert len(info.config) == 16
    looks = _looks(tmp_path / "run")
    assert [row["step"] for row in looks] == [0, 20, 40, 60]
    assert looks[-1]["missed_1"] < looks[0]["missed_1"]
    assert len(list((tmp_path / "run" / "samples").glob("*.png"))) == 4
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))

    found, facts = load_state(tmp_path / "run" / "state.safetensors") or (NOTHING, {})
    assert facts["step"] == 60
    state = found.tensors
    names = {name.partition("/")[2] for name in state}
    assert all(".ffn.net." in name and ".lora_" in name for name in names)
    written, average = load_weights(path)[0], "average/blocks.0.ffn.net.2.lora_B.dreamactor.weight"
    assert_close(written["blocks.0.ffn.net.2.lora_B.weight"], state[average], atol=1e-3, rtol=1e-3)
    assert not torch.equal(state[average], state[average.replace("average", "weight")])


def test_the_second_stage_starts_where_the_first_ended(files: Path, tmp_path: Path) -> None:
    """same: the adapter of step 0 is the one it started from; another base refuses it."""
    pose = train_adapter(_config(files, steps=3), "pose", tmp_path / "pose")
    rgb = RgbConfig(**vars(_config(files, cache=files / "rgb", start=pose, steps=1, rate=0.0)))
    path = train_adapter(rgb, "rgb", tmp_path / "rgb")
    first, second = (load_weights(file)[0] for file in (pose, path))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert_close(second[name], value, atol=1e-3, rtol=1e-3)
    assert any(value.abs().max() > 1e-3 for name, value in second.items() if "lora_B" in name)
    assert (read_info(path).variant, read_info(path).lead) == ("rgb", None)

    other = SHAPE.build()
    header = load_weights(files / "base.safetensors")[1]
    save_weights(tmp_path / "other.safetensors", other.state_dict(), header)
    with pytest.raises(WeightsError, match="want the backbone it was trained on"):
        train_adapter(replace(rgb, base=tmp_path / "other.safetensors"), "rgb", tmp_path / "no")
    with pytest.raises(ConfigError, match=r"rank=4, here rank=8; want the same"):
        train_adapter(replace(rgb, rank=8), "rgb", tmp_path / "no")


def test_a_one_way_mode_is_not_sharded(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accelerator, "is_fsdp2", True)
    with pytest.raises(ConfigError, match=r"attention one-way-aligned: cannot be sharded; want"):
        train_adapter(_config(files, steps=1), "pose", tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_mode_of_attention_stays_from_stage_to_stage(files: Path, tmp_path: Path) -> None:
    """exact: what is not said is the first stage's; refuses: another, and a context with noise."""
    first = _config(files, steps=1, attention="one-way")
    pose = train_adapter(first, "pose", tmp_path / "pose")
    rgb = RgbConfig(**vars(_config(files, cache=files / "rgb", start=pose, steps=1)))
    assert read_info(train_adapter(rgb, "rgb", tmp_path / "rgb")).attention == "one-way"
    with pytest.raises(ConfigError, match=r"attention=one-way, here attention=full; want the same"):
        train_adapter(replace(rgb, attention="full"), "rgb", tmp_path / "no")
    with pytest.raises(ConfigError, match=r"never noised; want motion=clean, or attention=full"):
        train_adapter(replace(first, motion="noised"), "pose", tmp_path / "no")
    noised = train_adapter(_config(files, steps=1, motion="noised"), "pose", tmp_path / "noised")
    assert read_info(noised).attention == "full"
    assert not (tmp_path / "no").exists()


def test_full_fine_tuning_writes_a_transformer(files: Path, tmp_path: Path) -> None:
    """Every weight learns; the file is one that a backbone loads, and a run can start from."""
    config = _config(files, targets="full", steps=30, average=0.5)
    path = train_adapter(config, "pose", tmp_path / "run")
    before, after = _looks(tmp_path / "run")
    assert after["missed_1"] < before["missed_1"]
    before, after = load_weights(config.base)[0], load_weights(path)[0]
    assert before.keys() == after.keys()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert any("attn1" in name for name in moved)
    assert load_transformer(path, task="animate")[1] == SHAPE
    header = read_header(path)
    assert (header["variant"], header["lead"]) == ("pose", 4)
    train_adapter(_config(files, base=path, steps=1), "pose", tmp_path / "on")


def test_a_run_repeats_itself(files: Path, tmp_path: Path) -> None:
    """unchanged by: looking, saving, keeping activations or computing them twice."""
    one = _config(files, look_every=2, save_minutes=0.0, checkpoint=True)
    two = _config(files, checkpoint=False)
    for config, name in ((one, "one"), (two, "two")):
        train_adapter(config, "pose", tmp_path / name)
    a, b = (_losses(tmp_path / name) for name in ("one", "two"))
    assert a.keys() == b.keys() == set(range(1, 9))
    assert_close(list(a.values()), list(b.values()), atol=1e-6, rtol=1e-6)


def test_examples_of_a_step_come_in_parts(files: Path, tmp_path: Path) -> None:
    """unchanged by: how many of them are in memory at once, to rounding."""
    for at_once in (None, 2, 1):
        config = _config(files, batch=4, at_once=at_once)
        train_adapter(config, "pose", tmp_path / str(at_once))
    one, *others = (list(_losses(tmp_path / str(k)).values()) for k in (None, 2, 1))
    for other in others:
        assert_close(other, one, atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match="at_once=3: each of 1 processes has 4"):
        train_adapter(_config(files, batch=4, at_once=3), "pose", tmp_path / "no")


def test_rates_rise_and_fall_by_steps(files: Path, tmp_path: Path) -> None:
    """exact: linear to the peak, then from half of the run on to nothing."""
    train_adapter(_config(files, warmup=2, decay_from=0.5), "pose", tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    rates = [row["rate"] for row in rows if "rate" in row]
    assert_close(rates, [0.005, 0.01, 0.01, 0.01, 0.01, 0.0075, 0.005, 0.0025])


def test_time_ends_a_run(files: Path, tmp_path: Path) -> None:
    path = train_adapter(_config(files, steps=10**6, minutes=0.03), "pose", tmp_path)
    assert path.is_file()
    assert 0 < max(_losses(tmp_path)) < 10**6


def test_a_paused_run_goes_on(files: Path, tmp_path: Path) -> None:
    """unchanged by: two pauses at once; the losses are those of an unbroken run."""
    config = _config(files, steps=6)
    train_adapter(config, "pose", tmp_path / "whole")
    for _ in range(2):
        train_adapter(replace(config, pause_minutes=0.0), "pose", tmp_path / "paused")
        assert load_state(tmp_path / "paused" / "state.safetensors")[1]["step"] == 0  # type: ignore[index]
    train_adapter(config, "pose", tmp_path / "paused")
    assert _losses(tmp_path / "paused") == _losses(tmp_path / "whole")


def test_a_run_that_is_told_to_end_saves_first(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """exact: SIGTERM while step 3 is read; the next process has the losses of an unbroken run."""
    config, batch = _config(files, steps=6, batch=1), Cache.batch
    train_adapter(config, "pose", tmp_path / "whole")

    def told(self: Cache, which: list[int], *where: torch.device) -> dict[str, torch.Tensor]:
        if len(which) == 1 and (reads := len(_read)) < 4:
            _read.append(reads)
            if reads == 3:
                os.kill(os.getpid(), signal.SIGTERM)
        return batch(self, which, *where)

    _read: list[int] = []
    monkeypatch.setattr(Cache, "batch", told)
    train_adapter(config, "pose", tmp_path / "told")
    step = load_state(tmp_path / "told" / "state.safetensors")[1]["step"]  # type: ignore[index]
    assert 0 < step < 6
    train_adapter(config, "pose", tmp_path / "told")
    assert _losses(tmp_path / "told") == _losses(tmp_path / "whole")


# ---- crashes and processes --------------------------------------------------------------------


def _words(files: Path, run: Path, steps: int, *more: str) -> list[str]:
    settings = ["rank=4", f"steps={steps}", "rate=1e-2", "warmup=1", "held=2", "log_every=1"]
    places = [f"cache={files / 'pose'}", f"base={files / 'base.safetensors'}"]
    vae = f"vae={files / 'vae.safetensors'}"
    stage = ["train", "pose", "--out", str(run)]
    return [*stage, *settings, *places, vae, "look_every=1000000", *more]


def test_a_killed_run_equals_an_unbroken_one(files: Path, tmp_path: Path) -> None:
    """unchanged by: SIGKILL in the middle, twice; every loss to the last bit, and the adapter."""
    steps = 150
    for run in ("whole", "killed"):
        words = _words(files, tmp_path / run, steps, "save_minutes=0.002")
        kills = (40, 90) if run == "killed" else ()
        for least in kills:
            _kill_after(words, tmp_path / run, least)
        starting.run(words, tmp_path / f"{run}.txt")
    whole_run, killed = (_losses(tmp_path / run) for run in ("whole", "killed"))
    assert set(killed) == set(range(1, steps + 1))
    assert killed == whole_run
    first, second = (
        load_weights(tmp_path / r / "adapter.safetensors") for r in ("whole", "killed")
    )
    for name, value in first[0].items():
        assert torch.equal(second[0][name], value)


def _kill_after(words: list[str], run: Path, step: int) -> None:
    """Start a run, and kill it at once when it has logged a step and left a state."""
    started = starting.start(words, run.with_name(f"{run.name}.{step}.txt"))
    deadline, log = time.monotonic() + 90, run / "metrics.jsonl"
    while time.monotonic() < deadline and started.running:
        lines = log.read_text().splitlines() if log.is_file() else []
        if len(lines) > step and (run / "state.safetensors").is_file():
            break
        time.sleep(0.002)
    else:
        raise AssertionError(f"no step {step}: {started.output}")
    started.send(signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL


def test_two_processes_are_one_run(files: Path, tmp_path: Path) -> None:
    """unchanged by: the number of processes, to rounding, even where it changes in the middle."""
    steps, more = 60, ("batch=4", "at_once=1", "save_minutes=0.002")
    words = {k: _words(files, tmp_path / k, steps, *more) for k in ("one", "two", "both")}
    starting.run(words["one"], tmp_path / "one.txt")
    starting.run_together(words["two"], tmp_path / "two.txt")
    _kill_after(words["both"], tmp_path / "both", 20)
    starting.run_together(words["both"], tmp_path / "both.txt")
    first, *others = (_losses(tmp_path / name) for name in words)
    for other in others:
        assert other.keys() == first.keys() == set(range(1, steps + 1))
        assert_close(list(other.values()), list(first.values()), atol=1e-5, rtol=1e-5)
    assert len(set(first.values())) == steps


def test_a_sharded_state_is_whole_in_the_file(tmp_path: Path) -> None:
    """same: what FSDP2 shards over two processes comes back from its file, and in one process."""
    script = Path(__file__).parent / "sharded.py"
    starting.run_together([script, tmp_path / "state.safetensors"], tmp_path / "said.txt")
    state, facts = load_state(tmp_path / "state.safetensors") or (NOTHING, {})
    assert facts == {"step": 3}
    import sharded

    model, average, optimiser = sharded.trained()
    one = read_out(dict(model.named_parameters()), average, optimiser)
    assert state.groups == json.loads(json.dumps(one.groups))
    assert state.tensors.keys() == one.tensors.keys()
    for name, value in one.tensors.items():
        assert_close(state.tensors[name], value, atol=1e-6, rtol=1e-6)


# ---- states -----------------------------------------------------------------------------------


def test_a_state_comes_back_bit_by_bit(tmp_path: Path) -> None:
    """same: weights, averages and moments, into a fresh model and optimiser."""
    import sharded

    model, average, optimiser = sharded.trained()
    params = dict(model.named_parameters())
    state = read_out(params, average, optimiser)
    save_state(tmp_path / "s", state, {"step": 3, "seconds": 0.5})
    found = load_state(tmp_path / "s")
    assert found is not None
    assert found[1] == {"step": 3, "seconds": 0.5}
    fresh, other, unused = sharded.fresh()
    unused.param_groups[0]["betas"] = (0.5, 0.5)
    put_back(found[0], dict(fresh.named_parameters()), other, unused)
    again = read_out(dict(fresh.named_parameters()), other, unused)
    assert again.tensors.keys() == state.tensors.keys()
    assert all(torch.equal(again.tensors[name], value) for name, value in state.tensors.items())
    assert again.groups == state.groups
    assert unused.param_groups[0]["betas"] == (0.9, 0.999)
    with pytest.raises(WeightsError, match="is it of this run"):
        put_back(State({"weight/x": torch.zeros(1)}, []), params, average, optimiser)


def test_a_torn_state_is_refused(tmp_path: Path) -> None:
    assert load_state(tmp_path / "s") is None
    (tmp_path / "s").write_bytes(b"torn")
    with pytest.raises(WeightsError, match="not the state of a run"):
        load_state(tmp_path / "s")
    assert torch.equal(placed(whole(torch.ones(2)), torch.zeros(2)), torch.ones(2))


# ---- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cache=nowhere"], "no cache here"),
        (["cache=rgb"], "examples of rgb, want pose"),
        (["base=gone.safetensors"], "weights are missing"),
        (["base=vae.safetensors"], "weights of 'nano-vae', want 'nano'"),
        (["vae=base.safetensors"], "the cache was made with"),
        (["held=12"], "12 examples, want more than held=12"),
        (["rank=0"], "rank=0: want 1 or more"),
        (["pure=2"], "pure=2.0: want 0 to 1"),
        (["look_every=15"], "want a multiple of log_every=10, nearest is 20"),
        (["targets=everything"], "targets=everything: want one of"),
        (["targets=full", "start=a"], "targets=full has no adapter"),
        (["backbone=wan"], "no such backbone"),
        (["stpes=3"], "nearest is steps"),
    ],
)
def test_bad_settings_are_one_line(
    files: Path,
    tmp_path: Path,
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """refuses: exit code 2 and one line."""
    monkeypatch.chdir(files)
    given = {"cache": "pose", "base": "base.safetensors", "vae": "vae.safetensors"}
    given |= dict(word.split("=") for word in words)
    settings = [f"{key}={value}" for key, value in given.items()]
    monkeypatch.setattr(
        sys, "argv", ["dreamactor", "train", "pose", "--out", str(tmp_path / "run"), *settings]
    )
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_the_second_stage_must_say_where_it_starts(files: Path) -> None:
    from dreamactor.config import from_words

    words = [f"cache={files / 'rgb'}", f"base={files / 'base.safetensors'}"]
    with pytest.raises(ConfigError, match="start"):
        from_words(RgbConfig, words)
    assert from_words(RgbConfig, [*words, "start=none"]).start is None
    assert from_words(RgbConfig, [*words, "start=a"]).start == Path("a")


def test_commands_of_the_page_parse() -> None:
    """exact: every `dreamactor train` of the pages is one, with settings that are there."""
    from dreamactor.config import from_words
    from dreamactor.training.distill import DistillConfig
    from dreamactor.training.encode import CacheConfig

    kinds = {
        "cache": CacheConfig, "pose": AdaptConfig, "rgb": RgbConfig, "distill": DistillConfig,
    }  # fmt: skip
    command = r"(?:dreamactor |accelerate .*dreamactor\.cli +)train"
    pattern = rf"^ +{command} ({'|'.join(kinds)}) (.*)$"
    for name, first, then in (
        ("recipe.md", [], ["distill", "cache", "distill"]),
        ("train_your_own.md", ["pose"], []),
    ):
        page = (Path(__file__).parent.parent / "docs" / name).read_text().replace("\\\n", " ")
        lines = re.findall(pattern, page.replace("...", ""), re.MULTILINE)
        lines = [(verb, rest) for verb, rest in lines if "=" in rest]
        assert [verb for verb, _ in lines] == [*first, "cache", "pose", "cache", "rgb", *then]
        for verb, rest in lines:
            from_words(kinds[verb], [word for word in rest.split() if "=" in word])


def test_config_files_are_accelerates_own() -> None:
    """exact: its loader takes each, and what FSDP2 wraps is what the transformer is made of."""
    from accelerate.commands.config.config_args import load_config_from_file

    folder = Path(__file__).parent.parent / "configs" / "accelerate"
    found = {path.stem: load_config_from_file(str(path)) for path in folder.glob("*.yaml")}
    kinds = {name: config.distributed_type.value for name, config in found.items()}
    several = {"ddp": "MULTI_GPU", "multinode": "MULTI_GPU", "fsdp2": "FSDP"}
    assert kinds == {"one_gpu": "NO", **several}
    assert {config.mixed_precision for config in found.values()} == {"bf16"}
    assert (found["multinode"].num_machines, found["multinode"].num_processes) == (2, 16)
    assert found["fsdp2"].fsdp_config["fsdp_version"] == 2
    for network in (WanTransformer3DModel, HunyuanVideo15Transformer3DModel):
        assert any(name.endswith("TransformerBlock") for name in network._no_split_modules)


def test_another_config_or_cache_refuses_to_resume(files: Path, tmp_path: Path) -> None:
    train_adapter(_config(files, steps=1), "pose", tmp_path / "run")
    with pytest.raises(ConfigError, match="another rate"):
        train_adapter(_config(files, steps=1, rate=1e-3), "pose", tmp_path / "run")
    shutil.copytree(files / "pose", tmp_path / "pose")
    config = _config(files, steps=1, cache=tmp_path / "pose")
    train_adapter(config, "pose", tmp_path / "on")
    shard_path(tmp_path / "pose", 1).unlink()
    with pytest.raises(ConfigError, match="another examples"):
        train_adapter(config, "pose", tmp_path / "on")


def test_a_loss_that_is_no_number_ends_a_run(files: Path, tmp_path: Path) -> None:
    """refuses: weights that overflow at once are told, not written."""
    info = AdapterInfo("pose", "nano", sha256(files / "base.safetensors"), rank=4, lead=4)
    transformer = load_transformer(files / "base.safetensors")[0]
    for parameter in attach(transformer, info):
        torch.nn.init.constant_(parameter, 6e4)  # squares overflow
    save_adapter(tmp_path / "bad.safetensors", adapter_state(transformer), info)
    config = _config(files, start=tmp_path / "bad.safetensors")
    with pytest.raises(Exception, match="the loss is nan at step 1"):
        train_adapter(config, "pose", tmp_path / "run")


def test_a_process_with_one_gpu_reads_from_any_thread() -> None:
    """accelerate calls that GPU `cuda`, and torch only lets numbered ones be a thread's own."""
    with pytest.raises(ValueError, match="index"):
        torch.cuda.set_device(torch.device("cuda"))
    _Run._at_home(SimpleNamespace(device=torch.device("cuda")))  # type: ignore[arg-type]
