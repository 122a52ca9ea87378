"""nano on clips by themselves: their layout, their pool, and weights that pairs start from."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import pytest
import torch
from test_training import CPU, TINY_VAE, _blobs
from torch.testing import assert_close

from dreamactor.backbones.nano import PREDICTS, NanoConfig, load_nano
from dreamactor.backbones.nano_vae import NanoVAE
from dreamactor.backbones.weights import load_weights, save_weights
from dreamactor.conditioning.text import TextEncoder
from dreamactor.errors import WeightsError
from dreamactor.runs import generator
from dreamactor.training.examples import Draws, example
from dreamactor.training.export import export_nano
from dreamactor.training.extent import Extent
from dreamactor.training.latents import HELD, LatentPool, encode_clips, halve
from dreamactor.training.matches import matching_cells
from dreamactor.training.nano import NanoBaseConfig, NanoTrainConfig, _Run, draw, train_nano
from dreamactor.training.pool import SHARD, read_shard

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _blobs(tmp_path_factory.mktemp("pool"), 16)


def test_example_of_a_clip_shows_its_first_frame() -> None:
    """exact: one channel, two latent frames, one row of two cells; noise, mask, shown latents."""
    batch = {
        "target": torch.tensor([[1.0, 2], [3, 4]]).view(1, 1, 2, 1, 2),
        "text": torch.ones(1, 2, 3),
    }
    drawn = Draws(
        torch.tensor([[10.0, 20], [30, 40]]).view(1, 1, 2, 1, 2),
        torch.tensor([0.75]),
        torch.tensor([False]),
        torch.zeros(1),
        torch.zeros(1, 1, 1, 2),
        torch.tensor([True]),
    )
    x, latents, noise, text, shown = example(batch, drawn, "none")
    assert x.shape == (1, 1 + 4 + 1, 2, 1, 2)
    assert x[0, 0, :, 0].tolist() == [[7.75, 15.5], [23.25, 31]]
    assert x[0, 1:5, :, 0].tolist() == 4 * [[[1, 1], [0, 0]]]
    assert x[0, 5, :, 0].tolist() == [[1, 2], [0, 0]]
    assert latents is not noise
    assert torch.equal(latents, batch["target"])
    assert torch.equal(noise, drawn.noise)
    assert not text.any()
    assert shown.flatten().tolist() == [1, 0]


def test_draws_for_clips_are_as_wide_as_they_are() -> None:
    """Never is a frame shown but the first; text is dropped from half of them."""
    config = NanoBaseConfig(pool=Path("pool"), vae=Path("vae"))
    drawn = draw(config, generator(0, "nano/0", 0), torch.zeros(4000, 1, 5, 2, 2))
    assert drawn.noise.shape == (4000, 1, 5, 2, 2)
    assert not drawn.continued.any()
    assert abs(drawn.silent.float().mean().item() - 0.5) < 0.03


def test_the_reference_half_stands_where_a_clip_did() -> None:
    """same: its tokens have the positions that the clip's have, in time, rows and columns."""
    rope = NanoConfig(1, 1, 16, 32, 4).build().rope
    wide, alone = rope(torch.zeros(1, 12, 5, 8, 16)), rope(torch.zeros(1, 12, 5, 8, 8))
    for canvas, clip in zip(wide, alone, strict=True):
        left = canvas.flatten(0, -2).unflatten(0, (5, 4, 8))[:, :, :4]
        assert torch.equal(left, clip.flatten(0, -2).unflatten(0, (5, 4, 4)))


def test_a_pool_of_clips_keeps_what_drives_the_twins(pool: Path) -> None:
    """same: clip 2 k is what pair 2 k is with the frame before as its reference, without driver."""

    def names(captions: list[str]) -> torch.Tensor:
        return torch.tensor([[float(c.split()[1]), float(c.split()[2])] for c in captions])

    torch.manual_seed(0)
    vae, encoder = NanoVAE(TINY_VAE), cast(TextEncoder, names)
    both = [
        LatentPool(pool, 80, vae, encoder, CPU, consume=False, half=True, alone=alone)
        for alone in (False, True)
    ]
    for latents in both:
        latents.wait(4 * SHARD)
    pairs, clips = (latents.held(6) for latents in both)
    assert clips.keys() == pairs.keys() - {"motion", "driver_match"}
    twins = {name: value[1:12:2].float() for name, value in both[0].store.items()}
    assert_close(clips["target"], twins["motion"])
    assert_close(clips["text"], pairs["text"])
    for name in ("joints", "surface"):
        assert_close(clips[name], twins[name][:, 17:], equal_nan=True)
    surface = clips["surface"]
    assert torch.equal(clips["match"].long(), matching_cells(surface[:, 1:], surface[:, :1]))
    first = torch.from_numpy(read_shard(pool, 0).pixels[:6, 0, 1:])
    assert_close(encode_clips(vae, halve(first[None])[0], CPU)["subject"], clips["subject"],
                 atol=1e-3, rtol=0)  # fmt: skip
    drawn = both[1].batch(generator(0, "x", 0), 200)["text"]
    assert set(drawn[:, 0].int().tolist()) == set(range(SHARD))
    assert both[1].store["text"][HELD:, 0].isfinite().all()


def _weights(folder: Path, task: str) -> tuple[Path, Path]:
    """A fresh autoencoder and a fresh transformer of a task, tiny."""
    torch.manual_seed(0)
    vae, shape = NanoVAE(TINY_VAE), NanoConfig(2, 1, 16, 32, 4)
    paths = folder / "vae.safetensors", folder / "transformer.safetensors"
    save_weights(paths[0], vae.state_dict(), {"model": "nano-vae", "config": asdict(TINY_VAE)})
    header = {"model": "nano", "task": task, "config": asdict(shape), "predicts": PREDICTS}
    save_weights(paths[1], shape.build().state_dict(), header)
    return paths


