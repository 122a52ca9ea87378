"""What a suite covers, on each side of every axis, and a part of it that covers its scenarios."""

from __future__ import annotations

from collections import Counter

from dreamactor.bench.manifest import AXES, Media, Suite, SuiteCase
from dreamactor.bench.stats import markdown_table
from dreamactor.errors import ConfigError

ABSENT = "not said"


def choose_cases(suite: Suite, count: int, truth: bool = False) -> list[SuiteCase]:
    """The first cases of every scenario in turn, so that all have as many, in the suite's order.

    Args:
        suite: All of them.
        count: How many; 0 = all. More keep those of fewer.
        truth: Only those that have one.

    Raises:
        ConfigError: There are fewer.
    """
    known = [case for case in suite.cases if case.truth is not None or not truth]
    if count > len(known) or not known:
        what = "cases with a truth" if truth else "cases"
        raise ConfigError(f"cases={count}: {suite.name} has {len(known)} {what}")
    turns: Counter[str] = Counter()
    turn_of: dict[str, int] = {}
    for case in known:
        turn_of[case.name] = turns[case.scenario]
        turns[case.scenario] += 1
    firsts = sorted(known, key=lambda case: turn_of[case.name])  # stable: scenarios stay in order
    chosen = {case.name for case in firsts[: count or len(known)]}
    return [case for case in known if case.name in chosen]


def coverage(suite: Suite) -> str:
    """Two Markdown tables: cases by scenario, and media by axis."""
    return scenario_table(suite) + "\n" + axis_table(suite)


def scenario_table(suite: Suite) -> str:
    """Cases, truths, clips and references of every scenario."""
    rows = []
    for name in dict.fromkeys(case.scenario for case in suite.cases):
        cases = [case for case in suite.cases if case.scenario == name]
        counts = (
            len(cases),
            sum(case.truth is not None for case in cases),
            len({case.driving for case in cases}),
            len({case.reference for case in cases}),
        )
        rows.append([name, *map(str, counts)])
    totals = (
        len(suite.cases),
        sum(case.truth is not None for case in suite.cases),
        len({case.driving for case in suite.cases}),
        len({case.reference for case in suite.cases}),
    )
    rows.append(["all", *map(str, totals)])
    return markdown_table(["scenario", "cases", "with truth", "clips", "references"], rows)


def axis_table(suite: Suite) -> str:
    """Driving clips, references, and cases by both, for every value of every axis."""
    rows = []
    driven = Counter(case.driving for case in suite.cases)
    referred = Counter(case.reference for case in suite.cases)
    for axis in AXES:
        clips = _by_value(suite, axis, "driving")
        pictures = _by_value(suite, axis, "reference")
        for value in sorted(clips.keys() | pictures.keys(), key=lambda v: (v == ABSENT, v)):
            ours, theirs = clips.get(value, []), pictures.get(value, [])
            counts = (
                len(ours), len(theirs),
                sum(driven[m.name] for m in ours), sum(referred[m.name] for m in theirs),
            )  # fmt: skip
            rows.append([f"{axis}: {value}", *map(str, counts)])
    head = ["axis", "clips", "references", "cases by clip", "cases by reference"]
    return markdown_table(head, rows)


def _by_value(suite: Suite, axis: str, kind: str) -> dict[str, list[Media]]:
    """Media of a kind by what they are on an axis; a picture has no activity and no camera."""
    out: dict[str, list[Media]] = {}
    for media in suite.media.values():
        if media.kind != kind or (kind == "reference" and axis in ("activity", "camera")):
            continue
        value = getattr(media, axis)
        animal = media.subject == "animal" or media.species is not None
        if value is None and axis in ("species", "age") and (axis == "species") != animal:
            continue  # an animal has no age here, and a person no species
        out.setdefault(ABSENT if value is None else str(value), []).append(media)
    return out
