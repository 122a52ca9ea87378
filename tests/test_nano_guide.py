"""The decoder that fetches from frame 0: exact places, nothing until taught, and how it learns."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from test_nano_surface import SEEN, TINY, WIDTHS
from test_training import _blobs
from torch.testing import assert_close

from dreamactor.backbones.nano import PREDICTS, NanoConfig, load_vae
from dreamactor.backbones.nano_guide import ALIKE, Fetch, Places, by_frame, find_places
from dreamactor.backbones.nano_surface import Surface, SurfaceNet
from dreamactor.backbones.nano_vae import NanoVAE
from dreamactor.backbones.weights import load_weights, save_weights
from dreamactor.errors import ConfigError
from dreamactor.training.nano_decoder import (
    DecoderTrainConfig,
    guided,
    pixels_of,
    subject_psnr,
    train_nano_decoder,
)


def test_spots_come_back_by_frame() -> None:
    """same: what `SurfaceNet.latents` tells, told apart again."""
    network = SurfaceNet(WIDTHS)
    spots = torch.randn(2 * 9, 3, 2, 2)
    subject = torch.randn(2 * 9, 1, 2, 2).abs() * 3  # surer than half
    network.forward = lambda frames: Surface(spots, subject)  # type: ignore[method-assign]
    found, sure = by_frame(network.latents(torch.zeros(2, 3, 9, 16, 16)))
    assert_close(found, spots.unflatten(0, (2, 9)))
    assert_close(sure, subject.sigmoid().unflatten(0, (2, 9)))


def test_places_are_where_frame_0_shows_the_spot() -> None:
    """exact: a frame that shows frame 0 two cells further finds it there; elsewhere nothing."""
    torch.manual_seed(0)
    spots = torch.zeros(1, 2, 3, 4, 6)
    spots[0, 0] = 4 * torch.randn(3, 4, 6)  # far apart, by ALIKE
    spots[0, 1] = spots[0, 0].roll(2, dims=-1)
    spots[0, 1, :, 0] = 99.0  # nowhere on frame 0
    sure = torch.ones(1, 2, 1, 4, 6)
    sure[0, 1, 0, 3] = 0
    at, alike = find_places(spots, sure)
    columns = (torch.arange(6) + 0.5) / 6 * 2 - 1
    rows = (torch.arange(4) + 0.5) / 4 * 2 - 1
    assert_close(at[0, 0, 0], columns.expand(4, 6), atol=1e-4, rtol=0)
    assert_close(at[0, 0, 1], rows[:, None].expand(4, 6), atol=1e-4, rtol=0)
    assert_close(at[0, 1, 0, 1:], columns.roll(2).expand(3, 6), atol=1e-4, rtol=0)
    assert_close(alike[0, 1, 0, 1:3], torch.ones(2, 6))
    assert not alike[0, 1, 0, 0].any()
    assert not alike[0, 1, 0, 3].any()
    spots[0, 1] = spots[0, 0] + torch.tensor([ALIKE, 0, 0]).view(3, 1, 1)
    assert_close(find_places(spots, sure).alike[0, 1, 0, :3], torch.full((3, 6), math.exp(-0.5)))


def test_what_is_fetched_is_frame_0_there() -> None:
    """exact: with the identity for weights, frame 0's features at the places are added."""
    fetch = Fetch(3)
    x = torch.randn(2 * 2, 3, 4, 6)
    columns, rows = (torch.arange(6) + 0.5) / 6 * 2 - 1, (torch.arange(4) + 0.5) / 4 * 2 - 1
    own = torch.stack(torch.meshgrid(columns, rows, indexing="xy"))
    at = torch.stack([own, own.flip(-1)]).expand(2, -1, -1, -1, -1)  # frame 1 is mirrored
    alike = torch.full((2, 2, 1, 4, 6), 0.5)
    assert torch.equal(fetch(x, Places(at, alike)), x)
    with torch.no_grad():
        fetch.take.weight[:, :3, 0, 0] = torch.eye(3)
    found = (fetch(x, Places(at, alike)) - x).unflatten(0, (2, 2))
    first = x.unflatten(0, (2, 2))[:, 0]
    assert_close(found[:, 0], first / 2)
    assert_close(found[:, 1], first.flip(-1) / 2)


