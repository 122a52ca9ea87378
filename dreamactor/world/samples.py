"""Pairs as files that a person can look at.

OUT/0/reference.png  OUT/0/driving.mp4  OUT/0/target.mp4      and so on for 1, 2, ...
OUT/sheet.png        all pairs: reference and target frames above the driving frames
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dreamactor.errors import ConfigError, MediaError
from dreamactor.image import Rgb, check_output, contact_sheet, write_png
from dreamactor.video import write_clip
from dreamactor.world.cast import Cast
from dreamactor.world.pairs import FPS, Pair, PairSampler
from dreamactor.world.staging import describe

MOMENTS = (0, 5, 10, 15)
"""Target frames on the sheet."""
ROW = 112  # pixels


def write_samples(
    cast: Cast,
    out: Path,
    split: str,
    count: int,
    seed: int,
    size: int = 256,
    overwrite: bool = False,
) -> Iterator[Pair]:
    """Draw pairs 0 .. count - 1, write them, and give each when its files are there.

    The sheet comes last. All files are looked for before anything is drawn.

    Args:
        cast: Characters and motions.
        out: Folder; made if needed.
        split: Whose pairs: train, validation or test.
        count: How many.
        seed: Their seed.
        size: Pixels of a side.
        overwrite: Replace files that are there.

    Raises:
        AssetError: The cast has nobody in that split.
        ConfigError: No pairs asked for.
        MediaError: A file is there already, or cannot be written.
    """
    if count < 1:
        raise ConfigError(f"count={count}: want at least 1")
    sampler = PairSampler(cast, split, size)
    folders = [out / str(index) for index in range(count)]
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as fault:
            raise MediaError(f"{folder}: cannot be made: {fault.strerror}") from fault
        for name in ("reference.png", "driving.mp4", "target.mp4"):
            check_output(folder / name, overwrite)
    check_output(out / "sheet.png", overwrite)
    rows: list[tuple[str, list[Rgb]]] = []
    for index, folder in enumerate(folders):
        pair = sampler.pair(seed, index)
        write_png(folder / "reference.png", pair.reference[..., :3])
        for name, clip in (("driving.mp4", pair.driving), ("target.mp4", pair.target)):
            write_clip(folder / name, clip[..., :3], FPS, overwrite=overwrite)
        rows += sheet_rows(index, pair)
        yield pair
    write_png(out / "sheet.png", contact_sheet(rows, ROW, text_height=14))


def sheet_rows(index: int, pair: Pair) -> list[tuple[str, list[Rgb]]]:
    """Two rows of a contact sheet; frames above each other show the same moment.

    The driving row starts with the frame before the first: there the reference stands above it.
    """
    target = [pair.reference, *(pair.target[k] for k in MOMENTS)]
    driving = [pair.driving[0], *(pair.driving[1 + k] for k in MOMENTS)]
    who = describe(pair.spec.driver)
    return [
        (f"{index}. Reference and target: {pair.caption}", [f[..., :3] for f in target]),
        (f"Driving clip: {who}", [f[..., :3] for f in driving]),
    ]
