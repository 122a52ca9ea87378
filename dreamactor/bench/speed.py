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
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Literal, cast

import torch
from tqdm import tqdm

from dreamactor import __version__
from dreamactor.backbones.animate2 import uncompiled
from dreamactor.backbones.catalogue import Mode
from dreamactor.backbones.incontext import set_mode
from dreamactor.backbones.shapes import NETWORKS, Kind, Network, Size, build, nearest_of
from dreamactor.bench import speed_report
from dreamactor.bench.evaluate import alone
from dreamactor.bench.kernels import ceiling, kernel_errors, seconds
from dreamactor.bench.settings import open_folder
from dreamactor.bench.speed_report import Row, Session
from dreamactor.bench.timing import hardware
from dreamactor.bench.ways import ANIMATE, ANIMATE_2, FLOOR, MODES, Segment, Way
from dreamactor.config import check_device, check_least
from dreamactor.errors import ConfigError
from dreamactor.runs import write_text

FULL = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
"""In the messages of torch and cuBLAS, where memory runs out."""


@dataclass(frozen=True)
class SpeedConfig:
    """Settings of one `bench speed`."""

    shape: str = "wan-14b"
    """Of the transformers: wan-14b, wan-1.3b, nano or tiny."""
    layers: int = 0
    """Blocks, to try it in short; 0 = those of the shape."""
    sizes: str = "832x480x81,1280x720x81"
    """WIDTHxHEIGHTxFRAMES of one half, with commas between."""
    modes: str = ",".join(MODES)
    """Ways, with commas between; see above."""
    steps: int = 40
    """Of a clip: its seconds are so many steps and what is done once a segment."""
    guidance: int = 1
    """Passes of a step: 1, or 2 with a branch that guidance leads away from."""
    repeats: int = 3
    """Turns that are timed; the median counts."""
    warmup: int = 1
    """Turns before them."""
    segments: int = 0
    """Besides, so many whole segments in turn, each with its context filled anew and `steps`
    steps, to see whether time or memory grows; 0 = none."""
    device: str = "cuda"
    """cuda, cuda:N or cpu."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of network and clip; auto is bfloat16 on a GPU and float32 on the CPU."""
    compile: bool = False
    """Compile each block of every way; the first turn pays for it."""
    minutes: float = 60.0
    """No row begins after them; the same command goes on."""
    seed: int = 0
    """Of weights and inputs."""

    def __post_init__(self) -> None:
        """Check every value by itself.

        Raises:
            ConfigError: One that cannot work.
        """
        if self.shape not in NETWORKS:
            raise ConfigError(nearest_of("shape", self.shape, NETWORKS))
        least = {"layers": 0, "steps": 1, "guidance": 1, "repeats": 1, "warmup": 0, "segments": 0,
                 "minutes": 0}  # fmt: skip
        check_least(self, least)
        if self.guidance > 2:
            raise ConfigError(f"guidance={self.guidance}: want 1 or 2 passes a step, nearest is 2")
        check_device(self.device)
        _ = self.all_sizes, self.ways
        every = self.network.every
        if self.network.layers % every and any(way.mode == ANIMATE for way in self.ways):
            near = max(1, round(self.network.layers / every)) * every
            raise ConfigError(
                f"layers={self.layers}: {ANIMATE} wants a multiple of {every}, nearest is {near}"
            )

    @cached_property
    def network(self) -> Network:
        """What is built."""
        found = NETWORKS[self.shape]
        return replace(found, layers=self.layers or found.layers)

    @cached_property
    def all_sizes(self) -> list[Size]:
        """Those of `sizes`, each once."""
        return list(dict.fromkeys(Size.parse(word.strip()) for word in self.sizes.split(",")))

    @cached_property
    def ways(self) -> list[Way]:
        """Those of `modes`, each once."""
        return list(dict.fromkeys(Way.parse(word.strip()) for word in self.modes.split(",")))

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype`, with its default."""
        wide = self.dtype == "float32" or (self.dtype == "auto" and self.device == "cpu")
        return torch.float32 if wide else torch.bfloat16

    @property
    def command(self) -> str:
        """What repeats the run."""
        words = ["dreamactor bench speed --out FOLDER"]
        for f in fields(self):
            value = getattr(self, f.name)
            if value != f.default:
                words.append(f"{f.name}={str(value).lower() if f.type == 'bool' else value}")
        return " ".join(words)

    def compiles(self, way: Way) -> bool:
        """Whether a way's blocks are compiled."""
        needed = way.mode == ANIMATE_2 and self.device != "cpu"
        return self.compile or way.compiled or needed

    def identity(self) -> dict[str, Any]:
        """What two rows must have in common to stand in one file."""
        named = ("shape", "layers", "guidance", "repeats", "warmup", "compile", "seed")
        return {
            **{name: getattr(self, name) for name in named},
            "segments": f"{self.segments} of {self.steps} steps" if self.segments else "none",
            "dtype": str(self.torch_dtype).removeprefix("torch."),
            "hardware": hardware(self.device),
            "versions": {
                "dreamactor": __version__,
                "torch": str(torch.__version__),
                "cuda": torch.version.cuda,
                "diffusers": version("diffusers"),
            },
        }


def bench_speed(out: Path, config: SpeedConfig) -> Path:
    """Measure every row that is not measured yet, then write table and plot.

    Args:
        out: Folder of the run.
        config: Settings.

    Returns:
        The report.

    Raises:
        ConfigError: There is no such device or no matplotlib, or the folder was begun with other
            settings, versions or hardware.
    """
    if config.device != "cpu" and not torch.cuda.is_available():
        raise ConfigError(f"device={config.device}: torch sees no CUDA device here; want cpu")
    speed_report.check_plot()
    path, identity = open_folder(out) / "results.jsonl", config.identity()
    deadline = time.monotonic() + 60 * config.minutes
    with alone(path) as file:
        sessions, rows = _resume(path, identity)

        def report() -> None:
            wanted = [(str(size), way.name) for size in config.all_sizes for way in config.ways]
            text = speed_report.report(
                sessions, rows, wanted, config.command, identity, config.steps
            )
            write_text(out / "report.md", text)

        for found in _measure_all(config, len(sessions), rows, deadline):
            kind, kept = ("row", rows) if isinstance(found, Row) else ("session", sessions)
            cast(list[Any], kept).append(found)
            _append(file, {kind: asdict(found)})
            report()  # whatever ends the run, what was measured can be read
        report()
    speed_report.draw(out / "speed.png", rows)
    return out / "report.md"


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
    config: SpeedConfig, session: int, rows: list[Row], deadline: float
) -> Iterator[Session | Row]:
    """What is missing: first of all the ceiling, and of a size first of all the floor."""
    done = {(row.size, row.way) for row in rows}
    todo: list[tuple[Size, Way]] = []
    floor = [way for way in config.ways if way.name == FLOOR]
    for size in config.all_sizes:
        missing = [way for way in config.ways if (str(size), way.name) not in done]
        others = [way for way in missing if way.name != FLOOR]
        todo += [(size, way) for way in ([*floor, *others] if missing else [])]
    if not todo or time.monotonic() >= deadline:
        return
    device = torch.device(config.device)
    errors = {
        str(dtype).removeprefix("torch."): kernel_errors(device, dtype)
        for dtype in dict.fromkeys((torch.float32, config.torch_dtype))
    }
    yield Session(ceiling(device, config.torch_dtype), errors)
    stand = _Stand(config, device)
    for size, way in tqdm(todo, unit="row", disable=None, leave=False):
        if time.monotonic() >= deadline:
            return
        yield stand.measure(size, way, session)


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

    def __init__(self, config: SpeedConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self._built: tuple[Kind, bool] | None = None
        self._transformer: Any = None

    def measure(self, size: Size, way: Way, session: int) -> Row:
        """A row; where memory runs out, one that says so."""
        step, once = way.flops(self.config.network, size, self.config.guidance)
        row = Row(str(size), way.name, session, flops=step, flops_once=once)
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
            set_mode(transformer, cast(Mode, "full" if way.mode == FLOOR else way.mode))
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
        return replace(found, segments=taken, segment_peaks=peaks)

    def _whole(self, segment: Segment) -> tuple[float, int]:
        """Seconds of one more segment, and the most bytes meanwhile."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        work = partial(segment.whole, self.config.steps, self.config.guidance)
        return seconds(work, self.device), self._peak()

    def _peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0

    def _timed(self, segment: Segment, way: Way, row: Row) -> Row:
        """The row with its seconds and the size of its cache."""
        config, first = self.config, self.config.warmup
        turns = first + config.repeats
        foreseen = segment.bytes_foreseen
        fillings = turns if way.caches else 0
        once = [seconds(segment.fill, self.device) for _ in range(fillings)]
        held = segment.bytes_held
        step = partial(segment.step, config.guidance)
        taken = [seconds(step, self.device) for _ in range(turns)]
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
