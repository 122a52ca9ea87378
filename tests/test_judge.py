"""The judge asks what it should about what it should, guesses nothing, and is judged itself."""

import json
import re
import shutil
import sys
from dataclasses import replace

import numpy as np
import oracle
import pytest
from numpy.testing import assert_array_equal
from suites import BLUE, FPS, RED, moving, square, tiny_suite

from dreamactor import cli, mllm
from dreamactor.bench.calibration import KINDS, LEVELS, Bare, CalibrateConfig, calibrate, tasks_of
from dreamactor.bench.calibration_report import find_verdicts, report
from dreamactor.bench.judge import JudgeConfig, judge_suite
from dreamactor.bench.judge_report import case_means, load_calibration, spread
from dreamactor.bench.judges import ByMeasure, ByModel, Said
from dreamactor.bench.judging import Answer, Scene, Task, read_answers
from dreamactor.bench.manifest import load_suite
from dreamactor.bench.questions import (
    LOOKS,
    Cost,
    Footage,
    Question,
    Shown,
    Style,
    draw_pool,
    estimate,
    picture_tokens,
    prompt_digest,
    questions_of,
)
from dreamactor.bench.results import find_clips, missing_clips
from dreamactor.bench.scores import DIMENSIONS, key_frames
from dreamactor.errors import AnswerError, ConfigError
from dreamactor.video import write_clip

KEY = "sk-very-secret-123"
SYSTEMS = {"alpha-anim": RED, "beta-anim": BLUE, "gamma-anim": (40, 180, 60)}
CASES = ("human2human_0", "human2animal_0")
SMALL = JudgeConfig(repeats=2, dimensions="imaging_quality,motion_smoothness")


def score_in(text, points):
    """An answer to a question, in the form that it asks for."""
    return f'As asked.\n{{"{text.rsplit(chr(34), 2)[1]}": {points}}}'


