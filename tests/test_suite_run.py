"""`bench run`: every system's clip of every case once, measured, whatever is killed or missing."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Timer

import numpy as np
import pytest
from suites import BLUE, FPS, FRAMES, RED, SIDE, moving, tiny_suite

from dreamactor.bench.contestants import (
    Baseline,
    Command,
    Folder,
    Own,
    case_seed,
    contestant,
)
from dreamactor.bench.manifest import save_suite
from dreamactor.bench.pointing import Pointing
from dreamactor.bench.suite_measure import measure_clip
from dreamactor.bench.suite_records import collect
from dreamactor.bench.suite_run import RunConfig, Running, bench_run, run_suite
from dreamactor.conditioning.skeleton import JOINTS, PoseTrack
from dreamactor.config import from_words
from dreamactor.diffusion.animator import Animator
from dreamactor.errors import ConfigError, DreamActorError, MediaError
from dreamactor.video import write_clip

FAST = RunConfig(lpips=0, joints=0)
PROGRAM = """
import pathlib, shutil, sys
reference, driving, out, seed, log = sys.argv[1:]
with open(log, "a") as file:
    file.write(f"{pathlib.Path(reference).name} {seed}\\n")
if reference.endswith("fox.png"):
    print("no foxes", file=sys.stderr)
    sys.exit(3)
