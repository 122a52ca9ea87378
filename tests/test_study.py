"""A study with people: its plan, what raters may not know, what is kept, what is reported."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student
from study_folder import SCENARIOS, SYSTEMS, paper_plan, study_inputs

from dreamactor import cli
from dreamactor.bench.study import make
from dreamactor.bench.study.answers import Answer, Said, open_book, read_answers
from dreamactor.bench.study.design import StudyConfig, choose_cases, share_out
from dreamactor.bench.study.make import make_study
from dreamactor.bench.study.plan import DIMENSIONS, load_plan
from dreamactor.bench.study.report import report_study
from dreamactor.bench.study.scores import (
    alpha_interval,
    draw,
    edges,
    freedom,
    mean_interval,
    spread,
)
from dreamactor.bench.study.simulate import People, answer_study, coverage, expected
from dreamactor.bench.study.tally import check_raters, tally
from dreamactor.errors import ConfigError, MediaError
from dreamactor.image import read_image
from dreamactor.video import iter_frames

RATED = {"imaging": 4, "motion": 3, "appearance": 5}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return study_inputs(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def made(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "study"
    return make_study(*inputs, out, StudyConfig(gsb="ours", raters=3, cases=5))


@pytest.fixture
def study(made, tmp_path):
    """A copy whose answers are one's own."""
    for name in ("plan.json", "consent.txt"):
        (tmp_path / name).write_bytes((made.root / name).read_bytes())
    (tmp_path / "media").symlink_to(made.root / "media")
    return load_plan(tmp_path)


def clip(plan, name):
    return np.stack([frame for _, frame in iter_frames(plan.root / "media" / name)])


# the plan


def test_exact_cases_are_balanced_over_scenarios():
    scenarios = {f"{s}/{k}": s for s, n in zip(SCENARIOS, (9, 4, 1), strict=True) for k in range(n)}
    chosen = choose_cases(scenarios, 7, seed=0)
    assert Counter(map(scenarios.get, chosen)) == dict(zip(SCENARIOS, (3, 3, 1), strict=True))
    assert choose_cases(scenarios, 5, seed=0) == chosen[:5]
    assert choose_cases(scenarios, 7, seed=1) != chosen
    assert sorted(choose_cases(scenarios, 100, seed=0)) == sorted(scenarios)


def test_exact_cases_are_shared_out_evenly():
    scenarios = {f"{k}": SCENARIOS[k % 3] for k in range(12)}
    shares = share_out(scenarios, raters=7, per_rater=5, seed=0)
    seen = Counter(name for own in shares for name in own)
    assert set(seen.values()) == {2, 3}  # 35 places for 12 cases
    for own in shares:
        assert len(set(own)) == 5
        assert max(Counter(scenarios[name] for name in own).values()) <= 3
    assert share_out(scenarios, 3, 5, seed=0) == shares[:3]  # a rater more changes nothing


def test_exact_everybody_rates_every_clip_once_and_checks(tmp_path):
    plan = paper_plan(tmp_path, cases=12, raters=4)
    ids = [item.id for rater in plan.raters for item in rater.items]
    assert len(set(ids)) == len(ids)
    for rater in plan.raters:
        rated = [i for i in rater.items if i.kind == "rate"]
        real = [i for i in rated if i.check is None]
        assert Counter((i.case, i.systems) for i in real) == {
            (case, (system,)): 1 for case in plan.scenarios for system in SYSTEMS
        }
        for k in range(3):  # rounds: every case once, every system as often
            part = real[12 * k : 12 * k + 12]
            assert {i.case for i in part} == set(plan.scenarios)
            assert set(Counter(i.systems for i in part).values()) == {4}
        assert all(a.case != b.case for a, b in pairwise(real))
        # 36 ratings: 2 repeats, 2 spoilt clips; 24 pairs: 3 that are identical
        assert Counter(i.check for i in rater.items if i.check) == {
            "repeat": 2, "noise": 1, "frozen": 1, "identical": 3,
        }  # fmt: skip
        places = {item.id: k for k, item in enumerate(rated)}
        for item in rated:
            if item.check == "repeat":
                assert rater.by_id[item.of].shown == item.shown
                assert places[item.id] - places[item.of] >= len(real) // 3
        assert [i.kind for i in rater.items] == ["rate"] * 40 + ["pair"] * 27
    orders = [[(i.case, i.systems) for i in r.items if i.kind == "rate"] for r in plan.raters]
    assert all(a != b for k, a in enumerate(orders) for b in orders[:k])
    assert paper_plan(tmp_path, 12, 2).raters == plan.raters[:2]
    assert paper_plan(tmp_path, 12, 4, seed=1).raters != plan.raters