class Scripted:
    """Answers by a function of the question's number and words; keeps what it was shown."""

    name = "scripted-1"

    def __init__(self, answer=lambda n, text: score_in(text, 4)):
        self.answer, self.asked = answer, []

    def ask(self, images, text):
        self.asked.append((images, text))
        return self.answer(len(self.asked), text)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A suite, and the clips of three systems."""
    root = tmp_path_factory.mktemp("judge")
    tiny_suite(root / "suite")
    for system, colour in SYSTEMS.items():
        (root / "clips" / system).mkdir(parents=True)
        for case in CASES:
            write_clip(root / "clips" / system / f"{case}.mp4", moving(colour), FPS)
    return root


@pytest.fixture
def judge(made, tmp_path):
    """Runs the judge over the clips, by default into one folder."""

    def run(config=SMALL, client=None, clips=made / "clips", **given):
        return judge_suite(made / "suite", clips, tmp_path / "out", config, client, **given)

    run.out = tmp_path / "out"
    return run


# ---- what is asked -----------------------------------------------------------------------------


def test_exact_the_pool_is_drawn_by_its_key():
    names = ["a", "b", "c", "d", "e"]
    pool = draw_pool(names, "b", 3, 7, "x/0", 0)
    assert pool == draw_pool(names[::-1], "b", 3, 7, "x/0", 0)
    assert len(pool) == len(set(pool)) == 3
    assert "b" not in pool
    full = draw_pool(names, "", 5, 7, "x/0", 0)
    for judged in names:  # one order for all systems of a case
        assert draw_pool(names, judged, 3, 7, "x/0", 0) == [n for n in full if n != judged][:3]
    others = [
        draw_pool(names, "", 5, *key) for key in ((8, "x/0", 0), (7, "x/1", 0), (7, "x/0", 1))
    ]
    assert all(sorted(other) == names for other in others)
    assert any(other != full for other in others)
    assert draw_pool(["a"], "a", 3, 0, "x", 0) == []


def flat(level, frames=25, size=(40, 60)):
    return Footage(np.full((frames, *size, 3), level, np.uint8), 12.0)


@pytest.mark.parametrize("dimension", LOOKS)
def test_exact_each_question_shows_what_its_dimension_needs(dimension):
    """Key frames of 25 at 12 a second: 0, 6, 12, 18, 24; the pool is two pictures."""
    rising = Footage(flat(0).frames + np.arange(25, dtype=np.uint8)[:, None, None, None], 12.0)
    pool = [np.full((40, 60, 3), level, np.uint8) for level in (201, 202)]
    shown = Shown(np.full((40, 60, 3), 99, np.uint8), flat(150), rising, pool)
    asked = questions_of(dimension, shown, Style())
    look, images = LOOKS[dimension], list(asked.images)
    if look.reference:
        assert_array_equal(images.pop(0), shown.reference)
    if look.driving:
        assert_array_equal(images.pop(0), key_frames("driving clip", shown.driving.frames, 12.0))
    assert [image[0, 0, 0] for image in images[:2]] == [201, 202]
    if look.rows:
        sheet = key_frames("clip to be rated", rising.frames, 12.0)
        assert_array_equal(images[2], sheet)
        assert len(images) == 3
    else:
        assert [image[0, 0, 0] for image in images[2:]] == [0, 6, 12, 18, 24]
    assert "$" not in asked.text
    assert asked.text.endswith(f'{{"{dimension}": x}}')
    assert f"to {len(asked.images)}:" in asked.text or f"picture {len(asked.images)}:" in asked.text
    assert len(re.findall(r"^[1-5]: ", asked.text, re.MULTILINE)) == 5
    alone = questions_of(dimension, replace(shown, pool=()), Style())
    assert len(alone.images) == len(asked.images) - 2
    assert "examples" not in alone.text


def test_exact_large_pictures_are_shrunk_and_frames_go_by_the_rate():
    shown = Shown(flat(9).frames[0], flat(1), flat(2, frames=13, size=(600, 300)))
    images = questions_of("imaging_quality", shown, Style(per_second=4, side=200)).images
    assert [image.shape for image in images] == [(200, 100, 3)] * 5


def test_exact_tokens_of_pictures():
    """The examples that the host publishes for its tiles."""
    assert picture_tokens(1024, 1024, "tiles") == 765
    assert picture_tokens(4096, 2048, "tiles") == 1105
    assert picture_tokens(512, 512, "tiles") == 255
    assert picture_tokens(1000, 750, "pixels") == 1000
    assert Cost(1, 2, 3_000_000, 500_000).money(2.5, 10) == 12.5


@pytest.mark.parametrize("chain", [False, True])
def test_same_estimate_as_what_is_asked_and_no_names(judge, chain):
    """same: every picture that the estimate counts is sent; nobody's name or place is told."""
    config = replace(SMALL, repeats=1, chain=chain, price_in=2.0, price_out=8.0)
    client = Scripted(lambda n, text: "x" * 600 if "JSON" not in text else score_in(text, 3))
    told = judge(config, client, dry_run=True)
    assert not client.asked
    assert not judge.out.exists()
    judge(config, client)
    spent = Cost()
    for images, text in client.asked:
        spent += estimate(Question(tuple(images), text), "tiles")
        assert not [word for word in (*SYSTEMS, "human2", "clips/", "/tmp") if word in text]
    assert told == f"scripted-1: {config.told(spent)}"
    answers = read_answers(judge.out / "answers.jsonl")
    assert len(answers) == 2 * 3 * 2
    assert {len(a.answers) for a in answers} == {4 if chain else 1}
    if chain:
        assert "Notes that were taken before:\nxxx" in client.asked[3][1]
        assert client.asked[1][0] == ()  # who asks sees nothing


# ---- what is kept ------------------------------------------------------------------------------


def test_exact_answers_scores_and_report(judge):
    points = {"alpha-anim": 4.5, "beta-anim": 3, "gamma-anim": 3}
    order = [(c, s, d, r) for c in ("human2human/0", "human2animal/0") for s in points
             for d in SMALL.asked_for() for r in (0, 1)]  # fmt: skip
    client = Scripted(lambda n, text: score_in(text, points[order[n - 1][1]] + order[n - 1][3] / 2))
    assert judge(SMALL, client) == str(judge.out / "report.md")
    answers = read_answers(judge.out / "answers.jsonl")
    assert [a.key for a in answers] == order
    assert answers[0].answers == ['As asked.\n{"imaging_quality": 4.5}']
    assert answers[0].request == mllm.request_id(*client.asked[0])
    assert sorted(answers[0].pool) == ["beta-anim", "gamma-anim"]
    rows = [json.loads(line) for line in (judge.out / "scores.jsonl").read_text().splitlines()]
    assert rows[0]["score"] == 4.75
    assert rows[0]["repeats"] == [4.5, 5]
    assert rows[0]["prompt"] == prompt_digest("imaging_quality")
    assert rows[0]["pools"] == [answers[0].pool, answers[1].pool]
    text = (judge.out / "report.md").read_text()
    assert "| alpha-anim | 4.75 [4.75, 4.75] | 4.75 [4.75, 4.75] |" in text
    assert "| alpha-anim - beta-anim | 1.50 [1.50, 1.50] * | 1.50 [1.50, 1.50] * |" in text
    assert "| beta-anim - gamma-anim | 0.00 [0.00, 0.00] | 0.00" in text
    assert "| *between repeats* | ± 0.35 | ± 0.35 |" in text
    assert "scripted-1" in text
    assert "has not been calibrated here" in text