shutil.copy(driving, out)
"""


@pytest.fixture
def suite(tmp_path):
    return tiny_suite(tmp_path / "suite")


def program(tmp_path: Path) -> str:
    (tmp_path / "system.py").write_text(PROGRAM)
    words = "{reference} {driving} {out} {seed}"
    return f"{sys.executable} {tmp_path / 'system.py'} {words} {tmp_path / 'log'}"


def lives(process: int) -> bool:
    """Z: dead, and not yet asked for its result."""
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_exact_baselines_and_a_folder_in_one_run(suite, tmp_path):
    out, mine = tmp_path / "run", tmp_path / "mine"
    for name in ("copy", "driving"):
        run_suite(suite.root, out, name, Baseline(name), FAST)
    mine.mkdir()
    for case in suite.cases:
        write_clip(mine / f"{case.result_name}.mkv", moving(RED), FPS)
    records = run_suite(suite.root, out, "mine", Folder(mine), FAST)
    found = {(r.system, r.case): r for r in records}
    assert len(found) == 6
    psnr = {
        name: found[name, "human2human/0"].values["psnr"] for name in ("copy", "driving", "mine")
    }
    assert psnr["mine"] > 35 > psnr["copy"]
    assert psnr["mine"] > psnr["driving"] + 15
    assert found["mine", "human2human/0"].values["flow_epe"] < 1
    assert found["copy", "human2human/0"].values["flow_epe"] > 3
    free = found["mine", "human2animal/0"].values  # no truth is known
    assert free["length"] == 1
    assert {"following", "dynamic_degree"} <= free.keys()
    assert not {"psnr", "flow_epe"} & free.keys()
    assert found["mine", "human2human/0"].file == str(mine / "human2human_0.mkv")
    assert found["copy", "human2human/0"].file == "clips/copy/human2human_0.mp4"
    assert found["copy", "human2human/0"].groups["scenario"] == "human2human"
    lines = (out / "results.jsonl").read_text().splitlines()
    assert [(json.loads(x)["system"], json.loads(x)["case"]) for x in lines] == [
        (r.system, r.case) for r in records
    ]
    head = json.loads((out / "run.json").read_text())
    assert set(head["systems"]) == {"copy", "driving", "mine"}
    assert head["suite"]["digest"] == suite.digest


def test_exact_a_command_runs_once_a_case_and_its_fault_is_told(suite, tmp_path):
    out = tmp_path / "run"
    system = Command(program(tmp_path))
    with pytest.raises(
        MediaError, match=r"1 of 2 clips of theirs are missing.*exit code 3: no fox"
    ):
        run_suite(suite.root, out, "theirs", system, FAST)
    (record,) = collect(out)
    assert (record.case, record.seconds is not None) == ("human2human/0", True)
    with pytest.raises(MediaError, match="1 of 2 clips"):
        run_suite(suite.root, out, "theirs", system, FAST)
    log = sorted((tmp_path / "log").read_text().splitlines())
    seeds = [case_seed(0, case) for case in suite.cases]
    assert log == sorted([f"red.png {seeds[0]}", *[f"fox.png {seeds[1]}"] * 2])
    assert not list((out / "clips" / "theirs").glob(".*"))


def test_exact_a_broken_clip_of_a_command_is_not_kept(suite, tmp_path):
    """One without a head is made again, and so is one whose middle cannot be decoded."""
    whole, kept, out = suite.root / "media" / "blue.mp4", tmp_path / "given.mp4", tmp_path / "run"
    system = Command(f"sh -c 'cp {kept} $0; : {{reference}} {{driving}}' {{out}}")
    body = bytearray(whole.read_bytes())
    start = body.index(b"mdat") + 4
    body[start : start + 200] = bytes(200)
    for broken in (b"no clip", body):
        kept.write_bytes(broken)
        with pytest.raises(MediaError, match="2 of 2 clips of theirs are missing"):
            run_suite(suite.root, out, "theirs", system, FAST)
        assert not list((out / "clips" / "theirs").iterdir())
    kept.write_bytes(whole.read_bytes())
    assert len(run_suite(suite.root, out, "theirs", system, FAST)) == 2


@pytest.mark.parametrize("ending", ["timeout", "ctrl-c"])
def test_exact_a_command_ends_with_all_that_it_began(suite, tmp_path, ending):
    log = tmp_path / "log"
    words = f"sleep 60 & echo $! > {log}; wait; : {{reference}} {{driving}} {{out}}"
    system = Command(f"sh -c '{words}'", timeout=3 if ending == "timeout" else 30)
    if ending == "ctrl-c":
        Timer(3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(MediaError if ending == "timeout" else KeyboardInterrupt):
        system.clip(suite, suite.cases[0], tmp_path / "out.mp4")
    deadline = time.monotonic() + 5
    while lives(int(log.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_same_command_measures_what_changed_in_a_folder(suite, tmp_path):
    out, mine = tmp_path / "run", tmp_path / "mine"
    mine.mkdir()
    for case in suite.cases:
        write_clip(mine / f"{case.result_name}.mp4", moving(BLUE), FPS)
    before = run_suite(suite.root, out, "mine", Folder(mine), FAST)
    stamps = {p: p.stat().st_mtime_ns for p in out.glob("measures/*/*.json")}
    write_clip(mine / "human2human_0.mp4", moving(RED), FPS, overwrite=True)
    after = run_suite(suite.root, out, "mine", Folder(mine), FAST)
    changed = [p.name for p, stamp in stamps.items() if p.stat().st_mtime_ns != stamp]
    assert changed == ["human2human_0.json"]
    assert after[1].values["psnr"] > before[1].values["psnr"] + 15


def test_exact_what_is_no_longer_in_a_folder_is_missing(suite, tmp_path):
    """Of a case that is not asked for too; and what came broken in its place."""
    out, mine = tmp_path / "run", tmp_path / "mine"
    mine.mkdir()
    for case in suite.cases:
        write_clip(mine / f"{case.result_name}.mp4", moving(RED), FPS)
    run_suite(suite.root, out, "mine", Folder(mine), FAST)
    (mine / "human2animal_0.mp4").unlink()
    (record,) = run_suite(suite.root, out, "mine", Folder(mine), replace(FAST, cases=1))
    assert record.case == "human2human/0"
    (mine / "human2human_0.mp4").write_bytes(b"no clip")
    with pytest.raises(MediaError, match="2 of 2 clips of mine are missing"):
        run_suite(suite.root, out, "mine", Folder(mine), FAST)
    assert not collect(out)


def test_refuses_another_folder_of_the_same_name(suite, tmp_path):
    """A moved one goes on."""
    out, mine, other = tmp_path / "run", tmp_path / "a" / "mine", tmp_path / "b" / "mine"
    for folder in (mine, other):
        folder.mkdir(parents=True)
        for case in suite.cases:
            write_clip(folder / f"{case.result_name}.mp4", moving(RED), FPS)
    run_suite(suite.root, out, "mine", Folder(mine), FAST)
    with pytest.raises(ConfigError, match=f"{mine}, now {other}; give these another --name"):
        run_suite(suite.root, out, "mine", Folder(other), FAST)
    run_suite(suite.root, out, "other", Folder(other), FAST)
    mine.parent.rename(tmp_path / "c")
    run_suite(suite.root, out, "mine", Folder(tmp_path / "c" / "mine"), FAST)
    files = {(r.system, Path(r.file).parent) for r in collect(out)}
    assert files == {("mine", tmp_path / "c" / "mine"), ("other", other)}


def test_exact_clips_of_a_relative_folder_are_found_again(suite, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    for case in suite.cases:
        write_clip(Path("mine") / f"{case.result_name}.mp4", moving(RED), FPS)
    bench_run(suite.root, "mine/", Path("run"), None, FAST)
    assert {Path(record.file).parent for record in collect(Path("run"))} == {tmp_path / "mine"}
    monkeypatch.chdir("/")
    assert bench_run(suite.root, "copy", tmp_path / "run", None, FAST).is_file()


def test_unchanged_by_rate_size_and_container(suite, tmp_path):
    """Twice the rate and size of the same clip measure alike; the truth itself was coded."""
    case = suite.case("human2human/0")
    clip = moving(RED)
    write_clip(tmp_path / "a.mp4", clip, FPS, crf=1)
    large = clip.repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
    write_clip(tmp_path / "b.mkv", large, 2 * FPS, crf=1)
    plain = measure_clip(suite, case, tmp_path / "a.mp4", lpips=0)
    other = measure_clip(suite, case, tmp_path / "b.mkv", lpips=0)
    assert (plain.notes, other.notes) == ([], [])
    assert min(plain.values["psnr"], other.values["psnr"]) > 34
    assert max(plain.values["flow_epe"], other.values["flow_epe"]) < 1


def test_exact_notes_of_another_shape_or_length(suite, tmp_path):
    case = suite.case("human2human/0")
    wide = np.concatenate([moving(RED), moving(RED)], axis=2)[:3]
    write_clip(tmp_path / "a.mp4", wide, FPS)
    found = measure_clip(suite, case, tmp_path / "a.mp4", lpips=0)
    assert found.values["length"] == 3 / FRAMES
    assert found.notes == [
        "0.50 times the driver's length",
        f"{2 * SIDE} x {SIDE}, want the shape of {SIDE} x {SIDE}",
    ]


class Finder:
    """Finds all joints but the tail in the middle of what is darker than the ground."""

    name = "keypoints"

    def __init__(self):
        self.weights = {"k": "0" * 64}
        self.looks = []

    def __call__(self, frames, fps):
        self.looks.append(len(frames))
        at = np.zeros((len(frames), 1, len(JOINTS), 2), np.float32)
        for t, frame in enumerate(frames):
            rows, columns = np.nonzero(frame[..., 1] < 110)
            at[t, 0] = columns.mean() + 0.5, rows.mean() + 0.5
        sure = np.ones(at.shape[:3], np.float32)
        sure[..., JOINTS.index("tail")] = 0
        return PoseTrack(JOINTS, at, sure, SIDE, SIDE, fps)


def test_exact_joints_of_a_result_are_held_against_the_truths(suite, tmp_path, monkeypatch):
    """A square that stands still is 0, 8, 12 and 20 pixels off in the frames that are looked at."""
    finder, out = Finder(), tmp_path / "run"
    monkeypatch.setattr("dreamactor.bench.suite_run.load_estimator", lambda _: finder)
    config = replace(FAST, joints=4)
    other, first = run_suite(suite.root, out, "copy", Baseline("copy"), config)
    assert finder.looks == [4, 4]
    assert first.values["akd"] == pytest.approx(10, abs=0.3)
    assert (first.values["mkr"], first.values["pck"]) == (0, 0.25)
    assert not {"akd", "mkr", "pck"} & other.values.keys()  # nobody knows its truth
    measures = json.loads((out / "run.json").read_text())["measures"]
    assert measures["estimator"] == {"name": "keypoints", "weights": {"k": "0" * 64}}
    with pytest.raises(ConfigError, match="begun with measures"):
        run_suite(suite.root, out, "b", Baseline("copy"), FAST)


def test_exact_joints_of_several_are_left_out(suite, tmp_path, monkeypatch):
    case, finder, clip = suite.case("human2human/0"), Finder(), tmp_path / "a.mp4"
    arrays = suite.arrays(case)
    two = replace(arrays, joints={1: arrays.joints[1], 2: arrays.joints[1]})
    monkeypatch.setattr(type(suite), "arrays", lambda *_: two)
    write_clip(clip, moving(RED), FPS)
    found = measure_clip(suite, case, clip, lpips=0, pointing=Pointing(finder, 4))
    assert np.isnan([found.values[name] for name in ("akd", "mkr", "pck")]).all()
    assert not finder.looks


def test_same_by_a_worker_process(suite, tmp_path):
    records = run_suite(
        suite.root, tmp_path / "run", "copy", Baseline("copy"), replace(FAST, workers=1)
    )
    assert len(records) == 2
    assert not list((tmp_path / "run" / "claims").iterdir())


def test_exact_a_torn_clip_is_made_again(suite, tmp_path):
    running = Running(
        tmp_path / "run", suite.root, "copy", Baseline("copy"), ["human2human/0"], lpips=0
    )
    left = tmp_path / "run" / "clips" / "copy" / ".human2human_0.part"
    left.mkdir(parents=True)
    (left / "human2human_0.mp4").write_bytes(b"torn")
    assert running.attempt("human2human/0") == "made"
    assert running.attempt("human2human/0") == "there"
    assert not left.exists()


def test_refuses_another_suite_or_system_in_the_same_folder(suite, tmp_path):
    out = tmp_path / "run"
    run_suite(suite.root, out, "a", Baseline("copy"), FAST)
    with pytest.raises(ConfigError, match="a was begun with another name"):
        run_suite(suite.root, out, "a", Baseline("driving"), FAST)
    with pytest.raises(ConfigError, match="begun with measures"):
        run_suite(suite.root, out, "b", Baseline("driving"), RunConfig(lpips=2))
    with pytest.raises(ConfigError, match="such as my-system"):
        run_suite(suite.root, out, "My System", Baseline("copy"), FAST)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["steps=0"], "steps=0: want 1 to 1000"),
        (["steps=99999"], "steps=99999: want 1 to 1000"),
        (["threads=0"], "threads=0: want 1 to 256"),
        (["perceptual=/nonexist"], "/nonexist do not exist"),
        (["lpips=0", "weights=/nonexist"], "nonexist"),
    ],
)
def test_refusals_leave_nothing(suite, tmp_path, words, message):
    config = from_words(RunConfig, ["joints=0", *words])
    with pytest.raises(DreamActorError, match=message):
        bench_run(suite.root, "nano", tmp_path / "run", None, config)
    assert not (tmp_path / "run").exists()


def test_refuses_a_name_that_is_too_long(suite, tmp_path):
    with pytest.raises(MediaError, match="cannot be reached: File name too long"):
        bench_run(suite.root, "copy", tmp_path / ("x" * 300), None, FAST)


def test_unchanged_report_of_a_run_that_another_suite_is_refused(suite, tmp_path):
    page = bench_run(suite.root, "copy", tmp_path / "run", None, FAST)
    before = page.stat().st_mtime_ns
    save_suite(replace(suite, cases=suite.cases[:1]))
    with pytest.raises(ConfigError, match="begun with suite"):
        bench_run(suite.root, "driving", tmp_path / "run", None, FAST)
    assert page.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"junk", "run.json: damaged: Expecting value"),
        (b"\xff", "run.json: damaged: 'utf-8'"),
        (b"{}", "run.json: not of `bench run`"),
        (b"[]", "run.json: not of `bench run`"),
        (b'{"format": 1, "suite": 1, "measures": 1, "systems": {"a": 1}}', "not of `bench run`"),
        (None, "no run: want a folder of `bench run`"),
    ],
)
def test_refuses_a_run_that_is_none(suite, tmp_path, text, message):
    out = tmp_path / "run"
    run_suite(suite.root, out, "a", Baseline("copy"), FAST)
    (out / "run.json").unlink()
    if text is not None:
        (out / "run.json").write_bytes(text)
    with pytest.raises(ConfigError, match=message):
        bench_run(suite.root, "driving", out, None, FAST)
    assert not (out / "report.html").exists()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("coppy", "nearest is copy"),
        ("python3 x.py {reference} {out}", "lacks {driving}"),
        ("python3 x.py {ref} {driving} {out}", "want {reference}"),
        ("python3 {reference.x} {driving} {out}", "want {reference}"),
        ("no-such-program-1 {reference} {driving} {out}", "no such program"),
        ("python3 {reference {driving} {out}", "a brace itself"),
        ("python3 '{reference} {driving} {out}", "No closing quotation; a quote is"),
        ("python3 {reference:08d} {driving} {out}", "want {reference} alone, without a format"),
        ("python3 {reference} {driving!z} {out}", "want {driving} alone, without a format"),
    ],
)
def test_refuses_systems_that_are_none(spec, message):
    with pytest.raises(ConfigError, match=message):
        contestant(spec, Animator())


def test_refuses_settings_that_cannot_be():
    with pytest.raises(ConfigError, match="no such estimator, nearest is keypoints"):
        RunConfig(estimator="keypoint")
    with pytest.raises(ConfigError, match="timeout=inf: want a finite number"):
        RunConfig(timeout=math.inf, expiry=math.inf)


def test_exact_what_a_word_means(tmp_path):
    assert isinstance(contestant(str(tmp_path), Animator()), Folder)
    assert isinstance(contestant("warp", Animator()), Baseline)
    own = contestant("nano", Animator(steps=2), seed=5)
    assert isinstance(own, Own)
    assert (own.animator.steps, own.seed) == (2, 5)
