"""`dreamactor demo`: every example once, goes on where it stopped, and loses nobody's work."""

import json
from dataclasses import replace

import numpy as np
import pytest
from copycat import Copycat
from filming import film, frames_of

from dreamactor import cli, demo
from dreamactor.demo import COLUMNS, Example, play, read_examples
from dreamactor.diffusion import pipeline
from dreamactor.errors import MediaError
from dreamactor.image import read_image, write_png
from dreamactor.video import probe


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Two small ones: a square reference with a silent clip, a tall one with sound."""
    folder = tmp_path_factory.mktemp("examples")
    made = []
    for name, size, sound in (("first", (64, 64), None), ("second", (64, 48), "aac")):
        colour = np.full((*size, 3), 90, np.uint8)
        write_png(folder / f"{name}.png", colour)
        film(folder / f"{name}.mp4", 12, size=(64, 64), audio=sound)
        made.append(
            Example(
                name,
                f"The {name}",
                f"What the {name} shows",
                folder / f"{name}.png",
                folder / f"{name}.mp4",
            )
        )
    return made


@pytest.fixture
def runs(monkeypatch):
    """Names of the clips that the pipeline was asked for."""
    asked = []
    run = pipeline.run

    def counted(job, backbone=None):
        asked.append(job.config.out.stem)
        return run(job, backbone)

    monkeypatch.setattr(pipeline, "run", counted)
    return asked


def test_writes_a_clip_and_a_record_for_each_and_one_sheet(tmp_path, examples):
    lines = []
    result = play(tmp_path / "new" / "out", False, Copycat(), lines.append, examples)
    out = tmp_path / "new" / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        *("contact_sheet.png", "first.json", "first.mp4", "second.json", "second.mp4"),
    ]
    assert result.made == ("first", "second")
    assert result.clips == {name: out / f"{name}.mp4" for name in ("first", "second")}
    assert probe(out / "first.mp4").frames == 12
    assert probe(out / "second.mp4").has_audio
    text = "\n".join(lines)
    for example in examples:
        assert f"{out / example.name}.mp4: {example.shows}" in text
    assert str(result.sheet) in text
    assert text.count(" s") >= 3, "times are told"


def test_sheet_shows_reference_driver_and_result(tmp_path, examples):
    result = play(tmp_path, False, Copycat(), examples=examples[:1])
    sheet = read_image(result.sheet)
    cell, gap = demo.CELL, 6
    assert sheet.shape[1] == (COLUMNS + 1) * (cell + gap) + gap
    rows = [y for y in range(len(sheet)) if tuple(sheet[y, -gap - 3]) != (255,) * 3]
    assert len(rows) == 2 * cell, "a row of the driver and one of the result"
    above, below = rows[cell // 2], rows[cell + cell // 2]
    assert tuple(sheet[above, gap + 5]) == (90, 90, 90), "the reference stands first"
    assert tuple(sheet[below, gap + 5]) == (255, 255, 255), "nothing below it"
    driver, made = (sheet[y - 40 : y + 40, 2 * gap + cell :].astype(int) for y in (above, below))
    assert np.abs(driver - made).mean() < 12, "the copycat's result is the driving clip"


def test_goes_on_where_it_stopped(tmp_path, examples, runs):
    play(tmp_path, False, Copycat(), examples=examples[:1])
    before = (tmp_path / "first.mp4").stat().st_mtime_ns
    lines = []
    result = play(tmp_path, False, Copycat(), lines.append, examples)
    assert runs == ["first", "second"]
    assert result.made == ("second",)
    assert (tmp_path / "first.mp4").stat().st_mtime_ns == before
    assert "is there already" in lines[0]


def test_overwrite_does_everything_again(tmp_path, examples, runs):
    for _ in range(2):
        play(tmp_path, True, Copycat(), examples=examples)
    assert runs == ["first", "second"] * 2


@pytest.mark.parametrize(
    "other",
    [
        Copycat(weights={"copycat.safetensors": "1" * 64}),
        Copycat(native=replace(Copycat().native, steps=3)),
        Copycat(name="copydog"),
    ],
    ids=["weights", "settings", "backbone"],
)
def test_what_another_model_made_is_made_again(tmp_path, examples, runs, other):
    play(tmp_path, False, Copycat(), examples=examples[:1])
    play(tmp_path, False, other, examples=examples[:1])
    assert runs == ["first", "first"]


@pytest.mark.parametrize("what", ["reference", "version"])
def test_what_was_made_from_something_else_is_made_again(tmp_path, examples, runs, what):
    play(tmp_path, False, Copycat(), examples=examples[:1])
    record = tmp_path / "first.json"
    facts = json.loads(record.read_text())
    if what == "reference":
        facts["inputs"]["reference"]["sha256"] = "0" * 64
    else:
        facts["versions"]["dreamactor"] = "0.0.0"
    record.write_text(json.dumps(facts))
    play(tmp_path, False, Copycat(), examples=examples[:1])
    assert runs == ["first", "first"]
    assert json.loads(record.read_text()) != facts


@pytest.mark.parametrize("what", ["changed clip", "no record", "broken record"])
def test_refuses_to_replace_what_is_not_its_own(tmp_path, examples, what):
    play(tmp_path, False, Copycat(), examples=examples[:1])
    clip, record = tmp_path / "first.mp4", tmp_path / "first.json"
    if what == "changed clip":
        clip.write_bytes(clip.read_bytes() + b"mine")
    elif what == "no record":
        record.unlink()
    else:
        record.write_text("[")
    kept = clip.read_bytes()
    with pytest.raises(MediaError, match=r"first\.mp4: is there already; pass --overwrite"):
        play(tmp_path, False, Copycat(), examples=examples[:1])
    assert clip.read_bytes() == kept
    play(tmp_path, True, Copycat(), examples=examples[:1])
    assert frames_of(clip)


def test_refuses_a_folder_that_is_a_file(tmp_path, examples):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(MediaError, match="out: cannot be written"):
        play(tmp_path / "out", False, Copycat(), examples=examples)


def test_shipped_examples_run(tmp_path):
    result = play(tmp_path, False, Copycat())
    assert list(result.clips) == [example.name for example in read_examples()]
    for example in read_examples():
        driving, made = probe(example.driving), probe(result.clips[example.name])
        assert (made.frames, made.fps, made.has_audio) == (
            *(driving.frames, driving.fps, driving.has_audio),
        )


def test_command_without_weights_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dreamactor.backbones.nano.DATA", tmp_path / "none")
    monkeypatch.setattr("sys.argv", ["dreamactor", "demo", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capsys.readouterr()
    assert ended.value.code == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    assert "weights are missing" in captured.err
    assert not (tmp_path / "out").exists()


def test_command_says_what_it_made(tmp_path, monkeypatch, capsys, examples):
    monkeypatch.setattr(demo, "load_backbone", lambda name: Copycat())
    monkeypatch.setattr(demo, "read_examples", lambda: examples)
    monkeypatch.setattr("sys.argv", ["dreamactor", "demo", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert "contact_sheet.png" in capsys.readouterr().out
