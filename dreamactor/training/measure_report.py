"""The rows of `bench training`: their file, and from them the report."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from dreamactor.backbones.catalogue import GIB
from dreamactor.bench.goals import Goal, goals_table
from dreamactor.bench.stats import NONE, Interval, markdown_table
from dreamactor.errors import ConfigError
from dreamactor.runs import turn, write_text

PAPER = {"shape": "wan-14b", "layers": 0, "size": "832x480x49", "rank": 256, "mode": "full"}
"""Settings that goals are of; Wan 14B's, with clips as short as the paper's shortest."""
SHARE = 40.0
"""Percent of the matrix product's rate that a step is to reach."""
SCALING = 4, 3.4
"""Processes, and how many times the examples a second of one they are to do."""
APART = 1e-3
"""The most that losses may differ between numbers of processes, relatively."""
STEPS = 20
"""Over at least so many of them."""


@dataclass(frozen=True)
class Row:
    """One measurement."""

    settings: dict[str, Any]
    """Of the command."""
    command: str
    processes: int
    sharded: bool
    """FSDP2; otherwise each process has all of the network."""
    hardware: str
    versions: dict[str, str]
    seconds: list[float] = field(default_factory=list)
    """Of each timed step, in the process that took longest."""
    losses: list[float] = field(default_factory=list)
    """Of every step, those before the timed ones too; means over all examples."""
    flops: int = 0
    """Operations of a step over all processes, as they are carried out."""
    flops_once: int = 0
    """Without what is computed a second time for want of memory."""
    ceiling: float = 0.0
    """Operations a second of a matrix product on one device, measured just before."""
    peak: int = 0
    """Most bytes allocated on the fullest GPU during steps; 0 on the CPU."""
    reserved: int = 0
    """Likewise, with what torch holds ready."""
    trained: int = 0
    """Numbers of the adapter."""
    foreseen: float = 0.0
    """Seconds of a step by `training.plan`; 0 = not predicted."""
    peak_foreseen: float = 0.0
    """Bytes, likewise."""
    failed: str = ""
    """Why nothing was measured."""

    @property
    def key(self) -> str:
        """What makes two rows the same."""
        names = ("settings", "processes", "sharded", "hardware", "versions")
        return json.dumps([getattr(self, name) for name in names], sort_keys=True)

    @property
    def step(self) -> float:
        """Seconds of a step, the median."""
        return statistics.median(self.seconds)

    @property
    def way(self) -> str:
        """How many processes, and what each has."""
        if self.processes == 1:
            return "1"
        return f"{self.processes} {'FSDP2' if self.sharded else 'DDP'}"

    @property
    def what(self) -> str:
        """What is trained."""
        s = self.settings
        blocks = f", {s['layers']} blocks" if s["layers"] else ""
        kept = "" if s["checkpoint"] else ", all kept"
        compiled = ", compiled" if s["compile"] else ""
        return f"{s['shape']}{blocks}, {s['size']}, {s['mode']}{kept}{compiled}, {s['precision']}"

    def share(self, flops: int, seconds: float) -> float:
        """Percent of the ceilings of all processes together."""
        return 100 * flops / (seconds * self.processes * self.ceiling)

    def alike(self, *but: str) -> str:
        """Its settings without some of them, its machine and versions."""
        kept = {name: value for name, value in self.settings.items() if name not in but}
        return json.dumps([kept, self.hardware, self.versions], sort_keys=True)


def read(out: Path) -> list[Row]:
    """Rows of a folder, in order; a half-written last line is left out.

    Raises:
        ConfigError: The file is none of ours.
    """
    path = out / "results.jsonl"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    try:
        lines = text[: text.rfind("\n") + 1].splitlines()
        return [Row(**json.loads(line)) for line in lines]
    except (TypeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} is no results file of ours ({error}): name another") from error


def add(out: Path, row: Row | None) -> None:
    """Add a row, unless it is there and did not fail, and write the report.

    Processes take turns.

    Args:
        out: The folder.
        row: None writes the report alone.
    """
    with turn(out):
        rows = read(out)
        if row is not None and all(other.key != row.key or other.failed for other in rows):
            rows = [*(other for other in rows if other.key != row.key), row]
            lines = [json.dumps(asdict(r), allow_nan=False) + "\n" for r in rows]
            write_text(out / "results.jsonl", "".join(lines))
        write_text(out / "report.md", report(rows))


