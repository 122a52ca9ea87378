"""Draw the pictures of docs/training.md from what the runs wrote.

python scripts/curves.py curves docs/training docs/img/training.png
python scripts/curves.py distilled docs/training docs/img/distill_curves.png
python scripts/curves.py drivers docs/training/stage1 docs/img/stage1_curves.png
python scripts/curves.py runs docs/training/runs docs/img/training_runs.png
python scripts/curves.py samples docs/img/training_samples.jpg RUN/samples/001900.png ...
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Panel = tuple[str, tuple[str, ...], str, str, str]
"""File, keys, title, machine and scale."""
PANELS: tuple[Panel, ...] = (
    ("nano-vae.jsonl", ("mse",), "autoencoder: squared error, pixels in [-1, 1]", "4 H200", "log"),
    ("nano.jsonl", ("flow",), "transformer: loss", "4 H200", "linear"),
    (
        "nano.jsonl",
        ("missed_1", "swapped_1"),
        "held-back pairs: missed by one prediction\nright driver (below), another's",
        "4 H200",
        "linear",
    ),
)
DISTILLED: tuple[Panel, ...] = tuple(
    (name, keys, f"{of}: {title}", "1 H200", "linear")
    for name, of in (("distill.jsonl", "what ships"), ("distill_further.jsonl", "further"))
    for keys, title in (
        (("loss", "pull"), "score's loss,\nscore from teacher (below)"),
        (("missed_1", "swapped_1"), "missed by one prediction\nright driver (below), another's"),
    )
)


def rows(path: Path) -> list[dict[str, float]]:
    """One dictionary a line; those of previews get the time of the line before."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    seconds = 0.0
    for row in found:
        seconds = row.setdefault("seconds", seconds)
    return found


def finish(figure: Figure, out: Path) -> None:
    """Small titles and a grid on every panel; write it."""
    for axis in figure.axes:
        axis.title.set_size(9)
        axis.grid(alpha=0.3, which="both")
    figure.savefig(out, dpi=110)


def curves(panels: Sequence[Panel], folder: Path, out: Path) -> None:
    """One panel a curve, over minutes."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3), layout="constrained")
    for axis, (name, keys, title, machine, scale) in zip(axes, panels, strict=True):
        for key in keys:
            points = [row for row in rows(folder / name) if key in row]
            axis.plot([row["seconds"] / 60 for row in points], [row[key] for row in points])
        axis.set(title=title, xlabel=f"minutes on {machine}", yscale=scale)
    finish(figure, out)


def drivers(folder: Path, out: Path) -> None:
    """What rows of stage 1 miss of held-back pairs, and how much the driver matters to them."""
    figure, (missed, ratio) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for path in sorted(folder.glob("*.jsonl")):
        looks = [row for row in rows(path) if row["step"]]
        steps = [row["step"] for row in looks]
        missed.plot(steps, [row["missed_1"] for row in looks], ".-", label=path.stem)
        told = [row["swapped_1"] / row["missed_1"] for row in looks]
        ratio.plot(steps, told, ".-", label=path.stem)
    missed.set(title="missed by one prediction", xlabel="steps of 64 examples")
    ratio.set(title="with another's driver, over that", xlabel="steps of 64 examples")
    for axis in (missed, ratio):
        axis.legend(fontsize=8)
    finish(figure, out)


def runs(folder: Path, out: Path) -> None:
    """Losses of the transformer's runs, and what is missed of held-back pairs."""
    figure, (losses, missed) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for number, path in enumerate(sorted(folder.glob("*.jsonl"))):
        for axis, keys in ((losses, ("flow", "total")), (missed, ("missed_1",))):
            told = [row for row in rows(path) if row["seconds"] and set(keys) & row.keys()]
            values = [next(row[key] for key in keys if key in row) for row in told]
            minutes = [row["seconds"] / 60 for row in told]
            axis.plot(minutes, values, ".-", color=f"C{number}", markersize=3, label=path.stem)
    losses.set(title="loss (weighed differently in each run)", xlabel="minutes", ylim=(0.5, 1.6))
    missed.set(title="held-back pairs: missed by one prediction", xlabel="minutes")
    losses.legend(fontsize=8)
    finish(figure, out)


def samples(out: Path, sheets: list[Path]) -> None:
    """Sheets of a run at half size, one under the other."""
    halves = [Image.open(path).convert("RGB").reduce(2) for path in sheets]
    width, height = halves[0].size
    picture = Image.new("RGB", (width, len(halves) * (height + 8)), "white")
    for k, half in enumerate(halves):
        picture.paste(half, (0, k * (height + 8)))
    picture.save(out, quality=88)


if __name__ == "__main__":
    if sys.argv[1] in ("drivers", "runs"):
        {"drivers": drivers, "runs": runs}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
    elif sys.argv[1] != "samples":
        chosen = {"curves": PANELS, "distilled": DISTILLED}[sys.argv[1]]
        curves(chosen, Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        samples(Path(sys.argv[2]), [Path(path) for path in sys.argv[3:]])
