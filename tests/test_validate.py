"""`bench validate` names every fault of a suite, and passes a sound one."""

from __future__ import annotations

import re
import signal
import sys
from dataclasses import replace

import pytest
from suites import BLUE, FPS, FRAMES, RED, moving, tiny_suite

from dreamactor import cli
from dreamactor.bench.coverage import choose_cases, coverage
from dreamactor.bench.manifest import (
    SuiteCase,
    Truth,
    digest_of,
    read_arrays,
    write_arrays,
)
from dreamactor.bench.validate import faults_of
from dreamactor.errors import ConfigError
from dreamactor.provenance import sha256
from dreamactor.video import write_clip


@pytest.fixture
def suite(tmp_path):
    return tiny_suite(tmp_path / "suite")


def signed(suite):
    """The suite, its rows brought up to date with its files."""
    media = {}
    for name, row in suite.media.items():
        arrays = None if row.arrays is None else sha256(suite.root / row.arrays)
        media[name] = replace(row, sha256=sha256(suite.path(name)), arrays_sha256=arrays)
    return replace(suite, media=media)


def test_exact_no_fault_in_a_sound_suite(suite):
    assert list(faults_of(suite)) == []


def test_exact_faults_of_files(suite):
    suite.path("red").unlink()
    suite.path("fox").write_bytes(b"no picture")
    with suite.path("blue").open("ab") as file:
        file.write(b"more")
    faults = list(faults_of(suite))
    assert any(f.startswith("red: ") and f.endswith("no such file") for f in faults)
    assert any(f.startswith("fox: ") and "sha256 is" in f for f in faults)
    assert any(f.startswith("fox: ") and "damaged" in f for f in faults)
    assert any(f.startswith("blue: ") and "sha256 is" in f for f in faults)


def test_exact_faults_of_clips_and_copies(suite):
    write_clip(suite.path("blue"), moving(BLUE)[:4], 24, overwrite=True)
    suite.path("fox").write_bytes(suite.path("red").read_bytes())
    faults = list(faults_of(signed(suite)))
    assert faults == [
        "fox: the same file as red",
        f"human2human/0: truth has {FRAMES} frames, driving clip 4",
        f"human2human/0: truth has {FPS} frames/s, driving clip 24",
    ]
    write_clip(suite.path("blue"), moving(RED), FPS, overwrite=True, crf=20)
    faults = list(faults_of(signed(suite)))
    assert faults[-1] == (
        "human2human/0: its driving clip shows its truth: a system need only copy it"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: replace(t, mask=t.mask[1:]), r"mask is \(5, 64, 64\), want \(6, 64, 64\)"),
        (lambda t: replace(t, mask=3 * t.mask), "mask shows 3 subjects, want 1"),
        (lambda t: replace(t, mask=0 * t.mask), "nobody in the mask"),
        (lambda t: replace(t, flow=t.flow[1:]), r"flow is \(4, 64, 64, 2\), want"),
        (lambda t: replace(t, joints={}), r"joints of \[\], want 1 to 1"),
        (
            lambda t: replace(
                t, joints={1: (("head",), 40 * t.joints[1][1], t.mask[:, :1, 0] > 9)}
            ),
            "far outside",
        ),
        (
            lambda t: replace(t, joints={1: (("head",), -0.2 * t.joints[1][1], t.joints[1][2])}),
            "is seen outside",
        ),
        (
            lambda t: replace(t, joints={1: (("head",), t.joints[1][1][1:], t.joints[1][2])}),
            r"joints of subject 1 are \(5, 1, 2\), want \(6, 1, 2\)",
        ),
    ],
)
def test_exact_faults_of_arrays(suite, change, message):
    path = suite.root / suite.media["red-truth"].arrays
    truth: Truth = read_arrays(path)
    write_arrays(path, change(truth))
    faults = list(faults_of(signed(suite)))
    assert len(faults) == 1
    assert re.search(message, faults[0])


