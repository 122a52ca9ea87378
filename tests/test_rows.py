"""Rows that are compared: joints and identity of a clip, seeds of a row, runs joined."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_bench import MINI, SIDE, noise_case, records_of
from test_nano import save, tiny_nano

from dreamactor import cli
from dreamactor.backbones.keypoints import KeypointNet, KeypointsConfig, header_of
from dreamactor.backbones.weights import save_weights
from dreamactor.bench import evaluate, seesaw, stats
from dreamactor.bench.baselines import copy_reference
from dreamactor.bench.evaluate import METRICS, Case
from dreamactor.bench.join import join_runs
from dreamactor.bench.pointing import Pointing
from dreamactor.bench.report import seeds_table, tables
from dreamactor.bench.seeds import over_seeds, seeds_of, spread
from dreamactor.bench.variants import VariantsBenchConfig, bench_variants
from dreamactor.conditioning.skeleton import PoseTrack
from dreamactor.errors import AssetError, ConfigError, ShapeError
from dreamactor.provenance import sha256
from dreamactor.world.cast import load_cast
from dreamactor.world.pairs import PairSampler
from dreamactor.world.scene import Joints

pytestmark = pytest.mark.usefixtures("one_thread")
NEW = {"akd", "pck", "colour_likeness"}


@dataclass(frozen=True)
class Brightest:
    """Finds the head where red is highest, and a neck a pixel below it."""

    name: str = "brightest"
    weights: dict = field(default_factory=lambda: {"a": "1234"})

    def __call__(self, frames, fps):
        frames = np.stack(list(frames))
        height, width = frames.shape[1:3]
        rows, columns = np.unravel_index(
            frames[..., 0].reshape(len(frames), -1).argmax(1), (height, width)
        )
        head = np.stack([columns, rows], -1).astype(np.float32)  # (T, 2)
        places = np.stack([head, head + np.float32((0, 1))], 1)[:, None].astype(np.float32)
        sure = np.ones(places.shape[:3], np.float32)
        return PoseTrack(("head", "neck"), places, sure, height, width, fps)


def dot(at, frames=16) -> np.ndarray:
    """A red dot on grey that moves a pixel a frame."""
    clip = np.full((frames, SIDE, SIDE, 3), 90, np.uint8)
    for t in range(frames):
        clip[t, at, 10 + t] = (255, 0, 0)
    return clip


def dot_case() -> Case:
    """Its subject is 20 pixels high."""
    clip = dot(20)
    mask = np.zeros(clip.shape[:3], bool)
    mask[:, 10:30, 10:28] = True
    pixels = np.full((16, 2, 2), 20, np.float32)
    seen = np.ones((16, 2), bool)
    seen[:, 1] = False  # a hidden neck does not count
    joints = Joints(("head", "neck"), pixels, np.ones((16, 2), np.float32), seen)
    return replace(
        noise_case(0), reference=clip[0], driving=clip, truth=clip, mask=mask, joints=joints
    )


# one clip


def test_exact_joints_and_colours_of_the_truth_and_of_a_clip_that_is_off(tmp_path):
    """exact: the truth has AKD 0 and PCK 1; 3 pixels off is wrong in a subject of 20, 2 is not."""
    systems = {"off by 3": lambda *_: dot(23), "off by 2": lambda *_: dot(22)}
    systems["grey"] = lambda *_: np.full_like(dot(0), 90)
    found = evaluate.run(
        [dot_case()], systems, tmp_path / "r", options=evaluate.Options(identity=True),
        pointing=Pointing(Brightest(), 5),
    )  # fmt: skip
    rows = {record.system: record.metrics for record in found}
    assert (rows["truth"]["akd"], rows["truth"]["pck"]) == (0, 1)
    assert (rows["off by 3"]["akd"], rows["off by 3"]["pck"]) == (3, 0)
    assert (rows["off by 2"]["akd"], rows["off by 2"]["pck"]) == (2, 1)
    assert rows["truth"]["colour_likeness"] == pytest.approx(1)
    share = 1 - 1 / SIDE**2  # of the reference that is grey
    assert rows["grey"]["colour_likeness"] == pytest.approx(math.sqrt(share))
    assert {"joints", "identity"} <= json.loads((tmp_path / "r").open().readline())[
        "settings"
    ].keys()


def test_unchanged_by_what_is_not_asked_for(tmp_path):
    """A file of before is gone on with and read; one with joints is another."""
    path, systems = tmp_path / "r", {"copy": copy_reference}
    first = evaluate.run([dot_case()], systems, path)
    settings = json.loads(path.open().readline())["settings"]
    assert settings["metrics"] == [name for name in METRICS if name not in NEW]
    assert not {"joints", "identity"} & settings.keys()
    lines = [json.loads(line) for line in path.open()]
    for line in lines[1:]:
        line["metrics"] = {k: v for k, v in line["metrics"].items() if k not in NEW}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    again = evaluate.run([dot_case()], systems, path)
    for a, b in zip(first, again, strict=True):
        assert a.metrics == pytest.approx(b.metrics, nan_ok=True)
    assert all(math.isnan(record.metrics[name]) for record in again for name in NEW)
    for more in (
        {"pointing": Pointing(Brightest(), 5)},
        {"options": evaluate.Options(identity=True)},
    ):
        with pytest.raises(ConfigError, match="name another file"):
            evaluate.run([dot_case()], systems, path, **more)


def test_joints_belong_to_the_frames_of_the_truth():
    joints = dot_case().joints
    short = replace(joints, pixels=joints.pixels[1:])
    with pytest.raises(ShapeError, match="joints of 15 frames: want 16"):
        replace(dot_case(), joints=short)


# seeds


def test_seeds_of_a_row_are_one_row():
    """exact: means over seeds clip by clip, on the clips that both have; the rest as it was."""
    plain = records_of("plain", psnr=5.0)
    records = [
        *records_of("full@0", count=4, psnr=10.0, lpips=0.1),
        *records_of("full@1", count=3, psnr=13.0),
        *plain,
    ]
    merged = over_seeds(records)
    assert [r.system for r in merged] == ["full"] * 3 + ["plain"] * 4
    assert {r.metrics["psnr"] for r in merged[:3]} == {11.5}
    assert math.isnan(merged[0].metrics["lpips"])
    assert merged[3:] == plain
    assert spread(records, "full", "psnr") == pytest.approx(3 / math.sqrt(2))
    assert math.isnan(spread(records, "plain", "psnr"))
    assert math.isnan(spread(records, "full", "lpips"))
    assert seeds_of(["b@1", "a", "b@0", "@x"]) == {"b": ["b@1", "b@0"], "a": ["a"], "@x": ["@x"]}
    with pytest.raises(ConfigError, match="rows a and a@1: want a seed in all, such as a@0"):
        seeds_of(["a", "a@1"])


def test_intervals_over_seeds_are_over_clips():
    """exact: two seeds of n clips are n values, not 2 n."""
    clips = np.random.default_rng(0).uniform(10, 20, 30)
    records = [
        replace(record, metrics={**record.metrics, "psnr": value + shift})
        for seed, shift in enumerate((-1, 1))
        for record, value in zip(records_of(f"a@{seed}", count=30), clips, strict=True)
    ]
    order = np.argsort([f"human textured {i}" for i in range(30)])
    wanted = stats.format_interval(stats.bootstrap(clips[order]))
    assert f"| PSNR dB ↑ | a | 2 | 30 | {wanted} | 1.41 |" in seeds_table(records)


def test_the_report_has_a_table_over_seeds_only_where_there_are_seeds():
    records = [*records_of("a@0", psnr=1.0), *records_of("a@1", psnr=3.0)]
    records += records_of("b", psnr=2.5)
    text = tables(records, "made", baseline="b")
    assert "| PSNR dB ↑ | a | 2 | 4 | 2.00 [2.00, 2.00] | 1.41 |" in text
    assert "| PSNR dB ↑ | b | - | 4 | 2.50 [2.50, 2.50] | - |" in text
    assert "| a - b | 4 | -0.50 [-0.50, -0.50] |" in text
    assert "| a@1 | 4 | 3.00 ± 0.00 |" in text
    assert "Over seeds" not in tables(records_of("b", psnr=2.5), "made", baseline="b")


def test_refuses_rows_that_clash_with_seeds():
    for others in ("a:x,a@1:y", "copy@1:x", "truth@0:x"):
        with pytest.raises(ConfigError, match="want a seed in all"):
            VariantsBenchConfig(others=others)
    assert set(VariantsBenchConfig(others="a@0:x,a@1:y").variants) == {"a@0", "a@1"}


# the plot


def test_the_see_saw_is_drawn_where_identity_is_known(tmp_path, monkeypatch):
    records = [
        *records_of("a@0", colour_likeness=0.9, flow_epe=2.0, akd=9.0),
        *records_of("a@1", colour_likeness=0.8, flow_epe=2.0, akd=9.0),
        *records_of("truth", colour_likeness=1.0, flow_epe=1.0, akd=0.0),
    ]
    ((title, text),) = seesaw.section(tmp_path, records)
    assert "](seesaw.png)" in text
    with Image.open(tmp_path / "seesaw.png") as picture:
        wide = picture.size[0]
    without = [replace(r, metrics={**r.metrics, "akd": math.nan}) for r in records]
    seesaw.draw(tmp_path / "one.png", without)
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.size[0] * 2 == wide  # a panel less
    assert seesaw.section(tmp_path, records_of("a", flow_epe=2.0)) == []
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (tmp_path / "seesaw.png").unlink()
    ((again, said),) = seesaw.section(tmp_path, records)
    assert again == title
    assert "Not drawn" in said
    assert "pip install" in said
    assert not (tmp_path / "seesaw.png").exists()


# several runs


def run_of(folder: Path, rows, about=None, count=4, **settings) -> Path:
    """A results file, by hand; rows: PSNR by name."""
    base = {"version": "1", "cast": "c" * 64, "seed": 0, "size": 64, "steps": 4, "weights": {}}
    first = {"margin": 8, "lpips_frames": None, "lpips": None, "metrics": list(METRICS)}
    folder.mkdir(parents=True)
    lines = [json.dumps({"settings": {**first, **settings, "about": {**base, **(about or {})}}})]
    for name, psnr in rows.items():
        found = records_of(name, count=count, psnr=psnr)
        lines += [evaluate._to_line(record).strip() for record in found]
    (folder / "results.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_runs_are_joined_on_the_pairs_that_all_have(tmp_path):
    """exact: rows of two runs, seeds across runs, differences from a named row."""
    a = run_of(tmp_path / "a", {"copy": 9, "full@0": 12, "truth": 100}, {"captions": True}, 6)
    b = run_of(tmp_path / "b", {"full@1": 13, "silent": 11, "truth": 100})
    text = join_runs([a, b], tmp_path / "out", "silent").read_text()
    assert "`dreamactor bench join --out FOLDER --baseline silent a b` on results of 2 runs" in text
    assert "seed 0; 4 clips" in text
    first = text.split("###")[0]
    for row in ("copy | 4 | 9.00", "full@0 | 4 | 12.00", "silent | 4 | 11.00", "truth | 4 |"):
        assert f"| {row}" in first
    assert "| full - silent | 4 | 1.50 [1.50, 1.50] |" in text
    assert "| PSNR dB ↑ | full | 2 | 4 | 12.50 [12.50, 12.50] | 0.71 |" in text
    assert "Captions were told to all but full@1, silent." in text
    assert "Of a's 6 pairs 4 count." in text
    assert str(tmp_path) not in text
    assert "### Against full" in join_runs([a, b], tmp_path / "out").read_text()


def test_a_row_that_two_runs_measured_is_one_if_its_weights_are(tmp_path):
    mine = {"weights": {"transformer.safetensors": "1", "x adapter": "2"}}
    a = run_of(tmp_path / "a", {"copy": 9, "x": 12}, mine)
    text = join_runs([a, run_of(tmp_path / "b", {"copy": 9, "x": 12}, mine)], tmp_path / "o")
    assert text.read_text().split("###")[0].count("| x | 4 |") == 1
    for k, weights in enumerate(
        (
            {"transformer.safetensors": "1", "x adapter": "3"},
            {"transformer.safetensors": "3", "x adapter": "2"},
        )
    ):
        other = run_of(tmp_path / f"c{k}", {"x": 12}, {"weights": weights})
        with pytest.raises(ConfigError, match=r"both have a row 'x'.* such as x@0 and x@1"):
            join_runs([a, other], tmp_path / "o")


@pytest.mark.parametrize(
    ("about", "settings", "said"),
    [
        ({"seed": 1}, {}, r"seed \(1, there 0\); want runs of the same pairs"),
        ({"cast": "d"}, {}, r"cast \(d, there c+\)"),
        ({"steps": 8, "size": 128}, {}, r"size \(128, there 64\), steps \(8, there 4\)"),
        ({}, {"lpips_frames": 4}, r"lpips_frames \(4, there None\)"),
        ({}, {"joints": {"frames": 8}}, r"joints \(\{'frames': 8\}, there None\)"),
    ],
)
def test_refuses_to_join_other_pairs_and_settings(tmp_path, about, settings, said):
    a = run_of(tmp_path / "a", {"x": 12})
    b = run_of(tmp_path / "b", {"y": 12}, about, **settings)
    with pytest.raises(ConfigError, match=said):
        join_runs([a, b], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_refuses_to_join_what_makes_no_table(tmp_path):
    a = run_of(tmp_path / "a", {"copy": 9, "full": 12})
    empty = run_of(tmp_path / "b", {"y": 12}, count=0)
    for folders, out, baseline, said in (
        ([a], a, None, "want a folder of its own"),
        ([a, tmp_path / "none"], tmp_path / "o", None, "do not exist"),
        ([a], tmp_path / "o", "ful", "no row 'ful', nearest is 'full'; known: copy, full"),
        ([empty], tmp_path / "o", None, r"no pair that all rows have \(b 0 pairs\)"),
        ([a, run_of(tmp_path / "s", {"full@1": 1})], tmp_path / "o", None, "want a seed in all"),
    ):
        with pytest.raises(ConfigError, match=said):
            join_runs(folders, out, baseline)
    line = json.dumps({"settings": {"about": {}}})
    (a / "results.jsonl").write_text(line + "\n")
    with pytest.raises(ConfigError, match="no results of `bench variants`"):
        join_runs([a], tmp_path / "o")


# whole runs


def test_tiny_rows_are_measured_and_joined(tmp_path, monkeypatch, capsys):
    """exact: what a user does, with networks that can do nothing."""
    try:
        PairSampler(load_cast(MINI), "test", SIDE).renderer.context  # noqa: B018 - opens it
    except AssetError as fault:
        pytest.skip(str(fault))
    nano, rows = tiny_nano(), []
    for seed in range(2):
        torch.nn.init.normal_(next(nano.transformer.parameters()), std=0.1 + seed)
        folder = tmp_path / f"weights{seed}"
        folder.mkdir()
        save(nano, folder)
        rows.append(f"full@{seed}:{folder}")
    network = KeypointNet(KeypointsConfig((8, 8, 8, 8), (1, 1, 1, 1), 8))
    own, run = tmp_path / "keypoints.safetensors", tmp_path / "run"
    save_weights(own, network.state_dict(), header_of(network, 0))
    config = VariantsBenchConfig(
        count=1, size=SIDE, lpips=0, steps=1, joints=2, keypoints=own, others=",".join(rows),
        oracle=tmp_path / "weights0",
    )  # fmt: skip
    text = bench_variants(MINI, run, config).read_text()
    assert f"found by keypoints (sha256 {sha256(own)[:12]}) in 2 frames" in text
    assert "| full - oracle |" not in text  # the baseline is the row of the first variant
    assert "| oracle - full | 1 |" in text
    files = {path.name for path in run.iterdir()}
    assert {"results.jsonl", "contact.png", "seesaw.png", "report.md"} <= files
    records = {record.system: record.metrics for record in evaluate.read(run / "results.jsonl")}
    assert {"copy", "full@0", "full@1", "oracle", "truth"} == records.keys()
    assert records["copy"]["colour_likeness"] == pytest.approx(1)
    assert all(0 < found["colour_likeness"] <= 1 + 1e-9 for found in records.values())
    blind = replace(config, joints=0, keypoints=tmp_path / "none", compare=False)
    bench_variants(MINI, tmp_path / "blind", blind)  # where nobody asks for joints none are found
    words = ["bench", "join", "--out", tmp_path / "out", "--baseline", "copy", run]
    monkeypatch.setattr(sys, "argv", ["dreamactor", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "report.md")
    joined = (tmp_path / "out" / "report.md").read_text()
    assert "| full - copy | 1 |" in joined
    assert "| identity (colours) ↑ | full | 2 | 1 |" in joined
    assert (tmp_path / "out" / "seesaw.png").is_file()