def test_exact_sides_are_balanced(tmp_path):
    for cases in (11, 12):
        plan = paper_plan(tmp_path, cases=cases, raters=4)
        for rater in plan.raters:
            real = [i for i in rater.items if i.kind == "pair" and i.check is None]
            assert len(real) == 2 * cases
            for other in ("rivalone", "rivaltwo"):
                left = [i.systems[0] == "ours" for i in real if other in i.systems]
                assert sum(left) in (cases // 2, cases - cases // 2)
        left = [i.systems[0] == "ours" for r in plan.raters for i in r.items
                if i.kind == "pair" and i.check is None]  # fmt: skip
        assert sum(left) * 2 == len(left)


def test_exact_no_checks_and_no_pairs(tmp_path):
    plan = paper_plan(tmp_path, checks=0)
    assert not [i for r in plan.raters for i in r.items if i.check]
    for settings, why in [
        ({"checks": 0.6}, "checks=0.6: want 0 to 0.5"),
        ({"raters": 0}, "raters=0"),
        ({"per_rater": 0}, "per_rater=0"),
    ]:
        with pytest.raises(ConfigError, match=why):
            StudyConfig(**settings)


# what raters may not know


def test_exact_nothing_shown_names_a_system(made):
    words = [*SYSTEMS, *SCENARIOS, "noise", "frozen", "twin", "repeat", "check"]
    public = json.dumps([i.public() for r in made.raters for i in r.items])
    names = [path.name for path in (made.root / "media").iterdir()]
    for word in words:
        assert word not in public
        assert not [name for name in names if word in name]
    for name in names:
        content = (made.root / "media" / name).read_bytes()
        assert not [word for word in SYSTEMS if word.encode() in content]
        assert b"comment" not in content
    assert set(names) == set(made.media)
    shown = {n for r in made.raters for i in r.items for n in (i.reference, i.driving, *i.shown)}
    assert shown == set(names)
    assert (made.root / "plan.json").stat().st_mode & 0o077 == 0


def test_exact_codes_and_names_cannot_be_worked_out(made, inputs, tmp_path):
    again = make_study(*inputs, tmp_path / "other", StudyConfig(gsb="ours", raters=3, cases=5))
    assert not set(again.media) & set(made.media)
    assert not set(again.by_code) & set(made.by_code)
    kinds = [[(i.kind, i.case, i.systems) for i in r.items] for r in again.raters]
    assert kinds == [[(i.kind, i.case, i.systems) for i in r.items] for r in made.raters]


def test_exact_spoilt_clips_and_twins(made):
    items = [i for i in made.raters[0].items if i.check]
    frozen = next(i for i in items if i.check == "frozen")
    assert not frozen.case.startswith("human2human")  # whose driving clip stands still
    still = clip(made, frozen.shown[0])
    assert np.abs(still[1:].astype(int) - still[0]).max() <= 4  # of coding
    twin = next(i for i in items if i.check == "identical")
    assert twin.shown[0] != twin.shown[1]
    assert np.array_equal(clip(made, twin.shown[0]), clip(made, twin.shown[1]))
    noisy = next(i for i in items if i.check == "noise")
    real = next(
        i for i in made.raters[0].items
        if (i.check, i.case, i.systems) == (None, noisy.case, noisy.systems)
    )  # fmt: skip
    error = clip(made, noisy.shown[0]).astype(float) - clip(made, real.shown[0])
    assert error.std() > 30


# making it


def test_exact_the_same_command_goes_on(inputs, tmp_path, monkeypatch):
    out, config = tmp_path / "study", StudyConfig(raters=2, cases=2, systems="ours,rivalone")
    left = [3]
    kept = make.write_clip

    def dies(*words, **more):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return kept(*words, **more)

    monkeypatch.setattr(make, "write_clip", dies)
    with pytest.raises(KeyboardInterrupt):
        make_study(*inputs, out, config)
    assert not (out / "plan.json").exists()
    with pytest.raises(ConfigError, match="no study"):
        load_plan(out)
    with pytest.raises(ConfigError, match="another cases; name another --out"):
        make_study(*inputs, out, StudyConfig(raters=2, cases=1, systems="ours,rivalone"))
    before = {p.name: p.stat().st_mtime_ns for p in (out / "media").iterdir()}
    left[0] = 1000
    plan = make_study(*inputs, out, config)
    assert (
        before.items() <= {p.name: p.stat().st_mtime_ns for p in (out / "media").iterdir()}.items()
    )
    left[0] = 0
    assert make_study(*inputs, out, config).raters == plan.raters
    assert not [p for p in out.iterdir() if p.name.startswith((".", "begun"))]
    with pytest.raises(ConfigError, match="another seed"):
        make_study(*inputs, out, StudyConfig(raters=2, cases=2, systems="ours,rivalone", seed=1))


def test_refuses_clips_that_are_not_there(inputs, tmp_path):
    suite, clips = inputs
    for config, why in [
        (StudyConfig(systems="ours,nobody"), "no system 'nobody'; there are ours, rivalone"),
        (StudyConfig(systems="ours", gsb="ours"), "gsb=ours: want one of at least two"),
        (StudyConfig(gsb="nobody"), "gsb=nobody"),
        (StudyConfig(systems="ours,ours"), "named twice"),
    ]:
        with pytest.raises(ConfigError, match=why):
            make_study(suite, clips, tmp_path / "no", config)
    with pytest.raises(ConfigError, match="no such folder"):
        make_study(suite, clips / "none", tmp_path / "no", StudyConfig())
    (tmp_path / "clips" / "ours").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"ours has no human2human_0\.mp4, for instance"):
        make_study(suite, tmp_path / "clips", tmp_path / "no", StudyConfig())
    assert not (tmp_path / "no").exists()
    for name in ("toon2toon_1", "human2human_0"):  # the others are left out
        (tmp_path / "clips" / "ours" / f"{name}.mp4").symlink_to(clips / "ours" / f"{name}.mp4")
    junk = tmp_path / "clips" / "ours" / "human2animal_0.mp4"
    whole = (clips / "ours" / junk.name).read_bytes()
    for content in (b"junk", whole[: len(whole) // 2]):
        junk.write_bytes(content)
        with pytest.raises(MediaError, match=junk.name):
            make_study(suite, tmp_path / "clips", tmp_path / "no", StudyConfig())
        assert not (tmp_path / "no").exists()
    junk.unlink()
    plan = make_study(suite, tmp_path / "clips", tmp_path / "two", StudyConfig(raters=1, side=64))
    assert set(plan.scenarios) == {"toon2toon/1", "human2human/0"}


# answers


def test_exact_answers_are_kept_and_the_last_one_counts(study):
    rater = study.raters[0]
    one, two = rater.items[:2]
    with open_book(study) as book:
        with pytest.raises(ConfigError, match="agreed to take part"):
            book.answer(rater, one.id, RATED, 3, 1)
        book.agree(rater, "x")
        book.answer(rater, one.id, RATED, 3.21, 1)
        book.answer(rater, two.id, RATED, 2, 0)
        book.answer(rater, one.id, {**RATED, "motion": 1}, 8, 2)
        for said in ({"motion": 3}, {**RATED, "motion": 6}, {**RATED, "motion": True},
                     {"choice": "a"}):  # fmt: skip
            with pytest.raises(ConfigError, match="want imaging, motion, appearance"):
                book.answer(rater, one.id, said, 1, 1)
        with pytest.raises(ConfigError, match="want choice: a, same, b"):
            book.answer(rater, rater.items[-1].id, {"choice": "c"}, 1, 1)
        with pytest.raises(MediaError, match="no item"):
            book.answer(rater, study.raters[1].items[0].id, RATED, 1, 1)
        with pytest.raises(ConfigError, match="served already"), open_book(study):
            pass
        held = book.said
    assert read_answers(study) == held
    assert held.of(rater)[one.id].said == {**RATED, "motion": 1}
    assert (held.of(rater)[one.id].seconds, held.of(rater)[one.id].plays) == (8, 2)
    assert len(study.answers.read_text().splitlines()) == 4


def test_exact_a_torn_line_is_cut_and_a_damaged_one_refused(study):
    rater = study.raters[0]
    with open_book(study) as book:
        book.agree(rater, "x")
        book.answer(rater, rater.items[0].id, RATED, 1, 1)
    whole = study.answers.read_bytes()
    study.answers.write_bytes(whole + whole[:40])
    assert len(read_answers(study).of(rater)) == 1
    with open_book(study) as book:
        book.answer(rater, rater.items[1].id, RATED, 1, 1)
    assert len(read_answers(study).of(rater)) == 2
    study.answers.write_bytes(whole[:40] + b"\n" + whole)
    with pytest.raises(ConfigError, match=r"answers\.jsonl:1: no answer of this study"):
        read_answers(study)


SERVER = """
import sys
from pathlib import Path
from dreamactor.bench.study.server import serve
serve(Path(sys.argv[1]), "127.0.0.1", 0, lambda line: print(line, flush=True))
"""


def test_exact_answers_outlive_kill_9(study):
    pytest.importorskip("fastapi")
    import http.client

    rater = study.raters[0]
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(study.root)], stdout=subprocess.PIPE, text=True
    )
    try:
        link = server.stdout.readline().split()[0]
        assert link.endswith(f"/r/{rater.code}")
        host = http.client.HTTPConnection(link.split("/")[2], timeout=20)
        told = {"Content-Type": "application/json"}
        body = json.dumps({"answer": RATED, "seconds": 2.5, "plays": 1})
        answer = f"/api/{rater.code}/answers/{rater.items[0].id}"
        for path, content in ((f"/api/{rater.code}/consent", "{}"), (answer, body)):
            host.request("PUT", path, content, told)
            reply = host.getresponse()
            assert (reply.status, reply.read()[:1]) == (200, b"{")
    finally:
        os.kill(server.pid, signal.SIGKILL)
        server.wait(10)
        server.stdout.close()
    with open_book(study) as book:  # and another one goes on
        assert book.said.of(rater)[rater.items[0].id].said == RATED
        book.answer(rater, rater.items[1].id, RATED, 1, 1)
    assert list(read_answers(study).of(rater)) == [i.id for i in rater.items[:2]]


