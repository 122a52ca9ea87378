"""The gate sees the fault that was planted, scores it, and decides by the paper's rule."""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace

import cv2
import numpy as np
import pytest
import standin
from numpy.testing import assert_array_equal
from standin import Tint

from dreamactor import cli
from dreamactor.bench.agreement import count_found
from dreamactor.bench.faults import Faults, Watched, energy, find_faults, grain
from dreamactor.bench.measured import FAULTS_OF, Measured, Scale, load_scales
from dreamactor.bench.planted import LIMITS, worst
from dreamactor.bench.scores import DIMENSIONS, Scores, key_frames, parse_scores
from dreamactor.bootstrap import calibrate
from dreamactor.bootstrap.calibrate import SHOWN_BY, CalibrateConfig, Row, fit_scales
from dreamactor.bootstrap.gate import evidence_of, gate, gate_best
from dreamactor.bootstrap.judge import PROMPT, Asked
from dreamactor.bootstrap.pairs import make_pairs
from dreamactor.bootstrap.sources import Folders
from dreamactor.errors import AnswerError, AssetError, ConfigError, ShapeError
from dreamactor.world.cast import load_cast
from dreamactor.world.render import Renderer

FRAMES = 12


def scene(seed, shift=3.0):
    """A textured disc that swings over a textured ground; (T, 96, 96, 3)."""
    rng = np.random.default_rng(seed)
    ground, skin = (
        cv2.GaussianBlur(rng.uniform(0, 255, (96, 96, 3)), (0, 0), 1.2) for _ in range(2)
    )
    ground = 0.5 * ground + 0.5 * rng.uniform(60, 200, 3)
    skin = 0.5 * skin + 0.5 * rng.uniform(0, 255, 3)
    y, x = np.mgrid[:96, :96]
    frames = []
    for t in range(FRAMES):
        dx, dy = shift * t, 8 * np.sin(t / 2)
        disc = ((x - 30 - dx) ** 2 + (y - 48 - dy) ** 2 < 18**2)[..., None]
        move = np.float32([[1, 0, dx], [0, 1, dy]])
        frames.append(np.where(disc, cv2.warpAffine(skin, move, (96, 96), borderMode=2), ground))
    return np.uint8(np.clip(frames, 0, 255))


SOURCE, RESULT = scene(1), scene(2)
IDENTITY = RESULT[0]


def faults(clip):
    return find_faults(Watched(SOURCE), IDENTITY, Watched(np.ascontiguousarray(clip)))


def test_exact_a_perfect_clip_has_next_to_no_faults():
    found = faults(RESULT).plain()
    for name in ("blur", "harshness", "grain", "drift", "colours"):
        assert abs(found[name]) < 0.15, name
    assert found["straying"] < 0.1
    assert all(value < 0.8 for value in found.values()), found


RNG = np.random.default_rng(0)
PLANTED = {
    "blur": np.stack([cv2.GaussianBlur(f, (0, 0), 2) for f in RESULT]),
    "harshness": np.clip(RESULT + RNG.normal(0, 25, RESULT.shape), 0, 255).astype(np.uint8),
    "grain": np.clip(RESULT + RNG.normal(0, 25, RESULT.shape), 0, 255).astype(np.uint8),
    "jerk": np.stack([np.roll(f, 4 * (t % 2), 0) for t, f in enumerate(RESULT)]),
    "haste": scene(2, shift=7.0),
    "stillness": RESULT[:1].repeat(FRAMES, 0),
    "halt": RESULT[[0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9, 10]],
    "straying": RESULT[::-1],
    "flicker": np.stack([np.uint8(f * (0.8 + 0.2 * (t % 2))) for t, f in enumerate(RESULT)]),
    "residual": np.stack([f if t % 2 else 255 - f for t, f in enumerate(RESULT)]),
    "drift": np.stack([np.uint8(f * (1 - t / 20)) for t, f in enumerate(RESULT)]),
    "colours": scene(3),
}


@pytest.mark.parametrize("name", PLANTED)
def test_exact_each_fault_rises_where_it_is_planted(name):
    before, after = (getattr(faults(clip), name) for clip in (RESULT, PLANTED[name]))
    assert after > before + 0.1


def test_exact_closed_forms():
    step = np.zeros((8, 8, 3), np.uint8)
    step[:, 4:] = 255
    assert energy(step) == pytest.approx(1 / 7)  # one step of 1 in each row of seven
    ramp = np.tile(np.linspace(0, 255, 52)[:, None, None], (1, 52, 3)).astype(np.uint8)
    assert energy(ramp) == pytest.approx((5 / 255) ** 2, rel=1e-3)
    assert grain(ramp) == 0
    assert Scale(1, 3).score(0.5) == 5
    assert Scale(1, 3).score(2) == 3
    assert Scale(1, 3).score(3) == 2
    assert Scale(1, 3).score(9) == 1.25
    assert Scale(1, 3).score(float("nan")) == 1
    assert worst({"sharpness": 0.37, "motion": 1.0, "picture": 0, "flicker": 0}) == 2


