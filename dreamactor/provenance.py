"""The record of a generated clip, and writing the two as one.

The record is JSON beside the clip. It says that the clip is synthetic, what it was made from
(sha256 of every input and weight file), with which settings and versions, and how long it took.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from dreamactor.errors import MediaError
from dreamactor.image import refusals

T = TypeVar("T")
NOT_PIXELS = (
    *("reference", "driving", "out", "overwrite", "weights", "adapter", "lora"),
    *("audio", "watermark", "manifest", "threads"),
)
"""Settings that are files, told by their sha256 elsewhere, or have no say in the frames but for
the last bits of sums."""
LIBRARIES = (
    *("dreamactor", "torch", "diffusers", "transformers", "numpy", "av", "opencv-python-headless"),
    *("pillow", "safetensors", "peft", "c2pa-python"),
)


class Stages:
    """Seconds spent in each stage; what a stage inside another takes counts for itself alone.

    Example:
        >>> stages = Stages()
        >>> with stages("denoise"):
        ...     latents = sample_euler(velocity, noise, sigmas)
        >>> stages.seconds
        {'denoise': 1.2}
    """

    def __init__(self, told: Callable[[str], object] = lambda name: None) -> None:
        """Begin to count.

        Args:
            told: Gets the name of every stage that begins.
        """
        self.seconds: dict[str, float] = {}
        self._told = told
        self._start = time.perf_counter()
        self._inner = 0.0

    @property
    def total(self) -> float:
        """Seconds since this was made."""
        return time.perf_counter() - self._start

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add what the block takes to stage `name`."""
        self._told(name)
        start, outer = time.perf_counter(), self._inner
        self._inner = 0.0
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent - self._inner
            self._inner = outer + spent

    def each(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """The items as they are, with what it takes to get each added to stage `name`."""
        source = iter(items)
        while True:
            with self(name):
                item = next(source, None)
            if item is None:
                return
            yield item


def versions() -> dict[str, str]:
    """Of this program, Python, the machine and every library that has a say in the result."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    found["platform"] = f"{platform.system()} {platform.machine()}"
    return found


def processor() -> str:
    """This machine's, in words, such as "AMD EPYC 9B14"."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return platform.processor() or platform.machine()


def sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def identity_of(facts: Mapping[str, Any]) -> str:
    """Eight hex digits that tell a clip from others: of inputs, backbone, prompt and settings.

    Settings that say where files are, and which marks there are, have no part in it: the same
    pixels have the same identity.
    """
    settings = {k: v for k, v in facts["settings"].items() if k not in NOT_PIXELS}
    said = {"settings": settings} | {k: facts[k] for k in ("prompt", "inputs", "backbone")}
    text = json.dumps(said, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def peak_memory() -> float:
    """Largest resident size of this process so far, in MiB; 0 where it is not known."""
    try:  # getrusage starts from the parent's peak
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON and flush it to the disk.

    Raises:
        MediaError: The operating system refused to write.
    """
    with refusals(path), path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def both_or_neither(clip: Path, record: Path, *more: Path) -> Iterator[tuple[Path, ...]]:
    """Write a clip and its record whole, both or neither.

    Yields paths to write to, in a hidden folder beside `clip`. When the block ends well they
    are renamed to `clip` and `record`; on any exception, KeyboardInterrupt and SystemExit too,
    the folder goes and what was there before stays. Only SIGKILL leaves the folder behind.

    Of `more` files each may be written or not; one that is not, and was there before, goes: it
    belonged to the clip that is replaced.

    Raises:
        MediaError: The operating system refused to write (full disk, permissions); a MediaError
            of the block that names a hidden path names the final one instead.
    """
    with refusals(clip):
        folder = Path(tempfile.mkdtemp(".part", f".{clip.name[:200]}.", clip.parent))
    final = (clip, record, *more)
    hidden = tuple(folder / path.name for path in final)
    try:
        try:
            yield hidden
        except MediaError as error:
            text = str(error)
            for path, name in zip(hidden, final, strict=True):
                text = text.replace(str(path), str(name))
            raise MediaError(text) from error
        _rename(hidden, final, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _rename(hidden: tuple[Path, ...], final: tuple[Path, ...], folder: Path) -> None:
    """All renames; whatever fails, what was there before comes back."""
    kept = [folder / f"{k}.before" for k in range(len(final))]
    written = [k < 2 or path.exists() for k, path in enumerate(hidden)]  # clip and record must be
    try:
        for target, path, old, there in zip(final, hidden, kept, written, strict=True):
            with refusals(target):
                if target.exists():
                    target.replace(old)
                if there:
                    path.replace(target)
    except BaseException:
        for target, path, old, there in zip(final, hidden, kept, written, strict=True):
            if there and not path.exists():
                target.unlink(missing_ok=True)
            if old.exists():
                old.replace(target)
        raise