def report(rows: Sequence[Row]) -> str:
    """All of it as Markdown."""
    done = [row for row in rows if not row.failed]
    parts = ["## Training steps with random weights", _table(rows)]
    parts += [f"{row.what}, {row.way} processes: {row.failed}" for row in rows if row.failed]
    parts.append(
        "Seconds are medians [least, most] of the slowest process, operations counted "
        "(`bench/flops.py`). Their share is of a matrix product's rate, measured just before, of "
        "all processes; in brackets without what is computed a second time. Peak: allocated "
        "(reserved). Predicted: `training/plan.py`, for an H100. Reading the cache is not in it."
    )
    parts += ["### Scaling", _scaling(done), "### Equal losses", _equality(done)]
    parts += ["### Goals", goals_table(training_goals(done)), "### Made by", _made_by(rows)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _table(rows: Sequence[Row]) -> str:
    header = [
        "what", "rank", "processes", "examples", "step, s", "predicted s", "TFLOP",
        "% of ceiling", "peak GiB", "predicted GiB",
    ]  # fmt: skip
    lines = []
    for row in rows:
        first = [row.what, str(row.settings["rank"]), row.way, str(row.settings["batch"])]
        foreseen = f"{row.foreseen:.1f}" if row.foreseen else "-"
        most = f"{row.peak_foreseen / GIB:.1f}" if row.peak_foreseen else "-"
        count = f"{row.flops / 1e12:.4g}"
        if row.failed:
            lines.append([*first, "out of memory", foreseen, count, "-", "-", most])
            continue
        spread = f"{row.step:.4g} [{min(row.seconds):.4g}, {max(row.seconds):.4g}]"
        share, once = (row.share(count, row.step) for count in (row.flops, row.flops_once))
        peak = f"{row.peak / GIB:.1f} ({row.reserved / GIB:.1f})" if row.peak else "-"
        lines.append([
            *first, spread, foreseen, count, f"{share:.0f} ({once:.0f})", peak, most
        ])  # fmt: skip
    return markdown_table(header, lines)


def scalings(rows: Sequence[Row]) -> Iterator[tuple[Row, Row, Interval]]:
    """Rows of several processes beside that of one with the same examples a process.

    Yields:
        One's row, several's, and how many times the examples a second those do: N times one's
        seconds over theirs, with what the least and most of both would make of it.
    """
    for one in rows:
        for many in rows:
            if one.processes > 1 or many.processes == 1:
                continue
            same = many.settings["batch"] == many.processes * one.settings["batch"]
            if not same or one.alike("batch") != many.alike("batch"):
                continue
            n, a, b = many.processes, one.seconds, many.seconds
            bounds = n * min(a) / max(b), n * max(a) / min(b)
            yield one, many, Interval(n * one.step / many.step, *bounds, len(b))


def _scaling(rows: Sequence[Row]) -> str:
    lines = [
        [many.what, many.way, str(many.settings["batch"]), f"{one.step:.4g}", f"{many.step:.4g}",
         f"{times.mean:.2f} [{times.low:.2f}, {times.high:.2f}]"]
        for one, many, times in scalings(rows)
    ]  # fmt: skip
    if not lines:
        return "None: want a row of one process and one of N at N times its batch."
    header = ["what", "processes", "examples", "one, s", "all, s", "times one's examples a second"]
    return markdown_table(header, lines)


def difference(one: Row, other: Row) -> float:
    """Largest relative difference of two rows' losses, step by step."""
    pairs = zip(one.losses, other.losses, strict=True)
    return max(abs(a - b) / abs(a) for a, b in pairs)


def equalities(rows: Sequence[Row]) -> Iterator[tuple[Row, Row, float]]:
    """Rows of the same settings, batch too, that differ in their processes alone."""
    for one, other in combinations(sorted(rows, key=lambda row: row.processes), 2):
        if one.processes != other.processes and one.alike("at_once") == other.alike("at_once"):
            yield one, other, difference(one, other)


def _equality(rows: Sequence[Row]) -> str:
    lines = [
        [one.what, str(one.settings["batch"]), f"{one.way} and {other.way}",
         str(len(one.losses)), f"{one.losses[0]:.4f} to {one.losses[-1]:.4f}", f"{apart:.1e}",
         "equal" if apart <= APART else "NOT EQUAL"]
        for one, other, apart in equalities(rows)
    ]  # fmt: skip
    if not lines:
        return "None: want two rows that differ in the number of processes alone."
    header = [
        "what", "examples", "processes", "steps", "loss", "largest difference", f"to {APART:g}",
    ]  # fmt: skip
    return markdown_table(header, lines)


def training_goals(rows: Sequence[Row]) -> list[Goal]:
    """What the numbers were meant to reach; of the last rows that tell."""

    def judged(row: Row) -> bool:
        return all(row.settings[name] == value for name, value in PAPER.items())

    share, times, apart = NONE, NONE, NONE
    for row in rows:
        if judged(row) and row.processes == 1 and row.peak:
            low, mean, high = (
                row.share(row.flops, s) for s in (max(row.seconds), row.step, min(row.seconds))
            )
            share = Interval(mean, low, high, len(row.seconds))
    for _, many, found_times in scalings(rows):
        better = math.isnan(times.mean) or found_times.mean > times.mean
        if judged(many) and many.processes == SCALING[0] and many.peak and better:
            times = found_times
    for one, other, found_apart in equalities(rows):
        counts = (one.processes, other.processes)
        if counts == (1, SCALING[0]) and len(one.losses) >= STEPS and one.peak:
            apart = Interval(100 * found_apart, 100 * found_apart, 100 * found_apart, 1)
    where = "Wan 14B, 832x480x49, rank 256"
    return [
        Goal("share of the matrix product's rate", f"{where}, 1 GPU", share, low=SHARE, unit=" %"),
        Goal(f"examples a second on {SCALING[0]} GPUs over one's", f"{where}, the better way",
             times, low=SCALING[1]),
        Goal(f"losses of 1 and {SCALING[0]} GPUs apart", f"any shape, {STEPS} steps or more",
             apart, high=100 * APART, unit=" %"),
    ]  # fmt: skip


def _made_by(rows: Sequence[Row]) -> str:
    """Commands, by machine and versions."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        versions = ", ".join(f"{name} {said}" for name, said in row.versions.items() if said)
        place = f"On {row.hardware} a process; {versions}:\n"
        groups.setdefault(place, []).append(f"- {row.way}: `{row.command}`")
    return "\n\n".join("\n".join([place, *commands]) for place, commands in groups.items())
