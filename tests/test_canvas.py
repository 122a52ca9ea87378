"""The canvas and its masks, and pictures on their way to it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline
from torch.testing import assert_close

from dreamactor.conditioning.canvas import (
    LatentGrid,
    build_canvas,
    first_frame,
    fold_mask,
    motion_half,
    reference_half,
)
from dreamactor.conditioning.framing import fit_soft, to_half, to_picture
from dreamactor.errors import ShapeError
from dreamactor.image import Box

GRID = LatentGrid(stride_t=4, stride_s=8, channels=16)


def clips(frames=5, height=8, width=16):
    """Reference of .5, driving frame t of t / 10."""
    reference = torch.full((1, 3, height, width), 0.5)
    driving = torch.arange(frames).div(10).view(1, 1, -1, 1, 1).expand(1, 3, -1, height, width)
    return reference, driving


def test_exact_canvas_by_the_formula():
    canvas = build_canvas(*clips(), GRID)
    assert canvas.pixels.shape == (1, 3, 5, 8, 32)
    left = [0.5, 0, 0, 0, 0]  # C[0] = I | D[0]; C[t] = 0 | D[t]
    right = [0.0, 0.1, 0.2, 0.3, 0.4]
    for t in range(5):
        assert (canvas.pixels[:, :, t, :, :16] == left[t]).all()
        assert_close(canvas.pixels[:, :, t, :, 16:], torch.full((1, 3, 8, 16), right[t]))
    cells = canvas.mask[0, 0, :, 0].tolist()  # 1 x 2 cells a half
    assert cells == [[1, 1, 1, 1]] + [[0, 0, 1, 1]] * 4
    assert canvas.shown == 1


def test_exact_canvas_with_generated_frames():
    generated = torch.full((1, 3, 4, 8, 16), -0.25)
    reference, driving = clips(9)
    canvas = build_canvas(reference, driving, GRID, generated)
    assert canvas.pixels[0, 0, :, 0, 0].tolist() == [0.5, *[-0.25] * 4, *[0] * 4]
    assert_close(motion_half(canvas.pixels), driving)
    assert canvas.mask[0, 0, :, 0, 0].tolist() == [1] * 5 + [0] * 4
    assert canvas.mask[0, 0, :, 0, 2].tolist() == [1] * 9
    assert canvas.shown == 5


def test_exact_first_frame_without_a_motion_half():
    reference, _ = clips(9)
    plain = first_frame(reference, 9, GRID)
    assert not plain.motion
    assert plain.shown == 1
    whole = build_canvas(reference, torch.zeros(1, 3, 9, 8, 16), GRID)
    assert torch.equal(plain.pixels, reference_half(whole.pixels))
    assert torch.equal(plain.mask, reference_half(whole.mask))
    with pytest.raises(ShapeError, match="nearest is 9"):
        first_frame(reference, 8, GRID)


def test_exact_halves():
    x = torch.arange(8).view(1, 1, 1, 2, 4)
    assert reference_half(x).tolist() == [[[[[0, 1], [4, 5]]]]]
    assert motion_half(x).tolist() == [[[[[2, 3], [6, 7]]]]]


def test_exact_folded_mask():
    mask = torch.zeros(1, 1, 9, 1, 1)
    mask[0, 0, [0, 1, 2, 6]] = 1
    folded = fold_mask(mask, GRID)
    assert folded.shape == (1, 4, 3, 1, 1)
    runs = folded[0, :, :, 0, 0].T.tolist()  # one row per latent frame
    assert runs == [[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 0, 0]]


@pytest.mark.parametrize("last", [False, True])
def test_fold_mask_equals_diffusers(last):
    """The first channels of Wan's condition are its mask: the first frame, and perhaps the last."""
    vae = AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    pipe = SimpleNamespace(
        vae=vae,
        vae_scale_factor_temporal=4,
        vae_scale_factor_spatial=8,
        config=SimpleNamespace(expand_timesteps=False),
    )
    picture = torch.zeros(1, 3, 32, 48)
    _, condition = WanImageToVideoPipeline.prepare_latents(
        *(pipe, picture, 1, 16, 32, 48, 17),
        dtype=torch.float32,
        device=torch.device("cpu"),
        last_image=picture if last else None,
    )
    mask = torch.zeros(1, 1, 17, 4, 6)
    mask[:, :, 0] = 1
    if last:
        mask[:, :, -1] = 1
    assert torch.equal(fold_mask(mask, GRID), condition[:, :4])


def test_exact_latent_frames():
    assert [GRID.frames(n) for n in (1, 5, 17, 81)] == [1, 2, 5, 21]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GRID.frames(16), r"16 frames: want 4 \* k \+ 1, nearest is 17"),
        (lambda: GRID.frames(0), "nearest is 1"),
        (lambda: build_canvas(*clips(6), GRID), "6 frames"),
        (lambda: build_canvas(clips()[0][..., :8], clips()[1], GRID), "the driving clip's"),
        (lambda: build_canvas(*clips(), GRID, torch.zeros(1, 3, 3, 8, 16)), "multiple of 4"),
        (lambda: build_canvas(*clips(), GRID, torch.zeros(1, 3, 8, 8, 16)), "below T"),
        (lambda: fold_mask(torch.zeros(1, 2, 5, 1, 1), GRID), "want one channel"),
        (lambda: fold_mask(torch.zeros(1, 1, 4, 1, 1), GRID), "4 frames"),
    ],
)
def test_refuses_shapes(make, message):
    with pytest.raises(ShapeError, match=message):
        make()


def test_pictures_come_back_from_halves_unchanged():
    picture = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    half = to_half(picture)
    assert half.shape == (3, 16, 16)
    assert (half.min(), half.max()) == (-1, 1)
    assert np.array_equal(to_picture(half), picture)
    assert np.array_equal(to_picture(half + 0.003), picture)  # less than half a level
    assert to_picture(torch.full((3, 1, 1), 7.0)).tolist() == [[[255] * 3]]


def test_letterbox_goes_on_with_the_border():
    picture = np.zeros((10, 40, 3), np.uint8)
    picture[:5], picture[5:] = (200, 10, 10), (10, 10, 200)
    fitted, box = fit_soft(picture, (64, 64), "letterbox")
    assert box == Box(24, 0, 16, 64)
    assert np.abs(fitted[:10].astype(int) - (200, 10, 10)).max() <= 2
    assert np.abs(fitted[-10:].astype(int) - (10, 10, 200)).max() <= 2
    assert box.cut(fitted)[0, 0].tolist() == [200, 10, 10]


def test_crop_and_fitting_pictures_have_no_bars():
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for mode in ("letterbox", "crop"):
        fitted, box = fit_soft(picture, (64, 64), mode)
        assert np.array_equal(fitted, picture)
        assert box == Box(0, 0, 64, 64)
    fitted, box = fit_soft(picture[:32], (64, 64), "crop")
    assert box == Box(0, 0, 64, 64)