# statistics


def test_exact_intervals_by_hand():
    cells = np.array([[1.0, 3, 5], [1, 3, np.nan]])
    draws = draw(2, 3, seed=0)
    assert (draws.raters.sum(1) == 2).all()
    assert (draws.cases.sum(1) == 3).all()
    both = mean_interval(cells, draws, "both")
    weights = draws.raters[:, :, None] * draws.cases[:, None, :]  # (B, R, C), slowly
    known = ~np.isnan(cells)
    sums = (weights * np.where(known, cells, 0)).sum((1, 2)), (weights * known).sum((1, 2))
    means = sums[0][sums[1] > 0] / sums[1][sums[1] > 0]
    assert (both.mean, both.clips) == (13 / 5, 3)
    # raters' means 3 and 2, cases' 1, 3, 5: variances of their means 1/4 and 4/3
    free = (1 / 4 + 4 / 3) ** 2 / ((1 / 4) ** 2 + (4 / 3) ** 2 / 2)
    assert freedom(cells) == pytest.approx(free)
    assert (both.low, both.high) == tuple(np.quantile(means, edges(free)))
    told = spread(cells)
    assert (told.mean, told.raters) == (2.5, 2)
    assert told.std == pytest.approx(math.sqrt(0.5))
    alone = mean_interval(cells[:1], draw(1, 3), "both")
    assert alone.mean == 3
    assert math.isnan(alone.low)
    assert mean_interval(cells[:1], draw(1, 3), "cases").low < 3
    assert math.isnan(mean_interval(np.full((2, 3), np.nan), draws, "both").mean)


