"""Baselines that need no learning: what each keeps and what it loses."""

import cv2
import numpy as np
import pytest

from dreamactor.bench.baselines import System, copy_reference, driving_itself, flow_warp
from dreamactor.errors import ShapeError

SIDE = 96


def texture(seed, side=SIDE + 40):
    rough = np.random.default_rng(seed).random((side, side, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(rough, (0, 0), 2.5)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).round().astype(np.uint8)


def panned(seed, steps=((0, 0), (2, 1), (4, 2), (6, 3))):
    """(T, H, W, 3): the texture moved by (x, y) pixels since the first frame."""
    wide = texture(seed)
    return np.stack([wide[20 - y :, 20 - x :][:SIDE, :SIDE] for x, y in steps])


@pytest.mark.parametrize("system", [copy_reference, driving_itself, flow_warp])
def test_every_baseline_is_a_system_and_leaves_its_arguments_alone(system: System):
    reference, driving = texture(0, SIDE), panned(1)
    before = reference.copy(), driving.copy()
    clip = system(reference, driving)
    assert clip.shape == driving.shape
    assert clip.dtype == np.uint8
    clip[:] = 0
    assert np.array_equal(reference, before[0])
    assert np.array_equal(driving, before[1])


def test_copy_and_driving_are_what_they_say():
    reference, driving = texture(0, SIDE), panned(1)
    assert all(np.array_equal(frame, reference) for frame in copy_reference(reference, driving))
    assert np.array_equal(driving_itself(reference, driving), driving)


def test_flow_warp_moves_another_picture_as_the_driver_moves():
    truth = panned(0)  # other texture, same motion as the driver
    error = np.abs(flow_warp(truth[0], panned(1)).astype(int) - truth)[:, 16:-16, 16:-16].mean()
    still = np.abs(truth[:1].astype(int) - truth)[:, 16:-16, 16:-16].mean()
    assert error < 0.1 * still


def test_flow_warp_of_a_still_driver_is_the_reference():
    reference = texture(0, SIDE)
    still = np.repeat(panned(1)[:1], 3, axis=0)
    assert np.abs(flow_warp(reference, still).astype(int) - reference).max() <= 1


def test_refuses_a_reference_of_another_size():
    with pytest.raises(ShapeError, match="of one size"):
        copy_reference(texture(0, SIDE - 1), panned(1))
