"""`dreamactor bench speed`: what a step costs, ours and the rivals', with random weights.

Rows are ways of making a clip, all on one device in one run:

    plain                image-to-video: diffusers' transformer on one half alone, the floor
    full                 the whole canvas, every token seeing every token
    one-way[:KEPT]       the target sees the context, which sees itself and is kept
    one-way-aligned[:KEPT]    and of the motion half its own time alone
    wan-animate          a rival: diffusers' WanAnimateTransformer3DModel
    wan-animate-2        another, with a cache: diffusers' WanAnimate2Transformer3DModel

KEPT says how the context is kept, as words with + between them: none, device or host; bfloat16 or
int8; keys or states, such as `one-way-aligned:host+int8`. The word `compiled`, after any way, has
its blocks compiled; those of wan-animate-2 are on a GPU always, for its attention needs it.

A folder is a run, and the same command resumes it:

    results.jsonl   settings, then a line for each beginning and each row
    report.md       table, goals, kernels against attention by its definition, device, versions
    speed.png       seconds a step by way

What is compared was measured from one beginning: when rows are added later, the floor of their size
is measured again beside them.

Started by torchrun, all ways but the rivals' are spread over its processes, a GPU each
(`backbones.parallel`). Rows of several numbers of processes lie in one folder; times are the
slowest process's, bytes those of the fullest GPU.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import torch
from tqdm import tqdm

from dreamactor.backbones.animate2 import uncompiled
from dreamactor.backbones.catalogue import Mode
from dreamactor.backbones.incontext import set_mode, set_parallel
from dreamactor.backbones.parallel import Team, check_keeping, check_team, together
from dreamactor.backbones.shapes import Kind, Size, build
from dreamactor.bench import speed_report
from dreamactor.bench.evaluate import alone
from dreamactor.bench.kernels import ceiling, kernel_errors, seconds
from dreamactor.bench.settings import open_folder
from dreamactor.bench.speed_config import SpeedConfig
from dreamactor.bench.speed_report import Row, Session
from dreamactor.bench.ways import ANIMATE_2, FLOOR, MODES, ONE_WAY, RIVALS, Segment, Way
from dreamactor.errors import ConfigError, DreamActorError
from dreamactor.runs import write_text

FULL = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
"""In the messages of torch and cuBLAS, where memory runs out."""


def bench_speed(out: Path, config: SpeedConfig) -> Path:
    """Measure every row that is not measured yet, then write table and plot.

    Called in every process that torchrun started; the first one writes.

    Args:
        out: Folder of the run.
        config: Settings.

    Returns:
        The report.

    Raises:
        ConfigError: There is no such device or no matplotlib, the folder was begun with other
            settings, versions or hardware, or a way cannot be spread over several processes.
        DreamActorError: Of several processes this one ran out of memory. The row says so.
    """
    if config.device != "cpu" and not torch.cuda.is_available():
        raise ConfigError(f"device={config.device}: torch sees no CUDA device here; want cpu")
    speed_report.check_plot()
    with together(config.device) as team:
        _check_spread(config, team)
        _bench(out, config, team)
    return out / "report.md"


def _check_spread(config: SpeedConfig, team: Team) -> None:
    """Refuse what cannot be done by so many processes."""
    check_team(team, config.network.heads)
    for way in config.ways if team.count > 1 else ():
        if way.mode in RIVALS:
            raise ConfigError(
                f"modes={way.name}: not spread over processes here; with {team.count} of them "
                f"want {', '.join(name for name in MODES if name not in RIVALS)}"
            )
        if team.device.type == "cpu" and way.mode not in ONE_WAY:
            raise ConfigError(
                f"modes={way.name} device=cpu: diffusers spreads it over GPUs alone; with "
                f"{team.count} processes want {' or '.join(ONE_WAY)}"
            )
        if way.keeping is not None:
            check_keeping(way.keeping, team.count)


def _bench(out: Path, config: SpeedConfig, team: Team) -> None:
    path, identity = open_folder(out) / "results.jsonl", config.identity()
    deadline = time.monotonic() + 60 * config.minutes
    with ExitStack() as stack:
        if team.leads:
            file = stack.enter_context(alone(path))
            sessions, rows = _resume(path, identity)
        team.meet()  # the others read what the first has put in order
        if not team.leads:
            file = stack.enter_context(path.open("a", encoding="utf-8"))
            sessions, rows = _resume(path, identity)

        def report() -> None:
            wanted = [
                (str(size), way.name, team.count)
                for size in config.all_sizes
                for way in config.ways
            ]
            text = speed_report.report(
                sessions, rows, wanted, _command(config, team), identity, config.steps
            )
            write_text(out / "report.md", text)

        for found in _measure_all(config, team, len(sessions), rows, deadline):
            kind, kept = ("row", rows) if isinstance(found, Row) else ("session", sessions)
            cast(list[Any], kept).append(found)
            failed = found.failed if isinstance(found, Row) else ""
            if team.leads or failed:
                _append(file, {kind: asdict(found)})
                report()  # whatever ends the run, what was measured can be read
            if failed and team.count > 1:  # the others would wait for this one
                raise DreamActorError(f"process {team.rank}: {failed}; the same command goes on")
        if team.leads:
            report()
            speed_report.draw(out / "speed.png", rows)


def _command(config: SpeedConfig, team: Team) -> str:
    """What repeats the run."""
    if team.count == 1:
        return config.command
    start = f"torchrun --nproc-per-node {team.count} -m dreamactor.cli"
    return f"{start} {config.command.removeprefix('dreamactor ')}"


def _append(file: IO[str], line: dict[str, Any]) -> None:
    file.write(json.dumps(line, allow_nan=False) + "\n")
    file.flush()


def _resume(path: Path, identity: dict[str, Any]) -> tuple[list[Session], list[Row]]:
    """What the file holds; a half-written last line is cut off, a new file begun.

    Raises:
        ConfigError: It has other settings, or is none of ours.
    """
    whole = path.read_text(encoding="utf-8")
    kept = whole[: whole.rfind("\n") + 1]
    if kept != whole:
        path.write_text(kept, encoding="utf-8")
    if not kept:
        path.write_text(json.dumps({"settings": identity}) + "\n", encoding="utf-8")
        return [], []
    try:
        first, *lines = [json.loads(line) for line in kept.splitlines()]
        stored = first["settings"]
        sessions = [Session(**line["session"]) for line in lines if "session" in line]
        rows = [Row(**line["row"]) for line in lines if "row" in line]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} is no results file of ours ({error}): name another") from error
    if differs := sorted(k for k in identity if stored.get(k) != identity[k]):
        old, new = ({k: s.get(k) for k in differs} for s in (stored, identity))
        raise ConfigError(f"{path} was made with {old}, now {new}: name another --out folder")
    return sessions, rows


def _measure_all(
    config: SpeedConfig, team: Team, session: int, rows: list[Row], deadline: float
) -> Iterator[Session | Row]:
    """What is missing: first of all the ceiling, and of a size first of all the floor."""
    done = {(row.size, row.way) for row in rows if row.parallel == team.count}
    todo: list[tuple[Size, Way]] = []
    floor = [way for way in config.ways if way.name == FLOOR]
    for size in config.all_sizes:
        missing = [way for way in config.ways if (str(size), way.name) not in done]
        others = [way for way in missing if way.name != FLOOR]
        todo += [(size, way) for way in ([*floor, *others] if missing else [])]

    def late() -> bool:
        return team.agree(time.monotonic() >= deadline)

    if not todo or late():
        return
    yield _beginning(config, team)
    stand = _Stand(config, team)
    for size, way in tqdm(todo, unit="row", disable=None if team.leads else True, leave=False):
        if late():
            return
        yield stand.measure(size, way, session)


def _beginning(config: SpeedConfig, team: Team) -> Session:
    """The ceiling, a mean over processes, and the largest errors of their kernels."""
    device = team.device
    errors = {
        str(dtype).removeprefix("torch."): kernel_errors(device, dtype)
        for dtype in dict.fromkeys((torch.float32, config.torch_dtype))
    }
    everyone = team.everyone((ceiling(device, config.torch_dtype), errors))
    largest = {
        dtype: {name: max(other[dtype][name] for _, other in everyone) for name in compared}
        for dtype, compared in errors.items()
    }
    return Session(sum(rate for rate, _ in everyone) / team.count, largest)


@contextmanager
def _graphless(way: Way, compiled: bool) -> Iterator[None]:
    """No gradients; for Wan-Animate-2 by what its pipeline says so with."""
    if way.mode != ANIMATE_2:
        with torch.inference_mode():
            yield
    else:
        with torch.no_grad(), nullcontext() if compiled else uncompiled():
            yield


class _Stand:
    """Where rows are measured: one transformer at a time."""

    def __init__(self, config: SpeedConfig, team: Team) -> None:
        self.config, self.team, self.device = config, team, team.device
        self._built: tuple[Any, ...] | None = None
        self._transformer: Any = None

    def measure(self, size: Size, way: Way, session: int) -> Row:
        """A row; where memory runs out, one that says so."""
        step, once = way.flops(self.config.network, size, self.config.guidance)
        row = Row(
            str(size), way.name, session, flops=step, flops_once=once, parallel=self.team.count
        )
        try:
            return self._measure(size, way, row)
        except RuntimeError as error:
            said = " ".join(str(error).split())
            if not any(words in said for words in FULL):
                raise
            failed = said.partition(" GPU ")[0][:160]  # then comes what else the GPU holds
        return replace(row, failed=failed)

    def _measure(self, size: Size, way: Way, row: Row) -> Row:
        config = self.config
        self._free()
        compiled = config.compiles(way)
        transformer = self._made(way.kind, compiled)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        if way.kind == "wan":
            mode = cast(Mode, "full" if way.mode == FLOOR else way.mode)
            set_mode(transformer, mode)
            tokens = way.halves * size.latent_frames * size.frame_tokens
            set_parallel(transformer, self.team, even=tokens % self.team.count == 0)
            if mode == "full" and self.team.count > 1:
                self._built = None  # what diffusers spread stays so, and serves no other way
        if compiled:
            torch.compiler.reset()
            for block in transformer.blocks:
                block.compile(dynamic=False)
        torch.manual_seed(config.seed)
        segment = Segment(way, transformer, config.network, size, self.device, config.torch_dtype)
        with _graphless(way, compiled):
            found = replace(self._timed(segment, way, row), peak=self._peak())
            whole = [self._whole(segment) for _ in range(config.segments)]
        taken, peaks = [taken for taken, _ in whole], [peak for _, peak in whole]
        return _slowest(self.team.everyone(replace(found, segments=taken, segment_peaks=peaks)))

    def _seconds(self, work: Callable[[], object]) -> float:
        """What a call takes that all begin together."""
        self.team.meet()
        return seconds(work, self.device)

    def _whole(self, segment: Segment) -> tuple[float, int]:
        """Seconds of one more segment, and the most bytes meanwhile."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        work = partial(segment.whole, self.config.steps, self.config.guidance)
        return self._seconds(work), self._peak()

    def _peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0

    def _timed(self, segment: Segment, way: Way, row: Row) -> Row:
        """The row with its seconds and the size of its cache."""
        config, first = self.config, self.config.warmup
        turns = first + config.repeats
        foreseen = segment.bytes_foreseen
        fillings = turns if way.caches else 0
        once = [self._seconds(segment.fill) for _ in range(fillings)]
        held = segment.bytes_held
        step = partial(segment.step, config.guidance)
        taken = [self._seconds(step) for _ in range(turns)]
        return replace(
            row,
            seconds=taken[first:],
            once=once[first:],
            cache_foreseen=foreseen,
            cache_held=held,
        )

    def _made(self, kind: Kind, compiled: bool) -> Any:
        """The transformer; one that was compiled serves no way that is not."""
        if self._built != (kind, compiled):
            self._built = self._transformer = None
            self._free()
            torch.manual_seed(self.config.seed)
            config = self.config
            self._transformer = build(config.network, kind, self.device, config.torch_dtype)
            self._built = (kind, compiled)
        return self._transformer

    def _free(self) -> None:
        """Give back memory that nothing holds."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _slowest(everyone: list[Row]) -> Row:
    """Of a row as each process measured it: the longest times, and the most bytes."""
    lists = ("seconds", "once", "segments", "segment_peaks")
    numbers = ("peak", "cache_foreseen", "cache_held")
    found: dict[str, Any] = {
        name: [max(turn) for turn in zip(*(getattr(row, name) for row in everyone), strict=True)]
        for name in lists
    }
    found |= {name: max(getattr(row, name) for row in everyone) for name in numbers}
    return replace(everyone[0], **found)
