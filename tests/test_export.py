"""`world export`: plain folders that other repositories read, and that a second run completes."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

import dreamactor
from dreamactor.bench.manifest import read_clip
from dreamactor.errors import AssetError, ConfigError
from dreamactor.image import read_image
from dreamactor.video import probe, write_clip
from dreamactor.world.cast import load_cast
from dreamactor.world.export import ExportConfig, export_world
from dreamactor.world.pairs import PairSampler

MINI = Path(dreamactor.__file__).parent / "data" / "mini.castpack"
CONFIG = ExportConfig(train=2, test=2, frames=4, size=64)


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    try:
        PairSampler(load_cast(MINI), "test", 64).renderer.context  # noqa: B018 - opens it
    except AssetError as fault:
        pytest.skip(str(fault))
    folder = tmp_path_factory.mktemp("export")
    export_world(MINI, folder, CONFIG, say=lambda line: None)
    return folder


def test_exact_layout(out):
    assert sorted(p.name for p in (out / "train").iterdir()) == [
        f"{stem}.{suffix}"
        for stem in ("000000a", "000000b", "000001a", "000001b")
        for suffix in ("mp4", "txt")
    ]
    assert {probe(p).frames for p in (out / "train").glob("*.mp4")} == {4}
    assert all(p.read_text().count(" ") > 2 for p in (out / "train").glob("*.txt"))
    rows = list(csv.DictReader((out / "pairs.csv").open()))
    assert len(rows) == 2
    pair = PairSampler(load_cast(MINI), "test", 64).pair(0, 1)
    assert rows[1]["caption"] == pair.caption
    assert (read_image(out / rows[1]["reference"]) == pair.reference[..., :3]).all()
    for name, clip in (("driving", pair.driving[1:]), ("truth", pair.target)):
        found, info = read_clip(out / rows[1][name])
        assert (found.shape, info.fps) == (clip[..., :3].shape, 12)
        assert np.abs(found.astype(int) - clip[..., :3]).mean() < 5  # H.264 of 64 pixels


def test_unchanged_by_a_second_run(out):
    """Only what is missing is drawn again."""
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.mp4")}
    gone = [out / "test/000001.txt", out / "test/000001.mp4", out / "train/000000b.txt"]
    texts = {p: p.read_bytes() for p in gone}
    for path in gone:
        path.unlink()
    table = (out / "pairs.csv").read_text()
    export_world(MINI, out, CONFIG, say=lambda line: None)
    assert (out / "pairs.csv").read_text() == table
    assert {p: p.read_bytes() for p in gone} == texts
    for name in ("train/000001a.mp4", "test/000000.mp4"):
        assert (out / name).stat().st_mtime_ns == before[out / name]


def test_refuses_other_settings(out):
    with pytest.raises(ConfigError, match="holds an export of"):
        export_world(MINI, out, ExportConfig(train=2, test=2, frames=4, size=64, seed=1))
    with pytest.raises(ConfigError, match="frames=1: want 2"):
        ExportConfig(frames=1)


def test_refuses_to_export_nothing():
    with pytest.raises(ConfigError, match="train=0 test=0: want 1 or more of one of them"):
        ExportConfig(train=0, test=0)


def test_exact_full_chroma_keeps_colours(tmp_path):
    """Red and green lines, one pixel wide: 4:2:0 mixes them."""
    clip = np.zeros((2, 32, 32, 3), np.uint8)
    clip[:, ::2] = (200, 30, 30)
    clip[:, 1::2] = (30, 200, 30)
    errors = []
    for full in (False, True):
        path = tmp_path / f"{full}.mp4"
        write_clip(path, clip, 12, crf=4, full_chroma=full)
        errors.append(np.abs(read_clip(path)[0].astype(int) - clip).mean())
    assert errors[1] < 4 < 20 < errors[0]
    with pytest.raises(ConfigError, match="full chroma is for mp4"):
        write_clip(tmp_path / "a.webm", clip, 12, full_chroma=True)
