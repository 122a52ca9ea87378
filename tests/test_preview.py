"""The preview while training: exact for a network that knows the answer."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dreamactor.backbones.nano_vae import NanoVAE, NanoVAEConfig
from dreamactor.training.examples import Draws
from dreamactor.training.preview import Preview, missed, on_pixels


def _batch() -> tuple[dict[str, Tensor], Draws]:
    torch.manual_seed(0)
    batch = {
        "target": torch.randn(3, 4, 5, 4, 4),
        "motion": torch.randn(3, 4, 5, 4, 4),
        "subject": torch.rand(3, 1, 5, 4, 4),
        "text": torch.zeros(3, 2, 8),
    }
    no = torch.zeros(3, dtype=torch.bool)
    drawn = Draws(
        torch.randn(3, 4, 5, 4, 8), torch.rand(3), no, torch.zeros(3), torch.randn(3, 4, 4, 4), no
    )
    return batch, drawn


def _vae() -> NanoVAE:
    vae = NanoVAE(NanoVAEConfig(4, (8, 8, 8), (1, 1, 1), (8, 8, 8, 8), (1, 1, 1, 1)))
    return vae.requires_grad_(False)


def test_a_network_that_knows_misses_nothing() -> None:
    """exact: right driver 0, sample equals target; with another's driver it is fooled."""
    batch, drawn = _batch()

    def network(x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        right = (x[:, :4, ..., 4:] == batch["motion"]).all()
        target = batch["target"] if right else batch["target"].roll(1, dims=0)
        return torch.cat([target, torch.zeros_like(target)], dim=-1)

    preview = Preview(network, _vae(), "clean")
    found = preview.numbers(batch, drawn)
    assert_close(preview.sample(batch, drawn), batch["target"], rtol=1e-4, atol=1e-4)
    assert found["missed_1"].item() < 1e-9
    assert found["missed_0.7"].item() < 1e-9
    assert 1 < found["swapped_1"].item() < 3
    assert found["dB"].item() > 60
    assert found["dB_1"].item() > 60
    assert preview.sheet(batch, drawn).shape == (3, 3 * 32, 3 * 32)


def test_sampling_can_begin_near_the_truth() -> None:
    """exact: what changes nothing leaves the true latents with so much noise."""
    batch, drawn = _batch()
    levels: list[float] = []

    def network(x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        levels.append(float(sigma[0]))
        return x[:, :4]

    found = Preview(network, _vae(), "clean").sample(batch, drawn, since=0.7)
    wanted = torch.lerp(batch["target"], drawn.noise[..., :4], 0.7)
    assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert levels == pytest.approx([0.7, 0.625])


def test_a_network_that_reads_the_text_misses_nothing() -> None:
    """exact: a clip by itself, foreseen from its text; without it another's is foreseen."""
    batch, drawn = _batch()
    del batch["motion"]
    batch["text"] += torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    drawn = replace(drawn, noise=drawn.noise[..., :4], silent=torch.tensor([True, False, True]))

    def network(x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        told = text[:, 0, 0].tolist()
        assert told in ([1, 2, 3], [0, 0, 0], [0, 2, 0])  # all, none, as drawn
        return batch["target"].roll(0 if told[1] else 1, dims=0)

    preview = Preview(network, _vae(), "none")
    found = preview.numbers(batch, drawn)
    assert found.keys() == {"missed_1", "silent_1", "missed_0.7", "silent_0.7", "dB_1", "dB"}
    assert_close(preview.sample(batch, drawn), batch["target"], rtol=1e-4, atol=1e-4)
    assert found["missed_1"].item() < 1e-9
    assert 1 < found["silent_1"].item() < 3
    assert found["dB"].item() > 60
    sheet = preview.sheet(batch, drawn)
    first, true, made = (row.split(32, dim=-1) for row in sheet.split(32, dim=-2))
    clips = preview.vae.decode(batch["target"])
    for k, clip in enumerate(clips):
        assert_close(first[k], clip[:, 0])
        assert_close(true[k], clip[:, 8])
        assert_close(made[k], clip[:, 8], rtol=1e-3, atol=1e-3)


def test_missing_everything_is_one() -> None:
    batch, _ = _batch()
    assert_close(missed(torch.zeros_like(batch["target"]), batch), torch.tensor(1.0))
    shows = torch.tensor([0.0, 2.0, 2.0, 0.0])
    half = batch["target"] * torch.tensor([1.0, 1.0, 1.0, 7.0]).view(-1, 1, 1, 1)
    assert missed(half, batch).item() > 1
    assert missed(half, batch, shows).item() == 0


def test_psnr_counts_the_subject_alone() -> None:
    """exact: a decoder that shows its first latent channel, off by .2 on half of the cells."""
    batch, _ = _batch()
    vae = _vae()
    for parameter in vae.decoder.parameters():
        parameter.zero_()
    vae.decoder.linear.weight[:, 0] = 0.25
    batch["target"].zero_()
    batch["subject"].zero_()[..., :2] = 1
    found = torch.zeros_like(batch["target"])
    found[:, 0, :, :, :2] = 0.8  # 0.2 of [-1, 1]
    found[:, 0, :, :, 2:] = 4.0
    psnr = Preview(lambda x, sigma, text: x, vae, "clean").psnr(found, batch)
    assert_close(psnr, torch.tensor(20 * math.log10(2 / 0.2)), rtol=1e-4, atol=0)


def test_weights_of_pixels() -> None:
    """exact: latent frame f covers four frames and 8 x 8 pixels; frame 0 does not count."""
    subject = torch.zeros(1, 1, 3, 2, 2)
    subject[0, 0, 1, 0, 1] = 0.5
    subject[0, 0, 0] = 1
    pixels = on_pixels(subject)
    assert pixels.shape == (1, 1, 9, 16, 16)
    assert pixels[0, 0, 0].sum() == 0
    assert torch.equal(pixels[0, 0, 1:5, :8, 8:], torch.full((4, 8, 8), 0.5))
    assert pixels.sum() == 0.5 * 4 * 64
