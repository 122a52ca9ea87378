"""seesaw.png: identity against motion, a point a row.

Ways of bringing a driver in buy one with the other: who holds on to the reference follows worse,
who follows better leaks the driver. A row that is better in both stands lower and further right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreamactor.bench import stats
from dreamactor.bench.evaluate import IDENTITY, TRUTH, Record
from dreamactor.bench.report import COLUMNS, values
from dreamactor.bench.seeds import over_seeds
from dreamactor.bench.speed_report import check_plot
from dreamactor.errors import ConfigError
from dreamactor.image import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILE = "seesaw.png"
MOTION = ("flow_epe", "akd")
"""A panel each, where it was measured."""
TITLES = {column.name: column.title for column in COLUMNS}
ENDS = (TRUTH, "copy")
"""Rows that are far from all others, which have a panel of their own without them."""
ROOM = 11
"""Points of height that a label takes."""
SAID = (
    "Identity is the likeness of colours to the reference's, motion error the distance of flow, "
    "AKD that of joints, both to the truth's. Crosses are 95 % intervals over clips."
)


@dataclass(frozen=True)
class Point:
    """A row in a panel."""

    name: str
    x: float
    y: float
    colour: str


def section(out: Path, records: Sequence[Record], seed: int = 0) -> list[tuple[str, str]]:
    """Draw it into a folder; title and text of its part of the report, none without identity.

    A machine without matplotlib measures all the same: the text then says what is missing.

    Args:
        out: Folder of the report.
        records: Of all rows; seeds of a row are one point.
        seed: Of the bootstrap.
    """
    if all(math.isnan(record.metrics[IDENTITY]) for record in records):
        return []
    try:
        check_plot()
    except ConfigError as error:
        text = f"Not drawn: {error}; then `dreamactor bench join --out FOLDER RUN` does, of this."
        return [("Identity against motion", text)]
    draw(out / FILE, records, seed)
    return [("Identity against motion", f"![Identity against motion]({FILE})\n\n{SAID}")]


def draw(path: Path, records: Sequence[Record], seed: int = 0) -> None:
    """A panel for each measure of motion, of all rows and of those that are near each other.

    Args:
        path: PNG, written whole.
        records: Of all rows, the truth among them.
        seed: Of the bootstrap.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    merged = over_seeds(records)
    shown = [m for m in MOTION if any(not math.isnan(r.metrics[m]) for r in merged)]
    rows = list(dict.fromkeys(record.system for record in merged))
    near = [row for row in rows if row not in ENDS]
    lines = [rows, near] if near and len(near) < len(rows) else [rows]
    figure = Figure(figsize=(6.4 * len(shown), 4.2 * len(lines)), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    drawn: list[tuple[Axes, list[Point]]] = []
    grid = figure.subplots(len(lines), len(shown), squeeze=False)
    for panels, mine in zip(grid, lines, strict=True):
        for axes, motion in zip(panels, shown, strict=True):
            points = [_point(axes, merged, row, motion, rows.index(row), seed) for row in mine]
            few = [p for p in points if p is not None and (mine is lines[-1] or p.name in ENDS)]
            drawn.append((axes, few))
            _dress(axes, motion, mine is near)
    canvas.draw()  # from here on it is settled where in the picture a point is
    for axes, points_of in drawn:
        _label(axes, points_of)
    with atomic(path) as hidden:
        figure.savefig(hidden, format="png")


def _point(
    axes: Axes, records: Sequence[Record], row: str, motion: str, number: int, seed: int
) -> Point | None:
    """Draw a row's cross, if it has both numbers."""
    x, y = (stats.bootstrap(values(records, row, m).values(), seed) for m in (IDENTITY, motion))
    if not (x.clips and y.clips):
        return None
    colour, mark = ("0.4", "*") if row == TRUTH else (f"C{number % 10}", "o")
    axes.errorbar(
        x.mean, y.mean, xerr=_whiskers(x), yerr=_whiskers(y), color=colour, elinewidth=1,
        marker=mark, markersize=9 if row == TRUTH else 5, zorder=3,
    )  # fmt: skip
    return Point(row, x.mean, y.mean, colour)


def _dress(axes: Axes, motion: str, near: bool) -> None:
    axes.set(xlabel=f"{TITLES[IDENTITY]}, more is better")
    axes.set(ylabel=f"{TITLES[motion]}, less is better")
    if near:
        axes.set_title(f"nearer, without {' and '.join(ENDS)}", fontsize=9)
    axes.grid(alpha=0.3)
    axes.margins(0.15)
    axes.annotate(
        "better", (0.14, 0.03), (0.02, 0.1), "axes fraction", color="0.4", fontsize=9,
        arrowprops={"arrowstyle": "->", "color": "0.4"},
    )  # fmt: skip


def _whiskers(interval: stats.Interval) -> list[list[float]]:
    return [[interval.mean - interval.low], [interval.high - interval.mean]]


def _label(axes: Axes, points: Sequence[Point]) -> None:
    """Names beside their points; from low to high, each above those it would lie upon."""
    scale = 72 / axes.figure.dpi  # pixels to points
    right = scale * axes.get_window_extent().x1
    placed: list[tuple[float, float, float]] = []  # left, right, height, in points
    for point in sorted(points, key=lambda point: point.y):
        across, up = scale * axes.transData.transform((point.x, point.y))
        wide = 6.0 * len(point.name) + 8
        turned = across + wide > right
        begin = across - wide if turned else across
        high = up + 5
        for low, far, taken in sorted(placed, key=lambda label: label[2]):
            if begin < far and low < begin + wide and abs(high - taken) < ROOM:
                high = taken + ROOM
        placed.append((begin, begin + wide, high))
        moved = high > up + 5
        line = {"arrowstyle": "-", "color": point.colour, "alpha": 0.4}
        axes.annotate(
            point.name, (point.x, point.y), (-6 if turned else 6, high - up),
            textcoords="offset points", ha="right" if turned else "left", va="center", fontsize=9,
            color=point.colour, arrowprops=line if moved else None,
        )  # fmt: skip
