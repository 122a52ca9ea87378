"""The figures and the picture of docs/marks.md.

    python scripts/marks.py survive CLIP... [-- CLIP...]    marks clips, alters them, reads them
    python scripts/marks.py chance FILE...                  looks in files without a mark
    python scripts/marks.py picture OUT.jpg CLIP...         plain, marked, the difference x 20

CLIPs are without a mark, such as of `dreamactor animate --no-watermark`.
"""

import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dreamactor.errors import DreamActorError
from dreamactor.image import Rgb, atomic, contact_sheet, read_image, resize
from dreamactor.video import iter_frames, probe, write_clip
from dreamactor.watermark import CHANCE, Found, Marker, read

Frames = list[Rgb]
Change = Callable[[Frames], Frames]
IDENTITY = "3fa211ee"
LONGEST = 36
"""Frames of a clip that are taken."""
WIDEST = 640
"""Pixels of a longer side of those."""
LARGEST = 1280
"""Longer side of pictures that are looked at."""


def coded(suffix: str, crf: int | None = None, fps: int = 24) -> Change:
    """Written as a clip and read again."""

    def change(frames: Frames) -> Frames:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"clip{suffix}"
            write_clip(path, frames, fps, crf=crf)
            return [frame for _, frame in iter_frames(path)]

    return change


def jpeg(quality: int) -> Change:
    """Each frame by itself."""

    def change(frames: Frames) -> Frames:
        made = []
        for frame in frames:
            file = io.BytesIO()
            Image.fromarray(frame).save(file, "JPEG", quality=quality)
            made.append(np.asarray(Image.open(file).convert("RGB")))
        return made

    return change


def scaled(factor: float) -> Change:
    """By area or bicubic, even sides."""

    def change(frames: Frames) -> Frames:
        height, width = (round(side * factor / 2) * 2 for side in frames[0].shape[:2])
        return [resize(frame, (height, width)) for frame in frames]

    return change


def cropped(share: float, tall: bool = True) -> Change:
    """Without a share of the height and width, two thirds of it at the top and left."""

    def change(frames: Frames) -> Frames:
        height, width = frames[0].shape[:2]
        rows, columns = (int(side * (1 - share) / 2) * 2 for side in (height, width))
        rows = rows if tall else height
        top, left = (height - rows) * 2 // 3, (width - columns) * 2 // 3
        return [np.ascontiguousarray(f[top : top + rows, left : left + columns]) for f in frames]

    return change


def levels(gain: float, offset: float, gamma: float = 1.0) -> Change:
    """Contrast and brightness."""
    curve = np.clip(255 * (np.arange(256) / 255) ** gamma * gain + offset, 0, 255)
    table = np.rint(curve).astype(np.uint8)
    return lambda frames: [table[frame] for frame in frames]


def then(*changes: Change) -> Change:
    """One after the other."""

    def change(frames: Frames) -> Frames:
        for step in changes:
            frames = step(frames)
        return frames

    return change


def grey(frames: Frames) -> Frames:
    """Without colour."""
    return [np.repeat(np.asarray(Image.fromarray(f).convert("L"))[..., None], 3, 2) for f in frames]


H264 = coded(".mp4", 23)
CHANGES: dict[str, Change] = {
    "as `animate` writes mp4 (H.264, CRF 16)": coded(".mp4"),
    "as it writes webm (VP9, CRF 24)": coded(".webm"),
    "as it writes gif (palettes)": coded(".gif"),
    "H.264, CRF 18": coded(".mp4", 18),
    "H.264, CRF 23": H264,
    "H.264, CRF 28": coded(".mp4", 28),
    "H.264, CRF 33": coded(".mp4", 33),
    "VP9, CRF 34": coded(".webm", 34),
    "VP9, CRF 42": coded(".webm", 42),
    "JPEG 85, each frame": jpeg(85),
    "JPEG 85, one frame alone": lambda frames: jpeg(85)(frames[:1]),
    "half size, then H.264 CRF 23": then(scaled(0.5), H264),
    "1.5-fold size, then H.264 CRF 23": then(scaled(1.5), H264),
    "5 % cropped, then H.264 CRF 23": then(cropped(0.05), H264),
    "10 % cropped, then H.264 CRF 23": then(cropped(0.10), H264),
    "25 % of the width cropped, then H.264 CRF 23": then(cropped(0.25, False), H264),
    "10 % cropped, 1.5-fold, then H.264 CRF 28": then(
        cropped(0.10), scaled(1.5), coded(".mp4", 28)
    ),
    "brightness + 20, contrast x 1.2, then H.264 CRF 23": then(levels(1.2, 20), H264),
    "no colour, then H.264 CRF 23": then(grey, H264),
    "mirrored, then H.264 CRF 23": then(lambda f: [x[:, ::-1].copy() for x in f], H264),
    "every second frame, then H.264 CRF 23": then(lambda f: f[::2], H264),
    "first half second, then H.264 CRF 23": then(lambda f: f[:12], H264),
    "turned by 2 degrees, then H.264 CRF 23": then(
        lambda f: [np.asarray(Image.fromarray(x).rotate(2, Image.Resampling.BICUBIC)) for x in f],
        H264,
    ),
}


