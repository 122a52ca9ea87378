"""A stand-in for stage 1 that spawned workers can import: the source clip, tinted by the identity.

It is fast, or as slow as a test wants, and writes down who began and ended what.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filming import film

from dreamactor.errors import MediaError
from dreamactor.image import read_image, write_png
from dreamactor.video import iter_frames, probe, write_clip

FRAMES, SIZE = 6, (48, 64)


@dataclass(frozen=True)
class Tint:
    diary: Path | None = None
    seconds: float = 0.0
    refuses: str = ""
    """A picture's sha256 that it does not take."""
    drops: int = 0
    """Frames it forgets."""
    strength: float = 0.5

    @property
    def about(self):
        return {"name": "tint", "strength": self.strength}

    def __call__(self, forward, out):
        if forward.identity.sha256 == self.refuses:
            raise MediaError("this picture is not taken")
        self.note("begin", forward)
        tint = read_image(forward.identity.path).mean((0, 1))
        frames = [frame for _, frame in iter_frames(forward.source.path)]
        mixed = [np.uint8(f * (1 - self.strength) + tint * self.strength) for f in frames]
        time.sleep(self.seconds)
        write_clip(out, mixed[: len(mixed) - self.drops], probe(forward.source.path).fps)
        self.note("end", forward)

    def note(self, word, forward):
        if self.diary:
            with self.diary.open("a") as file:
                name = forward.source.sha256[:8] + forward.identity.sha256[:8]
                file.write(f"{word} {name} {os.getpid()}\n")


def diary_of(path):
    """[word, item, process] in order."""
    return [line.split() for line in path.read_text().splitlines()]


def write_inputs(folder, clips=3, pictures=2):
    """Folders of clips and pictures, all different; returns both."""
    sources, references = folder / "sources", folder / "references"
    sources.mkdir()
    references.mkdir()
    for k in range(clips):
        film(sources / f"clip{k}.mp4", FRAMES, fps=12, size=SIZE, draw=_moving(k))
    for k in range(pictures):
        write_png(references / f"who{k}.png", np.full((*SIZE, 3), 60 + 20 * k, np.uint8))
    return sources, references


def _moving(k):
    def draw(i, height, width):
        frame = np.full((height, width, 3), 90, np.uint8)
        frame[10:30, 5 + 4 * i : 25 + 4 * i] = (200, 40 + 20 * k, 40)
        return frame

    return draw