def test_exact_what_holds_no_score_is_asked_again_and_then_unjudged(judge):
    mute = Scripted(lambda n, text: f"Rather good. {n}" if n < 4 else score_in(text, 4))
    judge(SMALL, mute)
    answers = read_answers(judge.out / "answers.jsonl")
    assert answers[0].score is None
    assert answers[0].answers == ["Rather good. 1", "Rather good. 2"]
    assert "want one JSON object" in answers[0].why
    assert (answers[1].score, len(answers[1].answers)) == (4, 2)
    assert "1 of 24 answers held no score" in (judge.out / "report.md").read_text()
    count = len(mute.asked)
    judge(SMALL, mute)
    assert len(mute.asked) == count  # for good


def test_same_scores_after_a_stop_and_a_torn_line(judge, tmp_path):
    def until(last):
        def answer(n, text):
            if n == last:
                raise KeyboardInterrupt
            return score_in(text, 1 + len(text) % 5)

        return Scripted(answer)

    with pytest.raises(KeyboardInterrupt):
        judge(SMALL, until(9))
    path = judge.out / "answers.jsonl"
    assert len(read_answers(path)) == 8
    with path.open("a") as file:
        file.write('{"case": "human2hum')
    rest = until(0)
    judge(SMALL, rest)
    assert len(rest.asked) == 24 - 8
    first = [(a.key, a.score, a.pool) for a in read_answers(path)]
    shutil.rmtree(judge.out)
    judge(SMALL, until(0))
    assert first == [(a.key, a.score, a.pool) for a in read_answers(path)]


def test_exact_silence_is_asked_again_and_three_times_stops(judge):
    def silent(*numbers):
        def answer(n, text):
            if n in numbers:
                raise AnswerError("scripted-1: no connection")
            return score_in(text, 4)

        return Scripted(answer)

    with pytest.raises(AnswerError, match="1 of 24 questions got no answer"):
        judge(SMALL, silent(3))
    last = silent()
    judge(SMALL, last)
    assert len(last.asked) == 1
    shutil.rmtree(judge.out)
    stopping = silent(5, 6, 7)
    with pytest.raises(AnswerError, match="no answer to 3 questions in a row"):
        judge(SMALL, stopping)
    assert len(stopping.asked) == 7
    assert len(read_answers(judge.out / "answers.jsonl")) == 4


def test_refuses_to_mix(judge, made, tmp_path):
    judge(SMALL, Scripted())
    with pytest.raises(ConfigError, match="begun with another pool, seed; repeat that command"):
        judge(replace(SMALL, pool=1, seed=3), Scripted())
    renamed = Scripted()
    renamed.name = "another"
    with pytest.raises(ConfigError, match="begun with another judge"):
        judge(SMALL, renamed)
    other = tmp_path / "clips"
    shutil.copytree(made / "clips", other)
    write_clip(other / "beta-anim" / f"{CASES[0]}.mp4", moving(RED), FPS, overwrite=True)
    with pytest.raises(ConfigError, match="begun with another clips"):
        judge(SMALL, Scripted(), other)
    judge(replace(SMALL, price_in=1.0, price_out=1.0), Scripted())  # no score depends on it


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"dimensions": "beauty"}, "dimensions=beauty: want some of imaging_quality"),
        ({"judge": "measured", "dimensions": "motion_following"}, "judge=measured: want some of"),
        ({"repeats": 0}, "repeats=0: want 1"),
        ({"per_second": 0.0}, "per_second=0.0: want more than 0"),
        ({"price_in": 1.0}, "want both, or neither"),
    ],
)
def test_refuses_settings(words, why):
    with pytest.raises(ConfigError, match=why):
        JudgeConfig(**words)


