"""Seconds per clip, stage by stage, on the device at hand; kept by device beside the results."""

from __future__ import annotations

import json
import os
from pathlib import Path

from dreamactor.bench import stats
from dreamactor.bench.cases import Studio
from dreamactor.bench.systems import Animation
from dreamactor.provenance import Stages, processor
from dreamactor.runs import write_text

CLIPS = 3  # timed one by one, after one that is not counted


def hardware(device: str) -> str:
    """The machine in words, such as "2 CPU cores (AMD EPYC 9B14), 1 NVIDIA H100"."""
    words = f"{os.cpu_count()} CPU cores ({processor()})"
    if device == "cpu":
        return words
    import torch

    return f"{words}, 1 {torch.cuda.get_device_name(device)}"


def time_stages(studio: Studio, animation: Animation | None) -> dict[str, float]:
    """Seconds per clip of each stage, one clip at a time, after a first one to warm up.

    Args:
        studio: Draws the cases, in this process.
        animation: Model at its default steps; None times drawing alone.
    """
    first = studio.case(0)
    if animation is not None:
        animation.animate([first])
    stages = Stages()
    for index in range(1, 1 + CLIPS):
        with stages("draw a pair"):
            case = studio.case(index)
        if animation is not None:
            animation.animate([case], stages)
    return {name: spent / CLIPS for name, spent in stages.seconds.items()}


def keep(path: Path, device: str, seconds: dict[str, float]) -> dict[str, dict[str, float]]:
    """Add the stages of a device to a JSON file; those of all devices so far come back."""
    known: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.is_file() else {}
    known[device] = {name: round(spent, 4) for name, spent in seconds.items()}
    write_text(path, json.dumps(known, indent=1) + "\n")
    return known


def timing_table(timed: dict[str, dict[str, float]]) -> str:
    """Markdown table: a row a device, a column a stage."""
    stages = list(dict.fromkeys(name for row in timed.values() for name in row))
    rows = [
        [device, *(f"{row[s]:.3f}" if s in row else "-" for s in stages)]
        for device, row in timed.items()
    ]
    return stats.markdown_table(["seconds per clip on", *stages], rows)
