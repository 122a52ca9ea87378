"""Distillation: the roles, the pull between them, runs that go on, and what a file says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import starting
import torch
from accelerate import Accelerator
from tiny_stage import write_files
from torch.testing import assert_close

from dreamactor.backbones.base import Native, Trainee
from dreamactor.backbones.headers import read_header
from dreamactor.backbones.load import load_trainee
from dreamactor.backbones.lora import AdapterInfo, read_info
from dreamactor.backbones.weights import load_weights, save_weights
from dreamactor.conditioning.canvas import LatentGrid, motion_half
from dreamactor.diffusion.flow import schedule
from dreamactor.diffusion.sampler import beside, sample_euler
from dreamactor.errors import ConfigError, WeightsError
from dreamactor.training.adapt import train_adapter
from dreamactor.training.cache import Cache
from dreamactor.training.distill import DistillConfig, Distiller
from dreamactor.training.examples import lay_out
from dreamactor.training.export import export_nano
from dreamactor.training.stage import AdaptConfig, draw, in_mode, mode_for, prepare
from dreamactor.training.trio import ROLES

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vae, weights of nano, a cache, and an adapter of the RGB stage."""
    folder = tmp_path_factory.mktemp("files")
    write_files(folder, ("rgb",), 0.3, attention="one-way")
    config = AdaptConfig(
        cache=folder / "rgb", base=folder / "base.safetensors", vae=folder / "vae.safetensors",
        rank=4, steps=10, rate=1e-2, warmup=1, held=4, log_every=10, look_every=10,
    )  # fmt: skip
    train_adapter(config, "rgb", folder / "run")
    return folder


