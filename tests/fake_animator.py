"""A stand-in for the model behind a server: the driver, tinted by the reference, as slow as wanted.

It can be imported by workers, writes down what it began and ended, and obeys some prompts. As a
program it is a server with itself behind it, for tests that kill one.
"""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dreamactor.cli.options import end_on_sigterm
from dreamactor.errors import MediaError
from dreamactor.image import read_image
from dreamactor.provenance import both_or_neither, write_record
from dreamactor.video import iter_frames, probe, write_clip


@dataclass(frozen=True)
class Fake:
    seconds: float = 0.0
    diary: Path | None = None
    steps: int = 5

    def __call__(self, config, watch):
        self.note("begin", config)
        watch.stage("denoise")
        if config.prompt == "refuse":
            raise MediaError(f"{config.driving}: nobody in it")
        if config.prompt == "break":
            raise RuntimeError("it broke\nat the second line")
        if config.prompt == "die":
            os._exit(9)
        clip = probe(config.driving)
        tint = read_image(config.reference).mean((0, 1))
        frames = [np.uint8(frame * 0.5 + tint * 0.5) for _, frame in iter_frames(config.driving)]
        watch.plan(self.steps)
        for k in range(self.steps):
            time.sleep(self.seconds / self.steps)
            watch.step()
            watch.frame(frames[k * len(frames) // self.steps])
        with both_or_neither(config.out, config.record) as (out, record):
            write_clip(out, frames, clip.fps, audio_from=config.driving if config.audio else None)
            write_record(record, {"synthetic": True, "settings": config.plain()})
        self.note("end", config)

    def note(self, word, config):
        if self.diary:
            with self.diary.open("a") as file:
                file.write(f"{word} {config.out.parent.name} {os.getpid()}\n")


def tell(reference, driving, start, end, describer):
    """A stand-in for `words.tell`."""
    if describer == "offline":
        texts = {"motion": "m", "appearance": "a", "prompt": f"a thing moves from {start:g}"}
        return {**texts, "sources": dict.fromkeys(texts, "offline")}
    raise MediaError(f"{driving}: no describer here")


if __name__ == "__main__":
    end_on_sigterm()
    from dreamactor.studio.server import Place, serve
    from dreamactor.studio.settings import Setup

    folder, diary, seconds = sys.argv[1:]
    serve(
        Place(Path(folder), port=0, devices=("cpu", "cpu")),
        Setup(),
        lambda line: sys.stdout.write(line + "\n") and sys.stdout.flush(),
        animator=Fake(float(seconds), Path(diary)),
    )
