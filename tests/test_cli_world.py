"""`dreamactor world`: build, sample and bench say what they did, and refuse in one line."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zeroad_art

from dreamactor import cli
from dreamactor.errors import AssetError
from dreamactor.image import read_image
from dreamactor.video import iter_frames, probe
from dreamactor.world import speed
from dreamactor.world.cast import load_cast
from dreamactor.world.pairs import FPS, TARGET_FRAMES, PairSampler
from dreamactor.world.render import Renderer


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command; returns its exit code, output and errors."""
    kept = signal.getsignal(signal.SIGTERM)

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dreamactor", "world", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    yield call
    signal.signal(signal.SIGTERM, kept)


@pytest.fixture(scope="module")
def draws() -> None:
    try:
        Renderer(load_cast(cli.world.MINI)).context  # noqa: B018 - opens it
    except AssetError as fault:
        pytest.skip(str(fault))


def test_exact_build_writes_a_pack_and_its_summary(run, tmp_path: Path):
    zeroad_art.write_folder(tmp_path / "art_folder")
    out = tmp_path / "my.castpack"
    code, said, _ = run("build", "--source", tmp_path / "art_folder", "--out", out)
    assert code == 0
    cast = load_cast(out)
    assert "left out: 1 x clip without motion" in said
    assert re.search(r"^animal looks +2 ", said, re.MULTILINE)
    assert said.endswith(f"sha256 {cast.digest}\n")
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["my.castpack"]


def test_refuses_to_build_over_a_file_and_from_what_is_no_art(run, tmp_path: Path):
    zeroad_art.write_folder(tmp_path / "art_folder")
    out = tmp_path / "my.castpack"
    out.write_text("mine")
    code, _, fault = run("build", "--source", tmp_path / "art_folder", "--out", out)
    assert (code, out.read_text()) == (2, "mine")
    assert "is there already; pass --overwrite" in fault
    code, _, fault = run("build", "--source", out, "--out", tmp_path / "b.castpack")
    assert code == 2
    assert "want public.zip" in fault
    words = ("build", "--source", tmp_path / "art_folder", "--out", out)
    code, _, fault = run(*words, "--mini", "--overwrite")
    assert code == 2
    assert "want 0 A.D. release 26" in fault
    assert out.read_text() == "mine"
    assert run(*words, "--overwrite")[0] == 0
    assert len(load_cast(out).looks) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["art_folder", "my.castpack"]


def test_exact_an_interrupted_build_leaves_nothing(run, tmp_path: Path, monkeypatch):
    zeroad_art.write_folder(tmp_path / "art_folder")
    monkeypatch.setattr("zipfile.ZipFile.writestr", _interrupt)
    out = tmp_path / "my.castpack"
    code, _, _ = run("build", "--source", tmp_path / "art_folder", "--out", out)
    assert code == 130
    assert [p.name for p in tmp_path.iterdir()] == ["art_folder"]


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("draws")
def test_same_pictures_in_the_files_as_the_sampler_draws(run, tmp_path: Path):
    code, said, _ = run("sample", "--out", tmp_path, "--count", 2, "--seed", 3)
    assert code == 0
    pair = PairSampler(load_cast(cli.world.MINI), "test").pair(3, 1)
    assert f"{tmp_path / '1'}: {pair.caption}" in said.splitlines()
    assert (read_image(tmp_path / "1/reference.png") == pair.reference[..., :3]).all()
    for name, clip in (("driving", pair.driving), ("target", pair.target)):
        path = tmp_path / f"1/{name}.mp4"
        assert probe(path).fps == FPS
        frames = np.stack([frame for _, frame in iter_frames(path)])
        assert frames.shape == clip[..., :3].shape
        assert np.abs(frames.astype(int) - clip[..., :3]).mean() < 4  # H.264
    assert len(pair.driving) == len(pair.target) + 1 == TARGET_FRAMES + 1
    sheet = read_image(tmp_path / "sheet.png")
    assert sheet.shape[0] > 4 * 112
    assert sheet.shape[1] > 5 * 112

    code, _, fault = run("sample", "--out", tmp_path, "--count", 1)
    assert code == 2
    assert "0/reference.png: is there already; pass --overwrite" in fault


def test_refuses_samples_that_cannot_be(run, tmp_path: Path):
    for words, wanted in (
        (("--count", 0), "want at least 1"),
        (("--split", "tests"), "the cast has no tests characters"),
        (("--cast", tmp_path / "none"), "no such cast pack"),
    ):
        code, _, fault = run("sample", "--out", tmp_path / "out", *words)
        assert code == 2
        assert wanted in fault
        assert fault.startswith("error: ")
        assert fault.count("\n") == 1
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.usefixtures("draws")
def test_exact_bench_measures_one_process_and_many(run):
    code, said, _ = run("bench", "--seconds", 0.5, "--processes", 2)
    assert code == 0
    lines = said.splitlines()
    assert [line.split(" on ")[0].split(" ", 2)[2] for line in lines] == [
        "in 1 process",
        "in 2 processes",
    ]
    assert all(float(line.split()[0]) > 0 for line in lines)


def test_refuses_what_lies_in_a_folder_that_may_not_be_entered(run, tmp_path: Path, monkeypatch):
    stat, path = os.stat, tmp_path / "locked/x"

    def locked(at: object, **more: object) -> os.stat_result:  # root may enter any folder
        if "locked" in str(at):
            raise PermissionError(errno.EACCES, "Permission denied", str(at))
        return stat(at, **more)

    monkeypatch.setattr("os.stat", locked)
    for words in (("sample", "--count", 1, "--cast", path), ("build", "--source", path)):
        code, _, fault = run(*words, "--out", tmp_path / "out")
        assert code == 2
        assert fault == f"error: {path}: cannot be reached: Permission denied\n"
    assert not list(tmp_path.iterdir())


def test_a_renderer_that_dies_ends_the_bench_at_once(run, monkeypatch):
    monkeypatch.setattr(speed, "_work", _dies)
    begin = time.monotonic()
    code, _, fault = run("bench", "--processes", 2)
    assert code == 2
    assert fault == "error: a renderer died before it had drawn a clip\n"
    assert time.monotonic() - begin < speed.STARTUP / 2


def _dies(pack: Path, seed: int, *_: object) -> None:
    if seed == 0:
        os._exit(1)
    time.sleep(speed.STARTUP)


def test_refuses_to_bench_what_is_no_pack(run, tmp_path: Path):
    (tmp_path / "a.castpack").write_text("no pack")
    code, _, fault = run("bench", "--cast", tmp_path / "a.castpack", "--processes", 1)
    assert code == 2
    assert "not a cast pack" in fault
    code, _, fault = run("bench", "--processes", 0)
    assert code == 2
    assert "want at least 1" in fault
