"""Wan's backbones: equal to diffusers' own pipeline, and in files as diffusers writes them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import wan_folder
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.wan import pipeline_wan_i2v
from PIL import Image
from torch.testing import assert_close
from wan_folder import FRAMES, HEIGHT, WIDTH

from dreamactor.backbones.base import Cond, Native
from dreamactor.backbones.catalogue import Options
from dreamactor.backbones.wan import Wan, load_wan
from dreamactor.conditioning.canvas import (
    Canvas,
    LatentGrid,
    build_canvas,
    first_frame,
    fold_mask,
    motion_half,
    reference_half,
)
from dreamactor.conditioning.framing import to_half
from dreamactor.diffusion.flow import schedule
from dreamactor.diffusion.sampler import guided, sample_euler

KINDS = {
    "wan2.1": {"clip": True, "experts": 1},
    "wan2.2": {"clip": False, "experts": 2},
}
NATIVE = Native(HEIGHT, WIDTH, 16.0, FRAMES, 4, 6, 3.0, 5.0)
PROMPT, NEGATIVE = "a bird is waving its wings", "blurred, static"


@pytest.fixture(autouse=True, scope="module")
def _quiet():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


@pytest.fixture(scope="module", params=KINDS)
def pipe(request):
    return wan_folder.pipeline(**KINDS[request.param])


def picture(seed=0):
    smooth = np.random.default_rng(seed).random((6, 4, 3))
    wide = np.kron(smooth, np.ones((8, 8, 1)))
    return (wide * 255).astype(np.uint8)


def draws(*shape, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sampled(wan, pictures, prompts, negatives, noise, sigmas, guidance):
    """Our path with a plain first frame in place of the canvas: latents and frames."""
    canvas = first_frame(torch.stack([to_half(p) for p in pictures]), FRAMES, wan.grid)
    said = wan.encode(canvas, wan.encode_text(prompts))
    unsaid = wan.encode(canvas, wan.encode_text(negatives))
    velocity = guided(
        lambda x, sigma: wan.velocity(x, sigma, said),
        lambda x, sigma: wan.velocity(x, sigma, unsaid),
        guidance,
    )
    latents = sample_euler(velocity, noise, sigmas)
    return latents, wan.decode(latents)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_latents_and_frames_equal_diffusers(pipe, guidance):
    """same: our encoder, sampler, guidance and decoder against WanImageToVideoPipeline."""
    noise = draws(1, 16, 3, HEIGHT // 8, WIDTH // 8)
    asked = {
        "image": Image.fromarray(picture()),
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "height": HEIGHT,
        "width": WIDTH,
        "num_frames": FRAMES,
        "num_inference_steps": 6,
        "guidance_scale": guidance,
        "latents": noise,
        "return_dict": False,
    }
    theirs = pipe(**asked, output_type="latent")[0]
    frames = pipe(**asked, output_type="pt")[0]  # (B, T, 3, H, W) in [0, 1]
    sigmas = pipe.scheduler.sigmas
    if pipe.config.boundary_ratio is not None:
        high = int((sigmas[:-1] >= pipe.config.boundary_ratio).sum())
        assert 0 < high < 6  # both experts are asked
    latents, ours = sampled(
        Wan("wan", pipe, NATIVE), [picture()], [PROMPT], [NEGATIVE], noise, sigmas, guidance
    )
    assert theirs.std() > 0.5
    assert_close(latents, theirs, atol=1e-5, rtol=1e-5)
    assert_close(ours / 2 + 0.5, frames.transpose(1, 2), atol=1e-5, rtol=1e-5)


def canvas_of(count=1, frames=FRAMES, shown=0):
    """A canvas with motion half, of `count` clips."""
    grid = LatentGrid(4, 8, 16)
    references = torch.stack([to_half(picture(seed)) for seed in range(count)])
    driving = torch.stack(
        [
            torch.stack([to_half(picture(10 * seed + t)) for t in range(frames)], dim=1)
            for seed in range(1, count + 1)
        ]
    )
    past = driving[:, :, 1 : 1 + shown].flip(1) if shown else None
    return build_canvas(references, driving, grid, past)


def test_our_schedule_is_the_authors(pipe):
    """same: as diffusers' scheduler makes of the authors' evenly spaced noise levels."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0, 41)[:-1])
    assert_close(schedule(40, 5.0), scheduler.sigmas)


