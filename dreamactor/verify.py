"""`dreamactor verify`: which marks a file has, and whether they agree with it and each other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamactor import manifest, watermark
from dreamactor.errors import MediaError
from dreamactor.image import Rgb, check_input, open_image, read_image
from dreamactor.manifest import Seen, shown
from dreamactor.provenance import sha256
from dreamactor.video import iter_frames
from dreamactor.watermark import Found

FOUND, NONE, CHANGED = 0, 1, 3
"""Exit codes; 2 is a fault of the user, as of every command."""
LARGEST_RECORD = 1 << 24
"""Bytes; a record has a few thousand."""


@dataclass(frozen=True)
class Record:
    """The JSON record beside a file."""

    name: str
    agrees: bool
    """Whether it tells the sha256 of the file."""
    identity: str | None
    """Of the watermark that it says was put in."""


@dataclass(frozen=True)
class Verdict:
    """What was found."""

    path: Path
    manifest: Seen
    watermark: Found
    record: Record | None

    @property
    def contradictions(self) -> list[str]:
        """What cannot be true of a file that nobody changed."""
        found = []
        if self.manifest.state == "broken":
            found.append("the file or its manifest was changed after it was signed")
        if self.record is not None and not self.record.agrees:
            found.append(f"{self.record.name} beside it tells of other bytes")
        told = {
            "manifest": self.manifest.identity,
            "record": None if self.record is None else self.record.identity,
        }
        seen = self.watermark.identity
        for name, said in told.items():
            if seen is not None and said is not None and said != seen:
                found.append(f"the {name} tells of watermark {shown(said)}, the frames have {seen}")
        return found

    @property
    def code(self) -> int:
        """Exit code: FOUND, NONE or CHANGED."""
        if self.contradictions:
            return CHANGED
        agrees = self.record is not None and self.record.agrees
        marked = self.manifest.state == "valid" or self.watermark.there or agrees
        return FOUND if marked else NONE

    def lines(self) -> Iterator[str]:
        """For people."""
        yield str(self.path)
        yield f"manifest   {_manifest_line(self.manifest)}"
        yield f"watermark  {_watermark_line(self.watermark)}"
        if self.record is None:
            yield "record     none beside it"
        else:
            agrees = "its sha256 agrees" if self.record.agrees else "its sha256 does NOT agree"
            yield f"record     {self.record.name}: {agrees}"
        if self.contradictions:
            yield f"CHANGED    {'; '.join(self.contradictions)}"
        elif self.code == NONE:
            yield "no mark found; that says nothing of where the file is from"

    def plain(self) -> dict[str, Any]:
        """For programs."""
        seen = {**vars(self.manifest), "faults": list(self.manifest.faults)}
        mark = {**vars(self.watermark), "there": self.watermark.there}
        return {
            "file": str(self.path),
            "manifest": seen,
            "watermark": {**mark, "seen": list(self.watermark.seen)},
            "record": None if self.record is None else vars(self.record),
            "contradictions": self.contradictions,
            "code": self.code,
        }


def _manifest_line(seen: Seen) -> str:
    if seen.state == "none":
        return "none"
    if seen.state == "unknown":
        return f"not looked at: {', '.join(seen.faults)}"
    where = "" if seen.where == "file" else f", in {seen.where} beside it"
    if seen.state == "broken":
        by = f"; it names as signer: {seen.by}" if seen.by else ""
        return f"NOT valid{where}: {', '.join(seen.faults)}{by}"
    says = "says that a trained model made it" if seen.generated else "does not say it is generated"
    return f"valid{where}: made by {seen.generator}, {says}; signed by {seen.by}"


def _watermark_line(found: Found) -> str:
    score = f"score {found.score:.1f}, chance at most {found.chance:.0e}, {found.frames} frames"
    if not found.there:
        return f"not found: {score}"
    how = "mirrored, " if found.mirrored else ""
    if found.seen != (1.0, 1.0):
        tall, wide = (round(100 * share) for share in found.seen)
        how += f"cropped to {wide} % of its width and {tall} % of its height, "
    identity = found.identity or "not readable"
    return f"found: {how}identity {identity}, {score}"


def verify(path: str | Path) -> Verdict:
    """Look for manifest, watermark and record of a file.

    Args:
        path: A clip or a picture, of anybody.

    Raises:
        ConfigError: The environment names a certificate that cannot be read.
        MediaError: It cannot be read, or is neither clip nor picture.
    """
    path = check_input(path)
    found = watermark.read(_frames(path))
    return Verdict(path, manifest.look(path), found, _record(path))


def _frames(path: Path) -> Iterator[Rgb]:
    """Of a clip all, of a picture one."""
    picture = None
    try:
        with open_image(path) as image:
            if getattr(image, "n_frames", 1) == 1:
                picture = image.format
    except MediaError:
        pass  # no picture; what it is instead, or what is wrong with it, the reader of clips says
    if picture is not None:
        yield read_image(path)
        return
    for _, frame in iter_frames(path):
        yield frame


def _record(path: Path) -> Record | None:
    """The record beside a file; None where there is none of this program's."""
    beside = path.with_suffix(".json")
    try:
        if beside == path or beside.stat().st_size > LARGEST_RECORD:
            return None
        told = json.loads(beside.read_text(encoding="utf-8"))
        digest = told["output"]["sha256"]
        mark = (told.get("marks") or {}).get("watermark") or {}
        identity = mark.get("identity")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return Record(
        beside.name, digest == sha256(path), identity if identity is None else shown(identity)
    )
