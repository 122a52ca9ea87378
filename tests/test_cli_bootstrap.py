"""`dreamactor bootstrap`: the whole way in four commands, and faults in one line."""

import json
import signal
import sys
from pathlib import Path

import pytest
import standin
from oracle import oracle
from standin import Tint

from dreamactor import cli, mllm
from dreamactor.bench.scores import DIMENSIONS
from dreamactor.bootstrap import pairs
from dreamactor.bootstrap.generators import Animator
from dreamactor.bootstrap.judge import PROMPT
from dreamactor.bootstrap.manifest import DataSet
from dreamactor.bootstrap.review import decide
from dreamactor.bootstrap.triplets import Decision
from dreamactor.provenance import sha256


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command; returns its exit code, output and errors."""
    kept = signal.getsignal(signal.SIGTERM)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["dreamactor", "bootstrap", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    yield call
    signal.signal(signal.SIGTERM, kept)


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "Animator", lambda *given: Tint())
    sources, references = standin.write_inputs(tmp_path)
    return ["pairs", "--out", tmp_path / "d", "--sources", sources, "--references", references]


def test_exact_from_clips_to_triplets(run, words, tmp_path):
    out = tmp_path / "d"
    captioned = min(p for p in words[4].iterdir())
    captioned.with_suffix(".txt").write_text("a ball rolls\n")
    assert run(*words, "per_source=2") == (0, f"{out}: 6 items, 6 of them made now\n", "")
    assert run(*words, "per_source=2")[1] == f"{out}: 6 items, 0 of them made now\n"
    code, said, _ = run("filter", "--data", out, "--threshold", 1)
    assert code == 0
    assert "of 6 items pass, 6 of them judged now" in said
    data = DataSet(out)
    passed = [item for item in data.items() if data.verdict(item, "measured").passed]
    for item in data.items():
        decide(data, item, Decision("anna", True, True), 1)
    code, said, _ = run("triplets", "--data", out)
    assert code == 0
    assert said == f"{out}/triplets.jsonl: {len(passed)} triplets of 6 items\n"
    lines = (out / "triplets.jsonl").read_text().splitlines()
    triplets = [json.loads(x) for x in lines]
    assert sorted(x["driving"].split("/")[1] for x in triplets) == passed
    own = sha256(captioned)
    assert all((x["text"] == "a ball rolls") == (own in x["target"]) for x in triplets)
    assert all(len(x["text"].split()) >= 3 for x in triplets)


def test_exact_settings_reach_the_generator(run, words, monkeypatch):
    """An adapter, what drives it and who finds the joints are settings like others."""
    seen = []
    monkeypatch.setattr(pairs, "Animator", lambda *given: seen.append(Animator(*given)) or Tint())
    posed = ["adapter=a.safetensors", "variant=pose", "pose=rtmlib", "weights=w", "steps=2"]
    assert run(*words, *posed)[0] == 0
    wanted = {"adapter": Path("a.safetensors"), "variant": "pose", "pose": "rtmlib"}
    assert seen == [Animator(weights=Path("w"), steps=2, **wanted)]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (lambda w: w[:5], "want --sources and --references together, or --cast alone"),
        (lambda w: [*w, "--cast", "x.castpack"], "or --cast alone"),
        (lambda w: [*w, "per_sorce=2"], "nearest is per_source"),
        (lambda w: [*w, "per_source=0"], "per_source=0: want 1 or more"),
        (lambda w: [*w, "variant=depth"], "want one of rgb, pose"),
        (lambda w: [*w, "pose=rtmlib"], "only variant pose looks for joints"),
        (lambda w: [*w, "per_source=9"], "want at most 2"),
        (lambda w: ["filter", "--data", w[2]], "no data set"),
        (lambda w: ["triplets", "--data", w[2]], "no data set"),
        (lambda w: ["review", "--data", w[2]], "no data set"),
    ],
)
def test_refuses_in_one_line(run, words, changes, why):
    code, _, said = run(*changes(words))
    assert code == 2
    assert said.count("\n") == 1
    assert why in said


@pytest.fixture
def named(monkeypatch):
    """Let the environment name a model behind an address."""

    def name(url, model="Tests/Judge-7B"):
        monkeypatch.setattr(mllm, "PAUSE", 0.01)
        settings = zip(mllm.VARIABLES, (url, model, "secret", "5"), strict=True)
        for variable, value in settings:
            monkeypatch.setenv(variable, value)

    return name


def scores(mark):
    return f"Sharp, fluent, steady, the same.\n{json.dumps(dict.fromkeys(DIMENSIONS, mark))}"


def test_exact_a_model_judges(run, words, tmp_path, named):
    """The model that the environment names is shown three pictures of every item, once."""
    out = tmp_path / "d"
    run(*words)
    with oracle(scores(5), scores(4.5), scores(4)) as seen:
        named(seen.url)
        told = f"{out}: 1 of 3 items pass, {{}} of them judged now by tests-judge-7b\n"
        assert run("filter", "--data", out, "--judge", "mllm") == (0, told.format(3), "")
        assert run("filter", "--data", out, "--judge", "mllm") == (0, told.format(0), "")
        assert len(seen.bodies) == 3
    for body, headers in zip(seen.bodies, seen.headers, strict=True):
        assert (body["model"], headers["Authorization"]) == ("Tests/Judge-7B", "Bearer secret")
        text, *images = body["messages"][0]["content"]
        assert text["text"] == PROMPT.format(rate=2)
        assert [image["type"] for image in images] == ["image_url"] * 3
    data = DataSet(out)
    averages = [data.said(item, "gate")["tests-judge-7b"]["average"] for item in data.items()]
    assert averages == [5, 4.5, 4]
    assert "secret" not in (out / "manifest.jsonl").read_text()
    for item in data.items():
        decide(data, item, Decision("anna", True, True), 1)
    said = run("triplets", "--data", out, "--judge", "tests-judge-7b")[1]
    assert said == f"{out}/triplets.jsonl: 1 triplets of 3 items\n"


def test_an_item_without_scores_holds_nothing_up(run, words, tmp_path, named):
    """refuses: what is no answer, in one line; the others are judged, it is asked about again."""
    out = tmp_path / "d"
    run(*words)
    with oracle("I cannot tell.", "Nor now.", scores(5)) as seen:
        named(seen.url)
        code, _, said = run("filter", "--data", out, "--judge", "mllm")
        assert (code, said.count("\n")) == (2, 1)
        assert "2 of 3 items pass, 2 of them judged now by tests-judge-7b, 1 got no scores" in said
        assert DataSet(out).items()[0] in said
        code, said, _ = run("filter", "--data", out, "--judge", "mllm")
        assert (code, said) == (0, f"{out}: 3 of 3 items pass, 1 of them judged now by "
                                "tests-judge-7b\n")  # fmt: skip


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["--judge", "mllm"], "DREAMACTOR_MLLM_URL and DREAMACTOR_MLLM_MODEL name no model"),
        (["--judge", "gpt"], "judge='gpt': want measured or mllm"),
        (["--judge", "mllm", "--scales", "gate.json"], "only the measured judge has scales"),
    ],
)
def test_refuses_a_judge_that_cannot_be(run, words, tmp_path, given, why):
    run(*words)
    code, _, said = run("filter", "--data", tmp_path / "d", *given)
    assert (code, said.count("\n")) == (2, 1)
    assert why in said


def test_refuses_a_model_with_the_name_of_the_measured_judge(run, words, tmp_path, named):
    run(*words)
    named("http://127.0.0.1:9/v1", "Measured")
    assert "want another name" in run("filter", "--data", tmp_path / "d", "--judge", "mllm")[2]


def test_refuses_to_review_what_is_not_gated(run, words, tmp_path):
    run(*words)
    code, _, said = run("review", "--data", tmp_path / "d")
    assert code == 2
    assert "run `bootstrap filter` first" in said
    code, _, said = run("review", "--data", tmp_path / "d", "--all", "--port", 99999)
    assert code == 2
    assert "cannot be listened on" in said


def test_refuses_but_keeps_what_could_be_made(run, words, tmp_path, monkeypatch):
    bad = next(iter((tmp_path / "references").iterdir()))
    refusing = Tint(refuses=pairs.sha256(bad))
    monkeypatch.setattr(pairs, "Animator", lambda *given: refusing)
    code, _, said = run(*words, "per_source=2")
    assert code == 2
    assert said.count("\n") == 1
    assert "3 of 6 items could not be made" in said
    assert "this picture is not taken" in said
    assert len(DataSet(tmp_path / "d").items()) == 3
