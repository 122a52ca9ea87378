"""Cached examples: laid out as at inference, made once, and never their own drivers."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from test_nano_surface import SEEN
from torch.testing import assert_close

from dreamactor.backbones.nano import load_vae
from dreamactor.backbones.nano_placement import PlacementNet
from dreamactor.backbones.nano_vae import NanoVAE, NanoVAEConfig
from dreamactor.backbones.weights import save_weights
from dreamactor.cli import main
from dreamactor.conditioning.augment import augment, hide_lead
from dreamactor.conditioning.placement import place_frames
from dreamactor.conditioning.skeleton import JOINTS, draw
from dreamactor.errors import ConfigError, MediaError, WeightsError
from dreamactor.runs import seed_of
from dreamactor.training import encode
from dreamactor.training.cache import (
    COPY,
    Cache,
    CacheHeader,
    check_cache,
    check_examples,
    open_cache,
    shard_path,
    unlikeness,
    write_examples,
)
from dreamactor.training.encode import CacheConfig, fill_cache
from dreamactor.training.nano_placement import with_placement
from dreamactor.training.pool import SHARD, Shard, read_shard, write_shard
from dreamactor.training.takes import Triplets, pool_track, windows
from dreamactor.video import write_clip

TINY = NanoVAEConfig(4, (8, 8, 8), (1, 1, 1), (8, 8, 8, 8), (1, 1, 1, 1))
SIDE = 32


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vae") / "vae.safetensors"
    header = {"model": "nano-vae", "config": vars(TINY)}
    save_weights(path, NanoVAE(TINY).state_dict(), header)
    return path


@pytest.fixture(scope="module")
def placing_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder that says where drivers belong."""
    torch.manual_seed(0)
    network = PlacementNet()
    torch.nn.init.normal_(network.judge[-1].weight, std=0.02)
    model = with_placement(NanoVAE(SEEN), network)
    path = tmp_path_factory.mktemp("placing") / "vae.safetensors"
    save_weights(path, model.state_dict(), {"model": "nano-vae", "config": vars(model.config)})
    return path


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of four-frame twins of noise, in which a head and a neck wander."""
    folder, rng = tmp_path_factory.mktemp("pool"), np.random.default_rng(0)
    for index in range(2):
        shape = (SHARD, 2, 6, SIDE, SIDE, 4)
        joints = np.full((*shape[:3], len(JOINTS), 2), np.nan, np.float32)
        for name in ("head", "neck"):
            joints[..., JOINTS.index(name), :] = rng.uniform(0.2, 0.8, (*shape[:3], 2))
        joints[0, 0] = np.nan  # nobody is found here
        captions = [[f"clip {k} {side}" for side in range(2)] for k in range(SHARD)]
        pixels = rng.integers(0, 256, shape, np.uint8)
        surface = np.zeros((*shape[:3], 4, 4, 3), np.float16)
        write_shard(folder, Shard(index, pixels, joints, surface, captions))
    return folder


@pytest.fixture(autouse=True)
def quick_text(monkeypatch: pytest.MonkeyPatch) -> None:
    class Numbers:
        """A text encoder that tells its captions apart."""

        def __init__(self, folder: Path | None, device: object) -> None:
            pass

        def __call__(self, captions: list[str]) -> torch.Tensor:
            sums = [[sum(map(ord, c)) % 97 / 97] for c in captions]
            return torch.tensor(sums)[:, None].expand(-1, 2, 384).clone()

    monkeypatch.setattr("dreamactor.training.encode.TextEncoder", Numbers)


def _examples(count: int) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(count)
    return {
        "target": torch.randn(count, 4, 2, 2, 2, generator=draws),
        "motion": torch.randn(count, 4, 2, 2, 2, generator=draws),
        "text": torch.randn(count, 3, 8, generator=draws),
    }


HEADER = CacheHeader("pose", "nano", "0" * 64, 12.0, {"lead": 0.5})


def test_a_cache_gives_back_what_was_written(tmp_path: Path) -> None:
    """same: to half precision, in the order of shards; an unknown subject is everywhere."""
    open_cache(tmp_path, HEADER)
    made = [_examples(3), _examples(2)]
    for index, tensors in enumerate(made):
        keys = [f"{index}/{k}" for k in range(len(tensors["text"]))]
        write_examples(shard_path(tmp_path, index), keys, tensors)
    cache = Cache(tmp_path)
    assert cache.header == HEADER
    assert cache.shape == (4, 2, 2, 2)
    assert cache.keys == ["0/0", "0/1", "0/2", "1/0", "1/1"]
    batch = cache.batch([4, 0])
    for name in made[0]:
        expected = torch.stack([made[1][name][1], made[0][name][0]])
        assert_close(batch[name], expected, atol=2e-3, rtol=2e-3)
    assert torch.equal(batch["subject"], torch.ones(2, 1, 2, 2, 2))
    assert "5 examples of pose, 4 x 2 x 2 x 2" in check_cache(tmp_path)


def test_kept_examples_are_read_once_and_the_same(tmp_path: Path) -> None:
    """same: batches of a cache that stays where it is wanted, to the bit; then without files."""
    open_cache(tmp_path, HEADER)
    for index, count in enumerate((2, 4)):
        keys = [f"{index}/{k}" for k in range(count)]
        write_examples(shard_path(tmp_path, index), keys, _examples(count))
    plain, kept = Cache(tmp_path), Cache(tmp_path)
    size = sum(v.nbytes for v in plain.batch(range(6)).values()) // 2  # a subject beside, 16 bits
    assert not kept.keep(torch.device("cpu"), size / 2)
    assert kept.keep(torch.device("cpu"), size)
    for which in ([4, 0], [0, 0, 5], [1, 2, 3], [5, 4, 3, 2, 1, 0]):
        found = kept.batch(which)
        for name, value in plain.batch(which).items():
            assert torch.equal(found[name], value), name
    kept._shards.clear()
    assert torch.equal(kept.batch([3])["target"], plain.batch([3])["target"])


def test_texts_of_two_lengths_are_not_kept(tmp_path: Path) -> None:
    open_cache(tmp_path, HEADER)
    for index, tokens in enumerate((2, 5)):
        tensors = {**_examples(1), "text": torch.ones(1, tokens, 8)}
        write_examples(shard_path(tmp_path, index), [str(index)], tensors)
    cache = Cache(tmp_path)
    assert not cache.keep(torch.device("cpu"), 1e9)
    assert cache.batch([0])["text"].shape == (1, 2, 8)


def test_numbers_beyond_a_half_are_kept_in_bfloat16(tmp_path: Path) -> None:
    """same: states of a text encoder in bfloat16, to the last bit; shorter texts get zeros."""
    open_cache(tmp_path, HEADER)
    made = [_examples(1), _examples(1)]
    for index, (tensors, tokens) in enumerate(zip(made, (2, 5), strict=True)):
        tensors["text"] = torch.full((1, tokens, 8), 1e5, dtype=torch.bfloat16)
        write_examples(shard_path(tmp_path, index), [str(index)], tensors)
    text = Cache(tmp_path).batch([0, 1])["text"]
    assert text.shape == (2, 5, 8)
    assert torch.equal(text[1], made[1]["text"][0].float())
    assert torch.equal(text[0, :2], made[0]["text"][0].float())
    assert not text[0, 2:].any()
    tensors = {**_examples(1), "text": torch.full((1, 2, 8), 1e5)}
    with pytest.raises(ConfigError, match="text holds numbers"):
        write_examples(shard_path(tmp_path, 2), ["c"], tensors)


def test_unlikeness_has_its_scale() -> None:
    """exact: nothing for a copy, whatever the reference; one for unrelated noise; two opposed."""
    x = torch.randn(2, 8, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    other = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    copy = x.clone()
    copy[:, :, 0] = other[:, :, 0]
    assert_close(unlikeness(x, copy), torch.zeros(2))
    assert_close(unlikeness(x, other), torch.ones(2), atol=0.05, rtol=0)
    assert_close(unlikeness(x, -x), torch.full((2,), 2.0), atol=0.01, rtol=0)


def test_a_driver_that_is_the_target_is_refused_everywhere(tmp_path: Path) -> None:
    """refuses: when written, when read, and when checked; the example is named."""
    tensors = _examples(3)
    tensors["motion"][1] = tensors["target"][1] + 0.1 * tensors["motion"][1]
    with pytest.raises(ConfigError, match=r"^b: the driving clip is the target .*learn to copy"):
        check_examples("abc", tensors)
    path = shard_path(tmp_path, 0)
    with pytest.raises(ConfigError, match="b: the driving clip"):
        write_examples(path, list("abc"), tensors)
    assert not path.exists()
    _smuggle(tmp_path, tensors)
    cache = Cache(tmp_path)
    assert len(cache.batch([0, 2])["target"]) == 2
    with pytest.raises(ConfigError, match="b: the driving clip"):
        cache.batch([1])
    assert cache.keep(torch.device("cpu"), 1e9)
    with pytest.raises(ConfigError, match="b: the driving clip"):
        cache.batch([0, 1])
    with pytest.raises(ConfigError, match="b: the driving clip"):
        check_cache(tmp_path)


def _smuggle(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a shard as somebody else's program might."""
    from safetensors.torch import save_file

    open_cache(folder, HEADER)
    save_file(tensors, shard_path(folder, 0), {"keys": json.dumps(list("abc"))})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("target", torch.full((3, 4, 2, 2, 2), torch.nan), "a: target holds numbers"),
        ("text", torch.full((3, 1), torch.inf), "a: text holds numbers"),
        ("motion", torch.zeros(3, 4, 1, 2, 2), "want one shape"),
        ("text", torch.zeros(2, 1), "want one shape and number"),
    ],
)
def test_damaged_examples_are_refused(name: str, value: torch.Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_examples("abc", {**_examples(3), name: value})


def test_what_is_no_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no cache here"):
        Cache(tmp_path)
    open_cache(tmp_path, HEADER)
    with pytest.raises(ConfigError, match="the cache is empty"):
        Cache(tmp_path)
    shard_path(tmp_path, 0).write_bytes(b"torn")
    with pytest.raises(WeightsError, match="not a shard of a cache"):
        Cache(tmp_path)
    (tmp_path / "cache.json").write_text(json.dumps({**vars(HEADER), "task": "depth"}))
    with pytest.raises(ConfigError, match=r"task depth, .*want rgb or pose"):
        Cache(tmp_path)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    open_cache(tmp_path, HEADER)
    write_examples(shard_path(tmp_path, 0), ["a", "b", "a"], _examples(3))
    with pytest.raises(ConfigError, match="twice"):
        check_cache(tmp_path)


def test_a_cache_of_other_settings_is_refused(tmp_path: Path) -> None:
    open_cache(tmp_path, HEADER)
    with pytest.raises(ConfigError, match="made with another lead"):
        open_cache(tmp_path, CacheHeader("pose", "nano", "0" * 64, 12.0, {"lead": 1.0}))


def test_pose_examples_are_driven_by_their_own_skeletons(
    pool: Path, vae: Path, tmp_path: Path
) -> None:
    """same: as drawn, augmented and encoded one by one, whatever the shard; nobody = left out."""
    config = CacheConfig(pool=pool, vae=vae, lead=1 / 12, scale_share=1.0, draws=2, limit=1)
    told = fill_cache(config, "pose", tmp_path, "cpu")
    assert told.endswith("62 new examples of pose, 2 takes left out, in which no joint was found")
    cache, shard = Cache(tmp_path), read_shard(pool, 0)
    assert cache.keys[:3] == [f"{pool.name}/000000/{k}" for k in ("0/1/0", "0/1/1", "1/0/0")]
    which = cache.keys.index(f"{pool.name}/000000/3/1/1")
    batch = cache.batch([which])

    model = load_vae(vae).eval()
    frames = shard.pixels[3, 1, 1:]
    track = pool_track(shard.joints[3, 1, 1:], SIDE, 12.0)
    changed = augment(track, config, 0, seed_of(0, cache.keys[which], 0))
    shown = draw(hide_lead(changed, 1 / 12))
    assert not shown[0].any()
    assert shown[1:].any(axis=(1, 2, 3)).all()
    with torch.inference_mode():
        for name, clip in (("target", frames[..., :3]), ("motion", shown)):
            x = torch.from_numpy(np.ascontiguousarray(clip)).permute(3, 0, 1, 2)[None]
            expected = model.encode(x.float() / 127.5 - 1)
            assert_close(batch[name], expected, atol=5e-3, rtol=5e-3)
    covered = batch["subject"][0, 0, 1, 0, 0]
    assert_close(covered.item(), frames[1:, :8, :8, 3].mean() / 255, atol=1e-3, rtol=0)
    assert_close(
        batch["text"][0, 0, 0].item(), sum(map(ord, "clip 3 1")) % 97 / 97, atol=1e-3, rtol=0
    )
    twice = cache.batch([which - 1])
    assert torch.equal(twice["target"], batch["target"])
    assert not torch.equal(twice["motion"], batch["motion"])


def test_rgb_examples_are_driven_by_the_twin(pool: Path, vae: Path, tmp_path: Path) -> None:
    """exact: what drives one of the twins is the other's target."""
    config = CacheConfig(pool=pool, vae=vae, limit=1)
    fill_cache(config, "rgb", tmp_path, "cpu")
    cache = Cache(tmp_path)
    assert len(cache) == 2 * SHARD
    for k in (0, 6):
        batch = cache.batch([k, k + 1])
        assert torch.equal(batch["motion"], batch["target"].flip(0))


def test_drivers_can_be_placed_as_animate_does(
    pool: Path, vae: Path, placing_vae: Path, tmp_path: Path
) -> None:
    """same: motion is what encoding the placed driver gives; targets are as without."""
    model, caches = load_vae(placing_vae), {}
    for placed in (False, True):
        out = tmp_path / str(placed)
        config = CacheConfig(pool=pool, vae=placing_vae, limit=1, placed=placed)
        fill_cache(config, "rgb", out, "cpu")
        caches[placed] = Cache(out)
        assert caches[placed].header.settings.get("placed", False) == placed
    shard, batch = read_shard(pool, 0), caches[True].batch([3])
    x = torch.from_numpy(shard.pixels[1, ..., :3]).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    placement = model.place(x[1:, :, 1], x[:1, :, 1:])
    expected = model.encode(place_frames(x[:1, :, 1:], placement))
    assert_close(batch["motion"], expected, atol=5e-3, rtol=5e-3)
    plain = caches[False].batch([3])
    assert torch.equal(batch["target"], plain["target"])
    assert not torch.equal(batch["motion"], plain["motion"])
    with pytest.raises(ConfigError, match="knows no placements; want one that does"):
        fill_cache(CacheConfig(pool=pool, vae=vae, limit=1, placed=True), "rgb", tmp_path / "no")
    assert not (tmp_path / "no").exists()
    with pytest.raises(ConfigError, match="placed=true: only for rgb"):
        fill_cache(CacheConfig(pool=pool, vae=vae, placed=True), "pose", tmp_path / "no")
    with pytest.raises(ConfigError, match="placed=true: only for nano"):
        CacheConfig(pool=pool, backbone="wan2.1-i2v-14b-480p", placed=True)


def test_copies_are_looked_for_before_drivers_are_placed(
    pool: Path, placing_vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """refuses: a twin of the same pixels; takes: what is alike only once it is placed."""
    shard, twins = read_shard(pool, 0), tmp_path / "twins"
    twins.mkdir()
    write_shard(twins, replace(shard, pixels=np.repeat(shard.pixels[:, :1], 2, axis=1)))

    def place(driving: torch.Tensor, placement: object) -> torch.Tensor:
        return driving.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)  # each twin's becomes its own

    config = CacheConfig(pool=twins, vae=placing_vae, limit=1, placed=True)
    with pytest.raises(ConfigError, match=r"twins/000000/0/0: the driving clip is the target"):
        fill_cache(config, "rgb", tmp_path / "copies", "cpu")
    monkeypatch.setattr(encode, "place_frames", place)
    fill_cache(replace(config, pool=pool), "rgb", tmp_path / "alike", "cpu")
    batch = Cache(tmp_path / "alike").batch([0, 1])
    assert float(unlikeness(batch["target"], batch["motion"]).max()) < COPY
    assert "driver, placed, and target are unlike by 0.0" in check_cache(tmp_path / "alike")


def test_another_reference_is_another_first_frame(pool: Path, vae: Path, tmp_path: Path) -> None:
    """exact: frames behind it are the same clips, so only the reference's latents differ much."""
    out = []
    for reference in ("first", "other"):
        config = CacheConfig(pool=pool, vae=vae, limit=1, reference=reference)  # type: ignore[arg-type]
        fill_cache(config, "rgb", tmp_path / reference, "cpu")
        out.append(Cache(tmp_path / reference).batch([3]))
    shard, model = read_shard(pool, 0), load_vae(vae).eval()
    for batch, frame in zip(out, (1, 0), strict=True):
        picture = torch.from_numpy(shard.pixels[1, 1, frame : frame + 1, ..., :3].copy())
        with torch.inference_mode():
            first = model.encode(picture.permute(3, 0, 1, 2)[None].float() / 127.5 - 1)
        assert_close(batch["target"][:, :, :1], first, atol=5e-3, rtol=5e-3)
    assert torch.equal(out[0]["motion"], out[1]["motion"])


def test_filling_goes_on_where_it_stopped(pool: Path, vae: Path, tmp_path: Path) -> None:
    """unchanged by: a shard that is missing is made again, byte for byte; the others stay."""
    config = CacheConfig(pool=pool, vae=vae)
    fill_cache(config, "pose", tmp_path, "cpu")
    first = shard_path(tmp_path, 1).read_bytes()
    shard_path(tmp_path, 1).unlink()
    kept = shard_path(tmp_path, 0).stat().st_mtime_ns
    assert "31 new examples" in fill_cache(config, "pose", tmp_path, "cpu")
    assert shard_path(tmp_path, 1).read_bytes() == first
    assert shard_path(tmp_path, 0).stat().st_mtime_ns == kept
    assert "0 new examples" in fill_cache(config, "pose", tmp_path, "cpu")


def test_the_clock_ends_filling_after_a_shard(pool: Path, vae: Path, tmp_path: Path) -> None:
    """unchanged by: what minutes= left out comes by the same command again."""
    config = CacheConfig(pool=pool, vae=vae, minutes=0)
    fill_cache(config, "pose", tmp_path, "cpu")
    assert not shard_path(tmp_path, 1).exists()
    fill_cache(config, "pose", tmp_path, "cpu")
    assert shard_path(tmp_path, 1).exists()


# ---- clips and triplets -----------------------------------------------------------------------


def _clip(path: Path, seed: int, frames: int = 14) -> Path:
    """Two squares that go round on a plain ground."""
    rng = np.random.default_rng(seed)
    pictures = np.empty((frames, 48, 64, 3), np.uint8)
    pictures[:] = rng.integers(0, 256, 3)
    for _ in range(2):
        colour, at = rng.integers(0, 256, 3), rng.integers(0, 30, 2)
        for k in range(frames):
            pictures[k, at[0] : at[0] + 18, at[1] + k : at[1] + k + 18] = colour
    write_clip(path, list(pictures), 12)
    return path


@pytest.fixture
def triplets(tmp_path: Path) -> Path:
    for seed, name in enumerate(("driver.mp4", "real.mp4")):
        _clip(tmp_path / name, seed)
    (tmp_path / "real.txt").write_text("squares\n")
    _write_triplets(tmp_path, "driver.mp4")
    return tmp_path / "triplets.jsonl"


def _write_triplets(folder: Path, driving: str) -> None:
    line = {"driving": driving, "reference": {"clip": "real.mp4", "frame": 0}, "target": "real.mp4"}
    (folder / "triplets.jsonl").write_text(json.dumps(line) + "\n")


def test_triplets_become_windows_in_step(triplets: Path, vae: Path, tmp_path: Path) -> None:
    """exact: each window shows the reference, then the target's frames beside the driver's."""
    source = Triplets(triplets, 5, 12.0, (32, 32))
    takes = list(source.takes(0))
    assert [take.key for take in takes] == ["driver.mp4/0", "driver.mp4/1", "driver.mp4/2"]
    driver, real = (
        list(windows(tmp_path / n, 5, 12.0, (32, 32), twice=True))
        for n in ("driver.mp4", "real.mp4")
    )
    once = next(windows(tmp_path / "real.mp4", 5, 12.0, (32, 32)))
    assert np.array_equal(real[0], once[[0, 0, 1, 2, 3]])
    assert np.array_equal(takes[0].target, real[0])  # the reference is its first frame
    for take, d, r in zip(takes, driver, real, strict=True):
        assert np.array_equal(take.driving, d)
        assert np.array_equal(take.target[0], real[0][0])
        assert np.array_equal(take.target[1:], r[1:])
        assert take.caption == "squares"
    assert np.array_equal(real[1][0], real[0][-1])
    config = CacheConfig(triplets=triplets, vae=vae, frames=5, size="32")
    fill_cache(config, "rgb", tmp_path / "cache", "cpu")
    assert Cache(tmp_path / "cache").shape == (4, 2, 4, 4)


def test_a_triplets_own_text_is_its_caption(triplets: Path) -> None:
    """exact: what `bootstrap triplets` wrote; a file beside the target only where it is empty."""
    line = json.loads(triplets.read_text())
    for text, caption in (("a fox, red, jumps", "a fox, red, jumps"), ("", "squares")):
        triplets.write_text(json.dumps({**line, "text": text}) + "\n")
        takes = Triplets(triplets, 5, 12.0, (32, 32)).takes(0)
        assert {take.caption for take in takes} == {caption}


def test_captions_are_written_beside_clips_that_have_none(
    triplets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """unchanged by: what is there already; the same command again writes nothing."""
    command = ["dreamactor", "train", "captions", str(triplets.parent), "--describer", "offline"]
    monkeypatch.setattr(sys, "argv", command)
    for told in ("1 new captions, 1 were there", "0 new captions, 2 were there"):
        with pytest.raises(SystemExit):
            main()
        assert told in capsys.readouterr().out
    assert (triplets.parent / "real.txt").read_text() == "squares\n"
    said = (triplets.parent / "driver.txt").read_text()
    assert len(said.split()) >= 3
    assert said.endswith("\n")


def test_a_clip_of_sixteen_frames_makes_one_take_of_seventeen(vae: Path, tmp_path: Path) -> None:
    """exact: what the bootstrap makes of the world's clips is used, all frames of it."""
    for seed, name in enumerate(("driver.mp4", "real.mp4")):
        _clip(tmp_path / name, seed, frames=16)
    _write_triplets(tmp_path, "driver.mp4")
    (take,) = Triplets(tmp_path / "triplets.jsonl", 17, 12.0, (32, 32)).takes(0)
    assert take.target.shape == take.driving.shape == (17, 32, 32, 3)
    (clip,) = windows(tmp_path / "real.mp4", 16, 12.0, (32, 32))
    assert np.array_equal(take.target[1:], clip)


def test_a_triplet_driven_by_its_target_is_refused(triplets: Path) -> None:
    """refuses: the same path, and the same bytes under another name; the line is named."""
    shutil.copy(triplets.parent / "real.mp4", triplets.parent / "copy.mp4")
    for driving in ("real.mp4", "copy.mp4"):
        _write_triplets(triplets.parent, driving)
        with pytest.raises(ConfigError, match=r"triplets.jsonl:1: the driving clip is the target"):
            Triplets(triplets, 5, 12.0, (32, 32)).groups()


def test_triplets_that_cannot_be_read_are_refused(triplets: Path) -> None:
    _write_triplets(triplets.parent, "gone.mp4")
    with pytest.raises(MediaError, match=r"gone.mp4: no such file"):
        Triplets(triplets, 5, 12.0, (32, 32)).groups()
    triplets.write_text('{"driving": "driver.mp4"}\n')
    with pytest.raises(ConfigError, match=r":1: want driving, reference and target"):
        Triplets(triplets, 5, 12.0, (32, 32)).groups()
    triplets.write_text("")
    with pytest.raises(ConfigError, match="did the review accept any"):
        Triplets(triplets, 5, 12.0, (32, 32)).groups()


def test_a_folder_of_clips_is_driven_by_what_the_estimator_finds(
    vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """exact: each window asks it once, and its joints are drawn."""
    asked = []

    class Finder:
        name = "finder"
        weights: ClassVar = {"finder.onnx": "0"}

        def __call__(self, frames: np.ndarray, fps: float) -> object:
            asked.append((frames, fps))
            joints = np.full((len(frames), len(JOINTS), 2), np.nan, np.float32)
            joints[:, :2] = [[0.5, 0.2], [0.5, 0.6]]
            return pool_track(joints, frames.shape[1], fps)

    monkeypatch.setattr("dreamactor.backbones.load.load_estimator", lambda *a, **k: Finder())
    (tmp_path / "in").mkdir()
    _clip(tmp_path / "in" / "a.mp4", 3)
    config = CacheConfig(clips=tmp_path / "in", vae=vae, frames=5, size="32", lead=0.0)
    fill_cache(config, "pose", tmp_path / "cache", "cpu")
    assert [(frames.shape, fps) for frames, fps in asked] == [((5, 32, 32, 3), 12.0)] * 3
    cache = Cache(tmp_path / "cache")
    assert cache.keys == ["a.mp4/0/0", "a.mp4/1/0", "a.mp4/2/0"]
    still = cache.batch([0])["motion"]
    assert_close(cache.batch([1])["motion"], still)  # the same joints on every frame


@pytest.mark.parametrize(
    ("task", "words", "message"),
    [
        ("depth", [], "task=depth: want one of rgb, pose"),
        ("pose", [], "sources none: want one of pool, clips and triplets"),
        ("pose", ["pool=a", "clips=b"], "want one of pool"),
        ("rgb", ["clips=b"], "clips cannot teach rgb: want pool or triplets"),
        ("pose", ["pool=nowhere"], "no pool"),
        ("pose", ["clips=nowhere"], "no such folder"),
        ("pose", ["pool=a", "frames=16"], "frames=16: want 4 k + 1"),
        ("pose", ["pool=a", "lead=-1"], "lead=-1.0: want 0 or more"),
        ("pose", ["pool=a", "scale_share=2"], "scale_share=2.0: want 0 to 1"),
        ("pose", ["pool=a", "size=20"], "size=20: want a multiple of 16"),
    ],
)
def test_bad_settings_are_one_line(
    task: str,
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """refuses: exit code 2 and one line."""
    monkeypatch.setattr("dreamactor.backbones.load.load_estimator", lambda *a, **k: None)
    command = ["dreamactor", "train", "cache", "--task", task, "--out", str(tmp_path / "c"), *words]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
