"""`dreamactor bootstrap`: the whole way in four commands, and faults in one line."""

import json
import signal
import sys

import pytest
import standin
from standin import Tint

from dreamactor import cli
from dreamactor.bootstrap import pairs
from dreamactor.bootstrap.manifest import DataSet
from dreamactor.bootstrap.review import decide
from dreamactor.bootstrap.triplets import Decision


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
    assert sorted(json.loads(x)["driving"].split("/")[1] for x in lines) == passed


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (lambda w: w[:5], "want --sources and --references together, or --cast alone"),
        (lambda w: [*w, "--cast", "x.castpack"], "or --cast alone"),
        (lambda w: [*w, "per_sorce=2"], "nearest is per_source"),
        (lambda w: [*w, "per_source=0"], "per_source=0: want 1 or more"),
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
