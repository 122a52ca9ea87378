"""Three texts: models are held to rules, asked again, replaced where they fail; keys stay out."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import oracle
import pytest
from filming import film

from dreamactor import cli, mllm
from dreamactor.conditioning import guidance
from dreamactor.conditioning.guidance import (
    KINDS,
    SHOWN,
    Scene,
    clean,
    describe,
    describe_files,
    fault,
    fuse,
    look,
    read_prompt,
)
from dreamactor.conditioning.skeleton import PoseTrack
from dreamactor.errors import ConfigError, MediaError
from dreamactor.image import write_png
from dreamactor.mllm import Endpoint, Recorded, request_id

KEY = "sk-very-secret-123"
GOOD = ("waves both hands", "a gray bird with a red crest, on grass",
        "a gray bird with a red crest waves both wings, on grass")  # fmt: skip


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(mllm, "PAUSE", 0.01)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    picture = np.full((90, 120, 3), (100, 190, 100), np.uint8)
    picture[30:70, 40:80] = (200, 30, 30)
    write_png(folder / "reference.png", picture)
    film(folder / "driving.mp4", 48, 24)
    return folder / "reference.png", folder / "driving.mp4"


def asked(files, *script, seconds=5.0):
    """The texts that a server with this script leads to, and the server."""
    with oracle.oracle(*script) as server:
        texts = describe_files(*files, Endpoint(server.url, "fox-vl", KEY, seconds))
    return texts, server


def words_of(body):
    return body["messages"][0]["content"][0]["text"]


# ---- a model that does as it is told -----------------------------------------------------------


def test_three_answers_and_what_each_question_shows(files):
    texts, server = asked(files, *GOOD)
    assert (texts.motion, texts.appearance, texts.prompt) == GOOD
    assert texts.sources == dict.fromkeys(KINDS, "fox-vl")
    assert not texts.notes
    pictures = [len(body["messages"][0]["content"]) - 1 for body in server.bodies]
    assert pictures == [SHOWN, 1, 0]
    assert "These are 8 frames of one moment, in order, 0.27 seconds apart" in words_of(
        server.bodies[0]
    )
    assert f"Motion: {GOOD[0]}\nThe other subject: {GOOD[1]}\n" in words_of(server.bodies[2])
    assert texts.plain()["prompts"] == {"motion": 1, "appearance": 1, "fusion": 1}


def test_answers_are_kept_by_content(files, tmp_path):
    first, _ = asked(files, *GOOD)
    second, server = asked(files, "not asked")
    assert second == first
    assert not server.bodies
    other = tmp_path / "other.mp4"
    film(other, 48, 24, draw=lambda i, h, w: np.full((h, w, 3), 5 * i, np.uint8))
    _, server = asked((files[0], other), *GOOD)
    assert len(server.bodies) == 3, "another clip is asked about"


def test_another_version_of_a_prompt_is_another_question(files, monkeypatch):
    asked(files, *GOOD)
    monkeypatch.setattr(guidance, "read_prompt", lambda kind: (2, f"{read_prompt(kind)[1]} Well?"))
    _, server = asked(files, *GOOD)
    assert len(server.bodies) == 3


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"motion": "x"}', "null"])
def test_a_damaged_memory_is_forgotten(files, damage):
    asked(files, *GOOD)
    kept = list(guidance.cache_folder().iterdir())
    assert len(kept) == 1
    kept[0].write_text(damage)
    texts, server = asked(files, *GOOD)
    assert len(server.bodies) == 3
    assert texts.prompt == GOOD[2]


def test_a_memory_that_cannot_be_written_is_no_fault(files, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert asked(files, *GOOD)[0].prompt == GOOD[2]


def test_recorded_answers_stand_in_for_a_model(files):
    scene = look(*_read(files), 2.0)
    answers = {}
    for kind, words in zip(KINDS, GOOD, strict=True):
        said = dict(zip(KINDS, GOOD, strict=True))
        answers[request_id(*guidance._request(scene, kind, said))] = words
    texts = describe(scene, Recorded(answers))
    assert (texts.motion, texts.appearance, texts.prompt) == GOOD


def _read(files):
    from dreamactor.image import read_image

    return read_image(files[0]), files[1]


# ---- a model that does not ---------------------------------------------------------------------


def test_a_bad_answer_is_asked_again_with_the_reason(files):
    bad = "a gray bird in a blue shirt waves both hands"
    texts, server = asked(files, *GOOD[:2], bad, GOOD[2])
    assert texts.prompt == GOOD[2]
    assert not texts.notes
    assert "could not be used: it speaks of 'blue', 'shirt'" in words_of(server.bodies[3])


def test_a_bad_answer_twice_and_the_offline_describer_steps_in(files, caplog):
    bad = "a gray bird waves both hands"
    texts, server = asked(files, *GOOD[:2], bad)
    assert texts.prompt == "a gray bird with a red crest waves both wings, on grass"
    assert texts.sources == {"motion": "fox-vl", "appearance": "fox-vl", "prompt": "offline"}
    reason = "prompt: fox-vl: the other subject has no 'hands'; the offline describer steps in"
    assert texts.notes == (reason,)
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == [
        f"text guidance, {reason}"
    ]
    assert len(server.bodies) == 4
    assert not guidance.cache_folder().exists(), "what failed is not kept"


@pytest.mark.parametrize(
    ("failing", "message"),
    [
        (oracle.status(500), "status 500"),
        (oracle.status(429, Retry_After="3600"), "status 429"),
        (oracle.truncated, "no chat completion"),
        (oracle.silent, "no answer in"),
        ("", "an empty answer"),
    ],
)
def test_a_server_that_fails_is_asked_once_and_never_hangs(files, failing, message):
    start = time.monotonic()
    texts, server = asked(files, failing, seconds=0.5)
    assert time.monotonic() - start < 4
    assert set(texts.sources.values()) == {"offline"}
    assert replace(texts, notes=()) == describe_files(*files)
    assert message in texts.notes[0]
    assert all("not asked again" in note for note in texts.notes[1:])
    assert len(server.bodies) <= 3


def test_a_model_that_always_refuses(files):
    texts, server = asked(files, oracle.refusal)
    assert set(texts.sources.values()) == {"offline"}
    assert all("it refuses, or speaks of itself" in note for note in texts.notes)
    assert len(server.bodies) == 6


def test_wrong_settings_are_an_error_at_once(files):
    with pytest.raises(ConfigError, match="fox-vl: status 401; is DREAMACTOR_MLLM_KEY right"):
        asked(files, oracle.status(401, KEY))


# ---- rules -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("motion", "", "it has 0 words, want 1 to 30"),
        ("appearance", "bird", "it has 1 words, want 2 to 30"),
        ("prompt", "bird " * 46, "it has 46 words, want 3 to 45"),
        ("motion", "I'm sorry, I can't help with that", "it refuses"),
        ("motion", "As an AI, I cannot see anything", "it refuses"),
        ("motion", "We are unable to tell", "it refuses"),
        ("motion", "waves\nboth arms", "it has markup or several lines"),
        ("motion", "**waves** both arms", "it has markup"),
        ("motion", "挥动双臂 挥动双臂", "it is not in English"),
        ("motion", "in the video both arms wave", "it speaks of the video"),
        ("motion", "waves the sleeve of a red shirt", "it speaks of looks: 'red', 'shirt'"),
        ("prompt", "a gray bird like a woman waves", "it speaks of 'woman', which"),
        ("prompt", "a gray bird waves both arms", "the other subject has no 'arms'"),
    ],
)
def test_rules(kind, text, reason):
    assert fault(kind, text, "a gray bird").startswith(reason)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *zip(KINDS, GOOD, strict=True),
        ("motion", "a person is waving both hands"),
        ("appearance", "a gray bird with colorful feathers"),
        ("prompt", "a gray bird is waving its wings"),
    ],
)
def test_what_keeps_the_rules(kind, text):
    assert fault(kind, text, GOOD[1]) == ""


@pytest.mark.parametrize(
    "said",
    ['"waves both hands."', "Motion: waves both hands", "<think>hm\nhm</think>\nwaves both hands",
     "  waves   both hands. \n", "**Answer:** waves both hands"],
)  # fmt: skip
def test_what_models_put_around_an_answer_is_taken_off(said):
    assert clean(said) == "waves both hands"


@pytest.mark.parametrize(
    ("appearance", "motion", "prompt"),
    [
        ("a gray bird, on grass", "waves both hands", "a gray bird waves both wings, on grass"),
        ("a gray bird", "a young person is waving", "a gray bird is waving"),
        ("a dog with a hat, red and blue", "raises the left arm",
         "a dog with a hat, red and blue raises the left foreleg"),
        ("a figure", "stands still", "a figure stands still"),
    ],
)  # fmt: skip
def test_fusing_without_a_model(appearance, motion, prompt):
    assert fuse(appearance, motion) == prompt


# ---- offline -----------------------------------------------------------------------------------


def test_a_track_and_a_known_species_are_used():
    names = ("neck", "pelvis", "shoulder_l", "wrist_l", "shoulder_r", "wrist_r")
    at = np.array([(150, 75), (150, 145), (170, 80), (180, 142), (130, 80), (120, 142)])
    positions = np.repeat(at[None, None], 24, 0).astype(np.float32)
    positions[:, 0, 3, 1] -= np.linspace(0, 110, 24)
    track = PoseTrack(names, positions, np.ones((24, 1, 6), np.float32), 300, 300, 12.0)
    picture = np.full((64, 64, 3), 200, np.uint8)
    picture[20:44, 20:44] = 20
    scene = Scene(picture, [picture] * 24, 12.0, track, species="a gray bird with a red crest")
    texts = describe(scene)
    assert texts.prompt == (
        "a gray bird with a red crest stands and raises the left wing, before a plain white "
        "backdrop"
    )
    assert texts.plain()["prompts"] == {}


def test_a_track_without_a_torso_tells_nothing():
    """same: a face in sight does not stand still; what moves is told from the flow."""
    patch = np.full((64, 96, 3), 200, np.uint8)
    patch[20:44, 10:34] = np.random.default_rng(0).integers(0, 90, (24, 24, 1), dtype=np.uint8)
    frames = [np.roll(patch, 3 * k, axis=1) for k in range(12)]
    positions = np.full((12, 1, 2, 2), 30, np.float32)
    face = PoseTrack(("eye_l", "eye_r"), positions, np.ones((12, 1, 2), np.float32), 64, 96, 12.0)
    told = describe(Scene(patch, frames, 12.0, face)).motion
    assert told == describe(Scene(patch, frames, 12.0)).motion != "stands still"


def test_look_reads_ten_seconds_and_keeps_them_small(files, tmp_path):
    film(tmp_path / "long.mp4", 26, 2, size=(480, 640))
    scene = look(_read(files)[0], tmp_path / "long.mp4", 13.0)
    assert len(scene.frames) == 120
    assert scene.frames[0].shape == (240, 320, 3)
    assert len({id(frame) for frame in scene.frames}) == 21
    assert len(look(*_read(files), 2.0).frames) == 24
    positions = np.arange(26 * 4, dtype=np.float32).reshape(26, 1, 2, 2)
    track = PoseTrack(("neck", "nose"), positions, np.ones((26, 1, 2), np.float32), 64, 96, 2.0)
    part = look(*_read(files), 13.0, track).track
    assert part.frames == 20
    np.testing.assert_array_equal(part.positions, positions[:20])


def test_offline_is_fast_and_the_same_again(files):
    start = time.perf_counter()
    first = describe_files(*files)
    assert time.perf_counter() - start < 5
    assert describe_files(*files) == first
    assert first.appearance == "a red figure, before a plain green backdrop"


# ---- on the command line -----------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, capsys):
    def command(verb, *words):
        monkeypatch.setattr(sys, "argv", ["dreamactor", verb, *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    return command


def given(files):
    return ["--reference", files[0], "--driving", files[1]]


def test_describe_shows_three_texts_and_who_said_them(command, files, monkeypatch):
    code, shown, error = command("describe", *given(files))
    assert (code, error) == (0, "")
    assert [line.split()[0] for line in shown.splitlines()] == list(KINDS)
    assert all(line.endswith("  (offline)") for line in shown.splitlines())
    with oracle.oracle(*GOOD) as server:
        for name, value in (("URL", server.url), ("MODEL", "fox-vl"), ("KEY", KEY)):
            monkeypatch.setenv(f"DREAMACTOR_MLLM_{name}", value)
        code, shown, error = command("describe", *given(files), "--json")
    told = json.loads(shown)
    assert (code, error, told["prompt"]) == (0, "", GOOD[2])
    assert told["sources"]["prompt"] == "fox-vl"
    assert "(offline)" in command("describe", *given(files), "--describer", "offline")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--describer", "gpt"], "error: describer='gpt': want auto or offline\n"),
        (["--driving", "gone.mp4"], "error: gone.mp4: no such file\n"),
    ],
)
def test_describe_refuses(command, files, words, message):
    assert command("describe", *given(files), *words) == (2, "", message)


def test_ctrl_c_ends_a_wait_for_a_silent_server(files):
    main = "from dreamactor.cli import main; main()"
    argv = [sys.executable, "-c", main, "describe", *map(str, given(files))]
    with oracle.oracle(oracle.silent) as server:
        variables = {"DREAMACTOR_MLLM_URL": server.url, "DREAMACTOR_MLLM_MODEL": "fox-vl"}
        with subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | variables
        ) as process:
            while not server.bodies and process.poll() is None:
                time.sleep(0.02)
            start = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=15) == (b"", b"")
    assert process.returncode == 130
    assert time.monotonic() - start < 5


def test_bad_variables_are_one_line(command, files, monkeypatch):
    monkeypatch.setenv("DREAMACTOR_MLLM_URL", KEY)
    code, shown, error = command("describe", *given(files))
    assert (code, shown, error.count("\n")) == (2, "", 1)
    assert KEY not in error


def test_animate_records_the_texts_and_never_the_key(files, tmp_path, monkeypatch, caplog):
    pytest.importorskip("torch")
    from copycat import Copycat

    import dreamactor

    caplog.set_level(logging.DEBUG)
    with oracle.oracle(*GOOD) as server:
        for name, value in (("URL", server.url), ("MODEL", "fox-vl"), ("KEY", KEY)):
            monkeypatch.setenv(f"DREAMACTOR_MLLM_{name}", value)
        backbone = Copycat()
        result = dreamactor.animate(
            reference=files[0], driving=files[1], out=tmp_path / "out.mp4", backbone=backbone
        )
    assert (backbone.canvases[0][1] == len(GOOD[2])).all()
    record = result.record.read_text()
    text = json.loads(record)["text"]
    assert (text["prompt"], text["sources"]["prompt"]) == (GOOD[2], "fox-vl")
    kept = [path.read_text() for path in guidance.cache_folder().iterdir()]
    assert KEY not in "".join([record, caplog.text, repr(result), *kept])
    assert server.url not in record


def test_animate_asks_nobody_when_a_prompt_is_given(files, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from copycat import Copycat

    import dreamactor

    with oracle.oracle(*GOOD) as server:
        monkeypatch.setenv("DREAMACTOR_MLLM_URL", server.url)
        monkeypatch.setenv("DREAMACTOR_MLLM_MODEL", "fox-vl")
        for number, settings in enumerate([{"prompt": "a fox"}, {"describer": "offline"}]):
            dreamactor.animate(
                reference=files[0], driving=files[1], out=tmp_path / f"{number}.mp4",
                backbone=Copycat(), **settings,
            )  # fmt: skip
    assert not server.bodies


def test_a_clip_that_cannot_be_read(files, tmp_path):
    (tmp_path / "text.mp4").write_text("not a clip")
    with pytest.raises(MediaError, match=r"text\.mp4: not a video"):
        describe_files(files[0], tmp_path / "text.mp4")


def test_loading_the_text_encoder_says_nothing(capfd):
    pytest.importorskip("torch")
    from dreamactor.conditioning.text import TextEncoder

    TextEncoder()
    assert capfd.readouterr() == ("", "")