def survive(words: Sequence[str]) -> None:
    """One row a change; for each group of clips how often mark and identity are found."""
    groups, group = [], list(words)
    while "--" in group:
        groups.append(group[: group.index("--")])
        group = group[group.index("--") + 1 :]
    groups.append(group)
    marked = [[marked_frames(Path(word)) for word in group] for group in groups]
    columns = " | mark found | identity read | lowest score" * len(groups)
    print(f"| change{columns} |\n|---{'|---' * 3 * len(groups)}|")
    for name, change in tqdm(CHANGES.items(), disable=None, leave=False):
        row = name
        for clips in marked:
            found = [read(change(frames)) for frames in clips]
            told = [f.identity for f in found if f.identity is not None]
            assert set(told) <= {IDENTITY}, "an identity read wrongly"
            row += f" | {sum(f.there for f in found)} / {len(found)} | {len(told)} / {len(found)}"
            row += f" | {min(f.score for f in found):.1f}"
        print(f"| {row} |", flush=True)


def marked_frames(path: Path) -> Frames:
    """The beginning of a clip with the mark; says by how much that changed it."""
    frames = first_frames(path)
    marker = Marker(IDENTITY, (frames[0].shape[0], frames[0].shape[1]))
    start = time.process_time()
    marked = [marker.mark(frame) for frame in frames]
    spent = 1000 * (time.process_time() - start) / len(frames)
    height, width = frames[0].shape[:2]
    about = f"{len(frames)} frames of {width} x {height}, {decibels(frames, marked):.1f} dB"
    print(f"{path.stem}: {about}, {spent:.1f} ms a frame")
    return marked


def first_frames(path: Path) -> Frames:
    """Even sides, as every result has, and none longer than WIDEST."""
    frames = [frame for _, frame in islice(iter_frames(path), LONGEST)]
    factor = min(1.0, WIDEST / max(frames[0].shape[:2]))
    height, width = (int(side * factor / 2) * 2 for side in frames[0].shape[:2])
    return [resize(frame, (height, width)) for frame in frames]


def decibels(plain: Frames, marked: Frames) -> float:
    """Peak signal to noise over all frames."""
    error = np.mean([(a.astype(float) - b) ** 2 for a, b in zip(plain, marked, strict=True)])
    return float(10 * np.log10(255**2 / error))


def unmarked(path: Path) -> Found:
    """A clip in whole, or a picture."""
    try:
        probe(path)
    except DreamActorError:
        picture = read_image(path)
        factor = min(1.0, LARGEST / max(picture.shape[:2]))
        height, width = (max(2, round(side * factor)) for side in picture.shape[:2])
        return read([resize(picture, (height, width))])
    return read(frame for _, frame in iter_frames(path))


def chance(paths: Sequence[Path]) -> None:
    """How often and how nearly the mark is seen where there is none."""
    start, found = time.perf_counter(), []
    for path in tqdm(paths, disable=None, leave=False):
        try:
            found.append(unmarked(path))
        except DreamActorError as error:
            print(f"left out: {error}")
    scores = [f.score for f in found]
    print(f"{len(found)} files without a mark in {time.perf_counter() - start:.0f} s")
    print(f"found in {sum(f.there for f in found)}, by a threshold of {CHANCE:g}")
    print(f"smallest chance: {', '.join(f'{f:.2g}' for f in sorted(f.chance for f in found)[:5])}")
    print(
        f"best score at any place: median {statistics.median(scores):.2f}, most {max(scores):.2f}"
    )


def picture(out: Path, paths: Sequence[Path]) -> None:
    """A row a clip: its middle frame plain, marked, and what was added."""
    rows = []
    for path in paths:
        frames = first_frames(path)
        frame = frames[len(frames) // 2]
        marked = Marker(IDENTITY, (frame.shape[0], frame.shape[1])).mark(frame)
        added = np.clip(128 + 20 * (marked.astype(int) - frame), 0, 255).astype(np.uint8)
        rows.append((f"plain, marked ({decibels([frame], [marked]):.1f} dB), difference x 20",
                     [frame, marked, added]))  # fmt: skip
    with atomic(out) as hidden:
        Image.fromarray(contact_sheet(rows, 384)).save(hidden, "JPEG", quality=90, subsampling=0)


if __name__ == "__main__":
    verb, *words = sys.argv[1:]
    if verb == "survive":
        survive(words)
    elif verb == "chance":
        chance([Path(word) for word in words])
    else:
        picture(Path(words[0]), [Path(word) for word in words[1:]])
