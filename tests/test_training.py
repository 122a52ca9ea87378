"""Training: layouts agree with inference, runs resume, the optimiser is torch's."""

from __future__ import annotations

import json
import math
import os
import signal
from collections import OrderedDict
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.testing import assert_close

from dreamactor import cli
from dreamactor.backbones.base import Native
from dreamactor.backbones.incontext import mode_of
from dreamactor.backbones.nano import (
    DATA,
    PREDICTS,
    Nano,
    NanoConfig,
    load_nano,
    load_transformer,
    transformer_input,
)
from dreamactor.backbones.nano_vae import BLOCK, NanoVAE, NanoVAEConfig, blocks, unblocks
from dreamactor.backbones.weights import load_weights, save_weights
from dreamactor.conditioning.canvas import VERSION, build_canvas
from dreamactor.conditioning.skeleton import JOINTS
from dreamactor.conditioning.text import TextEncoder
from dreamactor.errors import ConfigError, WeightsError
from dreamactor.runs import RunFolder, generator
from dreamactor.training.examples import Draws, example
from dreamactor.training.export import export_nano
from dreamactor.training.extent import Extent, set_positions
from dreamactor.training.latents import (
    HELD,
    LatentPool,
    encode_block,
    halve,
    of_pairs,
)
from dreamactor.training.loop import LOOK_EVERY, Average, Loop, Worker, learning_rate
from dreamactor.training.matches import matching_cells
from dreamactor.training.nano import (
    NanoTrainConfig,
    draw,
    train_nano,
)
from dreamactor.training.nano_vae import (
    ClipPool,
    VAETrainConfig,
    channel_weights,
    contrast_loss,
    frames_of,
    latent_statistics,
    reconstruction_loss,
    still_clips,
    train_nano_vae,
    visible_energy,
)
from dreamactor.training.optim import Muon, optimisers_for
from dreamactor.training.pool import (
    SHARD,
    PoolConfig,
    Shard,
    ShardFeed,
    filling,
    joint_array,
    read_shard,
    ready_shards,
    write_shard,
)
from dreamactor.training.state import load_state, read_out, save_state
from dreamactor.world.scene import Joints

TINY_VAE = NanoVAEConfig(4, (8, 8, 8), (1, 1, 1), (8, 8, 8, 8), (1, 1, 1, 1))
TINY = NanoConfig(2, 1, 16, 32, 4)
CPU = Worker(0, 1, torch.device("cpu"))
pytestmark = pytest.mark.usefixtures("one_thread")