def test_refuses_clips_that_are_not_there(judge, made, tmp_path):
    with pytest.raises(ConfigError, match="no system named 'alpa-anim', nearest is 'alpha-anim'"):
        judge(replace(SMALL, systems="alpa-anim"), Scripted())
    with pytest.raises(ConfigError, match="no such folder"):
        judge(SMALL, Scripted(), made / "nothing")
    (tmp_path / "mine" / "delta").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"no clip of tiny; want such as SYSTEM/human2human_0"):
        judge(SMALL, Scripted(), tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"DREAMACTOR_MLLM_URL and .* name no model"):
        judge(SMALL)
    assert judge(SMALL, dry_run=True).startswith("unnamed: 24 questions")
    with pytest.raises(ConfigError, match="cases=5: tiny has 2 cases"):
        judge(replace(SMALL, cases=5), Scripted())
    suite = load_suite(made / "suite")
    write_clip(tmp_path / "mine" / "delta" / f"{CASES[0]}.webm", moving(RED), FPS)
    found = find_clips(suite, tmp_path / "mine")
    assert missing_clips(found, suite.by_name) == {"delta": ["human2animal/0"]}
    write_clip(tmp_path / "mine" / "delta" / f"{CASES[0]}.mp4", moving(RED), FPS)
    with pytest.raises(ConfigError, match="is a clip of the same case"):
        find_clips(suite, tmp_path / "mine")


# ---- numbers -----------------------------------------------------------------------------------


def answer(case, system, score, repeat=0, dimension="imaging_quality"):
    return Answer(case, system, dimension, repeat, [], score)


def test_exact_repeats_are_averaged_within_a_case_first():
    """Case a is asked three times, b once: both weigh the same."""
    said = [*(answer("a", "s", x, k) for k, x in enumerate((1, 2, None, 3))), answer("b", "s", 5)]
    means = case_means(said)
    assert means == {("imaging_quality", "s"): {"a": 2.0, "b": 5.0}}
    assert spread(said, "imaging_quality") == 1.0  # of 1, 2, 3
    assert np.isnan(spread(said[-1:], "imaging_quality"))


OWNERS = {
    k.system(level): (k.name, k.dimension, level)
    for k in KINDS
    for level in range(1, LEVELS + 1)
    if k.dimension == "imaging_quality"
}


def judged(points, cases=6, noise=None):
    """Answers of a judge who gives a clip of a level so many points; others under noise."""
    levels = {"clean": ("", 0)} | {s: (kind, level) for s, (kind, _, level) in OWNERS.items()}
    rows = [(f"c{c}", s, kind, level) for c in range(cases) for s, (kind, level) in levels.items()]
    return [answer(case, system, (noise if noise and kind == "noise" else points)(level))
            for case, system, kind, level in rows]  # fmt: skip


@pytest.mark.parametrize(
    ("points", "cases", "found", "order", "trusted"),
    [
        (lambda level: 5 - level, 6, 1.0, 1.0, True),
        (lambda level: 5 - level, 5, 1.0, 1.0, False),  # too few to say
        (lambda level: 3, 6, 0.0, 0.0, False),
        (lambda level: 1 + level, 6, 0.0, -1.0, False),
        (lambda level: 5 - max(0, level - 1), 6, 0.75, 1.0, False),  # blind to the weakest
        (lambda level: 1 if level else 5, 6, 1.0, 0.0, False),  # finds all, grades none
        (lambda level: 5 - [0, 2, 1, 4, 3][level], 6, 1.0, 0.6, True),
        (lambda level: 5 - [0, 2, 1, 3, 1][level], 6, 1.0, -0.211, False),
        (lambda level: None if level == 4 else 5 - level, 6, 1.0, 1.0, True),
        (lambda level: None if level > 2 else 5 - level, 6, 1.0, np.nan, False),
    ],
)
def test_exact_verdicts(points, cases, found, order, trusted):
    answers = judged(points, cases)
    said = find_verdicts(answers, OWNERS, "clean", ["imaging_quality"])["imaging_quality"]
    assert said.found.mean == pytest.approx(found)
    assert [x.mean for x in said.order.values()] == pytest.approx(
        [order] * 2, abs=1e-3, nan_ok=True
    )
    assert said.trusted is trusted
    text = report({"imaging_quality": said}, answers, OWNERS, "clean",
                  {"blur": "1, 2 px", "noise": "3"}, "Made", "0")  # fmt: skip
    assert ("may be trusted |" in text) is trusted


