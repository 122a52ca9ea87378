"""report.html: what came of the chain, on one page that needs no other file.

Measurements first, then what they look like, then how they were made: stages, curves, samples.
It is written after every stage, with what is there.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dreamactor.bench import evaluate, stats
from dreamactor.bench.goals import goals_table
from dreamactor.bench.report import difference_table, summary_table, values
from dreamactor.bench.sheets import tile
from dreamactor.bench.variants import COPY, ORACLE, POSE, RGB, variant_goals
from dreamactor.bootstrap.gate import evidence_of
from dreamactor.bootstrap.manifest import DataSet
from dreamactor.config import Section
from dreamactor.errors import ConfigError
from dreamactor.image import Rgb, contact_sheet, read_image
from dreamactor.provenance import versions
from dreamactor.reproduce.settings import STAGES, ReproduceConfig
from dreamactor.reproduce.stages import metrics
from dreamactor.runs import write_text

if TYPE_CHECKING:
    from dreamactor.reproduce.chain import Mark

PAIRS, MOMENTS, CELL = 6, 5, 96
"""Of the sheet of bootstrapped pairs: items, frames of each clip, pixels of a frame's side."""
WIDEST = 1800
"""Pixels of a picture; wider ones are brought to it."""
CURVES = {
    "base": (("flow",), ("missed_1", "silent_1")),
    "keypoints": (("place",), ("held_pck5", "held_pck10")),
    "pose": (("loss",), ("missed_1", "swapped_1")),
    "rgb": (("loss",), ("missed_1", "swapped_1")),
}
"""Names in metrics.jsonl: of what is minimised, and of what is looked at on held examples."""
SHEETS = {
    "base": "first frame, a later one, and the sample of that",
    "keypoints": "joints found on held frames",
    "pose": "skeleton, target, sample of held examples",
    "rgb": "driving clip, target, sample of held examples",
}
ROWS = f"""{COPY}: the reference in every frame. {POSE}: stage 1, driven by skeletons that the
chain's own estimator finds. {RGB}: stage 2, driven by the clips themselves. {ORACLE}: the model
that was trained on true pairs. truth: what a perfect clip measures."""
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #888; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1280px; margin: 2rem auto;
  padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
h3 { margin-top: 1.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: .3rem .5rem; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; }
th { white-space: nowrap; } td { white-space: nowrap; } td.words { white-space: normal; }
th:first-child, td:first-child, .words { text-align: left !important; }
img { max-width: 100%; height: auto; background: #fff; }
figure { margin: 1rem 0; }
.grid { display: grid; gap: 1rem; 
  grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); }