def _blobs(folder: Path, frames: int) -> Path:
    """Two shards of drifting blobs, 64 x 64."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    for shard in range(2):
        shape = (SHARD, 2, frames + 2, 64, 64, 4)
        pixels = np.empty(shape, np.uint8)
        joints = np.full((*shape[:3], len(JOINTS), 2), np.nan, np.float32)
        surface = np.full((*shape[:3], 8, 8, 3), np.nan, np.float16)
        for twins in range(SHARD):
            speed = rng.uniform(-1, 1, 2)
            for side in range(2):
                colour = rng.uniform(0, 255, 3)
                for frame in range(frames + 2):
                    at = 32 + speed * frame
                    blob = np.hypot(y - at[0], x - at[1]) < 14
                    picture = pixels[twins, side, frame]
                    picture[..., :3] = np.where(blob[..., None], colour, 128)
                    picture[..., 3] = 255 * blob
                    joints[twins, side, frame, JOINTS.index("pelvis")] = (at[::-1] + 0.5) / 64
                    spot = np.stack([y - at[0], x - at[1], 0 * x], -1)[4::8, 4::8]
                    surface[twins, side, frame][blob[4::8, 4::8]] = spot[blob[4::8, 4::8]]
        captions = [[f"blob {twins} {side}" for side in range(2)] for twins in range(SHARD)]
        write_shard(folder, Shard(shard, pixels, joints, surface, captions))
    return folder


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _blobs(tmp_path_factory.mktemp("pool"), 16)


def test_pool_round_trip(pool: Path) -> None:
    assert ready_shards(pool) == [0, 1]
    shard = read_shard(pool, 1)
    assert shard.pixels.shape == (SHARD, 2, 18, 64, 64, 4)
    assert shard.joints.shape == (SHARD, 2, 18, 17, 2)
    assert shard.surface.shape == (SHARD, 2, 18, 8, 8, 3)
    assert shard.captions[3] == ["blob 3 0", "blob 3 1"]


def test_a_pool_of_another_layout_is_refused(tmp_path: Path) -> None:
    pixels = np.zeros((2, 34, 8, 8, 4), np.uint8)
    nothing = np.zeros(0, np.float32), np.zeros(0, np.float16)
    write_shard(tmp_path, Shard(0, pixels, *nothing, []))
    with pytest.raises(ConfigError, match="want twins"):
        read_shard(tmp_path, 0)
    with pytest.raises(ConfigError, match="frames=5: want 4, 8, 12 or 16"):
        PoolConfig(Path("cast"), frames=5)


def test_joints_of_any_skeleton_stand_in_one_order() -> None:
    """exact: parts of the side by name; what is not seen, or not there, is NaN."""
    pixels = np.array([[[32.0, 8.0], [64.0, 16.0]]])
    visible = np.array([[True, False]])
    array = joint_array(Joints(("wrist_r", "head"), pixels, np.ones((1, 2)), visible), 64)
    assert array.shape == (1, 17, 2)
    assert array[0, JOINTS.index("wrist_r")].tolist() == [0.5, 0.125]
    assert np.isfinite(array).sum() == 2


def test_blocks_are_undone_exactly() -> None:
    clip = torch.randn(2, 3, 9, 16, 24)
    assert_close(unblocks(blocks(clip), 3), clip, rtol=0, atol=0)


def test_linear_start_is_the_best_linear_autoencoder() -> None:
    """exact: the error left is the sum of the dropped eigenvalues."""
    torch.manual_seed(0)
    clips = torch.nn.functional.interpolate(torch.randn(6, 3, 5, 8, 8), scale_factor=(1, 4, 4))
    vae = NanoVAE(TINY_VAE)
    vae.start_linear(clips)
    rows = blocks(clips).permute(0, 2, 3, 1).flatten(0, 2).double()
    centred = rows - rows.mean(dim=0)
    values = torch.linalg.eigvalsh(centred.T @ centred / len(rows))
    latents = vae.encoder.linear(blocks(clips))
    error = (vae.decoder.linear(latents) - blocks(clips)).square().sum(dim=1).mean()
    assert_close(error.double(), values[: -TINY_VAE.latent_channels].sum(), rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        assert_close(vae.encoder(clips).chunk(2, dim=1)[0].transpose(1, 2).flatten(0, 1), latents)


@pytest.mark.parametrize("continued", [False, True])
@pytest.mark.parametrize("swapped", [False, True])
def test_training_example_equals_inference(continued: bool, swapped: bool) -> None:
    """same: a training sample is laid out as `Nano.encode` lays out a canvas, either way round."""
    torch.manual_seed(0)
    vae = NanoVAE(TINY_VAE)
    nano = Nano(vae, NanoConfig(1, 1, 16, 32, 4).build(), Native(32, 32, 12, 17, 4, 4, 3, 1))
    block = torch.randint(256, (1, 2, 18, 32, 32, 4), dtype=torch.uint8)
    pixels = block[0, ..., :3].permute(0, 4, 1, 2, 3).float() / 127.5 - 1  # (2, 3, 18, 32, 32)
    target, driver = (pixels[1:], pixels[:1]) if swapped else (pixels[:1], pixels[1:])
    past = target[:, :, 2:6] if continued else None
    canvas = build_canvas(target[:, :, 0], driver[:, :, 1:], nano.grid, past)
    cond = nano.encode(canvas, torch.ones(1, 32, 384))

    both = encode_block(vae, block, CPU)
    chosen = slice(1, 2) if swapped else slice(0, 1)
    batch = {name: value[chosen] for name, value in both.items()}
    batch["text"] = torch.ones(1, 32, 384)
    count, channels, frames, height, width = batch["target"].shape
    noise = torch.randn(count, channels, frames, height, 2 * width)
    drawn = Draws(
        noise,
        torch.tensor([0.7]),
        torch.tensor([continued]),
        torch.zeros(1),
        torch.randn(count, channels, height, width),
        torch.tensor([False]),
    )
    x, latents, _, text, shown = example(batch, drawn, "clean")
    left = 0.3 * batch["target"] + 0.7 * noise[..., :width]
    expected = transformer_input(torch.cat([left, batch["motion"]], dim=-1), cond)
    assert_close(x, expected, rtol=1e-5, atol=1e-5)
    assert_close(latents[..., :width], batch["target"])
    assert text.shape == (1, 32, 384)
    assert shown.flatten().tolist() == [1, float(continued), 0, 0, 0]


def test_draws_depend_on_the_step_alone() -> None:
    config = NanoTrainConfig(pool=Path("pool"), vae=Path("vae"))
    target = torch.zeros(3, 4, 5, 8, 8)
    once, again = (draw(config, generator(0, "nano/0", 7), target) for _ in range(2))
    for name, value in vars(once).items():
        assert torch.equal(value, getattr(again, name)), name
    other = draw(config, generator(0, "nano/0", 8), target)
    assert not torch.equal(once.noise, other.noise)


def test_part_of_the_noise_levels_is_all_noise() -> None:
    config = NanoTrainConfig(pool=Path("pool"), vae=Path("vae"), pure=0.25)
    drawn = draw(config, generator(0, "nano/0", 0), torch.zeros(4000, 1, 5, 2, 2))
    assert abs((drawn.sigma == 1).float().mean().item() - 0.25) < 0.03
    assert (drawn.sigma > 0).all()
    assert abs(drawn.continued.float().mean().item() - config.continued) < 0.03
    single = draw(config, generator(0, "nano/0", 0), torch.zeros(40, 1, 2, 2, 2))
    assert not single.continued.any()  # there is nothing to go on from


def test_positions_keep_distances_at_half_size() -> None:
    """exact: cell 3 of a half-size row stands where cell 6 of a full-size row does."""
    rope = NanoConfig(1, 1, 16, 32, 4).build().rope
    tables = (rope.freqs_cos.clone(), rope.freqs_sin.clone())
    set_positions(rope, tables, Extent(half=True, single=True), frame=3)
    assert torch.equal(rope.freqs_cos[3, rope.t_dim :], tables[0][6, rope.t_dim :])
    assert torch.equal(rope.freqs_sin[0, : rope.t_dim], tables[1][0, : rope.t_dim])
    assert torch.equal(rope.freqs_sin[1, : rope.t_dim], tables[1][3, : rope.t_dim])
    set_positions(rope, tables, Extent(half=False, single=False), frame=3)
    assert torch.equal(rope.freqs_cos, tables[0])
    assert torch.equal(rope.freqs_sin, tables[1])


def test_joints_of_twins_both_ways_round() -> None:
    """exact: own reference and frames, then the other's from the frame before on."""
    joints = torch.arange(2 * 2 * 6.0).view(2, 2, 6, 1, 1)  # twins, side, frame
    pairs = of_pairs(joints)[..., 0, 0]
    assert pairs[0].tolist() == [0, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    assert pairs[1].tolist() == [6, 8, 9, 10, 11, 1, 2, 3, 4, 5]
    assert pairs[2].tolist() == [12, 14, 15, 16, 17, 19, 20, 21, 22, 23]


def test_halving_averages() -> None:
    block = torch.randint(256, (1, 2, 6, 4, 4, 4), dtype=torch.uint8)
    expected = block.float().unflatten(3, (2, 2)).unflatten(5, (2, 2)).mean(dim=(4, 6)).round()
    assert torch.equal(halve(block), expected.to(torch.uint8))


def test_reconstruction_loss_weighs_the_subject_threefold() -> None:
    """exact: a constant error has no gradients."""
    clip = torch.zeros(1, 3, 5, 8, 8)
    loss = reconstruction_loss(clip + 0.5, clip, torch.zeros(1, 1, 5, 8, 8))
    assert_close(loss, torch.tensor(0.5 + 0.25))
    subject = reconstruction_loss(clip + 0.5, clip, torch.ones(1, 1, 5, 8, 8))
    assert_close(subject, 3 * loss)


def test_contrast_loss_sees_blur_and_not_a_shift_of_colour() -> None:
    clip = torch.zeros(1, 3, 2, 16, 16)
    clip[..., ::2] = 0.5
    mask = torch.zeros(1, 1, 2, 16, 16)
    assert contrast_loss(clip + 0.3, clip, mask).item() < 1e-6
    flat = torch.full_like(clip, 0.25)
    blurred = contrast_loss(flat, clip, mask)
    assert blurred.item() > 0.4
    assert_close(contrast_loss(flat, clip, mask + 1), 3 * blurred)


def test_visible_energy_of_a_linear_decoder() -> None:
    """exact: the squared length of its column, spread over the numbers of a block."""
    torch.manual_seed(0)
    vae = NanoVAE(TINY_VAE)
    with torch.no_grad():
        for parameter in vae.decoder.parameters():
            parameter.zero_()
        columns = torch.randn(BLOCK, 4, 1, 1)
        vae.decoder.linear.weight.copy_(columns)
    std = torch.tensor([1.0, 2.0, 0.5, 0.1])
    energy = visible_energy(vae, torch.zeros(4, 4, 9, 16, 16), std)
    expected = std.square() * columns.square().mean(dim=0).flatten()
    assert_close(energy, expected, rtol=0.1, atol=0)
    vae.latent_mean.copy_(torch.randn(4))
    vae.latent_std.copy_(std)  # a unit of a normalised channel is its deviation
    weights = channel_weights(vae, torch.zeros(2, 4, 9, 16, 16))
    assert_close(weights, expected / expected.mean(), rtol=0.1, atol=0)


def test_channels_that_show_more_keep_more_variance(pool: Path) -> None:
    """exact: variances are to each other as the roots of visible energies, 1 on average."""
    torch.manual_seed(0)
    clips = ClipPool(pool, 64, CPU)
    clips.wait(64)
    vae = NanoVAE(TINY_VAE)
    vae.start_linear(clips.crops(generator(0, "x", 0), 16, 32)[:, :3])
    configs = [VAETrainConfig(pool=pool, crop=32, coarse=coarse) for coarse in (0.0, 0.5)]
    (_, even), (_, uneven) = (latent_statistics(vae, clips, config) for config in configs)
    variance = (even / uneven).square()
    assert_close(variance.mean(), torch.tensor(1.0))
    first = vae.encoder(clips.crops(generator(0, "statistics", 0), 8, 32)[:, :3])
    energy = visible_energy(vae, first.chunk(2, dim=1)[0][:4], even)
    assert_close(variance / variance[0], (energy / energy[0]).sqrt())
    assert variance.max() > 2 * variance.min()


def test_frames_of_picks_frames() -> None:
    clips = torch.arange(2 * 3 * 4).float().view(2, 3, 4, 1, 1)
    picked = frames_of(clips, torch.tensor([[1], [3]]))
    assert torch.equal(picked, torch.stack([clips[0, :, 1], clips[1, :, 3]]))


def test_still_clips_show_the_picture() -> None:
    """exact: a plain picture stays plain, whatever the camera does."""
    stills = torch.full((1, 64, 64, 3), 51, dtype=torch.uint8)
    clips = still_clips(stills, generator(0, "s", 0), 3, 32)
    assert clips.shape == (3, 4, 17, 32, 32)
    assert_close(clips[:, :3], torch.full_like(clips[:, :3], 51 / 127.5 - 1))


@pytest.mark.parametrize(
    ("fraction", "step", "factor"),
    [(0.0, 0, 0.1), (0.0, 9, 1.0), (0.5, 100, 1.0), (0.75, 100, 0.5), (1.0, 100, 0.0)],
)
def test_learning_rate(fraction: float, step: int, factor: float) -> None:
    assert math.isclose(learning_rate(fraction, step, 10, 0.5), factor)


def test_muon_equals_torch() -> None:
    """same: torch.optim.Muon with the step size of AdamW, to bfloat16 rounding."""
    torch.manual_seed(0)
    start = [torch.randn(16, 24), torch.randn(16, 24), torch.randn(24, 8)]
    ours = [torch.nn.Parameter(w.clone()) for w in start]
    theirs = [torch.nn.Parameter(w.clone()) for w in start]
    a = Muon(ours, lr=0.01, weight_decay=0.1)
    b = torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = other.grad = torch.randn(mine.shape, generator=generator(1, "g", step))
        a.step()
        b.step()
    for mine, other in zip(ours, theirs, strict=True):
        assert_close(mine, other, rtol=0, atol=2e-3)


def test_muon_treats_a_kernel_as_a_matrix() -> None:
    """same: a convolution moves as its flattened matrix does."""
    kernel = torch.nn.Parameter(torch.randn(8, 4, 3, 3))
    matrix = torch.nn.Parameter(kernel.detach().flatten(1).clone())
    kernel.grad = torch.randn(8, 4, 3, 3)
    matrix.grad = kernel.grad.flatten(1).clone()
    Muon([kernel], lr=0.1).step()
    Muon([matrix], lr=0.1).step()
    assert_close(kernel.flatten(1), matrix, rtol=0, atol=1e-6)


def test_unknown_optimiser_is_refused() -> None:
    with pytest.raises(ConfigError, match="muon or adamw"):
        optimisers_for(torch.nn.Linear(2, 2), "blocks.", "sgd", 0.1, 0.0)


def _small() -> torch.nn.Module:
    """A network with matrices for Muon, vectors, buffers, and kernels with channels last."""
    torch.manual_seed(0)
    inner = torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.BatchNorm2d(4)
    layers = {"blocks": torch.nn.Sequential(*inner), "out": torch.nn.Conv2d(4, 4, 3, padding=1)}
    model: torch.nn.Module = torch.nn.Sequential(OrderedDict(layers))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _loop(run: Path, steps: int, name: str) -> tuple[Loop, list[float]]:
    model = _small()
    optimisers = optimisers_for(model, "blocks.", name, 0.01, 0.1)
    folder = RunFolder.open(run, {"a": 1})
    average = Average(model, 0.9)
    loop = Loop(folder, CPU, model, optimisers, average, 60.0, 1, 1.0, lambda step: None)
    seen: list[float] = []

    def losses(step: int) -> dict[str, torch.Tensor]:
        if step == steps:
            loop.budget.spent = 1e9  # the time is up
        x = torch.randn(2, 4, 3, 3, generator=generator(0, "x", step))
        total = (model(x) - x).square().mean()
        seen.append(total.item())
        return {"total": total}

    loop.run(losses, lambda: None)
    return loop, seen


def _turn_back(run: Path) -> int:
    """Give a run all of its time again; its steps so far."""
    path = RunFolder(run).state
    state, facts = load_state(path) or pytest.fail(f"{path} is not there")
    save_state(path, state, {**facts, "seconds": 0.0})
    return int(facts["step"])


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path, name: str) -> None:
    """unchanged by: stopping after 40 steps and starting again, to the last bit of everything."""
    whole, losses = _loop(tmp_path / "whole", 59, name)
    _, first = _loop(tmp_path / "broken", 39, name)
    assert _turn_back(tmp_path / "broken") == 40
    resumed, second = _loop(tmp_path / "broken", 59, name)
    assert first + second == losses
    read = [read_out(loop.model.state_dict(keep_vars=True), loop.average.state, *loop.optimisers)
            for loop in (whole, resumed)]  # fmt: skip
    assert read[0].groups == read[1].groups
    assert read[0].tensors.keys() == read[1].tensors.keys()
    kinds = {key.partition("/")[0] for key in read[0].tensors}
    moments = {"muon": {"momentum_buffer"}, "adamw": set()}[name]
    assert kinds == {"weight", "average", "step", "exp_avg", "exp_avg_sq"} | moments
    assert all(torch.equal(read[1].tensors[key], value) for key, value in read[0].tensors.items())