def test_exact_one_kind_in_order_does_not_cover_for_the_other():
    """The weakest kind decides, and the report names it; so does an interval that reaches down."""
    answers = judged(lambda level: 1 if level else 5, noise=lambda level: 5 - level)
    said = find_verdicts(answers, OWNERS, "clean", ["imaging_quality"])["imaging_quality"]
    assert (said.order["noise"].low, said.order["blur"].high) == (1.0, 0.0)
    assert (said.weakest, said.trusted) == ("blur", False)
    text = report({"imaging_quality": said}, answers, OWNERS, "clean",
                  {"blur": "1 px", "noise": "3"}, "Made", "0")  # fmt: skip
    assert "| 1.00 [1.00, 1.00] | 0.00 | 0.00 [0.00, 0.00] blur |" in text
    assert "| noise: 3 | imaging quality | 5.00 | 4.00 | 3.00 | 2.00 | 1.00 | 1.00 [1.00" in text
    mixed = judged(lambda level: 5 - level, 4)
    turned = judged(lambda level: 5 - [0, 4, 3, 2, 1][level], 6)
    mixed += [a for a in turned if a.case in ("c4", "c5")]
    said = find_verdicts(mixed, OWNERS, "clean", ["imaging_quality"])["imaging_quality"]
    assert said.order["blur"].mean == pytest.approx(1 / 3)
    assert said.order["blur"].low < 0
    assert not said.trusted


def test_refuses_verdicts_by_an_older_rule(tmp_path):
    """A file of before says nothing of the order among damaged clips."""
    judge, path = ByMeasure(), tmp_path / "calibration.json"
    row = {"trusted": True, "about": dict(judge.about("imaging_quality"))}
    old = {"judge": "measured", "dimensions": {"imaging_quality": row}}
    path.write_text(json.dumps(old))
    with pytest.raises(ConfigError, match="by rule 1 of trust: want 2; the same `bench calibrate`"):
        load_calibration(path, judge)
    path.write_text(json.dumps({**old, "rule": 2}))
    assert load_calibration(path, judge) == {"imaging_quality": True}


def test_exact_drift_is_between_the_same_questions():
    said = [
        *judged(lambda level: 5 - level),
        answer("c0", "clean", 4, 1),
        answer("c1", "clean", 5, 1),
    ]
    assert find_verdicts(said, OWNERS, "clean", ["imaging_quality"])["imaging_quality"].drift == 0.5


# ---- calibration -------------------------------------------------------------------------------


def test_exact_every_strength_is_further_from_the_truth():
    rng = np.random.default_rng(0)
    grain = rng.integers(0, 256, (256, 256, 3), np.uint8)
    truth = np.stack([np.roll(grain, t, 1) for t in range(36)])
    other, everywhere = np.full((36, 256, 256, 3), 90, np.uint8), np.ones(truth.shape[:3], bool)
    for kind in KINDS:
        assert len(kind.strengths) == LEVELS
        errors = []
        for strength in kind.strengths:
            draws = np.random.default_rng(1)
            clip = kind.make(Bare(truth, other, everywhere, 12.0, draws), strength)
            assert clip.shape == truth.shape
            assert clip.dtype == np.uint8
            errors.append(np.abs(clip.astype(int) - truth).mean())
        assert errors[0] > 0, kind.name
        if kind.name in ("blur", "noise", "flicker", "drift", "recolour", "swap"):
            assert errors == sorted(set(errors)), kind.name
    by_name = {kind.name: kind for kind in KINDS}
    bare = Bare(truth, other, everywhere, 12.0, rng)
    steps = np.arange(36)[:, None, None, None].astype(np.uint8) + np.zeros((1, 8, 8, 3), np.uint8)
    moved = []
    for strength in by_name["shake"].strengths:
        draws = np.random.default_rng(1)
        clip = by_name["shake"].make(Bare(steps, other, everywhere, 12.0, draws), strength)
        moved.append(np.abs(clip[..., 0].astype(int) - steps[..., 0]).mean())
    assert moved == sorted(set(moved))
    assert_array_equal(by_name["swap"].make(bare, 1.0), other)
    assert_array_equal(by_name["slow"].make(bare, 1.0), truth[:1].repeat(36, 0))
    assert_array_equal(by_name["late"].make(bare, 0.2)[2:], truth[:34])
    assert_array_equal(by_name["stutter"].make(bare, 0.2)[:6], truth[[0, 0, 0, 3, 3, 3]])