def test_same_percentiles_as_by_student():
    assert edges(math.inf) == (0.025, 0.975)
    for free in (5, 11, 29.5, 99):
        t = student.ppf(0.975, free)
        wanted = norm.cdf(-math.sqrt((free + 1) / free) * t)
        assert edges(free) == pytest.approx((wanted, 1 - wanted), abs=2e-4)
    assert freedom(np.full((3, 4), 2.0)) == math.inf


def test_exact_expected_scores():
    assert expected(3, 1e-6) == pytest.approx(3)
    assert expected(1.49, 1e-6) == pytest.approx(1)
    felt = np.random.default_rng(0).normal(3.7, 0.9, 1_000_000)
    assert expected(3.7, 0.9) == pytest.approx(np.clip(np.round(felt), 1, 5).mean(), abs=4e-3)


def test_exact_intervals_hold_the_truth():
    """300 studies of 12 people: 95 % of the intervals hold it, +-2.5 standard errors."""
    found = coverage(People(), raters=12, cases=40, runs=300, resamples=500)
    assert 0.918 <= found.both <= 0.985
    assert 0.918 <= found.cases <= 0.982
    assert 0.918 <= found.lead <= 1  # mildly conservative
    assert found.cases_of_all < 0.9  # what these raters say is not what people say