figcaption, .soft { color: var(--soft); font-size: 14px; }
.warn { border-left: 4px solid #c80; padding: .2rem 1rem; }
pre { overflow-x: auto; border: 1px solid var(--line); padding: 1rem; font-size: 13px; }
"""


def write_page(config: ReproduceConfig, stages: Sequence[str], marks: Mapping[str, Mark]) -> Path:
    """Write report.html; its path.

    Args:
        config: Of the chain.
        stages: Names of all its stages, in order.
        marks: What is known of those that were begun.
    """
    done = [name for name in stages if name in marks and marks[name].done]
    title = "DreamActor, reproduced at nano scale"
    parts = [f"<h1>{title}</h1>", _lead(config, stages, marks, done)]
    parts += _measured(config, "bench" in done)
    parts += [_stages(stages, marks), _curves(config.out, done), _samples(config.out, done)]
    if "filter" in done:
        parts.append(_pairs(config.out))
    parts.append(_settings(config))
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style>\n" + "\n".join(part for part in parts if part) + "\n</html>\n"
    )
    write_text(config.out / "report.html", page)
    return config.out / "report.html"


def _lead(
    config: ReproduceConfig, stages: Sequence[str], marks: Mapping[str, Mark], done: Sequence[str]
) -> str:
    """How far it has come, and what a reader should know before any number."""
    spent = sum(mark.seconds for mark in marks.values()) / 60
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    lines = [
        "<p>The chain of DreamActor-M2: a frozen image-to-video model, an adapter that skeletons "
        "drive, clips that it makes of other identities, and from those, the other way round, an "
        "adapter that clips drive.</p>",
        f"<p>{len(done)} of {len(stages)} stages are done, in {spent:.1f} of "
        f"{config.minutes:g} minutes. Written {date}.</p>",
    ]
    if len(done) < len(stages):
        next_ = next(name for name in stages if name not in done)
        lines.append(
            f'<p class="warn">Not finished: next is {next_}. The same command goes on.</p>'
        )
    if "bench" in done:
        lines.insert(1, f"<p><b>{html.escape(_headline(config.out))}</b></p>")
    if "filter" in done and "no person" in marks["filter"].result:
        lines.append(f'<p class="warn">Of the pairs: {html.escape(marks["filter"].result)}.</p>')
    return "\n".join(lines)


def _headline(out: Path) -> str:
    """The result in a sentence."""
    records = evaluate.read(out / "bench" / "results.jsonl")
    psnr = {name: values(records, name, "psnr") for name in (COPY, POSE, RGB, ORACLE)}
    levels = {name: stats.bootstrap(found.values()) for name, found in psnr.items()}
    shown = {name: stats.format_interval(x, 2, "plus-minus") for name, x in levels.items()}
    gain = stats.format_interval(stats.paired_difference(psnr[RGB], psnr[POSE]))
    return (
        f"PSNR on held-out pairs: end-to-end {shown[RGB]} dB, pose {shown[POSE]}, oracle "
        f"{shown[ORACLE]}, copy {shown[COPY]}; end-to-end minus pose, clip by clip: {gain} dB."
    )


def _measured(config: ReproduceConfig, done: bool) -> list[str]:
    """Tables and sheets of the bench."""
    folder = config.out / "bench"
    if not done:
        return ["<h2>Measurements</h2><p>Not measured yet.</p>"]
    records = evaluate.read(folder / "results.jsonl")
    clips = len({record.case for record in records})
    goals = variant_goals(records)
    return [
        f"<h2>Measurements</h2><p>{clips} held-out pairs: characters and motions that training "
        "never saw. Means over clips; after ± half the width of the 95 % interval (bootstrap over "
        "clips), in brackets the interval itself. Fidelity is measured in the subject's box.</p>",
        _table(summary_table(records)),
        f'<p class="soft">{html.escape(ROWS)}</p>',
        "<h3>Clip by clip against the pose variant</h3>",
        _table(difference_table(records, POSE)),
        *(("<h3>Goals</h3>", _table(goals_table(goals))) if goals else ()),
        "<h3>By domain</h3>",
        _table(summary_table(records, "domain")),
        "<h3>What it looks like</h3>",
        _figure(folder / "contact.png", "The first held-out pairs, none chosen."),
        _figure(folder / "worst.png", f"The pairs on which {RGB} has its lowest PSNR."),
    ]


def _stages(stages: Sequence[str], marks: Mapping[str, Mark]) -> str:
    machines = sorted({mark.hardware for mark in marks.values() if mark.hardware})
    several = len(machines) > 1
    rows = []
    for number, name in enumerate(stages, 1):
        mark = marks.get(name)
        took = f"{mark.seconds / 60:.2f}" if mark else "-"
        given = f"{mark.minutes:.2f}" if mark else "-"
        starts = str(mark.starts) if mark else "-"
        came = mark.result or "begun" if mark else "to come"
        where = [mark.hardware if mark else "-"] if several else []
        rows.append([str(number), name, STAGES[name], took, given, starts, came, *where])
    total = sum(mark.seconds for mark in marks.values()) / 60
    rows.append(["", "all", "", f"{total:.2f}", "", "", "", *([""] if several else [])])
    head = ["", "stage", "what", "minutes", "given", "starts", "what came of it"]
    head += ["on"] if several else []
    return (
        "<h2>Stages</h2>"
        + _rows(head, rows, words=(1, 2, 6, 7))
        + f'<p class="soft">On {html.escape("; ".join(machines) or "-")}. Given: minutes that the '
        "budget left for a stage when it began. Starts: processes that were at it, more than one "
        "where it was interrupted.</p>"
    )


# ---- pictures -----------------------------------------------------------------------------------


def _curves(out: Path, done: Sequence[str]) -> str:
    trained = [name for name in CURVES if name in done]
    if not trained:
        return ""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ConfigError("the curves need matplotlib: pip install 'dreamactor[bench]'") from error
    figure = Figure(figsize=(3.6 * len(trained), 5.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(trained), squeeze=False)
    for column, name in enumerate(trained):
        rows = metrics(out / name)
        for axis, keys in zip(axes[:, column], CURVES[name], strict=True):
            for key in keys:
                here = [row for row in rows if key in row]
                axis.plot(
                    [row["step"] for row in here],
                    [row[key] for row in here],
                    label=key if here else f"{key}: nothing logged",
                    marker="o" if len(here) < 12 else None,
                    markersize=3,
                )
            axis.ticklabel_format(axis="y", useOffset=False)
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axis.grid(alpha=0.3)
            axis.legend(fontsize=8, frameon=False)
        axes[0, column].set_title(f"{name}: loss", fontsize=10)
        axes[1, column].set_title("held examples", fontsize=10)
        axes[1, column].set_xlabel("steps", fontsize=9)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    said = (
        "missed: share of the subject's variance that one look at noise alone misses, 1 = nothing "
        "is known; swapped: the same with another's driver, silent: without text. The gap is what "
        "has been learnt of motion, or of words. pck: share of joints within .05 and .1 of the box."
    )
    return "<h2>Training</h2>" + _embedded(file.getvalue(), "png", said)


def _samples(out: Path, done: Sequence[str]) -> str:
    parts = []
    for name, said in SHEETS.items():
        sheets = sorted((out / name / "samples").glob("[0-9]*.png")) if name in done else []
        if sheets:
            caption = f"{name}, step {int(sheets[-1].stem):,}: {said}"
            parts.append(_figure(sheets[-1], caption))
    if not parts:
        return ""
    return "<h2>Samples while training</h2><div class=grid>" + "\n".join(parts) + "</div>"


def _pairs(out: Path) -> str:
    """Sheet of bootstrapped pairs, from the best by the gate's average to the worst."""
    data = DataSet(out / "data")
    verdicts = {item: data.verdict(item, "measured") for item in data.items()}
    ranked = sorted(
        ((v.scores.average, item) for item, v in verdicts.items() if v is not None), reverse=True
    )
    if not ranked:
        return ""
    places = np.linspace(0, len(ranked) - 1, min(PAIRS, len(ranked))).round().astype(int)
    blocks: list[Rgb] = []
    for average, item in (ranked[k] for k in places):
        shown = evidence_of(data, item)
        moments = np.linspace(0, len(shown.result) - 1, MOMENTS).round().astype(int)
        verdict = verdicts[item]
        word = "passed" if verdict is not None and verdict.passed else "refused"
        source = [shown.identity, *(shown.source[k] for k in moments)]
        result = [np.full_like(shown.identity, 255), *(shown.result[k] for k in moments)]
        rows = [
            (f"average {average:.2f}, {word}: identity, then the source clip", source),
            ("its motion on the identity", result),
        ]
        blocks.append(contact_sheet(rows, CELL, text_height=14))
    sheet = tile(blocks, columns=2)
    averages = [average for average, _ in ranked]
    spread = stats.format_interval(stats.bootstrap(averages), 2)
    caption = (
        f"{len(ranked)} pairs, average score {spread}, best {averages[0]:.2f}, worst "
        f"{averages[-1]:.2f}; shown evenly from the best to the worst."
    )
    return "<h2>Bootstrapped pairs</h2>" + _embedded(_jpeg(sheet), "jpeg", caption)


def _figure(path: Path, caption: str) -> str:
    return _embedded(_jpeg(read_image(path)), "jpeg", caption) if path.is_file() else ""


def _jpeg(picture: Rgb) -> bytes:
    image, file = Image.fromarray(picture), io.BytesIO()
    if image.width > WIDEST:
        image = image.resize((WIDEST, round(image.height * WIDEST / image.width)))
    image.save(file, "JPEG", quality=88)
    return file.getvalue()


def _embedded(picture: bytes, kind: str, caption: str) -> str:
    text = html.escape(caption)
    code = base64.b64encode(picture).decode()
    return (
        f'<figure><img alt="{text}" src="data:image/{kind};base64,{code}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


# ---- tables -------------------------------------------------------------------------------------


def _settings(config: ReproduceConfig) -> str:
    lines = []
    for f in fields(config):
        value = getattr(config, f.name)
        if isinstance(value, Section):
            lines.append(f"{f.name}: {{{', '.join(f'{k}: {v}' for k, v in value.items())}}}")
        else:
            lines.append(f"{f.name}: {'null' if value is None else value}")
    text = html.escape("\n".join(lines))
    made = html.escape(json.dumps(versions()))
    return f'<h2>Settings</h2><pre>{text}</pre><p class="soft">{made}</p>'


def _table(markdown: str) -> str:
    """A table of `stats.markdown_table` as HTML."""
    lines = [line.strip()[1:-1].split("|") for line in markdown.strip().splitlines()]
    head, _, *rows = [[cell.strip() for cell in line] for line in lines]
    return _rows(head, rows)


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int] = ()) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=words' if k in words else ''}>{html.escape(cell)}</{tag}>"
            for k, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{line("th", head)}</tr>{body}</table></div>'
