"""ST-LPIPS: equal to the package that the weights come from, and what a distance must do."""

import importlib.util
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dreamactor.bench import perceptual
from dreamactor.bench.perceptual import TRUNKS, Perceptual, blur_pool, export_weights
from dreamactor.errors import ShapeError, WeightsError

needs_package = pytest.mark.skipif(
    importlib.util.find_spec(perceptual.PACKAGE) is None, reason=perceptual.INSTALL_HINT
)


def tiny_state(net, depth=5):
    """Random weights of the right form, 4 channels a stage."""
    generator = torch.Generator().manual_seed(0)
    state, before = {}, 3
    for s, stage in enumerate(TRUNKS[net][:depth], 1):
        for i in range(1, len(stage.convs) + 1):
            shape = (4, before, 3, 3)
            state[f"conv{s}_{i}.weight"] = torch.randn(shape, generator=generator) / 3
            state[f"conv{s}_{i}.bias"] = torch.randn(4, generator=generator) / 3
            before = 4
        state[f"head{s}"] = torch.rand(4, generator=generator)
    return state


def gratings():
    """Two pairs of striped pictures: shifted and dimmed, and with colours exchanged."""
    y, x = torch.meshgrid(torch.arange(72.0), torch.arange(65.0), indexing="ij")
    a = torch.stack([torch.sin(x / 3), torch.cos(y / 5), torch.sin((x + y) / 7)])[None] * 0.8
    return torch.cat([a, a]), torch.cat([torch.roll(a, 2, 3) * 0.9, a.flip(1)])


@needs_package
@pytest.mark.parametrize(
    ("net", "wanted"),
    # stlpips_pytorch 0.0.2: LPIPS(net=net, variant="shift_tolerant") on gratings(), torch 2.13
    [("alex", [0.022046, 0.195392]), ("vgg", [0.068877, 0.244680])],
)
def test_distance_is_that_of_the_package(net, wanted):
    got = Perceptual.load(net)(*gratings())
    torch.testing.assert_close(got, torch.tensor(wanted), atol=1e-5, rtol=1e-4)


@needs_package
def test_distance_grows_with_blur_and_with_noise():
    import cv2

    picture = gratings()[0][0].permute(1, 2, 0).numpy()
    noise = np.random.default_rng(0).normal(size=picture.shape)
    blurred = [cv2.GaussianBlur(picture, (0, 0), s) for s in (0.5, 1, 2, 4)]
    noisy = [np.clip(picture + s * noise, -1, 1) for s in (0.02, 0.05, 0.1, 0.3)]
    metric = Perceptual.load("alex")
    for worse in (blurred, noisy):
        b = torch.from_numpy(np.stack(worse)).float().permute(0, 3, 1, 2)  # (4, 3, 72, 65)
        distances = metric(gratings()[0][:1].expand_as(b), b)
        assert distances[0] > 0
        assert (distances.diff() > 0).all()


@needs_package
def test_export_carries_the_metric_and_fewer_stages_are_a_partial_sum(tmp_path):
    a, b = gratings()
    whole = Perceptual.load("alex")
    half = Perceptual.load("alex", export_weights("alex", tmp_path / "half.safetensors"))
    torch.testing.assert_close(half(a, b), whole(a, b), atol=5e-4, rtol=0)
    short = export_weights("alex", tmp_path / "3.safetensors", layers=3, dtype=torch.float32)
    part = Perceptual.load("alex", short)
    assert len(part.stages) == 3
    for mine, same in zip(part.features(a), whole.features(a)[:3], strict=True):
        torch.testing.assert_close(mine, same)
    assert (part(a, b) < whole(a, b)).all()


@pytest.mark.parametrize("net", ["alex", "vgg"])
@pytest.mark.parametrize("features_only", [False, True])
def test_equal_pictures_have_distance_zero_and_order_does_not_matter(net, features_only):
    metric, (a, b) = Perceptual(net, tiny_state(net)), gratings()
    assert metric(a, a, features_only).abs().max() == 0
    torch.testing.assert_close(metric(a, b, features_only), metric(b, a, features_only))
    assert (metric(a, b, features_only) > 0).all()


