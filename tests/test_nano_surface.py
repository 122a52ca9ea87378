"""Where on the body cells lie: the network, its channels among the latents, and how it learns."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dreamactor.backbones.nano import NanoConfig, load_vae
from dreamactor.backbones.nano_surface import SURFACE_CHANNELS, Surface, SurfaceNet
from dreamactor.backbones.nano_vae import NanoVAE, NanoVAEConfig
from dreamactor.backbones.weights import load_weights, save_weights
from dreamactor.conditioning.skeleton import JOINTS
from dreamactor.errors import ConfigError
from dreamactor.runs import generator
from dreamactor.training.frames import FramePool
from dreamactor.training.loop import Worker
from dreamactor.training.nano_surface import (
    SurfaceTrainConfig,
    measured,
    normalise_surface,
    surface_loss,
    surface_sheet,
    train_nano_surface,
    with_surface,
)
from dreamactor.training.nano_vae import channel_weights
from dreamactor.training.pool import SHARD, Shard, write_shard
from dreamactor.training.preview import unseen_channels
from dreamactor.training.views import reframed, reframed_surface, surface_views
from dreamactor.training.widen import widened

TINY = NanoVAEConfig(4, (8, 8, 8), (1, 1, 1), (8, 8, 8, 8), (1, 1, 1, 1))
WIDTHS = (8, 8, 8, 8)
CPU = Worker(0, 1, torch.device("cpu"))
SEEN = replace(TINY, surface_widths=WIDTHS)


def _clip(frames: int = 9, size: int = 16) -> Tensor:
    return torch.rand(2, 3, frames, size, size, generator=generator(0, "clip", 0)) * 2 - 1


def test_channels_are_the_spots_of_a_latent_frames_frames() -> None:
    """exact: frame 0 four times, then four frames a latent frame; 0 where there is no subject."""
    network = SurfaceNet(WIDTHS)
    spots = torch.randn(2 * 9, 3, 2, 2)
    subject = torch.full((2 * 9, 1, 2, 2), 50.0)
    subject[..., 0] = -50.0
    network.forward = lambda frames: Surface(spots, subject)  # type: ignore[method-assign]
    told = network.latents(_clip()).unflatten(1, (4, 4))  # (B, S, 4, F, h, w)
    by_clip = spots.unflatten(0, (2, 9))
    for frame in range(9):
        places = [(s, 0) for s in range(4)] if frame == 0 else [((frame - 1) % 4, (frame + 3) // 4)]
        for within, latent in places:
            found = told[:, within, :, latent]
            assert_close(found[:, :3, :, 1], by_clip[:, frame, :, :, 1])
            assert_close(found[:, 3, :, 1], torch.ones(2, 2))
            assert found[..., 0].abs().max() < 1e-9


@pytest.mark.parametrize("size", [(32, 32), (40, 24), (8, 64)])
def test_any_multiple_of_a_cell_is_read(size: tuple[int, int]) -> None:
    spots, subject = SurfaceNet(WIDTHS)(torch.randn(2, 3, *size))
    assert spots.shape == (2, 3, size[0] // 8, size[1] // 8)
    assert subject.shape == (2, 1, size[0] // 8, size[1] // 8)


def test_pictures_do_not_change_by_what_is_known_of_surfaces() -> None:
    """unchanged by: surfaces; latents of the picture come first, and only they are decoded."""
    torch.manual_seed(0)
    plain = NanoVAE(TINY).requires_grad_(False)
    torch.nn.init.normal_(plain.decoder.out.weight)
    vae = with_surface(plain, SurfaceNet(WIDTHS))
    assert (vae.config, vae.config.channels) == (SEEN, 4 + SURFACE_CHANNELS)
    latents = vae.encode(_clip())
    assert latents.shape == (2, 20, 3, 2, 2)
    assert_close(latents[:, :4], plain.encode(_clip()))
    other = torch.cat([latents[:, :4], torch.randn(2, 16, 3, 2, 2)], dim=1)
    assert_close(vae.decode(other), plain.decode(latents[:, :4]))
    assert_close(vae.encode(_clip()[:, :, :5]), latents[:, :, :2])  # nothing later is looked at
    alone = torch.cat([vae.encode(_clip()[k : k + 1]) for k in range(2)])
    assert_close(alone, latents)


def test_surfaces_show_nothing() -> None:
    """exact: a channel that is not decoded weighs nothing, the others 1 on average."""
    vae = with_surface(NanoVAE(TINY).requires_grad_(False), SurfaceNet(WIDTHS))
    weights = channel_weights(vae, torch.randn(2, 20, 2, 2, 2))
    assert weights.shape == (20,)
    assert not weights[4:].any()
    assert_close(weights[:4].mean(), torch.tensor(1.0))
    unseen = unseen_channels(vae)
    assert unseen is not None
    assert_close(unseen, torch.tensor([0.0] * 4 + [1.0] * 16))
    assert unseen_channels(NanoVAE(TINY)) is None


def test_normalised_channels_have_the_spread_that_was_asked_for() -> None:
    vae = NanoVAE(SEEN)
    raw = torch.randn(6, 1, 4, 1, 5, 7) * torch.tensor([0.1, 0.5, 2.0, 0.3]).view(1, 1, 4, 1, 1, 1)
    raw = (raw + 0.7).expand(-1, 4, -1, -1, -1, -1).flatten(1, 2)
    picture = vae.latent_mean[:4].clone(), vae.latent_std[:4].clone()
    normalise_surface(vae, raw, 1.4)
    mean, std = (x[4:].view(1, 16, 1, 1, 1) for x in (vae.latent_mean, vae.latent_std))
    normal = (raw - mean) / std
    assert_close(normal.mean(dim=(0, 2, 3, 4)), torch.zeros(16), atol=1e-5, rtol=0)
    assert_close(normal.std(dim=(0, 2, 3, 4)), torch.full((16,), 1.4), rtol=0.02, atol=0)
    assert_close((vae.latent_mean[:4], vae.latent_std[:4]), picture)


def test_loss_and_numbers_of_known_surfaces() -> None:
    """exact: a spot off by (.3, .4, 0) is .5 away; nothing counts where there is no subject."""
    wanted = torch.randn(2, 4, 4, 3)
    wanted[:, :2] = math.nan
    away = wanted.nan_to_num(nan=7.0) + torch.tensor([0.3, 0.4, 0.0])
    subject = torch.where(wanted[..., :1].isfinite(), 100.0, -100.0).permute(0, 3, 1, 2)
    found = Surface(away.permute(0, 3, 1, 2), subject)
    spots, entropy = surface_loss(found, wanted)
    assert_close(spots, torch.tensor(0.5), atol=1e-4, rtol=0)
    assert entropy.item() < 1e-9
    assert measured(found, wanted) == pytest.approx({"spots": 0.5, "found": 0, "overlap": 1})
    half = Surface(wanted.nan_to_num().permute(0, 3, 1, 2), torch.full_like(subject, 1.0))
    assert measured(half, wanted) == pytest.approx({"spots": 0, "found": 1, "overlap": 0.5})
    assert surface_loss(found, torch.full_like(wanted, math.nan))[0].item() == 0


def test_surfaces_move_with_their_pictures() -> None:
    """exact: the colours of a picture that paints its own spots are those of its cells, mirrored
    ones with the other sign along the body's width."""
    steps = (torch.arange(128) + 0.5) / 128
    ramps = torch.stack([steps.expand(128, -1), steps[:, None].expand(-1, 128)])
    x = torch.cat([ramps, torch.ones(2, 128, 128)])[None].expand(3, -1, -1, -1)
    cells = torch.cat([ramps, torch.zeros(1, 128, 128)]).permute(1, 2, 0)
    surface = (cells[4::8, 4::8] - 0.5 / 128)[None].expand(3, -1, -1, -1)
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]])
    mirror = torch.tensor([[-1.0, 0.0], [0.0, 1.0]])
    matrix = torch.stack([turn / 1.2, turn @ mirror, torch.eye(2) * 0.5])
    shift = torch.tensor([[0.2, -0.1], [0.1, 0.0], [0.0, 0.9]])
    moved, spots = reframed(x, matrix, shift), reframed_surface(surface, matrix, shift)
    side = torch.tensor([1.0, -1.0, 1.0]).view(3, 1, 1)
    inside = spots[..., 0].isfinite()
    assert (inside.float().mean(dim=(1, 2)) < 1).all()
    reached = moved[:, 4, 4::8, 4::8] == 1
    assert (inside == reached).float().mean() > 0.95
    both = inside & reached
    for axis, sign in ((0, side), (1, torch.ones_like(side))):
        error = (spots[..., axis] * sign - moved[:, axis, 4::8, 4::8])[both]
        assert error.abs().max() < 4.5 / 128  # half a cell
    again = surface_views(torch.zeros(3, 128, 128, 4, dtype=torch.uint8), surface,
                          generator(0, "views", 0))  # fmt: skip
    assert (again[0].shape, again[1].shape) == ((3, 3, 128, 128), (3, 16, 16, 3))


