"""What the length of a driving clip costs: a table of memory, seconds and bytes.

    python scripts/lengths.py FOLDER SECONDS... [-- OPTIONS OF dreamactor animate]

    python scripts/lengths.py /tmp/lengths 10 300 -- --steps 1

The driving clips are a shipped example, played to and fro for so many seconds; every result is made
by a process of its own, so that its peak of memory is its own. What is there already is not made
again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain, cycle, islice
from pathlib import Path

from dreamactor.bench.stats import markdown_table
from dreamactor.demo import EXAMPLES
from dreamactor.image import Rgb
from dreamactor.video import iter_frames, probe, write_clip

EXAMPLE = EXAMPLES / "triumph"
COLUMNS = [
    "driving clip", "segments", "peak of the process MiB", "seconds", "a second of the clip",
    "result MB",
]  # fmt: skip


def main() -> None:
    """Make the clips, animate by each, print the table."""
    before, _, after = " ".join(sys.argv[1:]).partition(" -- ")
    folder, *lengths = before.split()
    rows = [row(Path(folder), int(length), after.split()) for length in lengths]
    print(markdown_table(COLUMNS, rows))


def row(folder: Path, seconds: int, options: list[str]) -> list[str]:
    """The cells of one length."""
    folder.mkdir(parents=True, exist_ok=True)
    driving, out = folder / f"driving{seconds}.mp4", folder / f"out{seconds}.mp4"
    if not driving.exists():
        write_clip(driving, to_and_fro(seconds), probe(EXAMPLE / "driving.mp4").fps)
    if not out.exists():
        words = ["--reference", EXAMPLE / "reference.png", "--driving", driving, "--out", out]
        program = [str(Path(sys.executable).with_name("dreamactor")), "animate"]
        subprocess.run([*program, *map(str, words), *options], check=True)
    record = json.loads(out.with_suffix(".json").read_text())
    total = record["seconds"]["total"] - record["seconds"]["load weights"]
    return [
        f"{seconds} s",
        f"{record['segments']}",
        f"{record['peak_memory_mib']:.0f}",
        f"{total:.0f}",
        f"{total / seconds:.2f}",
        f"{out.stat().st_size / 1e6:.1f}",
    ]


def to_and_fro(seconds: int) -> Iterator[Rgb]:
    """The example's frames, forwards, backwards and so on."""
    clip = EXAMPLE / "driving.mp4"
    frames = [frame for _, frame in iter_frames(clip)]
    endless = cycle(chain(frames, frames[-2:0:-1]))
    return islice(endless, round(seconds * probe(clip).fps))


if __name__ == "__main__":
    main()
