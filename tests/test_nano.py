"""The embedded backbone: causality, its input, its weights folder."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from torch.testing import assert_close

from dreamactor.backbones.base import Cond, Native
from dreamactor.backbones.layers import CausalMix
from dreamactor.backbones.load import load_backbone
from dreamactor.backbones.nano import (
    PREDICTS,
    Nano,
    NanoConfig,
    load_nano,
    transformer_input,
)
from dreamactor.backbones.nano_vae import NanoVAE, NanoVAEConfig
from dreamactor.backbones.weights import save_weights
from dreamactor.conditioning import canvas as canvas_module
from dreamactor.conditioning.canvas import build_canvas, motion_half, reference_half
from dreamactor.conditioning.text import TOKENS, WIDTH, TextEncoder
from dreamactor.errors import ConfigError, ShapeError, WeightsError

TINY_VAE = NanoVAEConfig(8, (8, 8, 8), (1, 1, 1), (8, 8, 8, 8), (1, 1, 1, 1))
TINY = NanoConfig(layers=1, heads=1, ffn=32, latent_channels=8)
NATIVE = Native(64, 64, 12.0, 17, 4, 2, 3.0, 1.0)


def tiny_nano():
    torch.manual_seed(0)
    vae, transformer = NanoVAE(TINY_VAE), TINY.build()
    for name, value in [*vae.named_parameters(), *transformer.named_parameters()]:
        if not value.detach().any() and "bias" not in name:  # zero at the start of training
            torch.nn.init.normal_(value, std=0.1)
    vae.latent_mean.copy_(torch.linspace(-1, 1, 8))
    vae.latent_std.copy_(torch.linspace(0.5, 2, 8))
    return Nano(vae, transformer, NATIVE)


@pytest.fixture(scope="module")
def nano():
    return tiny_nano()


def save(nano, folder, task="animate", **manifest):
    files = {
        "vae.safetensors": save_weights(
            folder / "vae.safetensors",
            nano.vae.state_dict(),
            {"model": "nano-vae", "config": asdict(TINY_VAE)},
        ),
        "transformer.safetensors": save_weights(
            folder / "transformer.safetensors",
            nano.transformer.state_dict(),
            {
                "model": "nano",
                "task": task,
                "config": asdict(TINY),
                "canvas": canvas_module.VERSION,
                "predicts": PREDICTS,
            },
        ),
    }
    manifest = {"files": files, "native": asdict(NATIVE), **manifest}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return files


def clip(frames=17, seed=0):
    return torch.rand(2, 3, frames, 64, 64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# ---- autoencoder -----------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 5, 9, 13])
def test_latents_of_a_beginning_do_not_know_how_it_goes_on(nano, frames):
    whole = nano.vae.encode(clip())
    assert_close(nano.vae.encode(clip()[:, :, :frames]), whole[:, :, : 1 + frames // 4])


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_frames_of_a_beginning_do_not_know_how_it_goes_on(nano, frames):
    latents = torch.randn(1, 8, 5, 8, 8)
    whole = nano.vae.decode(latents)
    assert_close(nano.vae.decode(latents[:, :, :frames]), whole[:, :, : 4 * frames - 3])


def test_latents_know_what_came_before(nano):
    changed = clip()
    changed[:, :, 4] = 0
    differs = (nano.vae.encode(changed) - nano.vae.encode(clip())).abs().amax((0, 1, 3, 4)) > 1e-4
    assert differs.tolist()[:3] == [False, True, True]


def test_shapes_and_range_of_the_autoencoder(nano):
    latents = nano.vae.encode(clip())
    assert latents.shape == (2, 8, 5, 8, 8)
    frames = nano.vae.decode(100 * latents)
    assert frames.shape == (2, 3, 17, 64, 64)
    assert frames.abs().max() <= 1


def test_latents_are_normalised_per_channel(nano):
    plain = NanoVAE(TINY_VAE)
    plain.load_state_dict(nano.vae.state_dict())
    plain.latent_mean.zero_()
    plain.latent_std.fill_(1)
    raw = plain.encode(clip(5))
    mean, std = nano.vae.latent_mean.view(8, 1, 1, 1), nano.vae.latent_std.view(8, 1, 1, 1)
    assert_close(nano.vae.encode(clip(5)), (raw - mean) / std)
    assert_close(nano.vae.decode((raw - mean) / std), plain.decode(raw))


def test_one_clip_is_unchanged_by_the_batch(nano):
    alone = [nano.vae.encode(clip()[k : k + 1]) for k in range(2)]
    assert_close(nano.vae.encode(clip()), torch.cat(alone))


@pytest.mark.parametrize("shape", [(1, 3, 4, 64, 64), (1, 3, 5, 60, 64), (1, 1, 5, 64, 64)])
def test_the_autoencoder_refuses_shapes(nano, shape):
    with pytest.raises(ShapeError, match=r"want \(B, 3, 4k \+ 1, 8m, 8n\), nearest is"):
        nano.vae.encode(torch.zeros(shape))


# ---- canvas and transformer ------------------------------------------------------------------


def test_exact_order_of_channels():
    cond = Cond(torch.full((1, 8, 2, 1, 2), 2.0), torch.ones(1, 4, 2, 1, 2), torch.zeros(1, 1, 1))
    channels = transformer_input(torch.zeros(1, 8, 2, 1, 2), cond)[0, :, 0, 0, 0].tolist()
    assert channels == [0] * 8 + [1] * 4 + [2] * 8


@pytest.mark.parametrize("shown", [1, 5])
def test_hidden_cells_are_zero_and_shown_ones_are_encoded(nano, shown):
    generated = None if shown == 1 else clip(5, 2)[:1, :, 1:5]
    reference, driving = clip(1, 1)[:1, :, 0], clip()[:1]
    cond = nano.encode(build_canvas(reference, driving, nano.grid, generated), torch.zeros(1, 1, 1))
    left = reference_half(cond.latents)
    frames = 1 if shown == 1 else 2
    assert not left[:, :, frames:].any()
    seen = reference.unsqueeze(2)
    seen = seen if generated is None else torch.cat([seen, generated], dim=2)
    assert_close(left[:, :, :frames], nano.vae.encode(seen))
    assert_close(motion_half(cond.latents), nano.vae.encode(driving))
    assert cond.mask[0, :, :, 0, 0].T.tolist() == [[1] * 4] * frames + [[0] * 4] * (5 - frames)


def test_velocity_reads_noise_canvas_text_and_sigma(nano):
    canvas = build_canvas(clip(1)[:1, :, 0], clip(5)[:1], nano.grid)
    cond = nano.encode(canvas, torch.zeros(1, TOKENS, WIDTH))
    x = torch.randn(1, 8, 2, 8, 16)
    sigma = torch.tensor(0.5)
    velocity = nano.velocity(x, sigma, cond)
    assert velocity.shape == x.shape
    assert_close(velocity, nano.velocity(x, sigma.expand(1), cond))
    others = [
        (x + 1, sigma, cond),
        (x, sigma / 2, cond),
        (x, sigma, replace(cond, latents=cond.latents + 1)),
        (x, sigma, replace(cond, mask=1 - cond.mask)),
        (x, sigma, replace(cond, text=torch.randn(1, TOKENS, WIDTH))),
    ]
    for other in others:
        assert (nano.velocity(*other) - velocity).abs().max() > 1e-5


def test_a_fresh_transformer_foresees_the_mean():
    """exact: latents 0, so a velocity of x / sigma."""
    vae, fresh = NanoVAE(TINY_VAE), TINY.build()
    cond = Cond(torch.randn(1, 8, 2, 8, 16), torch.ones(1, 4, 2, 8, 16),
                torch.randn(1, TOKENS, WIDTH))  # fmt: skip
    x = torch.randn(1, 8, 2, 8, 16)
    velocity = Nano(vae, fresh, NATIVE).velocity(x, torch.tensor(0.5), cond)
    assert_close(velocity, 2 * x)


# ---- text ------------------------------------------------------------------------------------


def test_no_prompt_needs_no_text_encoder(nano):
    states = nano.encode_text(["", "  "])
    assert states.shape == (2, TOKENS, WIDTH)
    assert not states.any()
    assert nano._text is None


def test_text_is_padded_with_zeros_and_unchanged_by_the_batch():
    encoder = TextEncoder()
    states = encoder(["a horse", "", "a horse stands before a plain backdrop " * 8])
    assert states.shape == (3, TOKENS, WIDTH)
    assert (states.abs().sum(dim=2) > 0).sum(dim=1).tolist() == [4, 0, TOKENS]  # 2 words, 2 marks
    assert_close(encoder(["a horse"])[0], states[0], atol=1e-5, rtol=1e-4)


# ---- weights ---------------------------------------------------------------------------------


def test_weights_come_back_in_half_precision(nano, tmp_path):
    files = save(nano, tmp_path)
    loaded = load_backbone("nano", tmp_path)
    assert loaded.weights == files
    assert loaded.native == NATIVE
    assert loaded.grid.channels == 8
    for ours, theirs in ((nano.vae, loaded.vae), (nano.transformer, loaded.transformer)):
        for name, value in ours.state_dict().items():
            assert torch.equal(theirs.state_dict()[name], value.half().float())


def test_refuses_damaged_weights(nano, tmp_path):
    with pytest.raises(WeightsError, match=r"weights are missing \(no manifest.json\)"):
        load_nano(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(WeightsError, match="not JSON"):
        load_nano(tmp_path)
    with pytest.raises(WeightsError, match="Not a directory; want the folder of nano's weights"):
        load_nano(tmp_path / "manifest.json")
    for broken in ("[]", "{}", '{"files": {}}'):
        (tmp_path / "manifest.json").write_text(broken)
        with pytest.raises(WeightsError, match="do not fit nano"):
            load_backbone("nano", tmp_path)
    files = save(nano, tmp_path, native={"height": 64})
    with pytest.raises(WeightsError, match="do not fit nano"):
        load_backbone("nano", tmp_path)
    save(nano, tmp_path, files={**files, "vae.safetensors": "0" * 64})
    with pytest.raises(WeightsError, match=r"sha256 is .*, want 000000000000"):
        load_nano(tmp_path)
    (tmp_path / "vae.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"vae.safetensors: weights are missing"):
        load_nano(tmp_path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"model": "nano-vae"}, "weights of 'nano-vae', want 'nano'"),
        ({"model": "nano", "canvas": 99}, "canvas version 99, this program reads 1"),
        ({"model": "nano", "config": asdict(TINY)}, "predict velocity, want latents"),
        (
            {"model": "nano", "task": "video", "config": asdict(TINY), "predicts": PREDICTS},
            r"task 'video', want 'animate'.*`dreamactor train nano start=\S+rmer.safetensors`",
        ),
        (
            {"model": "nano", "config": {**asdict(TINY), "heads": 2}, "predicts": PREDICTS},
            "do not fit nano",
        ),
    ],
)
def test_refuses_weights_of_another_model(nano, tmp_path, header, message):
    files = save(nano, tmp_path)
    path = tmp_path / "transformer.safetensors"
    digest = save_weights(path, nano.transformer.state_dict(), header)
    save_manifest = {**files, path.name: digest}
    manifest = {"files": save_manifest, "native": asdict(NATIVE)}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match=message):
        load_backbone("nano", tmp_path)


def test_refuses_unknown_backbones_and_devices(tmp_path):
    with pytest.raises(ConfigError, match="backbone='nono': no such backbone, nearest is nano"):
        load_backbone("nono")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="torch sees no CUDA device"):
            load_backbone("nano", tmp_path, "cuda")


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_frames_are_mixed_with_the_two_before(frames: int) -> None:
    """same: three frames stacked on channels, and one layer over them; frame 0 before frame 0."""
    mix = CausalMix(6)
    x = torch.randn(2 * frames, 6, 3, 4)
    clip = x.unflatten(0, (2, frames))
    stacked = [torch.cat([clip[:, max(0, t - k)] for k in (2, 1, 0)], dim=1) for t in range(frames)]
    expected = mix.conv(torch.stack(stacked, dim=1).flatten(0, 1))
    assert_close(mix(x, frames), expected)