def test_a_wider_transformer_knows_what_it_knew() -> None:
    """unchanged by: new channels, whatever they hold; it predicts 0 for them."""
    torch.manual_seed(0)
    shape = NanoConfig(2, 2, 16, 32, 4)
    narrow = shape.build()
    torch.nn.init.normal_(narrow.proj_out.weight)
    torch.nn.init.normal_(narrow.proj_out.bias)
    wide, config = widened(narrow, shape, 7)
    assert config == replace(shape, latent_channels=7)
    noise, mask, canvas = (torch.randn(1, n, 5, 4, 8) for n in (7, 4, 7))

    def predict(network: torch.nn.Module, *parts: Tensor) -> Tensor:
        out: Tensor = network(
            hidden_states=torch.cat(parts, dim=1),
            timestep=torch.tensor([500.0]),
            encoder_hidden_states=torch.zeros(1, 2, 384),
            return_dict=False,
        )[0]
        return out

    found = predict(wide, noise, mask, canvas)
    assert_close(found[:, :4], predict(narrow, noise[:, :4], mask, canvas[:, :4]))
    assert not found[:, 4:].any()
    assert widened(narrow, shape, 4) == (narrow, shape)
    with pytest.raises(ConfigError, match="transformer of 7 latent channels, the vae has 4"):
        widened(wide, config, 4)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of a square body on grey: redder to its left, greener above; 64 x 64."""
    folder = tmp_path_factory.mktemp("pool")
    rng = np.random.default_rng(0)
    across = (np.arange(24) + 0.5) / 24 - 0.5
    body = np.stack(np.broadcast_arrays(across[None, :], -across[:, None], 0.0), axis=-1)
    for index in range(2):
        shape = (SHARD, 2, 6, 64, 64, 4)
        pixels = np.full(shape, 90, np.uint8)
        pixels[..., 3] = 0
        spots = np.full((*shape[:5], 3), np.nan, np.float16)
        for where in np.ndindex(shape[:3]):
            x, y = rng.integers(0, 40, 2)
            box = (*where, slice(y, y + 24), slice(x, x + 24))
            spots[box] = body
            pixels[box] = np.concatenate([127 + 240 * body, np.full((24, 24, 1), 255)], -1)
        joints = np.full((*shape[:3], len(JOINTS), 2), np.nan, np.float32)
        surface = spots[..., 4::8, 4::8, :]
        write_shard(folder, Shard(index, pixels, joints, surface, [["", ""]] * SHARD))
    return folder


def test_a_body_is_learnt(pool: Path) -> None:
    """The loss, by the same steps as in training, falls far below that of the middle everywhere."""
    torch.manual_seed(0)
    frames = FramePool(pool, 128, 4, 0, CPU)
    frames.wait(64)
    network = SurfaceNet(WIDTHS)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for step in range(60):
        pictures, _, surface = frames.batch(generator(0, "body", step), 8)
        found = network(pictures.permute(0, 3, 1, 2)[:, :3] / 127.5 - 1)
        spots, subject = surface_loss(found, surface)
        losses.append(spots.item())
        optimiser.zero_grad()
        (spots + subject).backward()
        optimiser.step()
    assert sum(losses[-3:]) / 3 < 0.2  # 0.38 for the middle


def test_training_resumes_and_teaches_further(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """unchanged by: what is taught; the picture's weights are those of the autoencoder given."""
    monkeypatch.setattr("dreamactor.training.loop.LOOK_EVERY", 1)
    monkeypatch.setattr("dreamactor.training.loop.LOG_EVERY", 1)
    monkeypatch.setattr("dreamactor.training.nano_surface.WIDTHS", WIDTHS)
    torch.manual_seed(0)
    vae = tmp_path / "vae.safetensors"
    save_weights(vae, NanoVAE(TINY).state_dict(), {"model": "nano-vae", "config": asdict(TINY)})
    config = SurfaceTrainConfig(pool=pool, vae=vae, minutes=0.03, batch=4, frames=128, least=64)
    weights = train_nano_surface(config, tmp_path / "run")
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").open()]
    assert {"total", "spots", "subject"} <= rows[0].keys()
    assert rows[-1].keys() == {"step", "held_spots", "held_found", "held_overlap"}
    assert all(math.isfinite(value) for row in rows for value in row.values())
    taught, plain = load_vae(weights), load_vae(vae)
    assert taught.config == SEEN
    kept, given = load_weights(weights)[0], load_weights(vae)[0]
    assert all(torch.equal(v, kept[k]) for k, v in given.items() if not k.startswith("latent_"))
    assert torch.equal(taught.latent_std[:4], plain.latent_std)
    assert list((tmp_path / "run" / "samples").glob("*.png"))
    train_nano_surface(config, tmp_path / "run")  # its time is up
    again = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").open()]
    assert again[-1]["step"] == rows[-1]["step"]
    further = replace(config, vae=weights, minutes=0)
    more = load_vae(train_nano_surface(further, tmp_path / "more"))
    assert more.surface is not None
    assert taught.surface is not None
    assert_close(more.surface.state_dict(), taught.surface.state_dict())


def test_sheets_show_spots_as_colours() -> None:
    """exact: what is known is painted alike in both rows, and nothing where there is no subject."""
    wanted = torch.full((2, 2, 2, 3), math.nan)
    wanted[:, 0, 0] = torch.tensor([0.2, 0.6, -0.4])
    subject = torch.where(wanted[..., :1].isfinite(), 9.0, -9.0).permute(0, 3, 1, 2)
    sheet = surface_sheet(torch.zeros(2, 3, 16, 16), wanted.permute(0, 3, 1, 2), subject, wanted)
    assert sheet.shape == (3, 48, 32)
    assert_close(sheet[:, 16:32], sheet[:, 32:])
    assert_close(sheet[:, 20, 4], torch.tensor([0.3, 0.0, -0.6]))
    assert (sheet[:, 28] == -1).all()