def test_exact_alpha_of_random_raters_is_nothing():
    rng = np.random.default_rng(3)
    ratings = rng.integers(1, 6, (12, 60, 3)).astype(float)
    for level in ("ordinal", "interval"):
        found = alpha_interval(ratings, np.arange(1.0, 6), draw(12, 60), level)
        assert abs(found.mean) < 0.02
        assert found.low < found.mean < found.high
    agreed = np.repeat(ratings[:1], 12, axis=0)
    found = alpha_interval(agreed, np.arange(1.0, 6), draw(12, 60), "ordinal")
    assert (found.mean, found.low, found.high) == (1, 1, 1)


def test_exact_checks_tell_careless_raters_from_careful_ones(tmp_path):
    plan = paper_plan(tmp_path, cases=30, raters=30)
    careless = set(range(1, 16))
    said = answer_study(plan, (4.0, 3.6, 3.2), People(), careless)
    out = {row.rater for row in check_raters(plan, said) if row.why}
    assert len(out & careless) >= 14
    assert len(out - careless) <= 1
    found = tally(plan, said, sorted(set(range(1, 31)) - careless))
    means = np.nanmean(found.scores, (0, 1, 3))
    assert (np.diff(means) < -0.2).all()  # as they were meant
    assert np.nanmean(found.pairs[..., 1]) > np.nanmean(found.pairs[..., 0]) > 0.1


# the report


def answered(plan, scores, choice, careless=()):
    """Everybody scores a system the same way, and passes the checks; the careless do not."""
    answers = {}
    for rater in plan.raters:
        own = answers[rater.number] = {}
        for item in rater.items:
            if item.kind == "rate":
                low = item.check in ("noise", "frozen") and rater.number not in careless
                score = 1 if low else scores(rater.number, item.systems[0])
                said = dict.fromkeys(DIMENSIONS, score)
            else:
                same = item.check and rater.number not in careless
                said = {"choice": "same" if same else choice(item)}
            own[item.id] = Answer(said, 4.0, 2, "2026-01-01T00:00:00+00:00")
    return Said({r.number: "" for r in plan.raters}, answers)


def keep(plan, said):
    lines = [
        {"rater": number, "item": item, "answer": dict(answer.said),
         "seconds": answer.seconds, "plays": answer.plays, "time": answer.time}
        for number, own in said.answers.items()
        for item, answer in own.items()
    ]  # fmt: skip
    plan.answers.write_text("".join(json.dumps(line) + "\n" for line in lines))


def ours_unless_two(item):
    """Ours beats rivalone always; against rivaltwo it is the same in human2human, else worse."""
    if "rivalone" in item.systems:
        return ("a", "b")[item.systems.index("ours")]
    if item.case.startswith("human2human") or "ours" not in item.systems:
        return "same"
    return ("b", "a")[item.systems.index("ours")]