@pytest.mark.usefixtures("quick")
def test_losses_of_pairs_are_those_of_the_first_recipe(pool: Path, tmp_path: Path) -> None:
    """golden: as of commit 82644c8, without its near references."""
    vae, start = _weights(tmp_path, "animate")
    sizes = {"batch": 2, "pairs": 64, "least": 64, "pictures": 2}
    config = NanoTrainConfig(
        pool=pool, vae=vae, start=start, minutes=1e9, half_share=0, visible=0, **sizes
    )
    run = _Run(config, tmp_path / "run", CPU)
    found = []
    for step, fraction in enumerate((0.0, 0.7)):
        run.loop.fraction = fraction
        losses = run._losses(step)
        run.loop._update(losses["total"])
        found.append({name: value.item() for name, value in losses.items()})
    names = ("flow", "total", "poses", "spots", "outlines")
    golden = (
        (0.0163998, 4.37817, 2.80591, 4.19533, 0.797552),
        (0.0258466, 1.34815, 2.78024, 4.17972, 0.79553),
    )
    looks = ({"to_reference": 4.72944, "to_driver": 5.83547},
             {"to_reference": 4.4917, "to_driver": 6.05194, "pictures": 0.0725599})  # fmt: skip
    for losses, values, more in zip(found, golden, looks, strict=True):
        expected = dict(zip(names, values, strict=True)) | more
        assert losses == pytest.approx(expected, rel=1e-3)  # other CPUs round otherwise


@pytest.mark.usefixtures("quick")
def test_clips_grow_as_pairs_do(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small and short, short, whole; a short clip goes on from its first frame, come what may."""
    monkeypatch.setattr(
        "dreamactor.training.nano.TextEncoder",
        lambda folder, device: lambda captions: torch.ones(len(captions), 2, 384),
    )
    vae, start = _weights(tmp_path, "video")
    short = _blobs(tmp_path, 4)
    config = NanoBaseConfig(
        pool=pool,
        vae=vae,
        start=start,
        short=short,
        minutes=1e9,
        batch=2,
        pairs=64,
        least=64,
        pictures=1,
    )
    run = _Run(config, tmp_path / "run", CPU)
    run.loop.step = 1  # no probes
    rope = run.model.rope
    # the draw that a pair's only driven frame is placed by
    drawn = [int(torch.randint(1, 5, (1,), generator=generator(0, "nano/0", k))) for k in range(9)]
    step = next(k for k, frame in enumerate(drawn) if frame != 1)
    run.loop.fraction = 0.0
    for fraction, half, single in ((0.2, True, True), (0.4, False, True), (0.7, False, False)):
        run.loop.fraction = fraction
        run._look()
        assert run.extent == Extent(half, single)
        frames, side = 2 if single else 5, 4 if half else 8
        assert run.pool.held(1)["target"].shape == (1, 4, frames, side, side)
        losses = run._losses(step)
        run.loop._update(losses["total"])
        assert all(value.isfinite() for value in losses.values())
        assert losses.keys() >= {"flow", "poses", "spots", "to_reference"}
        assert ("pictures" in losses) == (fraction > 0.6)
        assert torch.equal(rope.freqs_cos[1, : rope.t_dim], run.tables[0][1, : rope.t_dim])


@pytest.mark.usefixtures("quick")
def test_nano_learns_clips_first_and_pairs_then(pool: Path, tmp_path: Path) -> None:
    """A run and its end again, weights that pairs start from, and that do not animate yet."""
    vae, start = _weights(tmp_path, "video")
    config = NanoBaseConfig(
        pool=pool,
        vae=vae,
        start=start,
        short=_blobs(tmp_path, 4),
        minutes=0.03,
        batch=1,
        pairs=64,
        least=64,
        half_share=0.3,
        single_share=0.6,
        pictures=1,
        pictures_from=0.1,
    )
    base = train_nano(config, tmp_path / "base")
    state, header = load_weights(base)
    assert (header["model"], header["task"], header["motion"]) == ("nano", "video", "none")
    assert header["steps"] > 0
    fresh = load_weights(start)[0]
    assert any(not torch.equal(value, fresh[name]) for name, value in state.items())
    rows = [json.loads(row) for row in (tmp_path / "base" / "metrics.jsonl").open()]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert rows[0].keys() == {
        "step", "missed_1", "silent_1", "missed_0.7", "silent_0.7", "dB_1", "dB",
        "held_poses", "held_spots", "held_outlines", "held_to_reference",
    }  # fmt: skip
    again, told = load_weights(train_nano(config, tmp_path / "base"))  # its time is up
    assert told == header
    assert all(torch.equal(again[name], value) for name, value in state.items())

    pairs = NanoTrainConfig(
        pool=pool, vae=vae, start=base, minutes=0.0, batch=1, pairs=64, least=64
    )
    nano = train_nano(pairs, tmp_path / "nano")
    taken, header = load_weights(nano)
    assert (header["task"], header["motion"], header["steps"]) == ("animate", "clean", 0)
    assert all(torch.equal(taken[name], value) for name, value in state.items())
    with pytest.raises(WeightsError, match=r"task 'animate', want 'video'.*`.* train nano-base`"):
        train_nano(replace(config, start=nano), tmp_path / "other")

    export_nano(vae, nano, tmp_path / "pairs", steps=4, shift=3.0)
    assert load_nano(tmp_path / "pairs").native.steps == 4
    export_nano(vae, base, tmp_path / "clips", steps=4, shift=3.0)
    with pytest.raises(WeightsError, match="task 'video', want 'animate'"):
        load_nano(tmp_path / "clips")
