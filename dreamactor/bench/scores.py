"""What a judge gives: scores of 1 to 5; how they stand in an answer; which frames it looks at.

Both judges of the package speak this: the gate of `bootstrap` asks for four scores at once, the
bench (`judge.py`) for one at a time. Frames are laid out as Video-Bench does: two a second and the
last, in rows, so that one picture is a clip.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from dreamactor.errors import AnswerError, ConfigError
from dreamactor.image import Rgb, contact_sheet

LOWEST, HIGHEST = 1.0, 5.0
PER_SECOND = 2.0
"""Key frames, as in Video-Bench."""
ROW, HEIGHT = 8, 192
"""Key frames in a row, and pixels of their height."""


@final
@dataclass(frozen=True)
class Scores:
    """The paper's four dimensions; each 1 (worst) to 5 (best)."""

    imaging_quality: float
    motion_smoothness: float
    temporal_consistency: float
    appearance_consistency: float

    def __post_init__(self) -> None:
        for name, value in self.plain().items():
            check_score(name, value)

    def plain(self) -> dict[str, float]:
        """By name."""
        return {f.name: float(getattr(self, f.name)) for f in fields(self)}

    @property
    def average(self) -> float:
        """Mean of the four."""
        return sum(self.plain().values()) / len(DIMENSIONS)


DIMENSIONS = tuple(f.name for f in fields(Scores))
"""Names of the four scores."""


def check_score(name: str, value: float) -> float:
    """The value, unless it is out of range.

    Raises:
        ConfigError: It is, or it is NaN.
    """
    if not LOWEST <= value <= HIGHEST:  # NaN too
        raise ConfigError(f"score {name}={value}: want {LOWEST:.0f} to {HIGHEST:.0f}")
    return value


def parse_scores(answer: str) -> Scores:
    """The four scores in an answer; see `parse_numbers`."""
    return Scores(**parse_numbers(answer, DIMENSIONS))


def parse_numbers(answer: str, names: Sequence[str]) -> dict[str, float]:
    """The scores in an answer: one JSON object, at its end, with exactly the names wanted.

    Raises:
        AnswerError: Anything else: guessing at scores would judge by accident.
    """
    shown = json.dumps(answer[-120:])
    text = re.sub(r"\s*```\s*$", "", answer.strip())
    found = re.findall(r"\{[^{}]*\}", text)
    if len(found) != 1 or not text.endswith(found[0]):
        raise AnswerError(f"answer ends in {shown}: want one JSON object at the end, no other")
    try:
        values = json.loads(found[0], object_pairs_hook=_unique)
    except ValueError as error:
        raise AnswerError(f"answer ends in {shown}: no JSON: {error}") from error
    if sorted(values) != sorted(names):
        raise AnswerError(f"scores for {sorted(values)}: want {', '.join(names)}")
    bad = [
        name for name, x in values.items() if isinstance(x, bool) or not isinstance(x, int | float)
    ]
    if bad:
        raise AnswerError(f"score {bad[0]}={values[bad[0]]!r}: want a number")
    try:
        return {name: check_score(name, values[name]) for name in names}
    except ConfigError as error:
        raise AnswerError(str(error)) from error


def key_indices(frames: int, fps: float, per_second: float = PER_SECOND) -> list[int]:
    """Which of so many frames are shown: so many a second, and the last one."""
    count = int((frames - 1) / fps * per_second) + 1
    wanted = (round(k * fps / per_second) for k in range(count))
    return sorted({*(min(k, frames - 1) for k in wanted), frames - 1})


def key_frames(
    label: str, clip: NDArray[np.uint8], fps: float, per_second: float = PER_SECOND
) -> Rgb:
    """Key frames of a clip (T, H, W, 3) in rows of `ROW`, the label above."""
    frames = [clip[k] for k in key_indices(len(clip), fps, per_second)]
    rows = [frames[k : k + ROW] for k in range(0, len(frames), ROW)]
    return contact_sheet([(label if not k else "", row) for k, row in enumerate(rows)], HEIGHT)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError("a score is given twice")
    return dict(pairs)
