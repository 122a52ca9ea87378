"""From one number a clip to a line in docs/results.md: means, intervals, tables.

Intervals say how far the mean would move had other clips been drawn from the same source. Clips
that share a character or a motion are not independent, so true intervals are wider.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dreamactor.errors import ConfigError

RESAMPLES = 2000
EDGES = (0.025, 0.975)


@dataclass(frozen=True)
class Interval:
    """A mean over clips and where 95 % of its bootstrap resamples lie."""

    mean: float
    low: float
    high: float
    clips: int
    """Clips with a value; those with NaN (metric undefined there) are not counted."""


NONE = Interval(float("nan"), float("nan"), float("nan"), 0)
"""Of a number that no clip has."""


def bootstrap(values: Iterable[float], seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Mean over clips with a percentile-bootstrap interval.

    Args:
        values: One number a clip, any unit; NaN is dropped.
        seed: Of the resampling; the same values in the same order give the same interval.
        resamples: Times n clips are drawn from the n with replacement.

    Returns:
        The interval in the unit of `values`; all NaN for no clips, a point for one.

    Source:
        Efron and Tibshirani 1993, chapter 13.
    """
    x: NDArray[np.float64] = np.array(list(values), np.float64)
    x = x[~np.isnan(x)]
    if not len(x):
        return NONE
    draws = np.random.default_rng(seed).integers(len(x), size=(resamples, len(x)))
    means = x[draws].mean(1)  # (resamples,)
    low, high = np.quantile(means, EDGES)
    return Interval(float(x.mean()), float(low), float(high), len(x))


def paired_difference(a: Mapping[str, float], b: Mapping[str, float], seed: int = 0) -> Interval:
    """Mean of a - b over the clips that both have, with its interval.

    Two systems meet the same clips, so most of the spread between clips cancels: systems may
    differ clearly though their own intervals overlap. Clear means that 0 is outside.

    Args:
        a: Value of each clip, by its name.
        b: Like `a`.
        seed: As of `bootstrap`.

    Raises:
        ConfigError: No clip is in both.
    """
    shared = sorted(a.keys() & b.keys())
    if not shared:
        raise ConfigError(f"no clip in common: {len(a)} and {len(b)} clips, by other names")
    return bootstrap((a[name] - b[name] for name in shared), seed)


def paired_ratio(a: Mapping[str, float], b: Mapping[str, float], seed: int = 0) -> Interval:
    """Mean of a over mean of b on the clips that both have, clips drawn together.

    Args:
        a: Value of each clip, by its name.
        b: Like `a`.
        seed: As of `bootstrap`.

    Returns:
        All NaN without a clip in common.
    """
    shared = sorted(n for n in a.keys() & b.keys() if a[n] == a[n] and b[n] == b[n])
    if not shared:
        return NONE
    x = np.array([(a[name], b[name]) for name in shared], np.float64)  # (n, 2)
    draws = np.random.default_rng(seed).integers(len(x), size=(RESAMPLES, len(x)))
    means = x[draws].mean(1)  # (RESAMPLES, 2)
    low, high = np.quantile(means[:, 0] / means[:, 1], EDGES)
    mean = x.mean(0)
    return Interval(float(mean[0] / mean[1]), float(low), float(high), len(x))


def group_difference(a: Iterable[float], b: Iterable[float], seed: int = 0) -> Interval:
    """Mean of a - mean of b for two groups of different clips, each drawn by itself.

    Args:
        a: One number a clip; NaN is dropped.
        b: Like `a`.
        seed: As of `bootstrap`.

    Returns:
        All NaN if a group is empty; `clips` counts the smaller group.
    """
    rng = np.random.default_rng(seed)
    means, resampled, counts = [], [], []
    for values in (a, b):
        x: NDArray[np.float64] = np.array(list(values), np.float64)
        x = x[~np.isnan(x)]
        if not len(x):
            return NONE
        means.append(x.mean())
        counts.append(len(x))
        resampled.append(x[rng.integers(len(x), size=(RESAMPLES, len(x)))].mean(1))
    low, high = np.quantile(resampled[0] - resampled[1], EDGES)
    return Interval(float(means[0] - means[1]), float(low), float(high), min(counts))


def format_interval(
    interval: Interval, digits: int = 2, style: Literal["plus-minus", "range"] = "range"
) -> str:
    """Write an interval as "mean [low, high]" or as "mean ± half its width"; "-" for none.

    One clip has a mean and no interval.
    """
    if not interval.clips:
        return "-"
    if interval.clips == 1:
        return f"{interval.mean:.{digits}f}"
    mean, low, high = (f"{v:.{digits}f}" for v in (interval.mean, interval.low, interval.high))
    if style == "range":
        return f"{mean} [{low}, {high}]"
    return f"{mean} ± {(interval.high - interval.low) / 2:.{digits}f}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, first column left and the others right aligned, ending in a newline."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def caption(command: str, hardware: str, seed: int, clips: int) -> str:
    """How the numbers under it were made, as a line of Markdown."""
    return (
        f"Made by `{command}` on {hardware}; seed {seed}; {clips} clips; "
        f"95 % bootstrap intervals over clips ({RESAMPLES} resamples)."
    )