def test_worse_faults_always_score_lower():
    """exact: strictly, far beyond `bad` too; the line goes over into the curve with one slope."""
    scale = Scale(1, 3)
    scores = [scale.score(fault) for fault in (1, 1.5, 2, 2.5, 4, 10, 100, 1e4)]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == len(scores)
    before, after = scale.score(2) - scale.score(2 - 1e-6), scale.score(2 + 1e-6) - scale.score(2)
    assert before == pytest.approx(after, rel=1e-4)


def test_unchanged_by_size_for_what_moves():
    large = [np.stack([cv2.resize(f, (512, 512)) for f in c]) for c in (SOURCE, RESULT)]
    found = find_faults(Watched(large[0]), large[1][0], Watched(large[1])).plain()
    assert found["colours"] < 0.05
    assert abs(found["haste"] - faults(RESULT).haste) < 0.6


def test_refuses_clips_that_do_not_fit():
    with pytest.raises(ShapeError, match="source has 12 frames, result 11"):
        faults(RESULT[:-1])
    with pytest.raises(ShapeError, match="3 frames or more"):
        Watched(RESULT[:2])


def test_exact_every_fault_counts_once_and_has_a_scale():
    names = [name for group in FAULTS_OF.values() for name in group]
    assert sorted(names) == sorted(faults(RESULT).plain()) == sorted(SHOWN_BY)
    assert tuple(FAULTS_OF) == DIMENSIONS
    assert sorted(load_scales()) == sorted(names)


def test_exact_the_worst_fault_of_a_dimension_counts():
    judge = Measured({name: Scale(0, 1) for name in SHOWN_BY})
    none = Faults(**dict.fromkeys(SHOWN_BY, 0.0))
    assert judge.scores(none) == Scores(5, 5, 5, 5)
    assert judge.scores(replace(none, blur=0.25, grain=0.5, colours=1)) == Scores(3, 5, 5, 2)


@pytest.fixture
def data(tmp_path):
    sources, references = standin.write_inputs(tmp_path)
    return make_pairs(tmp_path / "out", Folders(sources, references), Tint()).data


def test_same_verdicts_again_and_other_scales_judge_anew(data):
    lax = Measured({name: Scale(1e6, 2e6) for name in SHOWN_BY})
    strict = Measured({name: Scale(-2e6, -1e6) for name in SHOWN_BY})
    first = gate(data, lax)
    assert (first.items, first.passed, first.fresh) == (3, 3, 3)
    assert gate(data, lax).fresh == 0
    again = gate(data, strict)
    assert (again.passed, again.fresh) == (0, 3)
    item = data.items()[0]
    said = data.said(item, "gate")["measured"]
    assert said["passed"] is False
    assert sorted(said["why"]) == sorted(SHOWN_BY)
    scores = data.verdict(item, "measured").scores.plain().values()
    assert list(scores) == pytest.approx([1.5] * 4, abs=1e-3)  # twice as far as bad
    line = json.loads((data.root / "manifest.jsonl").read_text().splitlines()[0])
    assert line["gate"]["measured"]["average"] == pytest.approx(1.5, abs=1e-3)
    with pytest.raises(ConfigError, match="threshold=6"):
        gate(data, lax, threshold=6)


def test_same_scores_whatever_the_number_of_processes(data):
    judge = Measured()
    one = gate(data, judge)
    said = {item: data.said(item, "gate") for item in data.items()}
    for item in data.items():
        data.unsay(item, "gate", judge.name)
    assert gate(data, judge, workers=2) == one
    assert {item: data.said(item, "gate") for item in data.items()} == said


def test_exact_the_threshold_falls_until_enough_pass(data, monkeypatch):
    """Averages 3, 2 and 1 of three items: 4.5 where none is wanted, else just below the last."""
    judge = Measured()
    scores = iter(Scores(k, k, k, k) for k in (2, 3, 1))
    monkeypatch.setattr(Measured, "__call__", lambda self, evidence: (next(scores), {}))
    assert gate_best(data, judge)[1] == 4.5
    for least, passed, lowered in ((1, 1, 3), (2, 2, 2), (3, 3, 1), (9, 3, 1)):
        found, threshold = gate_best(data, judge, least=least)
        assert (found.items, found.passed, found.fresh) == (3, passed, 0)
        assert threshold == pytest.approx(lowered)
        assert threshold < lowered
        passing = [x for x in data.items() if data.verdict(x, "measured").passed]
        assert len(passing) == passed
    assert gate_best(data, judge, threshold=1.5, least=2)[1] == 1.5


GOOD = json.dumps(dict.fromkeys(DIMENSIONS, 4.5))


def test_exact_a_recorded_model_is_a_judge(data):
    asked = []

    def ask(images, text):
        asked.append((images, text))
        return f"Sharp, fluent, steady, the same.\n{GOOD}" if len(asked) > 1 else "I cannot tell."

    judge = Asked(ask, "Recorded-7B")
    found = gate(data, judge)
    assert (found.passed, found.fresh, len(asked)) == (0, 3, 4)  # 4.5 is not above 4.5
    images, text = asked[0]
    assert text == PROMPT.format(rate=2)
    assert [image.dtype for image in images] == [np.uint8] * 3
    said = data.said(data.items()[0], "gate")["recorded-7b"]
    assert said["scores"] == json.loads(GOOD)
    assert said["about"]["model"] == "Recorded-7B"
    assert isinstance(judge.about, Mapping)
    assert gate(data, judge, threshold=4.4).passed == 3
    assert len(asked) == 4  # not asked again