def test_what_comes_back_lies_in_memory_as_before(tmp_path: Path) -> None:
    """same: the order of channels, without which a resumed network would be slower."""
    _loop(tmp_path / "run", 19, "muon")
    loop = _loop(tmp_path / "run", 0, "muon")[0]
    for optimiser in loop.optimisers:
        for weight, moments in optimiser.state.items():
            for kind, moment in moments.items():
                assert kind == "step" or moment.stride() == weight.stride()


def test_a_run_folder_holds_safetensors_only(tmp_path: Path) -> None:
    """exact: one file to go on from, nothing of pickle, nothing beside it."""
    _loop(tmp_path / "run", 19, "muon")
    made = {path.name for path in (tmp_path / "run").iterdir()}
    assert made == {"config.json", "state.safetensors", "samples"}
    with safe_open(tmp_path / "run" / "state.safetensors", framework="pt") as file:
        assert "momentum_buffer/blocks.0.weight" in file.keys()  # noqa: SIM118


def test_a_state_of_another_optimiser_is_refused(tmp_path: Path) -> None:
    _loop(tmp_path / "run", 19, "muon")
    with pytest.raises(WeightsError, match="optimisers have other parameters"):
        _loop(tmp_path / "run", 19, "adamw")


def test_a_paused_run_goes_on(tmp_path: Path) -> None:
    """A pause saves, and the next process starts at the step where the last one stopped."""
    model = torch.nn.Linear(2, 2)
    optimisers: list[torch.optim.Optimizer] = [torch.optim.SGD(model.parameters(), lr=0.1)]
    folder = RunFolder.open(tmp_path / "run", {})
    steps = []
    for _ in range(2):
        average = Average(model, 0.9)
        worker = Worker(0, 1, torch.device("cpu"))
        loop = Loop(folder, worker, model, optimisers, average, 60, 1, 1.0, steps.append, 0.002)
        loop.run(lambda step: {"total": model.weight.sum()}, lambda: None)
    assert 0 < steps[0] < steps[1]


