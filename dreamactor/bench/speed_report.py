"""From the rows of `bench speed` to its table, its goals and its plot."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreamactor.backbones.catalogue import GIB
from dreamactor.bench.goals import Goal, goals_table
from dreamactor.bench.stats import NONE, Interval, markdown_table
from dreamactor.bench.ways import ANIMATE, ANIMATE_2, FLOOR, Way
from dreamactor.errors import ConfigError
from dreamactor.image import atomic

GOAL = ("wan-14b", "832x480x81", "one-way-aligned", 106.0)
"""Shape, size, the cached way that is judged, and the most that its step may cost, in percent of
the floor's. By counting one-way needs 145 %, and is shown in the table alone."""
CLIPS = ((ANIMATE_2, 75.0), (ANIMATE, 100.0))
"""Rivals, and the most that a clip in the way that is judged may take, in percent of theirs."""
CONSTANT = 105.0
"""The most that the slowest of a clip's segments may take, in percent of the quickest."""
OVER_ONE_SAYS = (
    "How many times quicker than one process, measured in another run on the same machine; the "
    "cache is each process's own."
)
COMPILED_BY_WAY = f"compiled where a way says so, and {ANIMATE_2} on a GPU"
OVER_ONE = {2: 1.8, 4: 3.3}
"""How many times quicker a clip in the way that is judged is to be, by number of processes."""
DISTILLED = 10
"""Steps of Wan-Animate-2's distilled weights, without guidance (diffusers' defaults)."""
BOUNDS = {"float32": 1e-4, "bfloat16": 2e-2}
"""Of the kernels' errors, for values about 1."""


@dataclass(frozen=True)
class Row:
    """One way at one size."""

    size: str
    way: str
    session: int
    """Which beginning of the run; only rows of one are compared."""
    seconds: list[float] = field(default_factory=list)
    """Of a step, turn by turn."""
    once: list[float] = field(default_factory=list)
    """Of what is done once a segment, likewise; none if nothing is."""
    flops: int = 0
    """Operations of a step."""
    flops_once: int = 0
    peak: int = 0
    """Most bytes of the GPU's memory, weights included; 0 on the CPU."""
    cache_foreseen: int = 0
    """Bytes of the context's cache, said before there was one."""
    cache_held: int = 0
    """Likewise, of its tensors."""
    segments: list[float] = field(default_factory=list)
    """Seconds of whole segments, one after the other."""
    segment_peaks: list[int] = field(default_factory=list)
    """As `peak`, segment by segment."""
    failed: str = ""
    """Why nothing was measured."""
    parallel: int = 1
    """Processes that it is spread over: seconds are the slowest's, bytes the fullest's."""

    @property
    def key(self) -> tuple[str, str, int]:
        """What makes two rows the same: size, way, processes."""
        return self.size, self.way, self.parallel

    @property
    def name(self) -> str:
        """The way, and how many processes if several."""
        return _named(self.way, self.parallel)

    @property
    def step(self) -> float:
        """Seconds of a step, the median; NaN where it failed."""
        return statistics.median(self.seconds) if self.seconds else float("nan")

    def clip(self, steps: int, of: Callable[[list[float]], float] = statistics.median) -> float:
        """Seconds of a segment's denoising: its steps and what is done once.

        Args:
            steps: Of the clip.
            of: Which turn stands for all.
        """
        return steps * of(self.seconds) + (of(self.once) if self.once else 0.0)


@dataclass(frozen=True)
class Session:
    """What was found at a beginning of the run."""

    ceiling: float
    """Operations a second of a matrix product."""
    kernels: dict[str, dict[str, float]]
    """By dtype and what was compared: largest errors of the attention kernels."""


def _named(way: str, parallel: int) -> str:
    return way if parallel == 1 else f"{way}, {parallel} processes"


def latest(rows: Iterable[Row]) -> dict[tuple[str, str, int], Row]:
    """The last row of every size, way and number of processes."""
    return {row.key: row for row in rows}


