"""Suites: what is written is what is read, and what is wrong is named with its line."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from suites import FRAMES, SIDE, tiny_suite

from dreamactor.bench.manifest import load_suite, read_arrays, save_suite
from dreamactor.errors import ConfigError, MediaError


@pytest.fixture
def suite(tmp_path):
    return tiny_suite(tmp_path / "suite")


def test_same_suite_after_writing_and_reading(suite):
    media = suite.media | {"red": replace(suite.media["red"], caption="a line\u2028of its own")}
    suite = replace(suite, media=media)
    save_suite(replace(suite, about={"seed": 3}))
    again = load_suite(suite.root)
    assert (again.media, list(again.cases)) == (suite.media, list(suite.cases))
    assert again.about == {"seed": 3}


def test_exact_files_of_a_case(suite):
    case = suite.case("human2human/0")
    assert case.result_name == "human2human_0"
    assert suite.reference(case).shape == (SIDE, SIDE, 3)
    clip, info = suite.driving(case)
    assert clip.shape == (FRAMES, SIDE, SIDE, 3)
    assert (info.frames, info.fps) == (FRAMES, 12)
    arrays = suite.arrays(case)
    assert arrays is not None
    assert arrays.mask.sum() == FRAMES * 24 * 24
    assert np.array_equal(arrays.flow[0, 30, 20], [4, 0])
    names, pixels, visible = arrays.joints[1]
    assert (names, pixels.shape, visible.all()) == (("head",), (FRAMES, 1, 2), True)
    assert suite.truth(suite.case("human2animal/0")) is None
    assert suite.arrays(suite.case("human2animal/0")) is None


def test_exact_groups_of_a_case(suite):
    groups = suite.groups(suite.case("human2animal/0"))
    assert groups["scenario"] == "human2animal"
    assert groups["reference species"] == "fox"
    assert groups["driving activity"] == "travel"
    assert "driving species" not in groups


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("media", {"subject": "persn"}, "media.jsonl:1: subject='persn': want human, animal"),
        ("media", {"regoin": "face"}, "media.jsonl:1: unknown 'regoin', nearest is 'region'"),
        ("media", {"file": "../../etc/passwd"}, "want a path within the suite's folder"),
        ("media", {"file": "/etc/passwd"}, "want a path within the suite's folder"),
        ("media", {"sha256": "12"}, "want 64 hex digits"),
        ("media", {"subjects": True}, "subjects=True: want a whole number"),
        ("media", {"subjects": 0}, "subjects=0: want at least 1"),
        ("media", {"name": "Red"}, "name 'Red': want small letters"),
        ("cases", {"reference": "rad"}, "no media named 'rad', nearest is 'red'"),
        ("cases", {"driving": "red"}, "red is a reference, want a driving"),
        ("cases", {"scenario": "cat2dog"}, "scenario='cat2dog': want human2human"),
    ],
)
def test_refuses_wrong_lines(suite, file, change, message):
    path = suite.root / f"{file}.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(first), **change}), *rest]) + "\n")
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        load_suite(suite.root)


@pytest.mark.parametrize("file", ["suite.json", "media.jsonl", "cases.jsonl"])
def test_refuses_text_that_is_no_utf8(suite, file):
    path = suite.root / file
    first, second, *rest = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([first, second[:-2] + b"\xe9" + second[-2:], *rest]))
    with pytest.raises(ConfigError, match=f"{file}:2: byte 0xe9: want UTF-8"):
        load_suite(suite.root)


def test_refuses_links_that_lead_outside(suite, tmp_path):
    """Of a file, of its folder, of arrays; links within, and to the suite, are read."""
    (tmp_path / "link").symlink_to(suite.root)
    assert len(load_suite(tmp_path / "link").media) == 4
    for file, named in (("red.png", "red.png"), ("truth.npz", "truth.npz"), ("", "red.png")):
        path, kept = suite.root / "media" / file, tmp_path / "kept"
        path.rename(kept)
        path.symlink_to(kept)
        with pytest.raises(ConfigError, match=f"file 'media/{named}' leads to {kept}.*: want"):
            load_suite(suite.root)
        path.unlink()
        kept.rename(path)
    red = suite.path("red")
    red.rename(red.with_name("inner.png"))
    red.symlink_to("inner.png")
    assert load_suite(suite.root).media == suite.media
    red.unlink()
    red.symlink_to("red.png")
    assert load_suite(suite.root).media == suite.media  # a loop leads nowhere


def test_refuses_a_key_that_is_given_twice(suite):
    path = suite.root / "media.jsonl"
    text = path.read_text()
    path.write_text(text.replace('"age": "young"', '"age": "young", "age": "child"'))
    with pytest.raises(ConfigError, match=r"media.jsonl:1: 'age' is given twice"):
        load_suite(suite.root)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("human2human/0", "two cases are named human2human/0"),
        ("human2human_0", "human2human/0 and human2human_0 would both be human2human_0.mp4"),
    ],
)
def test_refuses_cases_that_share_a_result(suite, name, message):
    path = suite.root / "cases.jsonl"
    first, second = map(json.loads, path.read_text().splitlines())
    path.write_text(f"{json.dumps(first)}\n{json.dumps({**second, 'name': name})}\n")
    with pytest.raises(ConfigError, match=message):
        load_suite(suite.root)


def test_refuses_what_is_missing(suite):
    path = suite.root / "media.jsonl"
    line = json.loads(path.read_text().splitlines()[0])
    del line["licence"]
    path.write_text(json.dumps(line))
    with pytest.raises(ConfigError, match=r"media.jsonl:1: no licence"):
        load_suite(suite.root)
    (suite.root / "suite.json").write_text('{"format": 2}')
    with pytest.raises(ConfigError, match="format=2: want 1"):
        load_suite(suite.root)
    with pytest.raises(ConfigError, match="want a folder with suite"):
        load_suite(suite.root / "media")


def test_refuses_damaged_arrays(tmp_path):
    path = tmp_path / "arrays.npz"
    with pytest.raises(MediaError, match="no such file"):
        read_arrays(path)
    path.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(MediaError, match="no arrays of a truth"):
        read_arrays(path)
    np.savez(path, mask=np.zeros(1), flow=np.array([object()]), allow_pickle=True)
    with pytest.raises(MediaError, match="no arrays of a truth"):
        read_arrays(path)
