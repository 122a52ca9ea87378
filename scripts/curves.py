"""Draw docs/img/training.png from the metrics of the runs that made the weights that ship.

python scripts/curves.py docs/training docs/img/training.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PANELS = (
    ("nano-vae.jsonl", "mse", "autoencoder: squared error, pixels in [-1, 1]"),
    ("nano-vae.jsonl", "perceptual", "autoencoder: perceptual distance"),
    ("nano.jsonl", "total", "transformer: flow-matching loss"),
)


def rows(path: Path) -> list[dict[str, float]]:
    """One dictionary a line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def main(folder: Path, out: Path) -> None:
    """One panel a curve, over minutes."""
    figure, axes = plt.subplots(1, len(PANELS), figsize=(4 * len(PANELS), 3), layout="constrained")
    for axis, (name, key, title) in zip(axes, PANELS, strict=True):
        points = [row for row in rows(folder / name) if key in row]
        axis.plot([row["seconds"] / 60 for row in points], [row[key] for row in points])
        axis.set(title=title, xlabel="minutes on 4 H200", yscale="log")
        axis.title.set_size(9)
        axis.grid(alpha=0.3, which="both")
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