@pytest.mark.parametrize(
    ("scenario", "changes", "faults"),
    [
        ("human2human", {"red": {"subject": "animal"}, "red-truth": {"subject": "animal"}},
         ["red has subject=animal, want human"]),
        ("human2toon", {}, ["red has subject=human, want cartoon"]),
        ("toon2toon", {}, [f"{name} has subject=human, want cartoon" for name in ("blue", "red")]),
        ("human2human", {"blue": {"subjects": 2}}, ["blue has subjects=2, want 1"]),
        ("half2full", {}, ["blue has region=full, want upper"]),
        ("half2full", {"blue": {"region": "upper"}, "red": {"region": "face"}},
         ["red has region=face, want full"]),
        ("half2full", {"blue": {"region": "upper"}}, []),
        ("one2many", {}, ["red has subjects=1, want several"]),
        ("many2many", {}, [f"{name} has subjects=1, want several" for name in ("blue", "red")]),
        ("many2many", {"blue": {"subjects": 3}, "red": {"subjects": 2}},
         ["red has subjects=2, driving clip 3", "red-truth has subjects=1, reference 2"]),
        ("human2human", {"red-truth": {"subject": "object"}},
         ["red-truth has subject=object, reference human"]),
        ("animal2animal", {
            "blue": {"subject": "animal"}, "red": {"subject": "animal", "species": "fox"},
            "red-truth": {"subject": "animal", "species": "goat"},
        }, ["red-truth has species=goat, reference fox"]),
    ],
)  # fmt: skip
def test_exact_faults_of_scenarios(suite, scenario, changes, faults):
    media = suite.media | {n: replace(suite.media[n], **more) for n, more in changes.items()}
    case = replace(suite.cases[0], scenario=scenario)
    found = faults_of(replace(suite, media=media, cases=[case]))
    assert [f for f in found if f.startswith(case.name)] == [f"{case.name}: {f}" for f in faults]


def test_exact_media_without_licence_or_case(suite):
    media = suite.media | {"red": replace(suite.media["red"], licence=" ")}
    cases = [case for case in suite.cases if case.scenario == "human2human"]
    faults = list(faults_of(replace(suite, media=media, cases=cases)))
    assert faults == ["red: no licence", "fox: in no case"]


def test_exact_coverage_counts(suite):
    more = SuiteCase("human2human/1", "human2human", "fox", "blue")
    table = coverage(replace(suite, cases=[*suite.cases, more]))
    assert "| human2human | 2 | 1 | 1 | 2 |" in table
    assert "| all | 3 | 1 | 1 | 2 |" in table
    assert "| species: fox | 0 | 1 | 0 | 2 |" in table
    assert "| activity: travel | 1 | 0 | 3 | 0 |" in table


def test_exact_cases_are_chosen_from_all_scenarios_in_turn(suite):
    humans = [
        SuiteCase(f"human2human/{k}", "human2human", "red", "blue", "red-truth") for k in range(4)
    ]
    foxes = [SuiteCase(f"human2animal/{k}", "human2animal", "fox", "blue") for k in range(2)]
    suite = replace(suite, cases=[*humans, *foxes])

    def chosen(count, truth=False):
        return [case.name.replace("human2", "") for case in choose_cases(suite, count, truth)]

    assert chosen(1) == ["human/0"]
    assert chosen(3) == ["human/0", "human/1", "animal/0"]
    assert chosen(5) == ["human/0", "human/1", "human/2", "animal/0", "animal/1"]
    assert len(chosen(0)) == len(chosen(6)) == 6
    assert chosen(2, truth=True) == ["human/0", "human/1"]
    for count, truth, there in ((7, False, "6 cases"), (5, True, "4 cases with a truth")):
        with pytest.raises(ConfigError, match=f"cases={count}: tiny has {there}$"):
            choose_cases(suite, count, truth)
    with pytest.raises(ConfigError, match="cases=0: tiny has 0 cases with a truth"):
        choose_cases(replace(suite, cases=foxes), 0, truth=True)


def test_exact_command_prints_all_faults_and_fails(suite, monkeypatch, capsys):
    kept = signal.getsignal(signal.SIGTERM)

    def call() -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dreamactor", "bench", "validate", str(suite.root)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), *capsys.readouterr()

    code, said, _ = call()
    assert code == 0
    assert f"no fault; sha256 of the manifest {digest_of(suite.root)}" in said
    suite.path("red").unlink()
    suite.path("blue").unlink()
    code, said, fault = call()
    assert code == 2
    assert said.count("no such file") == 2
    assert "2 faults, listed above" in fault
    signal.signal(signal.SIGTERM, kept)