def test_exact_report_of_known_answers(study, tmp_path):
    pytest.importorskip("matplotlib")
    # rater 1 gives ours 5, rater 2 gives 4; rater 3 rates everything 5, spoilt clips too
    worth = {"ours": 0, "rivalone": 1, "rivaltwo": 2}
    said = answered(
        study,
        lambda number, system: 5 if number == 3 else 6 - number - worth[system],
        lambda item: "a" if item.check else ours_unless_two(item),
        careless={3},
    )
    keep(study, said)
    out = report_study(study.root, tmp_path / "told.md")
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["counted"] == 2
    assert [row["why"] for row in told["raters"]] == [None, None, "failed 3 of 3 checks"]
    ours = told["ratings"]["ours"]["motion"]
    assert (ours["mean"], ours["std"], ours["answers"]) == (4.5, pytest.approx(math.sqrt(0.5)), 10)
    assert [ours["over_cases"][k] for k in ("low", "high")] == [4.5, 4.5]  # all cases are alike
    assert [ours["over_both"][k] for k in ("low", "high")] == [4, 5]  # the two raters are not
    gap = told["differences"]["rivaltwo"]["motion"]
    assert (gap["mean"], gap["low"], gap["high"]) == (2, 2, 2)
    assert [told["pairs"]["rivalone"][k]["mean"] for k in ("good", "same", "bad")] == [1, 0, 0]
    same = sum(name.startswith("human2human") for name in study.scenarios) / 5
    two = told["pairs"]["rivaltwo"]
    assert [two[k]["mean"] for k in ("good", "same", "bad")] == pytest.approx([0, same, 1 - same])
    assert two["lead_over_both"]["mean"] == pytest.approx(same - 1)
    assert two["lead_over_both"]["low"] < same - 1 < two["lead_over_both"]["high"]
    assert told["alpha"]["pairs"]["ordinal"]["mean"] == 1
    assert told["repeats"]["motion"] == {"count": 2, "same": 1, "near": 1, "apart": 0}

    text = out.read_text()
    assert "**Left out: 1**: rater 3 (failed 3 of 3 checks)" in text
    assert "| ours | 10 | 4.50 ± 0.71 | 4.50 ± 0.71 | 4.50 ± 0.71 |" in text
    assert "| rivaltwo | +2.00 [+2.00, +2.00] |" in text
    rows = list(csv.DictReader((tmp_path / "told.csv").open()))
    assert len(rows) == sum(len(r.items) for r in study.raters)
    first = rows[0]
    item = study.raters[0].items[0]
    assert (first["case"], first["system"], first["counts"]) == (item.case, item.systems[0], "1")
    assert {row["counts"] for row in rows if row["rater"] == "3"} == {"0"}
    assert read_image(tmp_path / "told.png").std() > 10
    again = (out.read_text(), (tmp_path / "told.json").read_text())
    report_study(study.root, out)
    assert again == (out.read_text(), (tmp_path / "told.json").read_text())


def test_refuses_reports_of_nothing(study):
    with pytest.raises(ConfigError, match="nobody has answered yet"):
        report_study(study.root)
    said = answered(study, lambda *_: 5, lambda item: "a", careless={1, 2, 3})
    keep(study, said)
    with pytest.raises(ConfigError, match=r"no rater's answers count: 1 failed 3 of 3 checks; 2"):
        report_study(study.root)
    with pytest.raises(ConfigError, match="--without 7: want a rater, 1 to 3"):
        report_study(study.root, without=[7])
    with pytest.raises(ConfigError, match=r"want one of \.md"):
        report_study(study.root, study.root / "told.txt")


def test_exact_reasons_to_leave_a_rater_out(study):
    said = answered(study, lambda *_: 4, ours_unless_two)
    few = dict(list(said.answers[1].items())[: len(said.answers[1]) // 2 - 1])
    again = next(i for i in study.raters[1].items if i.check == "repeat")
    jumpy = {**said.answers[2]}
    jumpy[again.id] = Answer(dict.fromkeys(DIMENSIONS, 1), 4.0, 2, "")
    checked = check_raters(study, Said({}, {1: few, 2: jumpy, 3: said.answers[3]}))
    assert checked[0].why == f"answered {len(few)} of {len(study.raters[0].items)} items"
    assert checked[1].why == "repeated ratings 3.00 points apart"
    assert checked[2].why is None
    assert [row.rater for row in check_raters(study, said, without=[2])] == [1, 3]


@pytest.mark.parametrize("cases", [5, 12, 30])
def test_exact_who_always_presses_the_middle_is_left_out(tmp_path, cases):
    plan = paper_plan(tmp_path, cases=cases, raters=1)
    said = answered(plan, lambda *_: 3, lambda item: "same", careless={1})
    assert check_raters(plan, said)[0].why.startswith("failed")


def test_exact_commands(inputs, tmp_path, monkeypatch, capsys):
    kept = signal.getsignal(signal.SIGTERM)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["dreamactor", "study", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    suite, clips = inputs
    out = tmp_path / "study"
    words = ("make", "--suite", suite, "--clips", clips, "--out", out)
    try:
        assert run(*words, "cases=2", "raters=1", "systems=ours,rivalone", "gsb=ours") == (
            0,
            f"{out}: 2 cases of 2 scenarios, 2 systems, 1 raters with 7 ratings and 3 pairs each, "
            "checks among them\n",
            "",
        )
        code, _, why = run("report", out)
        assert (code, why) == (
            2,
            f"error: {out}: nobody has answered yet; `study serve` prints their links\n",
        )
        assert run(*words, "case=2")[0] == 2
        assert run("serve", tmp_path)[2].startswith(f"error: {tmp_path}: no study")
    finally:
        signal.signal(signal.SIGTERM, kept)
