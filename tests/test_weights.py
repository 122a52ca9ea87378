"""Weight files: round trip, 8-bit bound, and what is refused."""

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from dreamactor.backbones.weights import (
    dequantise_rows,
    load_weights,
    quantise_rows,
    read_header,
    save_weights,
    sha256,
)
from dreamactor.errors import WeightsError

HEADER = {"model": "nano", "config": {"layers": 1}, "steps": 3}


def state():
    draws = torch.Generator().manual_seed(0)
    return {
        "matrix": torch.randn(128, 160, generator=draws),
        "kernel": torch.randn(64, 32, 3, 3, generator=draws),
        "small": torch.randn(8, 8, generator=draws),
        "vector": torch.randn(20000, generator=draws),
        "count": torch.tensor(7),
    }


def test_half_precision_comes_back_as_its_float32(tmp_path):
    digest = save_weights(tmp_path / "w.safetensors", state(), HEADER)
    loaded, header = load_weights(tmp_path / "w.safetensors", digest)
    assert read_header(tmp_path / "w.safetensors") == header
    assert header == HEADER
    assert loaded.keys() == state().keys()
    for name, value in state().items():
        half = value.half().float() if value.is_floating_point() else value
        assert torch.equal(loaded[name], half)
        assert loaded[name].dtype == half.dtype


def test_eight_bit_rows_are_off_by_half_a_level_at_most(tmp_path):
    save_weights(tmp_path / "w.safetensors", state(), HEADER, eight_bit=True)
    loaded, _ = load_weights(tmp_path / "w.safetensors")
    assert loaded.keys() == state().keys()
    for name in ("matrix", "kernel"):
        rows, error = state()[name].flatten(1), (loaded[name] - state()[name]).flatten(1)
        level = rows.abs().amax(dim=1) / 127
        assert (error.abs().amax(dim=1) <= level * (0.5 + 1e-3)).all()
        assert (error.abs().amax(dim=1) > 0.4 * level).all()  # so it was 8 bits
    for name in ("small", "vector"):
        assert torch.equal(loaded[name], state()[name].half().float())


def test_eight_bit_keeps_what_fits_its_levels():
    rows = torch.tensor([[0.0, 0.0], [127.0, -3.0], [-0.5, 0.5]])
    levels, scale = quantise_rows(rows)
    assert levels.tolist() == [[0, 0], [127, -3], [-127, 127]]
    assert_close(dequantise_rows(levels, scale), rows)


def test_the_same_weights_give_the_same_bytes(tmp_path):
    digests = {save_weights(tmp_path / f"{k}.safetensors", state(), HEADER) for k in range(2)}
    assert digests == {sha256(tmp_path / "0.safetensors")}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.safetensors", "1.safetensors"]


def test_refuses_what_it_did_not_write(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(WeightsError, match="weights are missing"):
        load_weights(path)
    path.write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        load_weights(path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(WeightsError, match="no DreamActor header"):
        load_weights(path)
    for words, message in (("{", "its header is not JSON"), ("[]", "its header is no table")):
        save_file({"a": torch.zeros(2)}, path, {"dreamactor": words})
        with pytest.raises(WeightsError, match=message):
            read_header(path)
    digest = save_weights(path, state(), HEADER)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"sha256 is .*, want .*restore the file"):
        load_weights(path, digest)
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        load_weights(path)
