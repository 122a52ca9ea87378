"""Contact sheets of a suite, a scenario or camera each: reference, driving clip and truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dreamactor.bench.manifest import Suite, SuiteCase
from dreamactor.bench.settings import open_folder
from dreamactor.bench.sheets import tile
from dreamactor.image import Rgb, contact_sheet, write_png

SHOWN = 5
"""Frames of a clip."""
CASES = 6
HEIGHT = 112
"""Pixels of a frame."""
LETTERS = 90
"""Of a caption."""


def write_sheets(suite: Suite) -> None:
    """Write SUITE/sheets/SCENARIO.png of every scenario, camera-CAMERA.png of every camera."""
    folder = open_folder(suite.root / "sheets")
    groups: dict[str, list[SuiteCase]] = {}
    for case in suite.cases:
        groups.setdefault(case.scenario, []).append(case)
        if (camera := suite.media[case.driving].camera) is not None:
            groups.setdefault(f"camera-{camera}", []).append(case)
    for name, cases in groups.items():
        write_png(folder / f"{name}.png", sheet(suite, spread(cases)))


def spread(cases: Sequence[SuiteCase]) -> list[SuiteCase]:
    """Six cases, evenly from the first to the last."""
    at = np.linspace(0, len(cases) - 1, min(CASES, len(cases))).round().astype(int)
    return [cases[k] for k in at]


def sheet(suite: Suite, cases: Sequence[SuiteCase], columns: int = 2) -> Rgb:
    """Blocks of cases: the reference before the truth, above the driving clip."""
    return tile([block(suite, case) for case in cases], columns)


def block(suite: Suite, case: SuiteCase) -> Rgb:
    """One case; frames above each other show the same moment."""
    driving, _ = suite.driving(case)
    truth = suite.truth(case)
    reference = suite.reference(case)
    blank = np.full_like(reference, 255)
    above = _some(truth) if truth is not None else [blank] * SHOWN
    about = suite.media[case.truth].caption if case.truth else case.prompt or ""
    about = about if len(about) <= LETTERS else about[:LETTERS].rsplit(" ", 1)[0] + " ..."
    return contact_sheet(
        [
            (f"{case.name}: {about}" if truth is not None else f"{case.name}: no truth",
             [reference, *above]),
            ("", [blank, *_some(driving)]),
        ],
        HEIGHT,
        text_height=12,
    )  # fmt: skip


def _some(clip: NDArray[np.uint8]) -> list[Rgb]:
    return [clip[k] for k in np.linspace(0, len(clip) - 1, SHOWN).round().astype(int)]