def ratio(row: Row, rows: Sequence[Row]) -> Interval:
    """A step over the floor's of its size and session, in percent.

    Returns:
        Ratio of the medians, and what the fastest and slowest turns of both would make of it; all
        NaN if one of them was not measured.
    """
    of_floor = [
        other.seconds
        for other in rows
        if (other.size, other.session, other.way) == (row.size, row.session, FLOOR)
    ]
    if not row.seconds or not of_floor or not of_floor[-1]:
        return NONE
    floor = of_floor[-1]
    low, high = min(row.seconds) / max(floor), max(row.seconds) / min(floor)
    mean = row.step / statistics.median(floor)
    return Interval(100 * mean, 100 * low, 100 * high, len(row.seconds))


def _quickest(rows: Sequence[Row], mode: str, steps: int, dtype: str) -> Row | None:
    """The way of a mode whose clip takes the least, of those that keep what they keep exactly."""
    known = [(Way.parse(row.way), row) for row in latest(rows).values() if row.seconds]
    exact = [row for way, row in known if way.mode == mode and way.exact(dtype)]
    return min(exact, key=lambda row: row.clip(steps), default=None)


def _clip_goals(rows: Sequence[Row], steps: int, dtype: str) -> Iterator[Goal]:
    """A whole clip against every rival that was measured beside it, each at its best."""
    _, size, mode, _ = GOAL
    for rival, most in CLIPS:
        for session in sorted({row.session for row in rows}, reverse=True):
            here = (session, size, 1)
            beside = [row for row in rows if (row.session, row.size, row.parallel) == here]
            ours, theirs = (_quickest(beside, name, steps, dtype) for name in (mode, rival))
            if ours is None or theirs is None:
                continue
            low = ours.clip(steps, min) / theirs.clip(steps, max)
            high = ours.clip(steps, max) / theirs.clip(steps, min)
            mean = ours.clip(steps) / theirs.clip(steps)
            measured = Interval(100 * mean, 100 * low, 100 * high, len(ours.seconds))
            over = f"{ours.way} over {theirs.way}, {size}"
            yield Goal(
                f"a clip of {steps} steps over a rival's", over, measured, high=most, unit=" %"
            )
            break


def speed_goals(rows: Sequence[Row], identity: Mapping[str, Any], steps: int) -> list[Goal]:
    """What the numbers were meant to reach; none for other shapes, or fewer blocks.

    A clip's are among them only where a rival was measured at the same beginning.
    """
    shape, size, way, most = GOAL
    if identity["shape"] != shape or identity["layers"]:
        return []
    found = latest(rows).get((size, way, 1))
    measured = NONE if found is None else ratio(found, rows)
    name = "a cached step over a plain image-to-video step"
    step = Goal(name, f"{way}, {size}", measured, high=most, unit=" %")
    return [step, *_clip_goals(rows, steps, identity["dtype"]), *_goals_over_one(rows, steps)]


def times_over(row: Row, rows: Iterable[Row], of: Callable[[Row], list[float]]) -> Interval:
    """How many times quicker several processes are than one was, at whichever beginning.

    Args:
        row: Of several.
        rows: Among them, one process's.
        of: Seconds, turn by turn.

    Returns:
        Ratio of the medians, and what the fastest and slowest turns would make of it; all NaN if
        one of them was not measured.
    """
    alone = latest(rows).get((row.size, row.way, 1))
    one, several = of(alone) if alone is not None else [], of(row)
    if not one or not several:
        return NONE
    mean = statistics.median(one) / statistics.median(several)
    return Interval(mean, min(one) / max(several), max(one) / min(several), len(several))


def _clips(steps: int) -> Callable[[Row], list[float]]:
    """A clip's seconds by its median turns, its fastest and its slowest."""

    def of(row: Row) -> list[float]:
        return [row.clip(steps, turn) for turn in (min, statistics.median, max) if row.seconds]

    return of


def _goals_over_one(rows: Sequence[Row], steps: int) -> Iterator[Goal]:
    """What several processes were to gain, for the numbers of them that were measured."""
    _, size, way, _ = GOAL
    for count, least in OVER_ONE.items():
        row = latest(rows).get((size, way, count))
        if row is not None:
            measured = times_over(row, rows, _clips(steps))
            name = f"a clip of {steps} steps on {count} GPUs, times as quick as on one"
            yield Goal(name, f"{way}, {size}", measured, low=least)


