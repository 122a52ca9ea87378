"""Contact sheets: what the numbers look like.

Shapes: T frames of H x W pixels; a block is all rows of one case, a sheet some blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dreamactor.bench.evaluate import Case, Record
from dreamactor.image import Rgb, contact_sheet, resize
from dreamactor.world.scene import Joints

SHOWN = 5  # frames of a clip in a row
HEIGHT = 112  # pixels of a frame
GAP = 16  # pixels between blocks
ZOOM, ZOOMED = 4, 32  # how many times larger, and pixels of the side that is cut out
SPOTS = {"head": "head", "wrist_r": "hand and prop"}  # joint -> what is looked at there


def block(case: Case, clips: Mapping[str, NDArray[np.uint8]], title: str) -> Rgb:
    """Reference, driving, truth and the systems' clips under each other.

    Args:
        case: What was asked for.
        clips: (T, H, W, 3) by the label of their row.
        title: Stands above the reference.
    """
    rows: list[tuple[str, Sequence[Rgb]]] = [(f"{title}: reference", [case.reference])]
    chosen = np.linspace(0, len(case.truth) - 1, SHOWN).round().astype(int)
    for label, clip in {"driving": case.driving, "truth": case.truth, **clips}.items():
        rows.append((label, [clip[k] for k in chosen]))
    return contact_sheet(rows, HEIGHT, text_height=14)


def tile(blocks: Sequence[Rgb], columns: int) -> Rgb:
    """Blocks side by side in rows, on white."""
    high, wide = (max(b.shape[k] for b in blocks) + GAP for k in (0, 1))
    lines = -(-len(blocks) // columns)
    sheet = np.full((lines * high, min(columns, len(blocks)) * wide, 3), 255, np.uint8)
    for k, part in enumerate(blocks):
        top, left = k // columns * high, k % columns * wide
        sheet[top : top + part.shape[0], left : left + part.shape[1]] = part
    return sheet


def title_of(case: Case, records: Sequence[Record], systems: Sequence[str]) -> str:
    """Name, groups and PSNR of a case."""
    found = {r.system: r.metrics["psnr"] for r in records if r.case == case.name}
    levels = [f"{name} {found[name]:.1f} dB" for name in systems if name in found]
    return ", ".join([f"{case.name} {case.domain} {case.style} {case.framing}", *levels])


def worst(records: Sequence[Record], system: str, count: int) -> list[str]:
    """Names of the cases on which a system has its lowest PSNR, lowest first."""
    rows = [r for r in records if r.system == system]
    return [r.case for r in sorted(rows, key=lambda r: r.metrics["psnr"])[:count]]


def zoom_block(
    truth: NDArray[np.uint8], result: NDArray[np.uint8], joints: Joints, label: str
) -> Rgb:
    """One frame and four-fold cuts at the joints of `SPOTS`, truth above reconstruction.

    The frame is the one in the middle of those in which most of the joints are seen.

    Args:
        truth: (T, H, W, 3).
        result: (T, H, W, 3).
        joints: Of T frames, or of more that end with the clip's (a reference comes first).
        label: Stands above the truth.
    """
    first = len(joints.pixels) - len(truth)
    named = [name for name in SPOTS if name in joints.names]
    seen = np.zeros(len(truth), int)
    for name in named:
        seen += joints.visible[first:, joints.names.index(name)]
    best = np.flatnonzero(seen == seen.max())
    t = int(best[len(best) // 2])
    spots = ", ".join(SPOTS[name] for name in named)
    rows: list[tuple[str, Sequence[Rgb]]] = []
    for row, clip in ((f"{label}: truth, {spots}", truth), ("reconstruction", result)):
        cuts = [zoom(clip[t], _place(joints, name)[first + t]) for name in named]
        rows.append((row, [resize(clip[t], (ZOOM * ZOOMED,) * 2), *cuts]))
    return contact_sheet(rows, ZOOM * ZOOMED, text_height=14)


def _place(joints: Joints, name: str) -> NDArray[Any]:
    """(T, 2) pixels of a spot; a face is beyond the head's joint, as seen from the neck."""
    if name != "head" or "neck" not in joints.names:
        return joints[name]
    along = joints["head"] - joints["neck"]  # of a man to his nose, of a camel far over its head
    length = np.linalg.norm(along, axis=-1, keepdims=True)
    return joints["head"] + along * np.minimum(1, ZOOMED / 2 / np.maximum(length, 1e-6))


def zoom(frame: Rgb, at: NDArray[Any]) -> Rgb:
    """The surroundings of a point (x, y), `ZOOM` times larger, pixel by pixel."""
    side = min(ZOOMED, *frame.shape[:2])
    left, top = (
        int(np.clip(round(float(p)) - side // 2, 0, limit - side))
        for p, limit in zip(at, (frame.shape[1], frame.shape[0]), strict=True)
    )
    cut = frame[top : top + side, left : left + side]
    return cut.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)
