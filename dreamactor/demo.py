"""The examples that ship with the package, animated: what a first look at DreamActor shows.

    out/NAME.mp4, out/NAME.json    one clip an example, and its record
    out/contact_sheet.png          all of them at a glance

An example is done again only where its record does not fit: other weights, another version,
other settings or inputs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreamactor import provenance
from dreamactor.backbones.base import Backbone, identity
from dreamactor.backbones.load import load_backbone
from dreamactor.diffusion import pipeline
from dreamactor.diffusion.job import AnimateConfig, prepare
from dreamactor.diffusion.task import resolve
from dreamactor.image import Rgb, contact_sheet, fit, read_image, refusals, write_png
from dreamactor.video import iter_frames, probe

EXAMPLES = Path(__file__).parent / "data" / "examples"
COLUMNS = 6
"""Moments of each clip on the contact sheet."""
CELL = 144
"""Pixels of a side of its pictures."""
PATHS = ("reference", "driving", "out", "overwrite")
"""Settings that say where files are and not what is in them."""

Say = Callable[[str], object]


@dataclass(frozen=True)
class Example:
    """A reference and a driving clip that ship with the package."""

    name: str
    title: str
    shows: str
    """What the result should show, a sentence without its full stop."""
    reference: Path
    driving: Path


@dataclass(frozen=True)
class Demo:
    """What `play` left in its folder."""

    clips: dict[str, Path]
    """Name of an example -> its result."""
    made: tuple[str, ...]
    """Names of those that were not there yet."""
    sheet: Path
    seconds: float


def read_examples(folder: Path = EXAMPLES) -> list[Example]:
    """The examples in a folder, as examples.json lists them."""
    listed: list[dict[str, Any]] = json.loads((folder / "examples.json").read_text())["examples"]
    return [
        Example(e["name"], e["title"], e["shows"], folder / e["reference"], folder / e["driving"])
        for e in listed
    ]


def play(
    out: Path,
    overwrite: bool = False,
    backbone: Backbone | None = None,
    say: Say = lambda line: None,
    examples: Sequence[Example] | None = None,
) -> Demo:
    """Animate every example that is not done yet, and lay all out on one sheet.

    Args:
        out: Folder of the results; made where it is missing.
        overwrite: Do everything again, whatever is there.
        backbone: Loaded already; None loads the embedded model.
        say: Gets a line for every step.
        examples: Which; None takes those that ship with the package.

    Returns:
        What was made and where it is.

    Raises:
        MediaError: Nothing can be written to `out`, or a clip there is not ours to replace.
        WeightsError: The embedded model's weights are missing or damaged.
    """
    start = time.perf_counter()
    model = backbone or load_backbone("nano")
    examples = read_examples() if examples is None else examples
    with refusals(out):
        out.mkdir(parents=True, exist_ok=True)
    clips, made = {}, []
    for number, example in enumerate(examples, 1):
        clip = clips[example.name] = out / f"{example.name}.mp4"
        label = f"{number}/{len(examples)} {clip}: {example.shows}"
        if not overwrite and _finished(example, clip, model):
            say(f"{label}, is there already")
            continue
        say(label)
        config = _config(example, clip, overwrite or _is_ours(clip))
        result = pipeline.run(prepare(config), model)
        say(f"    {result.frames} frames in {result.seconds:.1f} s")
        made.append(example.name)
    sheet = out / "contact_sheet.png"
    write_png(sheet, picture(examples, clips))
    seconds = time.perf_counter() - start
    say(f"{sheet}: references, driving clips and results side by side; {seconds:.0f} s in all")
    return Demo(clips, tuple(made), sheet, seconds)


def picture(examples: Sequence[Example], clips: dict[str, Path]) -> Rgb:
    """The contact sheet: two rows an example, the result below the driver's same moments."""
    blank = np.full((CELL, CELL, 3), 255, np.uint8)
    rows: list[tuple[str, list[Rgb]]] = []
    for example in examples:
        driving = [read_image(example.reference), *_moments(example.driving)]
        rows.append((f"{example.title}: reference and driving clip", [*map(_cell, driving)]))
        result = [blank, *map(_cell, _moments(clips[example.name]))]
        rows.append((f"Result: {example.shows}", result))
    return contact_sheet(rows, CELL, text_height=16)


def _cell(frame: Rgb) -> Rgb:
    return fit(frame, (CELL, CELL), "letterbox", fill=(255, 255, 255))[0]


def _moments(path: Path) -> list[Rgb]:
    """COLUMNS frames, each from the middle of its share of the clip."""
    count = probe(path).frames
    wanted = {(2 * k + 1) * count // (2 * COLUMNS) for k in range(COLUMNS)}
    return [frame for k, (_, frame) in enumerate(iter_frames(path)) if k in wanted]


def _config(example: Example, clip: Path, overwrite: bool) -> AnimateConfig:
    """The defaults, but no model of the user's is asked: the same examples for everyone.

    And two threads: four on two cores, the least machine this is for, take a fifth longer.
    """
    return AnimateConfig(
        example.reference,
        example.driving,
        clip,
        describer="offline",
        threads=2,
        overwrite=overwrite,
    )


def _finished(example: Example, clip: Path, model: Backbone) -> bool:
    """Whether the clip is there, whole, and what this program would make of the example now."""
    if not _is_ours(clip):
        return False
    record = _record(clip)
    versions = record.get("versions")
    task = resolve(prepare(_config(example, clip, overwrite=True)), model)
    inputs = {
        name: {"sha256": provenance.sha256(path)}
        for name, path in (("reference", example.reference), ("driving", example.driving))
    }
    return (
        record.get("inputs") == inputs
        and record.get("backbone") == identity(model)
        and _settings(record.get("settings")) == _settings(task.plain())
        and isinstance(versions, dict)
        and versions.get("dreamactor") == provenance.versions()["dreamactor"]
    )


def _settings(plain: object) -> dict[str, Any]:
    """Settings that have a say in the pixels."""
    items = plain.items() if isinstance(plain, dict) else ()
    return {key: value for key, value in items if key not in PATHS}


def _is_ours(clip: Path) -> bool:
    """Whether the clip is as its record says, so that nobody's work is lost with it."""
    said = _record(clip).get("output")
    return (
        clip.is_file() and isinstance(said, dict) and said.get("sha256") == provenance.sha256(clip)
    )


def _record(clip: Path) -> dict[str, Any]:
    """The record beside a clip; empty where there is none that can be read."""
    try:
        record = json.loads(clip.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