def report(
    sessions: Sequence[Session],
    rows: Sequence[Row],
    wanted: Sequence[tuple[str, str, int]],
    command: str,
    identity: Mapping[str, Any],
    steps: int,
) -> str:
    """All of it as Markdown.

    Args:
        sessions: Beginnings of the run.
        rows: Measured ones.
        wanted: Size, way and processes of those that were asked for.
        command: What made it, to be repeated by the reader.
        identity: Settings, hardware and versions.
        steps: Of a clip.
    """
    versions = ", ".join(f"{name} {said}" for name, said in identity["versions"].items() if said)
    words = f"{identity['repeats']} turns after {identity['warmup']}, medians [least, most]"
    blocks = f", {identity['layers']} blocks" if identity["layers"] else ""
    made = f"Made by `{command}` on {identity['hardware']}; {versions}."
    about = (
        f"Shape {identity['shape']}{blocks}, random weights, {identity['dtype']}, "
        f"{'blocks compiled' if identity['compile'] else COMPILED_BY_WAY}, "
        f"{identity['guidance']} pass{'es' * (identity['guidance'] > 1)} a step; {words}."
    )
    parts = [made, about, _table(sessions, rows, steps)]
    known = latest(rows)
    parts += [f"{row.name} at {row.size}: {row.failed}" for row in known.values() if row.failed]
    left = [f"{_named(key[1], key[2])} at {key[0]}" for key in wanted if key not in known]
    if left:
        parts.append(f"Not begun in time: {', '.join(left)}. The same command goes on.")
    parts.append(
        "A clip is one segment's denoising: its steps and what is done once; encoding and decoding "
        "are not in it. Operations are counted (`bench/flops.py`); their share is of the matrix "
        "product measured at the same beginning. Cache: foreseen / held."
    )
    parts += _of_animate_2(known.values(), identity)
    if any(row.parallel > 1 for row in known.values()):
        parts += ["### Over one GPU", OVER_ONE_SAYS, _over_one(rows, steps)]
    goals = speed_goals(rows, identity, steps)
    none = f"None for this shape: goals are of {GOAL[0]}, all blocks."
    parts += ["### Goals", goals_table(goals) if goals else none]
    if any(row.segments for row in known.values()):
        parts += [f"### Segments in turn: {identity['segments']}", _growth(known.values())]
    parts += ["### Ceiling and kernels", _beginnings(sessions)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _of_animate_2(rows: Iterable[Row], identity: Mapping[str, Any]) -> list[str]:
    """A clip at its distilled weights' settings, where such a pass was measured; a caveat."""
    found = [row for row in rows if Way.parse(row.way).mode == ANIMATE_2 and row.seconds]
    parts = []
    if found and identity["guidance"] == 1:
        said = ", ".join(f"{row.way} at {row.size} {row.clip(DISTILLED):.4g} s" for row in found)
        parts += [f"A clip in {DISTILLED} steps without guidance, as of distilled weights: {said}."]
    on_cpu = [row for row in found if not row.peak and not Way.parse(row.way).compiled]
    if on_cpu and not identity["compile"]:
        parts += [f"{ANIMATE_2} ran on the CPU, not compiled: its seconds are no measure of it."]
    return parts


def _table(sessions: Sequence[Session], rows: Sequence[Row], steps: int) -> str:
    header = [
        "size", "way", "step, s", "% of plain", "once a segment, s", f"{steps} steps, s",
        "TFLOP a step", "% of ceiling", "peak GiB", "cache GiB",
    ]  # fmt: skip
    lines = []
    for row in latest(rows).values():
        count = f"{row.flops / 1e12:.4g}"
        if row.failed:
            lines.append([row.size, row.name, "out of memory", "-", "-", "-", count, "-", "-", "-"])
            continue
        share = 100 * row.flops / row.step / sessions[row.session].ceiling / row.parallel
        cache = f"{row.cache_foreseen / GIB:.3g} / {row.cache_held / GIB:.3g}"
        beside = ratio(row, rows)
        lines.append([
            row.size, row.name,
            _spread(row.seconds),
            f"{beside.mean:.1f}" if beside.clips else "-",
            _spread(row.once) if row.once else "-",
            f"{row.clip(steps):.4g}",
            count,
            f"{share:.0f}",
            f"{row.peak / GIB:.1f}" if row.peak else "-",
            cache if row.cache_held else "-",
        ])  # fmt: skip
    return markdown_table(header, lines)


def _over_one(rows: Sequence[Row], steps: int) -> str:
    """What several processes gain, way by way."""
    lines = []
    for row in latest(rows).values():
        if row.parallel == 1 or row.failed:
            continue
        gains = [
            times_over(row, rows, of)
            for of in (lambda r: r.seconds, lambda r: r.once, _clips(steps))
        ]
        cache = f"{row.cache_held / GIB:.3g}" if row.cache_held else "-"
        lines.append([
            row.size, row.way, str(row.parallel),
            *(f"{g.mean:.2f} [{g.low:.2f}, {g.high:.2f}]" if g.clips else "-" for g in gains),
            cache,
        ])  # fmt: skip
    header = ["size", "way", "processes", "step", "once a segment", f"{steps} steps", "cache GiB"]
    return markdown_table(header, lines)


def _growth(rows: Iterable[Row]) -> str:
    """Whether a later segment of a clip takes more than an earlier one."""
    lines = []
    for row in rows:
        if not row.segments:
            continue
        times, peaks = row.segments, row.segment_peaks
        within = 100 * max(times) / min(times)
        memory = f"{peaks[0] / GIB:.2f} / {peaks[-1] / GIB:.2f}" if peaks[0] else "-"
        lines.append([
            row.size, row.name, f"{times[0]:.4g}", f"{times[-1]:.4g}", f"{within:.1f}", memory,
            "constant" if within <= CONSTANT else "NOT CONSTANT",
        ])  # fmt: skip
    header = [
        "size", "way", "first, s", "last, s", "slowest, % of quickest",
        "peak GiB, first / last", f"time within {CONSTANT:g} %",
    ]  # fmt: skip
    return markdown_table(header, lines)


def _spread(turns: Sequence[float]) -> str:
    return f"{statistics.median(turns):.4g} [{min(turns):.4g}, {max(turns):.4g}]"


def _beginnings(sessions: Sequence[Session]) -> str:
    """The ceiling at each beginning, and how far the kernels are from the definition."""
    lines = []
    for number, session in enumerate(sessions, 1):
        for dtype, errors in session.kernels.items():
            bound = BOUNDS[dtype]
            verdict = "exact" if all(e <= bound for e in errors.values()) else "WRONG"
            figures = [f"{error:.1e}" for error in errors.values()]
            ceiling = f"{session.ceiling / 1e12:.4g}"
            lines.append([str(number), ceiling, dtype, *figures, f"{bound:g}", verdict])
    header = [
        "beginning", "matrix product, TFLOP/s", "kernels in", "attention", "log-sum-exp", "merged",
        "bound", "verdict",
    ]  # fmt: skip
    return markdown_table(header, lines) if lines else "Not measured."


def check_plot() -> None:
    """See whether there is what draws plots.

    Raises:
        ConfigError: There is not.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError("the plot needs matplotlib: pip install 'dreamactor[bench]'") from error


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Bars of seconds a step by way, a panel a size; whiskers are the fastest and slowest turns."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    known = latest(rows)
    sizes = list(dict.fromkeys(size for size, _, _ in known)) or ["nothing measured"]
    figure = Figure(figsize=(6.4 * len(sizes), 3.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, size in zip(figure.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
        shown = [row for row in known.values() if row.size == size]
        for place, row in enumerate(shown):
            if row.failed:
                axes.text(0, place, " out of memory", va="center", fontsize=8)
                continue
            middle = row.step
            spread = [[middle - min(row.seconds)], [max(row.seconds) - middle]]
            colour = "0.6" if row.way == FLOOR else None
            axes.barh(place, middle, xerr=spread, color=colour, capsize=3)
        floor = next((row for row in shown if row.name == FLOOR and row.seconds), None)
        if floor is not None:
            axes.axvline(floor.step, color="0.3", linewidth=1, linestyle="--")
        axes.set_yticks(range(len(shown)), [row.name for row in shown])
        axes.invert_yaxis()
        axes.set(title=size, xlabel="seconds a step")
    with atomic(path) as hidden:
        figure.savefig(hidden, format="png")