def test_exact_a_dimension_is_asked_about_its_own_and_the_worst_of_others():
    kinds = [k for k in KINDS if k.dimension in DIMENSIONS]
    tasks = tasks_of(["a"], kinds, DIMENSIONS, 2)
    assert len(tasks) == len(set(tasks)) == 4 * (2 + 2 * 5 + 6)
    assert Task("a", "blur-1", "imaging_quality") in tasks
    assert Task("a", "blur-1", "motion_smoothness") not in tasks
    assert Task("a", "blur-4", "motion_smoothness") in tasks
    assert Task("a", "blur-4", "imaging_quality", 1) in tasks
    assert Task("a", "blur-4", "motion_smoothness", 1) not in tasks


class Knowing:
    """A judge that tells the damage by its distance to the truth."""

    name, dimensions = "knowing", DIMENSIONS

    def about(self, dimension):
        return {"prompt": "none", "per_second": 2.0, "version": "0"}

    def cost(self, dimension, shown):
        return Cost(1, 1, 1, 1)

    def judge(self, dimension, shown):
        truth = np.stack(moving(RED)).astype(float)
        error = np.abs(shown.clip.frames - truth).mean()
        return Said(float(np.clip(5 - error / 10, 1, 5)), (f"{error:.3f}",))


def test_exact_calibration_of_a_tiny_suite(made, tmp_path, monkeypatch):
    words = "imaging_quality,appearance_consistency"
    config = CalibrateConfig(cases=1, dimensions=words, pool=2)
    knowing = Knowing()
    monkeypatch.setattr(CalibrateConfig, "open_judge", lambda *given: knowing)
    out = tmp_path / "out"
    assert calibrate(made / "suite", out, config, dry_run=True).startswith("knowing: 28 questions")
    assert not out.exists()
    assert calibrate(made / "suite", out, config) == str(out / "report.md")
    found = json.loads((out / "calibration.json").read_text())
    order = found["dimensions"]["imaging_quality"]["order"]
    assert min(order[kind]["mean"] for kind in ("blur", "noise")) > 0.9
    assert found["dimensions"]["imaging_quality"]["trusted"] is False  # one case
    assert load_calibration(out / "calibration.json", knowing) == dict.fromkeys(
        words.split(","), False
    )
    assert (out / "calibration.png").stat().st_size > 10_000
    answers = read_answers(out / "answers.jsonl")
    assert len(answers) == 28
    same = [a.pool for a in answers if a.system == "clean"]
    assert all(pool == same[0] for pool in same)  # asked again: the very same question
    table = (out / "report.md").read_text()
    assert "| swap: 0.25, 0.5, 0.75, 1 of the frames | appearance consistency |" in table
    with pytest.raises(ConfigError, match="calibrates knowing by another"):
        load_calibration(out / "calibration.json", ByMeasure())
    before = (out / "answers.jsonl").read_bytes()
    calibrate(made / "suite", out, config)
    assert (out / "answers.jsonl").read_bytes() == before
    now = (out / "calibration.json").read_text()
    (out / "calibration.json").write_text(json.dumps({**found, "rule": 1}))  # of before
    calibrate(made / "suite", out, config)
    assert (out / "calibration.json").read_text() == now
    assert (out / "answers.jsonl").read_bytes() == before
    with pytest.raises(ConfigError, match="begun with another seed"):
        calibrate(made / "suite", out, replace(config, seed=1))
    with pytest.raises(ConfigError, match="tiny has 1 cases with a truth"):
        calibrate(made / "suite", out, replace(config, cases=2))


def test_exact_the_measured_judge_sees_a_frozen_clip(made):
    judge = ByMeasure()
    clip, driving = Footage(moving(RED), 12.0), Footage(moving(BLUE), 12.0)
    right = Shown(square(RED), driving, clip)
    frozen = replace(right, clip=Footage(moving(RED)[:1].repeat(6, 0), 12.0))
    good, bad = (judge.judge("motion_smoothness", shown) for shown in (right, frozen))
    assert good.score > bad.score
    assert json.loads(bad.answers[0])["stillness"] > 1
    short = replace(right, clip=Footage(moving(RED)[:4], 12.0))
    assert "source has 6 frames, result 4" in judge.judge("imaging_quality", short).why


