"""Drift over a long clip: closed forms, and the whole command on a few frames."""

import json

import numpy as np
import pytest
import torch

from dreamactor.backbones.base import Native
from dreamactor.bench import long
from dreamactor.bench.long import FIRST, LongConfig, bench_long, drift_of, jumps
from dreamactor.bench.metrics.joins import changes, jump
from dreamactor.errors import ConfigError, ShapeError
from dreamactor.image import write_png
from dreamactor.video import write_clip


def rows(values):
    return [[t, *np.atleast_1d(v)] for t, v in enumerate(values)]


def test_exact_no_drift_without_change():
    found = drift_of(rows([[1.0, -2.0, 3.0]] * 100))
    assert (found.within, found.whole) == (0, 0)


def test_exact_a_constant_error_is_no_drift_and_a_growing_one_is():
    growing = drift_of(rows(0.5 + 0.01 * np.arange(100)))
    assert growing.within == pytest.approx(0.01 * FIRST / 2)
    assert growing.whole == pytest.approx(0.01 * (100 - FIRST))


def test_exact_what_comes_and_goes_in_the_middle_is_none():
    values = np.zeros(100)
    values[40:60] = 5
    assert drift_of(rows(values)).whole == 0


def test_exact_frames_may_be_sparse():
    sparse = [[t, 0.01 * t] for t in (*range(0, 16, 4), 24, 36, *range(84, 100, 4))]
    assert drift_of(sparse).whole == pytest.approx(0.84)


def test_refuses_settings_that_cannot_be():
    with pytest.raises(ConfigError, match="seconds=inf: want a finite number"):
        LongConfig(seconds=float("inf"))
    with pytest.raises(ConfigError, match="want some of none, statistics, anchor"):
        LongConfig(guards="none,colour")


NATIVE = Native(256, 256, fps=12, frames=17, overlap=4, steps=4, shift=2, guidance=1)


def test_exact_jumps_by_kind_of_part():
    """exact: segments of 16 and 12 frames begin at 16 and 28, latent frames at every fourth."""
    changed = np.ones(35)
    changed[[t - 1 for t in (16, 28)]] = 3
    changed[[t - 1 for t in (4, 8, 12, 20, 24, 32)]] = 2
    assert jumps(changed.tolist(), NATIVE) == {"segment": 3, "latent": 2}
    assert jumps(np.ones(35).tolist(), NATIVE) == {"segment": 1, "latent": 1}


def test_exact_changes_are_of_the_box_of_the_later_frame():
    clip = np.zeros((3, 8, 8, 3), np.uint8)
    clip[1, :4], clip[2] = 255, 51
    boxes = np.array([[0, 0, 8, 8], [0, 0, 4, 8], [0, 0, 8, 4]])
    assert changes(clip, boxes) == pytest.approx([1, 0.5 * 0.8 + 0.5 * 0.2])


def test_jump_without_anything_to_compare():
    changed = np.array([1.0, 0.0, 1.0])
    assert np.isnan(jump(changed, [], [1]))
    assert np.isnan(jump(changed, [1], [2]))
    with pytest.raises(ShapeError, match="frame 4: want 1 to 3"):
        jump(changed, [4], [1])


@pytest.fixture
def filmed(tmp_path, monkeypatch):
    """A pair of 48 frames, and an animator that gives back the truth, darker from frame 28 on."""
    rng = np.random.default_rng(0)
    pair = tmp_path / "pair"
    pair.mkdir()
    truth = np.repeat(rng.integers(60, 200, (48, 1, 1, 3), np.uint8), 64, 1).repeat(64, 2)
    write_png(pair / "reference.png", truth[0])
    for name in ("truth", "driving"):
        write_clip(pair / f"{name}.mp4", truth, 12, crf=1)
    mask = np.zeros((48, 64, 64), bool)
    mask[:, 16:48, 16:48] = True
    np.savez(pair / "mask.npz", mask=np.packbits(mask))
    made = []

    def animate(self, reference, driving, out, seed, prompt):
        made.append((self.guard, out))
        dark = truth.copy()
        dark[28:] //= 2
        write_clip(out, dark, 12, crf=1)

    monkeypatch.setattr(long, "_drawn", lambda *_: [pair])
    monkeypatch.setattr(long.Perceptual, "load", lambda *_: torch.nn.Identity())
    monkeypatch.setattr(long, "lpips_each", lambda clips, *_: [float(clips[0].mean()) / 255])
    monkeypatch.setattr(long.Animator, "animate", animate)
    return made


def test_a_run_is_measured_and_goes_on(filmed, tmp_path):
    """same: the report of a run that goes on; nothing is made or measured twice."""
    config = LongConfig(count=1, seconds=4, guards="none,anchor")
    report = bench_long(tmp_path / "cast", tmp_path / "run", config)
    first, lines = report.read_text(), (tmp_path / "run/results.jsonl").read_text()
    assert [guard for guard, _ in filmed] == ["none", "anchor"]
    assert "| anchor | colour, dE |" in first
    (row,) = [line for line in first.splitlines() if line.startswith("| truth |")]
    assert len(row.split("|")) == 5
    old = [json.loads(line) for line in lines.splitlines()]
    assert [len(old[0]["changes"][kind]) for kind in ("result", "truth")] == [47, 47]
    old[1].pop("changes")  # as before there were any
    (tmp_path / "run/results.jsonl").write_text("".join(json.dumps(x) + "\n" for x in old))
    assert bench_long(tmp_path / "cast", tmp_path / "run", config).read_text() == first
    assert (tmp_path / "run/results.jsonl").read_text() == lines
    assert len(filmed) == 2
