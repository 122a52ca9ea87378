"""Clips of the world as plain folders, for models that are trained and run elsewhere.

    OUT/train/000000a.mp4, .txt    clips of the train split, and captions; a and b do one motion
    OUT/test/000000.mp4, .txt      driving clips of the test split
    OUT/references/000000.png      whom they shall drive
    OUT/truth/000000.mp4           what that looks like
    OUT/pairs.csv                  reference,driving,truth,caption; one line a test pair

Repositories of the first-order-motion family read OUT as it is: mp4 files below train and test.
Pair i of a seed is that of `world.pairs`, so test pair i is case i of `dreamactor bench nano`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from dreamactor.config import check_least
from dreamactor.errors import ConfigError, MediaError
from dreamactor.image import Rgb, write_png
from dreamactor.runs import write_text
from dreamactor.video import write_clip
from dreamactor.world.cast import load_cast
from dreamactor.world.pairs import FPS, PairSampler, caption_of

FOLDERS = ("train", "test", "references", "truth")
CRF = 10


@dataclass(frozen=True)
class ExportConfig:
    """Settings of `dreamactor world export`."""

    train: int = 1000
    """Training pairs, of two clips each; 0 leaves them out."""
    test: int = 200
    """Test pairs."""
    frames: int = 16
    """Of a training clip. Test clips have 16, as `dreamactor bench nano` asks for them."""
    seed: int = 0
    """Of characters, motions and views."""
    size: int = 256
    """Pixels of a side."""

    def __post_init__(self) -> None:
        """Check every value by itself.

        Raises:
            ConfigError: One that cannot work.
        """
        check_least(self, {"train": 0, "test": 0, "frames": 2, "size": 32})
        if not self.train and not self.test:
            raise ConfigError("train=0 test=0: want 1 or more of one of them")


def export_world(
    cast: Path, out: Path, config: ExportConfig, say: Callable[[str], None] = print
) -> None:
    """Write the folders, as far as they are not there yet.

    Args:
        cast: Cast pack.
        out: Folder; made if needed.
        config: How much.
        say: Takes lines of what was made.

    Raises:
        AssetError: The pack cannot be read, or has nobody in a split.
        ConfigError: The folder holds an export of other settings.
        MediaError: It cannot be written to.
    """
    pack = load_cast(cast)
    try:
        for name in FOLDERS:
            (out / name).mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise MediaError(f"{out}: cannot be made: {fault.strerror}") from fault
    asked = {k: v for k, v in asdict(config).items() if k not in ("train", "test")}
    text = json.dumps(asked | {"cast": pack.digest}, indent=1) + "\n"
    known = out / "export.json"
    if known.is_file() and known.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"{out}: holds an export of {' '.join(known.read_text(encoding='utf-8').split())}; "
            "name another folder"
        )
    write_text(known, text)
    if config.train:
        trainer = PairSampler(pack, "train", config.size, frames=config.frames)
        for index in tqdm(range(config.train), "train", disable=None, leave=False):
            _train(trainer, out / "train", config.seed, index)
        say(f"{out / 'train'}: {2 * config.train} clips")
    if config.test:
        tester = PairSampler(pack, "test", config.size)
        bar = tqdm(range(config.test), "test", disable=None, leave=False)
        captions = [_test(tester, out, config.seed, index) for index in bar]
        write_text(out / "pairs.csv", _table(captions))
        say(f"{out / 'pairs.csv'}: {config.test} pairs")


def _train(sampler: PairSampler, folder: Path, seed: int, index: int) -> None:
    """Both clips of a training pair; the captions come last."""
    stems = [folder / f"{index:06d}{letter}" for letter in "ab"]
    if all(stem.with_suffix(".txt").is_file() for stem in stems):
        return
    pair = sampler.pair(seed, index)
    captions = (caption_of(pair.spec.driver, pair.spec.motion), pair.caption)
    for stem, clip, caption in zip(stems, (pair.driving[1:], pair.target), captions, strict=True):
        _write(stem.with_suffix(".mp4"), clip[..., :3])
        write_text(stem.with_suffix(".txt"), caption + "\n")


def _test(sampler: PairSampler, out: Path, seed: int, index: int) -> str:
    """A test pair; its caption, which comes last."""
    note = out / "test" / f"{index:06d}.txt"
    if note.is_file():
        return sampler.spec(seed, index).caption
    pair = sampler.pair(seed, index)
    write_png(out / "references" / f"{index:06d}.png", pair.reference[..., :3])
    _write(out / "truth" / f"{index:06d}.mp4", pair.target[..., :3])
    _write(out / "test" / f"{index:06d}.mp4", pair.driving[1:, ..., :3])
    write_text(note, caption_of(pair.spec.driver, pair.spec.motion) + "\n")
    return pair.caption


def _write(path: Path, clip: Rgb) -> None:
    write_clip(path, clip, FPS, crf=CRF, overwrite=True)


def _table(captions: list[str]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["reference", "driving", "truth", "caption"])
    for k, caption in enumerate(captions):
        name = f"{k:06d}"
        table.writerow([f"references/{name}.png", f"test/{name}.mp4", f"truth/{name}.mp4", caption])
    return text.getvalue()