def test_a_decoder_draws_as_before_until_taught() -> None:
    """unchanged by: being guided, but for what it is taught; then frame 0 tells."""
    torch.manual_seed(0)
    plain = NanoVAE(SEEN).requires_grad_(False)
    torch.nn.init.normal_(plain.decoder.out.weight)
    vae = guided(plain).requires_grad_(False)
    assert vae.config == replace(SEEN, guided=True)
    latents = torch.randn(2, 20, 3, 4, 4)
    latents[:, 4:] = latents[:, 4:8, :1].repeat(1, 4, 3, 1, 1)  # the same spots on all frames,
    latents[:, 7::4] = 1.0  # all of the subject
    assert torch.equal(vae.decode(latents), plain.decode(latents))
    for fetch in vae.decoder.fetches:
        torch.nn.init.normal_(fetch.take.weight)  # type: ignore[union-attr, arg-type]
    taught = vae.frames(latents)
    other = latents.clone()
    other[:, :4, 0] += 1  # the picture of frame 0
    changed = (vae.frames(other) - taught).abs().amax(dim=(0, 1, 3, 4))
    before = (plain.frames(other) - plain.frames(latents)).abs().amax(dim=(0, 1, 3, 4))
    assert before[-1] == 0  # causal mixing does not reach that far
    assert changed[-1] > 0
    halves = torch.cat([vae.frames(latents[k : k + 1]) for k in range(2)])
    assert_close(halves, taught, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="train nano-surface"):
        guided(NanoVAE(TINY))


def test_decibels_are_of_the_subject() -> None:
    """exact: an error of .2 of 2 on the subject alone is 20 dB; the first frame is not counted."""
    pixels = torch.full((2, 5, 8, 8, 4), 127.5)
    pixels[..., 3] = 0
    pixels[:, :, :4, :, 3] = 255
    clip, mask = pixels_of({"pixels": pixels})
    assert_close(clip, torch.zeros(2, 3, 5, 8, 8))
    found = clip + 0.2
    found[:, :, 0] = 9.0
    found[:, :, :, 4:] = 9.0
    assert subject_psnr(found, clip, mask) == pytest.approx(20)


@pytest.mark.usefixtures("quick")
def test_training_changes_the_decoder_alone(tmp_path: Path) -> None:
    """unchanged by: being taught; encoder, surfaces and statistics. The run resumes."""
    torch.manual_seed(0)
    vae, start = tmp_path / "vae.safetensors", tmp_path / "transformer.safetensors"
    state = NanoVAE(SEEN).state_dict()
    save_weights(vae, state, {"model": "nano-vae", "config": asdict(SEEN)})
    shape = NanoConfig(2, 1, 16, 32, 20)
    header = {"model": "nano", "task": "animate", "config": asdict(shape), "predicts": PREDICTS}
    save_weights(start, shape.build().state_dict(), header)
    pool = _blobs(tmp_path, 4)
    config = DecoderTrainConfig(
        pool=pool, vae=vae, transformer=start, minutes=0.1, batch=2, pairs=64, least=40, rate=1e-2
    )
    taught = train_nano_decoder(config, tmp_path / "run")
    found = load_weights(taught)[0]
    same = {name for name, value in state.items() if torch.equal(found[name], value.half().float())
            or torch.equal(found[name], value)}  # fmt: skip
    assert {name for name in state if not name.startswith("decoder.")} <= same
    assert not {name for name in state if name.startswith("decoder.")} <= same
    assert any(found[name].any() for name in found if "fetches" in name)
    assert load_vae(taught).config == replace(SEEN, guided=True)
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").open()]
    assert rows[-1].keys() == {"step", "held_before", "held_after", "held_true"}
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert list((tmp_path / "run" / "samples").glob("*.png"))
    train_nano_decoder(config, tmp_path / "run")  # its time is up
    again = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").open()]
    assert again[-1]["step"] == rows[-1]["step"]