def test_exact_the_measured_judge_needs_no_model(judge):
    config = JudgeConfig(judge="measured", repeats=1, dimensions="imaging_quality", cases=1)
    judge(config)
    answers = read_answers(judge.out / "answers.jsonl")
    assert [a.pool for a in answers] == [[]] * 3  # it looks at no examples
    assert all(1 <= a.score <= 5 for a in answers)
    text = (judge.out / "report.md").read_text()
    assert "No examples stood in the questions." in text
    assert "| imaging_quality | none: measured | - | all |" in text


def test_exact_a_dry_run_by_the_command_line_needs_nothing(made, tmp_path, monkeypatch, capsys):
    folders = ["--suite", str(made / "suite"), "--out", str(tmp_path / "out")]
    argv = ["dreamactor", "bench", "calibrate", *folders, "--dry-run", "cases=1", "judge=measured"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert (end.value.code, capsys.readouterr().out) == (0, "measured: 72 questions, no tokens\n")
    assert not (tmp_path / "out").exists()


# ---- a server, by the command line -------------------------------------------------------------


def test_exact_a_server_judges(made, tmp_path, monkeypatch, capsys):
    """A fault in between is asked again; the key and the systems' names reach nobody."""
    monkeypatch.setattr(mllm, "PAUSE", 0.01)

    def says(handler):
        text = server.bodies[-1]["messages"][0]["content"][0]["text"]
        oracle.send(handler, oracle.completion(f"{KEY} says: " + score_in(text, 3.5)))

    out = tmp_path / "out"
    words = ["repeats=1", "systems=alpha-anim,beta-anim", "dimensions=temporal_consistency"]

    def run(*more):
        folders = ["--suite", str(made / "suite"), "--clips", str(made / "clips")]
        argv = ["dreamactor", "bench", "judge", *folders, "--out", str(out), *words, *more]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, capsys.readouterr()

    with oracle.oracle(oracle.status(500), oracle.truncated, says) as server:
        for name, value in (("URL", server.url), ("MODEL", "fox-vl"), ("KEY", KEY)):
            monkeypatch.setenv(f"DREAMACTOR_MLLM_{name}", value)
        code, said = run("--dry-run")
        assert (code, len(server.bodies)) == (0, 0)
        assert said.out.startswith("fox-vl: 4 questions, 8 pictures, about 0.0")
        code, again = run()
        assert code == 0
    assert again.out == f"{said.out}{out / 'report.md'}\n"  # told before it is spent
    assert len(server.bodies) == 4 + 2
    for body in server.bodies:
        assert (body["temperature"], body["max_tokens"]) == (0, 600)
        assert not [name for name in SYSTEMS if name in json.dumps(body)]
    for path in out.iterdir():
        assert KEY not in path.read_text()
    found = read_answers(out / "answers.jsonl")
    assert [a.score for a in found] == [3.5] * 4
    assert found[0].answers[0].startswith("*** says: As asked.")
    code, said = run("seed=4")
    assert code == 2
    assert said.err.count("\n") == 1
    assert "begun with another seed" in said.err


def test_exact_a_model_keeps_what_was_said_before_silence(made):
    """A second try that gets no answer leaves the first one's words."""

    def once(n, text):
        if n > 1:
            raise AnswerError("gone")
        return "Fine."

    shown = Shown(square(RED), flat(3), flat(4))
    said = ByModel(Scripted(once)).judge("imaging_quality", shown)
    assert (said.score, said.answers, said.why) == (None, ("Fine.",), "gone")
    with pytest.raises(AnswerError):
        ByModel(Scripted(lambda n, text: once(2, text))).judge("imaging_quality", shown)


def test_exact_a_scene_with_one_system_has_no_examples(made):
    suite = load_suite(made / "suite")
    clips = find_clips(suite, made / "clips", ["alpha-anim"])
    scene = Scene(suite, clips, ByMeasure(), 3, 0, True)
    assert scene.examples(Task("human2human/0", "alpha-anim", "imaging_quality")) == []
