"""A tiny suite: two references and two clips of a moving square, with one truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dreamactor.bench.manifest import (
    Media,
    Suite,
    SuiteCase,
    Truth,
    load_suite,
    save_suite,
    write_arrays,
)
from dreamactor.image import write_png
from dreamactor.provenance import sha256
from dreamactor.video import write_clip

SIDE, FRAMES, FPS = 64, 6, 12
RED, BLUE = (200, 40, 40), (40, 60, 200)


def square(colour: tuple[int, int, int], place: int = 0) -> NDArray[np.uint8]:
    """(SIDE, SIDE, 3) a square of a colour, `place` pixels from the left."""
    picture = np.full((SIDE, SIDE, 3), 180, np.uint8)
    picture[20:44, 8 + place : 32 + place] = colour
    return picture


def moving(colour: tuple[int, int, int], speed: int = 4) -> NDArray[np.uint8]:
    """(FRAMES, SIDE, SIDE, 3) the square going right."""
    return np.stack([square(colour, speed * t) for t in range(FRAMES)])


def tiny_suite(root: Path) -> Suite:
    """Write it: human2human/0 with truth, human2animal/0 without."""
    (root / "media").mkdir(parents=True)
    write_png(root / "media" / "red.png", square(RED))
    write_png(root / "media" / "fox.png", square((180, 120, 40)))
    write_clip(root / "media" / "blue.mp4", moving(BLUE), FPS)
    write_clip(root / "media" / "truth.mp4", moving(RED), FPS)
    mask = np.stack([(frame[..., 1] != 180).astype(np.uint8) for frame in moving(RED)])
    flow = np.zeros((FRAMES - 1, SIDE, SIDE, 2), np.float32)
    flow[mask[:-1] > 0] = (4, 0)
    pixels = np.stack([[[20 + 4 * t, 32]] for t in range(FRAMES)]).astype(np.float32)
    joints = {1: (("head",), pixels, np.ones((FRAMES, 1), np.bool_))}
    write_arrays(root / "media" / "truth.npz", Truth(mask, joints, flow))

    def medium(name: str, kind: str, file: str, **more: object) -> Media:
        file = f"media/{file}"
        digest = sha256(root / file)
        return Media(name, kind, file, digest, "CC0-1.0", **{"subject": "human", **more})

    media = [
        medium("red", "reference", "red.png", age="young"),
        medium("fox", "reference", "fox.png", subject="animal", species="fox"),
        medium("blue", "driving", "blue.mp4", activity="travel", camera="static"),
        medium(
            "red-truth", "truth", "truth.mp4",
            arrays="media/truth.npz", arrays_sha256=sha256(root / "media" / "truth.npz"),
        ),
    ]  # fmt: skip
    cases = [
        SuiteCase("human2human/0", "human2human", "red", "blue", "red-truth"),
        SuiteCase("human2animal/0", "human2animal", "fox", "blue", prompt="a fox goes right"),
    ]
    suite = Suite(root, "tiny", "1", "CC0-1.0", {m.name: m for m in media}, cases)
    save_suite(suite)
    return load_suite(root)
