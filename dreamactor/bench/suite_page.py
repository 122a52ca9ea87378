"""report.html: a run over a suite on one page that needs no other file.

A strip of a case is a small clip of reference, driver, truth and every system beside each other;
strips are kept in RUN/strips and made again when a clip in them changes.

Legend: T frames of H x W pixels.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from dreamactor.bench.manifest import Suite, SuiteCase
from dreamactor.bench.metrics.table import Metric
from dreamactor.bench.suite_records import SuiteRecord
from dreamactor.image import fit
from dreamactor.runs import write_text
from dreamactor.video import iter_frames, resample, write_clip

WEB = Path(__file__).parent / "web"
SIDE = 128
"""Pixels of a cell of a strip."""
CRF = 30
MOST = 400
"""Cases whose strips are on the page, the worst of the last system first; about 20 kB each."""
POSTER = 55  # JPEG quality


def write_page(
    suite: Suite,
    out: Path,
    head: Mapping[str, Any],
    records: Sequence[SuiteRecord],
    columns: Sequence[Metric],
) -> Path:
    """Write it; its path.

    Args:
        suite: That the run is over.
        out: The run's folder.
        head: run.json.
        records: All that was measured.
        columns: Metrics that are shown.
    """
    systems = list(head["systems"])
    by_case: dict[str, dict[str, SuiteRecord]] = {}
    for record in sorted(records, key=lambda record: systems.index(record.system)):
        by_case.setdefault(record.case, {})[record.system] = record
    judged = [name for name in systems if any(record.system == name for record in records)]
    order = _worst_first(by_case, judged, columns)
    cases: list[dict[str, Any]] = []
    for name in tqdm(order, unit="strip", disable=None, leave=False):
        found = by_case[name]
        first = next(iter(found.values()))
        shown: dict[str, Any] = {
            "name": name,
            "groups": dict(first.groups),
            "values": {s: dict(r.values) for s, r in found.items()},
            "notes": {s: notes for s, r in found.items() if (notes := _notes(out, r))},
        }
        if len(cases) < MOST:
            there = {s: r for s, r in found.items() if r.path(out).is_file()}
            path, labels = _strip(suite, suite.case(name), out, there)
            shown |= {"strip": _data(path, "video/mp4"), "labels": labels}
            shown["poster"] = _data(path.with_suffix(".jpg"), "image/jpeg")
        cases.append(shown)
    given = {
        "systems": systems,
        "columns": [
            {"name": c.name, "title": c.title, "better": c.better, "digits": c.digits}
            for c in columns
        ],
        "cases": cases,
    }
    title = html.escape(f"{suite.name} {suite.version}")
    about = html.escape(
        f"{len(suite.cases)} cases, digest {suite.digest[:12]}, {len(systems)} systems, "
        f"{len(records)} clips"
    )
    text = json.dumps(given, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    page = (WEB / "suite.html").read_text(encoding="utf-8")
    parts = {
        "TITLE": title,
        "ABOUT": about,
        "STYLE": (WEB / "suite.css").read_text(encoding="utf-8"),
        "SCRIPT": (WEB / "suite.js").read_text(encoding="utf-8"),
        "GIVEN": text,
    }
    for key, value in parts.items():
        page = page.replace(f"@{key}@", value)
    write_text(out / "report.html", page)
    return out / "report.html"


def _worst_first(
    by_case: Mapping[str, Mapping[str, SuiteRecord]],
    systems: Sequence[str],
    columns: Sequence[Metric],
) -> list[str]:
    """Names of the cases; by the last judged system's first metric, those without a value last."""
    if not columns:
        return sorted(by_case)
    column, system = columns[0], systems[-1]
    sign = -1 if column.better == "down" else 1

    def badness(name: str) -> tuple[bool, float, str]:
        record = by_case[name].get(system)
        value = None if record is None else record.values.get(column.name)
        return value is None, 0.0 if value is None else sign * value, name

    return sorted(by_case, key=badness)


def _strip(
    suite: Suite, case: SuiteCase, out: Path, found: Mapping[str, SuiteRecord]
) -> tuple[Path, list[str]]:
    """The strip's file, with its poster beside it, and what stands in its cells."""
    sources: list[tuple[str, Path | None]] = [("reference", None)]
    sources.append(("driving", suite.path(case.driving)))
    if case.truth is not None:
        sources.append(("truth", suite.path(case.truth)))
    sources += [(f"by {name}", record.path(out)) for name, record in found.items()]
    clips = "/".join(f"{name}={record.clip}" for name, record in found.items())
    key = hashlib.sha256(f"{suite.digest}/{case.name}/{clips}/{SIDE}/{CRF}".encode()).hexdigest()
    path = out / "strips" / f"{case.result_name}-{key[:12]}.mp4"
    if not (path.is_file() and path.with_suffix(".jpg").is_file()):
        path.parent.mkdir(exist_ok=True)
        for old in path.parent.glob(f"{case.result_name}-{'?' * 12}.*"):
            old.unlink()
        frames = list(_frames(suite, case, sources))
        image, file = Image.fromarray(frames[len(frames) // 2]), io.BytesIO()
        image.save(file, "JPEG", quality=POSTER)
        path.with_suffix(".jpg").write_bytes(file.getvalue())
        write_clip(path, frames, suite.driving(case)[1].fps, crf=CRF)
    return path, [label for label, _ in sources]


def _frames(
    suite: Suite, case: SuiteCase, sources: Sequence[tuple[str, Path | None]]
) -> Iterator[NDArray[np.uint8]]:
    driving, info = suite.driving(case)
    seconds = len(driving) / float(info.fps)
    still = fit(suite.reference(case), (SIDE, SIDE), "letterbox")[0]
    clips = [
        [still] * len(driving)
        if path is None
        else [
            fit(frame, (SIDE, SIDE), "letterbox")[0]
            for frame in resample(iter_frames(path), info.fps, seconds)
        ]
        for _, path in sources
    ]
    for cells in zip(*clips, strict=True):
        yield np.concatenate(cells, axis=1)


def _notes(out: Path, record: SuiteRecord) -> list[str]:
    gone = [] if record.path(out).is_file() else [f"its clip is gone: {record.file}"]
    return [*record.notes, *gone]


def _data(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