def test_a_run_that_is_told_to_end_saves_first(tmp_path: Path) -> None:
    """exact: SIGTERM at step 5 pauses at the next look, and the next process goes on from there."""
    exported: list[int] = []

    def losses(step: int) -> dict[str, torch.Tensor]:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"total": model.weight.sum()}

    before = signal.getsignal(signal.SIGTERM)
    for expected in (LOOK_EVERY, LOOK_EVERY):
        model = torch.nn.Linear(2, 2)
        optimisers = optimisers_for(model, "", "adamw", 1e-3, 0.0)
        folder = RunFolder.open(tmp_path / "run", {})
        average = Average(model, 0.9)
        minutes = 60.0 if not exported else 0.0
        loop = Loop(folder, CPU, model, optimisers, average, minutes, 1, 1.0, exported.append)
        loop.run(losses, lambda: None)
        assert exported[-1] == loop.step == expected
    assert signal.getsignal(signal.SIGTERM) == before


def test_another_config_refuses_to_resume(tmp_path: Path) -> None:
    RunFolder.open(tmp_path / "run", {"rate": 1.0}).log(step=1)
    with pytest.raises(ConfigError, match="another rate"):
        RunFolder.open(tmp_path / "run", {"rate": 2.0})


@pytest.mark.usefixtures("quick")
def test_both_stages_train_from_a_pool(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole chain at tiny size: autoencoder, then transformer, weights that load."""
    monkeypatch.setattr(
        "dreamactor.training.nano_vae.NanoVAE", lambda config=TINY_VAE: NanoVAE(config)
    )
    monkeypatch.setattr(
        "dreamactor.training.nano.NanoConfig", lambda **given: replace(TINY, **given)
    )
    settings = VAETrainConfig(
        pool=pool, minutes=0.02, batch=2, crop=32, clips=64, least=64, coarse=0.0
    )
    vae = train_nano_vae(settings, tmp_path / "vae")
    state, header = load_weights(vae)
    assert header["model"] == "nano-vae"
    assert all(torch.isfinite(value).all() for value in state.values())
    assert list((tmp_path / "vae" / "samples").glob("*.png"))
    train = NanoTrainConfig(
        pool=pool,
        vae=vae,
        short=_blobs(tmp_path, 4),
        minutes=0.04,
        batch=1,
        pairs=64,
        least=64,
        half_share=0.3,
        single_share=0.6,
        pictures=1,
        pictures_from=0.1,
    )
    transformer = train_nano(train, tmp_path / "nano")
    header = load_weights(transformer)[1]
    assert (header["model"], header["config"]) == ("nano", vars(TINY))
    rows = [json.loads(row) for row in (tmp_path / "nano" / "metrics.jsonl").open()]
    assert rows[0]["step"] == 0
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert {"missed_1", "swapped_1", "dB_1", "dB"} <= rows[0].keys()
    assert list((tmp_path / "nano" / "samples").glob("*.png"))
    export_nano(vae, transformer, tmp_path / "out", steps=6, shift=5.0)
    native = load_nano(tmp_path / "out").native
    assert (native.frames, native.steps, native.shift) == (17, 6, 5.0)
    with pytest.raises(ConfigError, match="never noised; want motion=clean"):
        replace(train, attention="one-way", motion="noised")
    further = replace(train, start=transformer, attention="one-way-aligned", minutes=0.01)
    other = train_nano(replace(further, half_share=1.0, single_share=1.0), tmp_path / "aligned")
    assert mode_of(load_transformer(other)[0]) == "one-way-aligned"


def test_networks_of_the_full_shape_fit_into_the_package(tmp_path: Path) -> None:
    """exact: what a run without a start trains takes less than 48 MB as it is shipped."""
    vae = NanoVAE()
    shape = NanoConfig(latent_channels=vae.config.channels)
    files = tmp_path / "vae.safetensors", tmp_path / "transformer.safetensors"
    save_weights(files[0], vae.state_dict(), {"model": "nano-vae", "config": vae.config.to_dict()})
    header = {"model": "nano", "config": asdict(shape), "canvas": VERSION, "predicts": PREDICTS}
    save_weights(files[1], shape.build().state_dict(), header)
    assert 24e6 < export_nano(*files, tmp_path / "out", steps=6, shift=5.0) < 48e6
    assert load_nano(tmp_path / "out").native.frames == 17
    assert sum(file.stat().st_size for file in DATA.glob("*.safetensors")) < 48e6


def test_a_feed_reads_each_shard_of_its_share_once(pool: Path) -> None:
    feed = ShardFeed(pool, rank=1, count=2)
    shard = feed.take(seconds=5.0)
    assert shard is not None
    assert shard.index == 1
    assert np.array_equal(shard.pixels, read_shard(pool, 1).pixels)
    assert feed.take(seconds=0.5) is None


def test_a_closed_feed_lets_go(pool: Path) -> None:
    feed = ShardFeed(pool, rank=0, count=1, ahead=1)
    assert feed.take(seconds=5.0) is not None
    feed.close()
    assert feed.take(seconds=0.5) is None or feed.take(seconds=0.5) is None


def test_consuming_leaves_the_held_shard(tmp_path: Path) -> None:
    """unchanged by: starting again; the pairs of previews are still there, the others are gone."""
    encoder = cast(TextEncoder, lambda captions: torch.zeros(len(captions), 1))
    folder, vae = _blobs(tmp_path, 4), NanoVAE(TINY_VAE)
    held = []
    for _ in range(2):
        latents = LatentPool(folder, 80, vae, encoder, CPU, consume=True, half=True)
        latents.wait(HELD)
        held.append(latents.held(2)["target"])
        latents.refresh(1, seconds=1.0)
    assert torch.equal(*held)
    assert ready_shards(folder) == [0]


def test_held_pairs_stay_and_are_never_drawn(tmp_path: Path) -> None:
    """The ring of newer pairs goes round behind them."""
    encoder = TextEncoder.__new__(TextEncoder)
    latents = LatentPool(tmp_path, HELD + 8, NanoVAE(TINY_VAE), encoder, CPU, consume=False)
    for start in range(0, HELD + 24, 8):
        latents._put({"text": torch.arange(start, start + 8).float()})
    assert latents.held(HELD // 2)["text"].tolist() == list(range(0, HELD, 2))
    drawn = latents.batch(generator(0, "x", 0), 200)["text"]
    assert set(drawn.int().tolist()) == set(range(HELD + 16, HELD + 24))


def test_a_pool_keeps_what_belongs_together(pool: Path) -> None:
    """exact: pair 2 k has the first of twins k as its target, pair 2 k + 1 the second."""

    def names(captions: list[str]) -> torch.Tensor:
        return torch.tensor([[float(c.split()[1]), float(c.split()[2])] for c in captions])

    torch.manual_seed(0)
    vae = NanoVAE(TINY_VAE)
    latents = LatentPool(pool, 80, vae, cast(TextEncoder, names), CPU, consume=False, half=True)
    latents.wait(4 * SHARD)
    assert latents.store["text"][:4].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    shard = read_shard(pool, 0)
    alone = encode_block(vae, halve(torch.from_numpy(shard.pixels[:2])), CPU)
    for name, value in alone.items():
        assert_close(latents.store[name][:4].float(), value, atol=2e-3, rtol=2e-3)
    assert not torch.equal(alone["motion"][0], alone["motion"][1])
    joints = latents.store["joints"][:2, :, JOINTS.index("pelvis")].float()
    own = torch.from_numpy(shard.joints[0, :, :, JOINTS.index("pelvis")])
    assert_close(joints[0, 17:], own[1, 1:], atol=2e-3, rtol=0)
    assert_close(joints[1, 1:17], own[1, 2:], atol=2e-3, rtol=0)
    spots = torch.from_numpy(shard.surface[0, 1][..., ::2, ::2, :])
    other = torch.from_numpy(shard.surface[0, 0][..., ::2, ::2, :])
    assert torch.equal(latents.store["surface"][1, :1].nan_to_num(), spots[:1].nan_to_num())
    assert torch.equal(latents.store["surface"][1, 17:].nan_to_num(), other[1:].nan_to_num())
    shown = {"match": spots[:1], "driver_match": other[2:]}
    for name, pictures in shown.items():
        found = matching_cells(spots[None, 2:], pictures[None])
        assert (found >= 0).any()
        assert torch.equal(latents.store[name][1].long(), found[0])


def test_a_pool_that_stays_empty_is_said_and_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dreamactor.training.pool.PATIENCE", 0.0)
    with pytest.raises(ConfigError, match="0 clips"):
        ClipPool(tmp_path, 8, CPU).wait(8)
    said = f"{tmp_path}: empty yet; waits for 8 clips, 0 s at most\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    "words",
    [
        ("nano-vae", "pool=nope"),
        ("keypoints", "pool=nope"),
        ("nano-surface", "pool=nope", "vae=vae"),
        ("nano-placement", "pool=nope", "vae=vae"),
        ("nano-base", "pool=nope", "vae=vae"),
        ("nano", "pool=there", "short=nope", "vae=vae"),
        ("nano-decoder", "pool=nope", "vae=vae", "transformer=transformer"),
    ],
)
def test_a_pool_that_nobody_began_is_refused_at_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dreamactor", "train", words[0], "--out", "run", *words[1:]])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = "error: nope: no such pool; fill one with `dreamactor world pool`\n"
    assert (end.value.code, capsys.readouterr().err) == (2, said)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_pool_that_is_filled_beside_is_there_at_once(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    with filling(pool, PoolConfig(tmp_path / "none"), range(1), 1, 1.0):
        assert pool.is_dir()