def test_each_half_of_a_canvas_equals_diffusers(pipe):
    """same: reference half as their condition on the picture, motion half as their latents."""
    wan, canvas = Wan("wan", pipe, NATIVE), canvas_of()
    cond = wan.encode(canvas, wan.encode_text([PROMPT]))
    size = {"height": HEIGHT, "width": WIDTH, "num_frames": FRAMES}
    reference = to_half(picture(0))[None]
    _, theirs = pipe.prepare_latents(
        reference, 1, 16, **size, dtype=torch.float32, device="cpu", latents=torch.zeros(1)
    )
    read = torch.cat([cond.mask, cond.latents], dim=1)  # (B, 4 + C, F, h, 2w)
    assert read.shape == (1, 20, 3, HEIGHT // 8, 2 * WIDTH // 8)
    assert_close(reference_half(read), theirs)
    assert (motion_half(cond.mask) == 1).all()
    clip = motion_half(canvas.pixels)
    assert_close(wan.decode(motion_half(cond.latents)), vae_round_trip(pipe.vae, clip))
    assert (cond.image is not None) == (pipe.transformer.config.image_dim is not None)
    if cond.image is not None:
        assert_close(cond.image, pipe.encode_image(Image.fromarray(picture(0)), "cpu"))


def vae_round_trip(vae, clip):
    return vae.decode(vae.encode(clip).latent_dist.mode(), return_dict=False)[0]


@pytest.mark.parametrize("shown", [0, 4, 8, 12])
def test_masks_of_several_shown_frames_fold_as_in_diffusers(pipe, monkeypatch, shown):
    """same: prepare_latents itself, made to start from our mask instead of the first frame's."""
    frames = 17
    canvas = canvas_of(frames=frames, shown=shown)

    class Kept(torch.Tensor):
        def __setitem__(self, where, value):
            """It stays as it is."""

    ones = torch.ones
    left = reference_half(canvas.mask)

    def start(*shape, **more):
        if shape == tuple(left.shape):
            return left.clone().as_subclass(Kept)
        return ones(*shape, **more)

    monkeypatch.setattr(
        pipeline_wan_i2v, "torch", SimpleNamespace(**{**vars(torch), "ones": start})
    )
    _, theirs = pipe.prepare_latents(
        reference_half(canvas.pixels)[:, :, 0], 1, 16, HEIGHT, WIDTH, frames,
        torch.float32, torch.device("cpu"), latents=torch.zeros(1),
    )  # fmt: skip
    folded = reference_half(fold_mask(canvas.mask, LatentGrid(4, 8, 16)))
    assert torch.equal(folded, theirs[:, :4].as_subclass(torch.Tensor))
    assert folded[0, :, :, 0, 0].sum() == 4 + shown


def test_a_batch_of_two_is_two_batches_of_one(pipe):
    """unchanged by: batch; at one noise level, and with one on each side of the boundary."""
    wan, canvas = Wan("wan", pipe, NATIVE), canvas_of(2)
    text = wan.encode_text([PROMPT, ""])
    both = wan.encode(canvas, text)
    noise = draws(*both.latents.shape)
    for sigma in (torch.tensor(0.95), torch.tensor(0.5), torch.tensor([0.95, 0.5])):
        together = wan.velocity(noise, sigma, both)
        for k in range(2):
            one = slice(k, k + 1)
            alone = wan.encode(Canvas(canvas.pixels[one], canvas.mask[one]), text[one])
            assert_close(alone.latents, both.latents[one], atol=1e-5, rtol=1e-5)
            level = sigma if sigma.ndim == 0 else sigma[one]
            apart = wan.velocity(noise[one], level, alone)
            assert_close(together[one], apart, atol=1e-5, rtol=1e-5)
    frames = wan.decode(both.latents)
    assert_close(frames[1:], wan.decode(both.latents[1:]), atol=5e-5, rtol=1e-4)


def test_experts_take_turns():
    """exact: the first at and above the boundary, the second below it."""
    pipe = wan_folder.pipeline(clip=False, experts=2)
    wan = Wan("wan", pipe, NATIVE)
    cond = wan.encode(canvas_of(), wan.encode_text([""]))
    for sigma, name in ((1.0, "transformer"), (0.9, "transformer"), (0.8999, "transformer_2")):
        level = torch.tensor(sigma)
        found = wan.velocity(cond.latents, level, cond)
        alone = Wan("wan", pipe, NATIVE)
        alone.boundary = 0.0 if name == "transformer" else 2.0
        assert torch.equal(found, alone.velocity(cond.latents, level, cond))
    wan.boundary = 0.0
    first = wan.velocity(cond.latents, torch.tensor(0.5), cond)
    wan.boundary = 2.0
    assert not torch.allclose(first, wan.velocity(cond.latents, torch.tensor(0.5), cond))


LATENTS, PIXELS = 0.015, 0.03
"""Relative error of bfloat16 against float32 after six guided steps, of latents and of frames that
the autoencoder, in float32, makes of them; measured .0074 and .019 at most."""


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_stays_near_float32(kind, tmp_path):
    name = {"wan2.1": "wan2.1-i2v-14b-480p", "wan2.2": "wan2.2-i2v-a14b"}[kind]
    noise, sigmas = draws(1, 16, 3, HEIGHT // 8, WIDTH // 8), schedule(6, 3.0)
    wan_folder.write(tmp_path, **KINDS[kind])
    results = []
    for dtype in ("float32", "bfloat16"):
        wan = load_wan(name, tmp_path, options=Options(dtype))
        assert wan.pipe.transformer.blocks[0].attn1.to_q.weight.dtype == wan.dtype
        assert wan.pipe.text_encoder.shared.weight.dtype == wan.dtype
        assert wan.pipe.vae.dtype == torch.float32
        if wan.pipe.image_encoder is not None:
            assert wan.pipe.image_encoder.dtype == torch.float32
        results.append(sampled(wan, [picture()], [PROMPT], [NEGATIVE], noise, sigmas, 5.0))
    for expected, found, bound in zip(*results, (LATENTS, PIXELS), strict=True):
        error = float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())
        assert 0 < error < bound


def test_text_and_picture_are_read(pipe):
    """Other words, another reference, another driver: another velocity."""
    wan = Wan("wan", pipe, NATIVE)
    cond = wan.encode(canvas_of(), wan.encode_text([PROMPT]))
    x, sigma = draws(*cond.latents.shape), torch.tensor(0.7)
    base = wan.velocity(x, sigma, cond)
    text = wan.encode_text([""])
    assert text.shape == cond.text.shape == (1, 512, wan_folder.TEXT_WIDTH)
    assert text[:, 0].any()
    assert not text[:, 1:].any()  # the end of the prompt alone
    others: list[Cond] = [replace(cond, text=text), replace(cond, latents=-cond.latents)]
    if cond.image is not None:
        others.append(replace(cond, image=-cond.image))
    for other in others:
        assert (wan.velocity(x, sigma, other) - base).abs().max() > 1e-3
