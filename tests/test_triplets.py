"""Only what was accepted trains, and always with its roles reversed."""

import textwrap
from pathlib import Path

import mypy.api
import pytest

from dreamactor.bench.scores import Scores
from dreamactor.bootstrap.triplets import (
    Accepted,
    Decision,
    FirstFrame,
    Forward,
    Identity,
    SourceClip,
    Synthesis,
    SyntheticClip,
    Triplet,
    Verdict,
    why_refused,
)
from dreamactor.errors import ConfigError

SOURCE = SourceClip(Path("source.mp4"), "a" * 64)
MADE = SyntheticClip(Path("clip.mp4"), "c" * 64)
SYNTHESIS = Synthesis("0" * 20, Forward(SOURCE, Identity(Path("who.png"), "b" * 64), seed=1), MADE)
GOOD = Verdict("measured", Scores(5, 4.5, 4.5, 4.5))
YES = Decision("anna", motion=True, identity=True)


def test_exact_a_triplet_is_the_synthesis_reversed():
    triplet = Triplet(Accepted(SYNTHESIS, GOOD, (YES,)))
    assert triplet.driving == MADE
    assert triplet.target == SOURCE
    assert triplet.reference == FirstFrame(SOURCE)


def test_exact_the_average_must_be_above_the_threshold():
    assert Verdict("x", Scores(4.5, 4.5, 4.5, 4.5)).passed is False
    assert Verdict("x", Scores(4.5, 4.5, 4.5, 4.51)).passed is True
    assert Verdict("x", Scores(5, 5, 5, 3.0)).passed is False


@pytest.mark.parametrize(
    ("verdict", "decisions", "why"),
    [
        (None, (YES,), "not gated yet"),
        (Verdict("x", Scores(1, 5, 5, 5)), (YES,), "average 4.00, want more than 4.5"),
        (GOOD, (), "reviewed by 0 of 1"),
        (GOOD, (YES, Decision("ben", motion=True, identity=False)), "refused by ben"),
        (GOOD, (Decision("cy", motion=False, identity=True),), "refused by cy"),
    ],
)
def test_refuses_what_was_not_accepted(verdict, decisions, why):
    assert why_refused(verdict, decisions) == why
    if verdict is not None:
        with pytest.raises(ConfigError, match=why):
            Accepted(SYNTHESIS, verdict, decisions)


def test_exact_two_reviewers_wanted():
    assert why_refused(GOOD, (YES,), reviewers=2) == "reviewed by 1 of 2"
    assert why_refused(GOOD, (YES, Decision("ben", True, True)), reviewers=2) == ""


@pytest.mark.parametrize("value", [0.99, 5.01, float("nan")])
def test_refuses_scores_outside_of_1_to_5(value):
    with pytest.raises(ConfigError, match="want 1 to 5"):
        Scores(value, 5, 5, 5)


def test_refuses_to_type_check_training_towards_a_synthesis(tmp_path, monkeypatch):
    snippet = tmp_path / "training.py"
    snippet.write_text(
        textwrap.dedent("""
        from dreamactor.bootstrap.triplets import (
            Forward, Identity, SourceClip, Synthesis, SyntheticClip, Triplet)

        def learn(driving: SyntheticClip, target: SourceClip) -> None: ...

        def right(triplet: Triplet) -> None:
            learn(triplet.driving, triplet.target)

        def wrong(triplet: Triplet, synthesis: Synthesis, who: Identity) -> None:
            learn(triplet.target, triplet.driving)  # swapped
            learn(triplet.driving, synthesis.clip)  # towards V_o
            Triplet(synthesis)  # never accepted
            Forward(synthesis.clip, who, 0)  # V_o as a source
            triplet.reference.clip = triplet.target  # frozen
        """)
    )
    alone = ["--strict", "--follow-imports=silent", "--no-site-packages", "--config-file="]
    monkeypatch.chdir(Path(__file__).parents[1])
    said, _, code = mypy.api.run([*alone, f"--cache-dir={tmp_path}", str(snippet)])
    lines = [int(line.split(":")[1]) for line in said.splitlines() if ": error:" in line]
    assert code == 1, said
    assert lines == [11, 11, 12, 13, 14, 15], said