def test_distance_is_unchanged_by_the_rest_of_the_batch():
    metric, (a, b) = Perceptual("vgg", tiny_state("vgg")), gratings()
    torch.testing.assert_close(metric(a, b)[1:], metric(a[1:], b[1:]))


def test_gradient_is_finite_on_flat_pictures_and_reaches_no_weight():
    metric = Perceptual("vgg", tiny_state("vgg"))
    a = torch.zeros(1, 3, 40, 40, requires_grad=True)
    metric(a, torch.full_like(a, -1.0), features_only=True).sum().backward()
    assert a.grad is not None
    assert a.grad.isfinite().all()
    assert a.grad.abs().max() > 0
    assert not list(metric.parameters())


def test_blur_pool_keeps_a_flat_grid_and_averages_a_point():
    assert torch.equal(blur_pool(torch.ones(1, 2, 6, 7)), torch.ones(1, 2, 4, 5))
    point = torch.zeros(1, 1, 6, 6)
    point[0, 0, 2, 2] = 16.0  # at cell 4, 4 of the padded grid: between the windows 2..4 and 4..6
    assert blur_pool(point)[0, 0, 1:3, 1:3].tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_refuses_another_file_in_the_package_before_it_is_unpickled(tmp_path, monkeypatch):
    """A pickle that would write a file when it is read, in the place of the weights."""
    touched = tmp_path / "touched"

    class Evil:
        def __reduce__(self):
            return (touched.write_text, ("by a pickle",))

    pickle.loads(pickle.dumps(Evil()))
    assert touched.exists()  # it would
    touched.unlink()
    folder = tmp_path / "a_package" / "weights" / "vST0.0"
    folder.mkdir(parents=True)
    (tmp_path / "a_package" / "__init__.py").write_text("")
    (folder / "alex_shift_tolerant.pth").write_bytes(pickle.dumps(Evil()))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(perceptual, "PACKAGE", "a_package")
    monkeypatch.setattr(torch, "load", lambda *given, **more: pytest.fail("it was read"))
    with pytest.raises(WeightsError, match=r"alex_shift_tolerant\.pth is not the file of a_pack"):
        Perceptual.load("alex")
    assert not touched.exists()


def test_refuses_wrong_shapes_nets_and_files(tmp_path, monkeypatch):
    metric, a = Perceptual("alex", tiny_state("alex")), gratings()[0]
    with pytest.raises(ShapeError, match="differ"):
        metric(a, a[:1])
    with pytest.raises(ShapeError, match=r"want \(N, 3, H, W\)"):
        metric(a[:, :2], a[:, :2])
    with pytest.raises(WeightsError, match="want one of"):
        Perceptual.load("squeeze")
    with pytest.raises(WeightsError, match="do not exist"):
        Perceptual.load("vgg", tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("no weights")
    with pytest.raises(WeightsError, match="no safetensors file"):
        Perceptual.load("vgg", tmp_path / "text")
    save_file(tiny_state("alex"), tmp_path / "alex", metadata={"net": "alex"})
    with pytest.raises(WeightsError, match="weights of 'alex': want 'vgg'"):
        Perceptual.load("vgg", tmp_path / "alex")
    state = tiny_state("alex")
    del state["conv3_1.bias"]
    with pytest.raises(WeightsError, match=r"lack 'conv3_1\.bias'"):
        Perceptual("alex", state)
    with pytest.raises(WeightsError, match="stages 1 to 5"):
        export_weights("alex", tmp_path / "x", layers=6)
    monkeypatch.setattr(perceptual, "PACKAGE", "no_such_package_at_all")
    with pytest.raises(WeightsError, match="pip install"):
        Perceptual.load("alex")
