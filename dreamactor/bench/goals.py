"""What the numbers were meant to reach, and by how much they do or do not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dreamactor.bench import stats
from dreamactor.bench.evaluate import Record
from dreamactor.bench.report import values
from dreamactor.bench.stats import Interval

CLASSICAL = ("copy", "driving", "flow warp")
"""Systems without learning; the best of them by ST-LPIPS is the one to beat."""


@dataclass(frozen=True)
class Goal:
    """A number that was aimed at. What counts is the mean; the interval says how sure it is."""

    name: str
    over: str
    """Which clips it is taken over."""
    measured: Interval
    low: float = -math.inf
    """The least that passes."""
    high: float = math.inf
    """The most that passes."""
    unit: str = ""

    @property
    def wanted(self) -> str:
        """The bounds in words."""
        if math.isinf(self.high):
            return f"at least {self.low:g}{self.unit}"
        if math.isinf(self.low):
            return f"at most {self.high:g}{self.unit}"
        return f"{self.low:g} to {self.high:g}{self.unit}"

    @property
    def room(self) -> float:
        """How far the mean is inside the bounds; negative outside, NaN if not measured."""
        return min(self.measured.mean - self.low, self.high - self.measured.mean)

    @property
    def verdict(self) -> str:
        """Pass or miss, and by how much."""
        if math.isnan(self.room):
            return "not measured"
        word = "pass" if self.room >= 0 else "miss"
        return f"{word} by {abs(self.room):.2f}{self.unit}"


def motion_goals(records: Sequence[Record], system: str, seed: int = 0) -> list[Goal]:
    """Goals of motion transfer, all on the subject's box.

    Args:
        records: Of one results file, `CLASSICAL` systems among them.
        system: The one that is judged, at its default steps.
        seed: Of the bootstrap.
    """

    def human(name: str, metric: str) -> dict[str, float]:
        return values(records, name, metric, domain="human")

    def psnr(**groups: str) -> Iterable[float]:
        return values(records, system, "psnr", **groups).values()

    felt = {name: stats.bootstrap(human(name, "lpips").values()) for name in CLASSICAL}
    best = min(CLASSICAL, key=lambda name: (math.isnan(felt[name].mean), felt[name].mean))
    ratio = stats.paired_ratio
    gain = stats.NONE
    if human(system, "psnr").keys() & human("copy", "psnr").keys():
        gain = stats.paired_difference(human(system, "psnr"), human("copy", "psnr"), seed)
    closeness = ratio(human(system, "lpips"), human(best, "lpips"), seed)
    error = ratio(human(system, "flow_epe"), human("copy", "flow_epe"), seed)
    sharpness = stats.bootstrap(human(system, "sharpness_ratio").values(), seed)
    level = stats.bootstrap(human(system, "psnr").values(), seed)
    animals = stats.group_difference(psnr(domain="animal"), psnr(domain="human"), seed)
    toons = stats.group_difference(psnr(style="toon"), psnr(style="textured"), seed)
    against = f"ST-LPIPS over that of the best classical one, {best}"
    return [
        Goal("PSNR above the copy of the reference", "humans", gain, low=6, unit=" dB"),
        Goal("PSNR", "humans", level, low=22, unit=" dB"),
        Goal(against, "humans", closeness, high=0.5),
        Goal("motion error over that of the copy", "humans", error, high=0.5),
        Goal("sharpness over the truth's", "humans", sharpness, low=0.85, high=1.15),
        Goal("PSNR of animals minus that of humans", "all", animals, low=-1.5, unit=" dB"),
        Goal("PSNR of toon minus that of textured", "all", toons, low=-1, unit=" dB"),
    ]


def reconstruction_goals(
    records: Sequence[Record], system: str, samples: Mapping[str, float], seed: int = 0
) -> list[Goal]:
    """Goals of the autoencoder.

    Args:
        records: Of one results file.
        system: The autoencoder's name there.
        samples: PSNR in dB of each photograph and film, by its name.
        seed: Of the bootstrap.
    """
    level = stats.bootstrap(values(records, system, "psnr").values(), seed)
    goals = [Goal("PSNR on the subject's box", "test clips", level, low=33, unit=" dB")]
    for name, psnr in samples.items():
        goals.append(
            Goal("PSNR, whole frame", name, Interval(psnr, psnr, psnr, 1), low=28, unit=" dB")
        )
    if not samples:
        goals.append(Goal("PSNR of photographs and films", "-", stats.NONE, low=28, unit=" dB"))
    return goals


def goals_table(goals: Iterable[Goal]) -> str:
    """Markdown table of goals."""
    rows = []
    for g in goals:
        measured = stats.format_interval(g.measured)
        rows.append([g.name, g.over, g.wanted, measured, g.verdict])
    return stats.markdown_table(["goal", "over", "wanted", "measured", "verdict"], rows)
