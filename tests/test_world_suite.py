"""AW Bench World: the same bytes whenever it is built, covering what it says, all held out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import dreamactor
from dreamactor.bench.manifest import Suite, digest_of, load_suite
from dreamactor.bench.validate import faults_of
from dreamactor.bench.world_plan import CASES, PLAN, SHARES, age_of_member, sets
from dreamactor.bench.world_suite import SetMaker, Source, WorldSuiteConfig, build_suite
from dreamactor.errors import AssetError, ConfigError
from dreamactor.provenance import processor
from dreamactor.world.cast import Cast, load_cast
from dreamactor.world.render import Renderer

DATA = Path(dreamactor.__file__).parent / "data"
MINI = DATA / "mini.castpack"
TINY = WorldSuiteConfig(sets=8, cases=1, size=48, length=0.25, seed=2)


@cache
def cast() -> Cast:
    return load_cast(MINI)


@pytest.fixture(scope="module")
def driver() -> str:
    try:
        return Renderer(cast()).driver
    except AssetError as fault:
        pytest.skip(str(fault))


@pytest.fixture(scope="module")
def suite(tmp_path_factory, driver) -> Suite:
    """One case of each scenario."""
    out = tmp_path_factory.mktemp("aw") / "suite"
    build_suite(MINI, out, TINY, say=lambda line: None)
    return load_suite(out)


def test_exact_plan_of_the_whole_suite():
    """100 clips, 200 references, 300 cases, enough of each scenario for an interval."""
    whole = list(sets(50))
    assert {name: sum(s == name for s, _ in whole) for name in SHARES} == SHARES
    assert all(len(CASES) * count >= 24 for count in SHARES.values())
    assert all(SHARES[name] == len(PLAN[name]) for name in SHARES)
    assert (2 * len(whole), 4 * len(whole), len(CASES) * len(whole)) == (100, 200, 300)
    for count in (8, 13, 30):  # a smaller suite is the beginning of a larger one
        assert list(sets(count)) == whole[:count]
    assert {name for name, _ in sets(8)} == SHARES.keys()
    assert {reference for _, reference in CASES} == {0, 1, 2, 3}
    slots = [slot for plan in PLAN.values() for slot in plan]
    assert {slot.region for slot in slots} == {"full", "upper", "face"}
    assert {slot.camera for slot in slots} == {"static", "orbit", "follow", "cross"}
    ages = {age_of_member("human2human", n, m) for n in range(10) for m in range(6)}
    assert ages == {"child", "young", "elderly"}


def test_exact_rows_say_what_was_drawn(suite):
    assert [case.scenario for case in suite.cases] == list(SHARES)
    assert not list(faults_of(suite))
    for case in suite.cases:
        driving, reference = suite.media[case.driving], suite.media[case.reference]
        truth = None if case.truth is None else suite.media[case.truth]
        assert (truth is None) == (case.scenario == "human2animal")
        kinds = (driving.subject, reference.subject)
        assert kinds == {
            "human2toon": ("human", "cartoon"), "toon2toon": ("cartoon", "cartoon"),
            "animal2animal": ("animal", "animal"), "human2animal": ("human", "animal"),
        }.get(case.scenario, ("human", "human"))  # fmt: skip
        if case.scenario == "half2full":
            assert (driving.region, reference.region, truth.region) == ("upper", "full", "full")
        many = {"one2many": (1, 2), "many2many": (2, 2)}.get(case.scenario, (1, 1))
        assert (driving.subjects, reference.subjects) == many
        assert case.prompt
        clip, info = suite.driving(case)
        assert (info.fps, clip.shape[1:3]) == (12, (48, 48))
        if truth is not None:
            assert suite.truth(case).shape == clip.shape
            arrays = suite.arrays(case)
            assert sorted(arrays.joints) == list(range(1, reference.subjects + 1))
            assert truth.about["motions"] == driving.about["motions"]
            assert not set(truth.about["looks"]) & set(driving.about["looks"])


def test_exact_everybody_and_everything_is_held_out(suite):
    for media in suite.media.values():
        assert {cast().looks[name].split for name in media.about["looks"]} == {"test"}
        assert {cast().motions[name].split for name in media.about["motions"]} == {"test"}


def test_same_bytes_whoever_draws(suite, tmp_path):
    """unchanged by: worker processes, another folder, and a build that was stopped half-way."""
    again = tmp_path / "again"
    shutil.copytree(suite.root, again)
    names = sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    gone = [n for n in names if n.match("*toon*") or n.match("*many*") or n.suffix == ".jsonl"]
    kept = {n: (again / n).stat().st_mtime_ns for n in names if n.parts[0] == "media"}
    for name in gone:
        (again / name).unlink()
    config = WorldSuiteConfig(sets=8, cases=1, size=48, length=0.25, seed=2, processes=1)
    digest = build_suite(MINI, again, config, say=lambda line: None)
    assert digest == digest_of(suite.root)
    for name in names:
        assert (again / name).read_bytes() == (suite.root / name).read_bytes(), name
    for name in kept.keys() - set(gone):  # what was there was not drawn again
        assert (again / name).stat().st_mtime_ns == kept[name]


def test_same_cases_in_a_smaller_suite(suite, tmp_path):
    config = WorldSuiteConfig(sets=2, cases=1, size=48, length=0.25, seed=2, arrays=False)
    build_suite(MINI, tmp_path / "small", config, say=lambda line: None)
    small = load_suite(tmp_path / "small")
    assert list(small.cases) == list(suite.cases[:2])
    for name, media in small.media.items():
        assert media.sha256 == suite.media[name].sha256
        assert media.arrays is None


def test_refuses_a_folder_of_another_suite(suite, tmp_path):
    with pytest.raises(ConfigError, match="a suite of another seed, size"):
        build_suite(MINI, suite.root, WorldSuiteConfig(sets=8, cases=1, length=0.25))
    (tmp_path / "suite.json").write_text("{}")
    with pytest.raises(ConfigError, match="not drawn here"):
        build_suite(MINI, tmp_path, TINY)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sets": 0}, "sets=0: want 1"),
        ({"length": float("nan")}, "length=nan: want 0.2 or more"),
        ({"length": float("inf")}, "length=inf: want a finite number"),
        ({"cases": 7}, "cases=7: a set has 6"),
        ({"size": 65}, "size=65: want an even number, such as 66"),
    ],
)
def test_refuses_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        WorldSuiteConfig(**settings)


def test_golden_suite_that_ships_is_what_its_command_draws(tmp_path):
    """Two of its sets, drawn again: the same but for the last bits, in which drivers and processors
    differ (llvmpipe on an Intel Xeon and on an AMD EPYC, too)."""
    shipped = load_suite(DATA / "suite_mini")
    assert not list(faults_of(shipped))
    assert {case.scenario for case in shipped.cases} == SHARES.keys()
    config = WorldSuiteConfig(**shipped.about["settings"])
    assert shipped.about["cast"] == cast().digest
    for kind in ("driving", "reference", "truth"):
        (tmp_path / "media" / kind).mkdir(parents=True)
    maker = SetMaker(Source(MINI, tmp_path, config))
    for scenario in ("half2full", "many2many"):
        made = maker.make(scenario, 0)
        for media in made.media:
            ours = shipped.media[media.name]
            hashes = {"sha256": ours.sha256, "arrays_sha256": ours.arrays_sha256}
            assert replace(media, **hashes) == ours
        for case in made.cases:
            assert case == shipped.case(case.name)
            mine = Suite(tmp_path, "", "", "", {m.name: m for m in made.media}, [case])
            apart = mine.truth(case).astype(float) - shipped.truth(case)
            assert 10 * np.log10(255**2 / max(np.square(apart).mean(), 1e-9)) > 40
            found, known = mine.arrays(case), shipped.arrays(case)
            assert found.joints.keys() == known.joints.keys()
            for subject, (names, places, visible) in found.joints.items():
                others, expected, seen = known.joints[subject]
                assert names == others
                np.testing.assert_allclose(places, expected, atol=0.01)
                assert (visible == seen).mean() > 0.99
            assert (found.mask == known.mask).mean() > 0.999


def test_exact_suite_records_how_it_was_made(suite):
    about = json.loads((suite.root / "suite.json").read_text())["about"]
    assert about["cast"] == cast().digest
    assert about["settings"]["seed"] == 2
    assert "processes" not in about["settings"]
    assert about["processor"] == processor()
    cameras = {"camera-static", "camera-tracked"}
    assert {p.stem for p in (suite.root / "sheets").glob("*.png")} == SHARES.keys() | cameras