def _config(files: Path, **changes: object) -> DistillConfig:
    config = DistillConfig(
        cache=files / "rgb",
        base=files / "base.safetensors",
        vae=files / "vae.safetensors",
        start=files / "run" / "adapter.safetensors",
        rank=4,
        steps=6,
        score_steps=2,
        rate=1e-2,
        warmup=1,
        held=4,
        log_every=1,
        look_every=100,
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def _whole(files: Path, **changes: object) -> DistillConfig:
    return _config(files, start=None, targets="full", **changes)


def _distiller(config: DistillConfig) -> tuple[Distiller, Cache]:
    cache = Cache(config.cache)
    trainee = load_trainee("nano", config.base)
    trainee = in_mode(trainee, mode_for(config, trainee))
    info = prepare(trainee, config, cache.header, "")
    return Distiller(trainee, config, Accelerator(cpu=True), info, cache.shape), cache


def _rows(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    return [row for row in rows if "loss" in row]


# ---- roles ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [_config, _whole])
def test_roles_begin_alike_and_then_only_the_teacher_stays(files: Path, make) -> None:
    """same: predictions of all three at first; unchanged by: training, the teacher's."""
    distiller, cache = _distiller(make(files))
    batch = cache.batch([4, 5])
    laid = lay_out(batch, draw(distiller.config, batch["target"], [0, 1]), "clean")
    sigma = torch.tensor([0.5, 0.9])

    def asked() -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return {r: distiller.trio.ask(r, laid.x, sigma, laid.cond) for r in ROLES}

    before = asked()
    assert torch.equal(before["teacher"], before["student"])
    assert torch.equal(before["teacher"], before["score"])
    for step in range(4):
        distiller.update(batch, step, 1e-2)
    after = asked()
    assert torch.equal(before["teacher"], after["teacher"])
    assert not torch.equal(before["student"], after["student"])
    assert not torch.equal(before["score"], after["score"])
    assert not torch.equal(after["student"], after["score"])


def test_previews_are_the_student_s(files: Path) -> None:
    """exact: after a step, when the score was asked last, the network with the averages on it."""
    distiller, cache = _distiller(_config(files, average=0.5))
    batch = cache.batch([4, 5])
    for step in range(4):
        distiller.update(batch, step, 1e-2)
    laid = lay_out(batch, draw(distiller.config, batch["target"], [0, 1]), "clean")
    asked = laid.x, torch.tensor([0.5, 0.9]), laid.cond
    distiller.wear(distiller.average)
    with torch.no_grad():
        seen = distiller.trainee.predict(distiller.model, *asked)
        assert torch.equal(seen, distiller.trio.ask("student", *asked))
        assert not torch.equal(seen, distiller.trio.ask("score", *asked))


def test_a_student_goes_on_from_an_earlier_one(files: Path, tmp_path: Path) -> None:
    """same: the student, and what the file says; unchanged by: that, teacher and score."""
    earlier = train_adapter(_whole(files, steps=4), "rgb", tmp_path / "run")
    distiller, _ = _distiller(_whole(files, student=earlier))
    base, trained = (load_trainee("nano", p) for p in (files / "base.safetensors", earlier))
    for role, wanted in (("student", trained), ("teacher", base), ("score", base)):
        state = distiller.trio.networks[role].state_dict()
        for name, value in wanted.transformer.state_dict().items():
            assert torch.equal(state[name], value), (role, name)
    assert_close(distiller.average, distiller.params)
    later = train_adapter(_whole(files, student=earlier, steps=2), "rgb", tmp_path / "later")
    assert read_header(later) == read_header(earlier) | {"steps": 2}

    state, header = load_weights(earlier)
    save_weights(tmp_path / "other.safetensors", state, {**header, "placed": True})
    with pytest.raises(ConfigError, match=r"its placed is True, the teacher's False"):
        train_adapter(_whole(files, student=tmp_path / "other.safetensors"), "rgb", tmp_path / "no")
    with pytest.raises(WeightsError, match=r"none.safetensors: weights are missing"):
        train_adapter(_whole(files, student=tmp_path / "none.safetensors"), "rgb", tmp_path / "no")
    assert not (tmp_path / "no").exists()
    with pytest.raises(ConfigError, match=r"targets=ff: want targets=full"):
        _config(files, student=earlier)
    assert "student" not in json.loads((tmp_path / "run" / "config.json").read_text())


def test_adapters_stand_on_one_network(files: Path) -> None:
    """exact: a third of what learns is the teacher's, and nothing else of the network learns."""
    distiller, _ = _distiller(_config(files))
    assert len({id(network) for network in distiller.trio.networks.values()}) == 1
    learning = {n for n, p in distiller.model.named_parameters() if p.requires_grad}
    assert learning == set(distiller.params) | set(distiller.score)
    assert len(distiller.params) == len(distiller.score) > 0
    assert not set(distiller.params) & set(distiller.score)


# ---- steps ------------------------------------------------------------------------------------


def test_nothing_pulls_where_score_and_teacher_agree(files: Path) -> None:
    """exact: at the first step they are the same, so the student stays to the last bit."""
    distiller, cache = _distiller(_config(files, weight_decay=0.0))
    before = {name: p.detach().clone() for name, p in distiller.params.items()}
    distiller.update(cache.batch([4, 5]), 0, 1e-2)
    assert float(distiller.facts["pull"]) == 0
    assert float(distiller.facts["norm"]) == 0
    for name, value in distiller.params.items():
        assert torch.equal(value, before[name]), name
    distiller.update(cache.batch([4, 5]), 1, 1e-2)  # the score alone
    for name, value in distiller.params.items():
        assert torch.equal(value, before[name]), name
    distiller.update(cache.batch([4, 5]), 2, 1e-2)
    assert float(distiller.facts["pull"]) > 0


def test_a_student_comes_to_its_level_as_the_sampler_does(files: Path) -> None:
    """exact: what it draws at the last level is what Euler's sampler ends with."""
    config = _whole(files, sampling_steps=3, sampling_shift=2.0)
    distiller, cache = _distiller(config)
    batch = cache.batch([4, 5])
    drawn = draw(config, batch["target"], [0, 1])
    drawn = replace(drawn, sigma=torch.ones(2))
    laid = lay_out(batch, drawn, "clean")

    def velocity(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        found = distiller.trio.ask("student", x, sigma.expand(2), laid.cond)
        return (x - found) / sigma

    with torch.no_grad():
        wanted = sample_euler(
            beside(velocity, motion_half(laid.latents)),
            drawn.noise[..., :4],
            schedule(3, 2.0),
        )
        assert_close(distiller._draw(laid, 2), wanted, atol=1e-5, rtol=1e-5)


class Normal(torch.nn.Module):
    """Foresees latents of a normal distribution, and has one number more for single steps."""

    def __init__(self) -> None:
        super().__init__()
        self.centre = torch.nn.Parameter(torch.tensor(1.0))
        self.width = torch.nn.Parameter(torch.tensor(0.5))
        self.more = torch.nn.Parameter(torch.tensor(0.0))

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        level = sigma.view(-1, 1, 1, 1, 1)
        slope = self.width**2 * (1 - level) / ((1 - level) ** 2 * self.width**2 + level**2)
        return self.centre + (slope + self.more * level) * (x - (1 - level) * self.centre)


@pytest.mark.parametrize("adversary", [0.0, 0.2])
def test_one_step_draws_what_the_teacher_draws_in_many(
    files: Path, monkeypatch: pytest.MonkeyPatch, adversary: float
) -> None:
    """exact: the teacher is a normal of mean 1 and spread .5, of which one step has no spread.

    Only the two distributions are alike in the end: no sample of the student is the teacher's.
    """
    monkeypatch.setattr("dreamactor.training.distill.WIDTHS", (8,))
    config = _whole(
        files, sampling_steps=1, score_steps=4, rate=3e-2, batch=16, weight_decay=0.0, clip=1e9,
        checkpoint=False, adversary=adversary, shift=1.0,
    )  # fmt: skip
    trainee = Trainee(
        "nano", Normal(), lambda network, x, sigma, cond: network(x, sigma),
        LatentGrid(4, 8, 2), "", {},
    )  # fmt: skip
    distiller = Distiller(trainee, config, Accelerator(cpu=True), None, (2, 3, 2, 2))
    torch.manual_seed(0)
    batch = {
        "target": 1 + 0.5 * torch.randn(16, 2, 3, 2, 2),
        "motion": torch.randn(16, 2, 3, 2, 2),
        "text": torch.zeros(16, 1, 1),
        "subject": torch.ones(16, 1, 3, 2, 2),
    }
    for step in range(480):
        distiller.update(batch, step, config.rate * (1 - step / 480))
    student, score = (distiller.trio.networks[role].state_dict() for role in ("student", "score"))
    found = torch.stack([student["centre"], student["more"].abs(), score["width"].abs()])
    assert_close(found, torch.tensor([1.0, 0.5, 0.5]), atol=0.05, rtol=0)


# ---- runs -------------------------------------------------------------------------------------


def test_a_run_writes_an_adapter_that_says_how_it_samples(files: Path, tmp_path: Path) -> None:
    config = _config(files, sampling_steps=2, sampling_shift=1.5, adversary=0.5)
    path = train_adapter(config, "rgb", tmp_path / "run")
    info = read_info(path)
    assert (info.variant, info.attention, info.sampling) == ("rgb", "one-way-aligned", (2, 1.5))
    rows = _rows(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[0].keys() >= {"loss", "rate", "norm", "pull", "told"}
    assert list((tmp_path / "run" / "samples").glob("*.png"))
    start, end = load_weights(config.start)[0], load_weights(path)[0]
    assert start.keys() == end.keys()
    assert any(not torch.equal(start[name], end[name]) for name in start)

    own = Native(256, 256, 12.0, 17, 4, 40, 5.0, 6.0)
    assert info.native(own) == replace(own, steps=2, shift=1.5, guidance=1.0)
    assert read_info(config.start).native(own) == own


def test_weights_keep_their_mode_and_are_exported_with_their_schedule(
    files: Path, tmp_path: Path
) -> None:
    path = train_adapter(_whole(files, steps=2, sampling_steps=2), "rgb", tmp_path / "run")
    header = read_header(path)
    assert (header["attention"], header["sampling"]) == ("one-way", [2, 2.0])
    plain = AdaptConfig(
        cache=files / "rgb", base=path, vae=files / "vae.safetensors", targets="full", steps=1,
        held=4,
    )  # fmt: skip
    assert read_header(train_adapter(plain, "rgb", tmp_path / "on"))["sampling"] is None
    for steps, wanted in ((None, (2, 2.0)), (6, (6, 2.0))):
        export_nano(files / "vae.safetensors", path, tmp_path / "out", steps)
        native = json.loads((tmp_path / "out" / "manifest.json").read_text())["native"]
        assert (native["steps"], native["shift"]) == wanted
    export_nano(files / "vae.safetensors", files / "base.safetensors", tmp_path / "out")
    native = json.loads((tmp_path / "out" / "manifest.json").read_text())["native"]
    assert (native["steps"], native["shift"]) == (4, 3.0)


@pytest.mark.parametrize("make", [_config, _whole])
def test_a_paused_run_goes_on(files: Path, tmp_path: Path, make) -> None:
    """unchanged by: a pause between steps of the score; losses to the last bit, and the file."""
    config = make(files, steps=7, score_steps=3, adversary=0.5)
    whole = train_adapter(config, "rgb", tmp_path / "whole")
    train_adapter(replace(config, steps=4), "rgb", tmp_path / "first")
    (tmp_path / "paused").mkdir()
    for name in ("state.safetensors", "metrics.jsonl"):
        (tmp_path / "paused" / name).write_bytes((tmp_path / "first" / name).read_bytes())
    paused = train_adapter(config, "rgb", tmp_path / "paused")
    losses = [
        {row["step"]: row["loss"] for row in _rows(tmp_path / run)} for run in ("whole", "paused")
    ]
    assert losses[0] == losses[1]
    assert set(losses[0]) == set(range(1, 8))
    first, second = load_weights(whole)[0], load_weights(paused)[0]
    for name, value in first.items():
        assert torch.equal(second[name], value), name


@pytest.mark.parametrize("make", [_config, _whole])
def test_examples_of_a_step_come_in_parts(files: Path, tmp_path: Path, make) -> None:
    """unchanged by: how many are in memory at once, to rounding."""
    for at_once in (None, 1):
        config = make(files, batch=4, at_once=at_once, adversary=0.5)
        train_adapter(config, "rgb", tmp_path / str(at_once))
    one, other = ([row["loss"] for row in _rows(tmp_path / str(k))] for k in (None, 1))
    assert_close(other, one, atol=1e-4, rtol=1e-4)


def test_two_processes_are_one_run(files: Path, tmp_path: Path) -> None:
    """unchanged by: the number of processes, to rounding; through the command."""
    config = _whole(files, batch=4, adversary=0.5)
    names = (
        "cache", "base", "vae", "targets", "steps", "batch", "score_steps", "rate", "warmup",
        "held", "log_every", "look_every", "adversary",
    )  # fmt: skip
    settings = [f"{name}={getattr(config, name)}" for name in names]
    words = ["train", "distill", "start=none", *settings, "--out"]
    train_adapter(config, "rgb", tmp_path / "one")
    starting.run_together([*words, tmp_path / "two"], tmp_path / "two.txt")
    one, two = ([row["loss"] for row in _rows(tmp_path / run)] for run in ("one", "two"))
    assert_close(two, one, atol=1e-4, rtol=1e-4)


# ---- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"start": None}, "start=none targets=ff: want start=ADAPTER, or targets=full"),
        ({"motion": "noised"}, "motion=noised: want clean to distil"),
        ({"expert": "high"}, "expert=high: one of two transformers cannot walk a schedule"),
        ({"sampling_steps": 0}, "sampling_steps=0: want 1 or more"),
        ({"sampling_shift": 0.5}, "sampling_shift=0.5: want 1 or more"),
        ({"score_steps": 0}, "score_steps=0: want 1 or more"),
        ({"adversary": -1.0}, "adversary=-1.0: want 0 or more"),
    ],
)
def test_bad_settings_are_one_line(files: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _config(files, **changes)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shards_and_drivers_of_another_place_are_refused(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, header = load_weights(files / "base.safetensors")
    save_weights(tmp_path / "placed.safetensors", state, {**header, "placed": True})
    config = _whole(files, base=tmp_path / "placed.safetensors")
    with pytest.raises(ConfigError, match=r"want a cache made with placed=true"):
        train_adapter(config, "rgb", tmp_path / "no")
    save_weights(tmp_path / "pose.safetensors", state, {**header, "variant": "pose", "lead": 4})
    with pytest.raises(ConfigError, match=r"its variant is pose, the cache's rgb; want weights"):
        train_adapter(_whole(files, base=tmp_path / "pose.safetensors"), "rgb", tmp_path / "no")
    layers, info = load_weights(files / "run" / "adapter.safetensors")
    save_weights(tmp_path / "posed.safetensors", layers, {**info, "variant": "pose", "lead": 4})
    with pytest.raises(ConfigError, match=r"variant=pose lead=4, here variant=rgb lead=None"):
        train_adapter(_config(files, start=tmp_path / "posed.safetensors"), "rgb", tmp_path / "no")
    monkeypatch.setattr(Accelerator, "is_fsdp2", True)
    with pytest.raises(ConfigError, match=r"cannot be sharded"):
        train_adapter(_whole(files, attention="full"), "rgb", tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_an_adapter_with_no_schedule_in_its_place_is_refused(files: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="want steps and shift"):
        AdapterInfo("rgb", "nano", "0", sampling=(0, 2.0))
    path = files / "run" / "adapter.safetensors"
    state, header = load_weights(path)
    save_weights(tmp_path / "bad.safetensors", state, {**header, "sampling": "4"})
    with pytest.raises(WeightsError, match="not an adapter header"):
        read_info(tmp_path / "bad.safetensors")
