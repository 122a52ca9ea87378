"""What the length of a driving clip costs: a table of memory, seconds and bytes.

    python scripts/lengths.py FOLDER SECONDS... [-- OPTIONS OF dreamactor animate]

    python scripts/lengths.py /tmp/lengths 10 60 -- --steps 1
    python scripts/lengths.py /tmp/small 10 300 -- --weights small

--weights small are random ones of a tiny network at 64 x 64, made in FOLDER, for what nano takes
hours for: what is kept from segment to segment hangs on pictures, and not on the network. Driving
clips are a shipped example, played to and fro for so many seconds; every result is made by a
process of its own, so that its peak of memory is its own. What is there already, by the same
options, is not made again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain, cycle, islice
from pathlib import Path

import torch

from dreamactor.backbones.nano import PREDICTS, NanoConfig
from dreamactor.backbones.nano_vae import NanoVAE, NanoVAEConfig
from dreamactor.backbones.weights import save_weights
from dreamactor.bench.stats import markdown_table
from dreamactor.demo import EXAMPLES
from dreamactor.image import Rgb
from dreamactor.runs import write_text
from dreamactor.training.export import export_nano
from dreamactor.video import iter_frames, probe, write_clip

EXAMPLE, SMALL = EXAMPLES / "triumph", "small"
COLUMNS = [
    "driving clip", "segments", "peak of the process MiB", "seconds", "a second of the clip",
    "result MB",
]  # fmt: skip


def main() -> None:
    """Make the clips, animate by each, print the table."""
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    (first, *lengths), options = words[:end], words[end + 1 :]
    folder = Path(first)
    folder.mkdir(parents=True, exist_ok=True)
    if SMALL in options:
        options[options.index(SMALL)] = str(small_weights(folder / SMALL))
    kept = folder / "options.json"
    if kept.exists() and json.loads(kept.read_text()) != options:
        sys.exit(f"error: {folder}: made with other options; want another folder")
    write_text(kept, json.dumps(options))
    rows = [row(folder, int(length), options) for length in lengths]
    print(markdown_table(COLUMNS, rows))


def row(folder: Path, seconds: int, options: list[str]) -> list[str]:
    """The cells of one length."""
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


def small_weights(folder: Path) -> Path:
    """A weights folder of random numbers."""
    torch.manual_seed(0)
    kind = NanoVAEConfig(4, (8, 8, 8), (1, 1, 1), (8, 8, 8, 8), (1, 1, 1, 1))
    shape = NanoConfig(1, 1, 16, 32, 4)
    folder.mkdir(exist_ok=True)
    vae, transformer = folder / "vae.raw", folder / "transformer.raw"
    save_weights(vae, NanoVAE(kind).state_dict(), {"model": "nano-vae", "config": asdict(kind)})
    header = {"model": "nano", "config": asdict(shape), "predicts": PREDICTS}
    save_weights(transformer, shape.build().state_dict(), header)
    export_nano(vae, transformer, folder, steps=1, size=64)
    return folder


def to_and_fro(seconds: int) -> Iterator[Rgb]:
    """The example's frames, forwards, backwards and so on."""
    clip = EXAMPLE / "driving.mp4"
    frames = [frame for _, frame in iter_frames(clip)]
    endless = cycle(chain(frames, frames[-2:0:-1]))
    return islice(endless, round(seconds * probe(clip).fps))


if __name__ == "__main__":
    main()