def test_key_frames_go_by_the_rate_of_the_clip(data):
    """exact: two a second and the last, whatever the rate."""
    shown = []
    judge = Asked(lambda images, text: shown.append(images) or GOOD, "a")
    evidence = evidence_of(data, data.items()[0])
    assert evidence.fps == 12
    rising = np.repeat(np.arange(24, dtype=np.uint8)[:, None, None, None], 3, -1)
    rising = np.broadcast_to(rising, (24, 48, 64, 3))
    for fps in (12.0, 24.0):
        judge(replace(evidence, source=rising, fps=fps))
        assert_array_equal(shown[-1][1], key_frames("driving clip", rising, fps))
    assert shown[0][1].shape != shown[1][1].shape  # five pictures, and three


@pytest.mark.parametrize(
    "answer",
    [GOOD, f"because ...\n{GOOD}\n", f"```json\n{GOOD}\n```"],
)
def test_exact_scores_in_an_answer(answer):
    assert parse_scores(answer) == Scores(4.5, 4.5, 4.5, 4.5)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("5 5 5 5", "want one JSON object"),
        (f"{GOOD} or rather {GOOD}", "want one JSON object"),
        (f"{GOOD} I am sure", "want one JSON object"),
        ('{"imaging_quality": 4}', "want imaging_quality"),
        (GOOD[:-1] + ', "more": 4}', "want imaging_quality"),
        (GOOD.replace("4.5", "0.5", 1), "want 1 to 5"),
        (GOOD.replace("4.5", '"5"', 1), "want a number"),
        (GOOD.replace("4.5", "true", 1), "want a number"),
        (GOOD.replace("4.5", "NaN", 1), "want 1 to 5"),
        (GOOD[:-1] + ', "imaging_quality": 1}', "given twice"),
        ("{broken}", "no JSON"),
    ],
)
def test_refuses_answers_without_clear_scores(answer, why):
    with pytest.raises(AnswerError, match=why):
        parse_scores(answer)


def test_refuses_scales_of_another_kind(tmp_path):
    path = tmp_path / "gate.json"
    for text in ("", "{}", '{"scales": {"blur": [1]}}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match="no scales of a gate"):
            load_scales(path)
    path.write_text('{"scales": {"blur": [0, 1]}}')
    with pytest.raises(ConfigError, match="scales are missing"):
        load_scales(path)


def rows(kind, values, error, count=10):
    errors = {**dict.fromkeys(LIMITS, 0.0), "picture": error * LIMITS["picture"]}
    spread = np.linspace(0, 0.1, count)
    return [
        Row("validation", k, kind, 1, dict.fromkeys(SHOWN_BY, values + d), errors)
        for k, d in enumerate(spread)
    ]


def test_exact_3_lies_between_good_and_bad():
    kinds = {kind for group in SHOWN_BY.values() for kind in group}
    planted = rows("clean", 0.0, 0.1) + [r for k in kinds for r in rows(k, 2.0, 3.0)]
    scales = fit_scales(planted)
    for scale in scales.values():
        assert scale.good == pytest.approx(0.095)
        assert scale.score(1.05) == pytest.approx(3)  # halfway from 0.1 to 2
    judge = Measured(scales)
    marks = [judge.scores(Faults(**r.faults)).average for r in planted]
    found = count_found([m <= 4.5 for m in marks], [r.bad for r in planted])
    assert (found.precision, found.recall) == (1, 1)


def test_exact_calibration_of_a_small_pack(tmp_path, monkeypatch, capsys):
    try:
        Renderer(load_cast(cli.world.MINI)).context  # noqa: B018 - opens it
    except AssetError as fault:
        pytest.skip(str(fault))
    words = ["--cast", str(cli.world.MINI), "--out", str(tmp_path / "out")]
    small = ["count=2", "clean=2", "size=64", "nano=false"]

    def run(*settings):
        monkeypatch.setattr(
            sys, "argv", ["dreamactor", "bootstrap", "calibrate", *words, *settings]
        )
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, capsys.readouterr()

    assert run(*small)[0] == 0
    out = tmp_path / "out"
    scales = load_scales(out / "gate.json")
    table = (out / "report.md").read_text()
    assert "| clean | 4 | " in table
    assert table.count("\n| blur") == 3
    lines = (out / "results.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 2 * 4
    (out / "results.jsonl").write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:50])  # torn
    monkeypatch.setattr(calibrate, "draw", lambda *given: None)
    assert run(*small)[0] == 0
    assert load_scales(out / "gate.json") == scales
    assert (out / "report.md").read_text() == table
    code, said = run("count=3", *small[1:])
    assert code == 2
    assert said.err.count("\n") == 1
    assert "name another folder" in said.err
    with pytest.raises(ConfigError, match="count=1: want 2 or more"):
        CalibrateConfig(count=1)
