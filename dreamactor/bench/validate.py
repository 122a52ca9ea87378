"""Looks at every file of a suite, and names all that is wrong with it.

A suite may come from anybody, so nothing is taken for granted: files, digests, decoders, sizes,
what lies in the arrays, whether a case shows what its scenario says, and two ways in which a
benchmark deceives itself - one reference that counts twice, and a driving clip that is the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dreamactor.bench.manifest import Media, Suite, SuiteCase, read_arrays
from dreamactor.errors import MediaError
from dreamactor.image import read_image
from dreamactor.provenance import sha256
from dreamactor.video import iter_frames, probe

NEAR = 2.0
"""Of 255: mean difference below which two clips of other files show the same."""
OUTSIDE = 10.0
"""Sides of the picture that a joint may lie beyond its edge; the feet of a portrait lie seven."""

SAID = {
    "human": ("subject", "human"), "toon": ("subject", "cartoon"), "animal": ("subject", "animal"),
    "object": ("subject", "object"), "half": ("region", "upper"), "full": ("region", "full"),
}  # fmt: skip
"""What either word of a scenario says of its medium, besides how many are seen."""


@dataclass(frozen=True)
class _Seen:
    """What was found of a medium: its size, and of a clip its length and frames made small."""

    size: tuple[int, int]
    frames: int
    fps: Fraction
    small: np.ndarray  # type: ignore[type-arg]  # (T, h, w, 3) uint8


def faults_of(suite: Suite) -> Iterator[str]:
    """All faults, one a line, each with the name of what it is in."""
    seen: dict[str, _Seen] = {}
    for media in tqdm(suite.media.values(), "media", disable=None, leave=False):
        yield from _of_media(suite, media, seen)
    yield from _of_arrays(suite, seen)
    yield from _twice(suite, "reference")
    for case in suite.cases:
        yield from _of_scenario(suite, case)
        yield from _of_case(suite, case, seen)
    used = {name for c in suite.cases for name in (c.reference, c.driving, c.truth)}
    yield from (f"{name}: in no case" for name in suite.media if name not in used)


def _of_media(suite: Suite, media: Media, seen: dict[str, _Seen]) -> Iterator[str]:
    """One file: there, the one that was meant, licensed, and a picture or clip."""
    path = suite.path(media.name)
    if not media.licence.strip():
        yield f"{media.name}: no licence"
    files = [(path, media.sha256)]
    if media.arrays is not None and media.arrays_sha256 is not None:
        files.append((suite.root / media.arrays, media.arrays_sha256))
    for file, digest in files:
        if not file.is_file():
            yield f"{media.name}: {file}: no such file"
        elif (found := sha256(file)) != digest:
            yield f"{media.name}: {file}: sha256 is {found[:12]}..., want {digest[:12]}..."
    if path.is_file():
        try:
            seen[media.name] = _look(path, media.kind == "reference")
        except MediaError as fault:
            yield f"{media.name}: {fault}"


def _look(path: Path, picture: bool) -> _Seen:
    """Decode all of a file."""
    if picture:
        image = read_image(path)
        return _Seen((image.shape[0], image.shape[1]), 1, Fraction(0), _small(image)[None])
    info = probe(path)
    frames = [_small(frame) for _, frame in iter_frames(path)]
    if not frames:
        raise MediaError(f"{path}: no frame can be decoded")
    return _Seen((info.height, info.width), len(frames), info.fps, np.stack(frames))


def _small(frame: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return frame[::8, ::8]


def _of_arrays(suite: Suite, seen: Mapping[str, _Seen]) -> Iterator[str]:
    """Masks, joints and flow fit their clip."""
    for media in suite.media.values():
        if media.arrays is None or not (suite.root / media.arrays).is_file():
            continue
        try:
            truth = read_arrays(suite.root / media.arrays)
        except MediaError as fault:
            yield f"{media.name}: {fault}"
            continue
        clip = seen.get(media.name)
        if clip is None:
            continue
        (high, wide), count = clip.size, clip.frames
        if truth.mask.shape != (count, high, wide):
            yield f"{media.name}: mask is {truth.mask.shape}, want {(count, high, wide)}"
        elif truth.mask.max() > media.subjects:
            yield f"{media.name}: mask shows {truth.mask.max()} subjects, want {media.subjects}"
        elif not (truth.mask > 0).any():
            yield f"{media.name}: nobody in the mask"
        if truth.flow.shape != (count - 1, high, wide, 2):
            yield f"{media.name}: flow is {truth.flow.shape}, want {(count - 1, high, wide, 2)}"
        if sorted(truth.joints) != list(range(1, media.subjects + 1)):
            yield f"{media.name}: joints of {sorted(truth.joints)}, want 1 to {media.subjects}"
        for subject, (names, pixels, visible) in sorted(truth.joints.items()):
            wanted = (count, len(names), 2)
            if pixels.shape != wanted or visible.shape != wanted[:2]:
                yield f"{media.name}: joints of subject {subject} are {pixels.shape}, want {wanted}"
                continue
            scaled = pixels / np.array([wide, high], np.float32)
            if not np.isfinite(scaled).all() or np.abs(scaled - 0.5).max() > 0.5 + OUTSIDE:
                yield f"{media.name}: joints of subject {subject} lie far outside of the picture"
            inside = ((scaled >= 0) & (scaled <= 1)).all(axis=-1)
            if (visible & ~inside).any():
                yield f"{media.name}: a joint of subject {subject} is seen outside of the picture"


def _twice(suite: Suite, kind: str) -> Iterator[str]:
    """Files that count as two."""
    first: dict[str, str] = {}
    for media in suite.media.values():
        if media.kind == kind:
            if media.sha256 in first:
                yield f"{media.name}: the same file as {first[media.sha256]}"
            first.setdefault(media.sha256, media.name)


def _of_scenario(suite: Suite, case: SuiteCase) -> Iterator[str]:
    """Driver and reference are what the scenario says, and the truth shows the reference's."""
    clip, picture = suite.media[case.driving], suite.media[case.reference]
    words = case.scenario.split("2")
    for media, word in zip((clip, picture), words, strict=True):
        if word in SAID:
            axis, wanted = SAID[word]
            if (found := getattr(media, axis)) != wanted:
                yield f"{case.name}: {media.name} has {axis}={found}, want {wanted}"
        if (media.subjects > 1) != (word == "many"):
            wanted = "several" if word == "many" else "1"
            yield f"{case.name}: {media.name} has subjects={media.subjects}, want {wanted}"
    if words == ["many", "many"] and clip.subjects != picture.subjects:
        yield (
            f"{case.name}: {picture.name} has subjects={picture.subjects}, "
            f"driving clip {clip.subjects}"
        )
    if case.truth is None:
        return
    truth = suite.media[case.truth]
    for axis in ("subject", "species", "subjects"):
        ours, theirs = getattr(truth, axis), getattr(picture, axis)
        if None not in (ours, theirs) and ours != theirs:
            yield f"{case.name}: {truth.name} has {axis}={ours}, reference {theirs}"


def _of_case(suite: Suite, case: SuiteCase, seen: Mapping[str, _Seen]) -> Iterator[str]:
    """Truth and driving clip match in time, truth and reference in size, and nothing is copied."""
    if case.truth is None:
        return
    clip, truth, picture = (seen.get(n) for n in (case.driving, case.truth, case.reference))
    if clip is None or truth is None or picture is None:
        return  # that is a fault of the file
    if truth.frames != clip.frames:
        yield f"{case.name}: truth has {truth.frames} frames, driving clip {clip.frames}"
    if truth.fps != clip.fps:
        yield f"{case.name}: truth has {truth.fps} frames/s, driving clip {clip.fps}"
    if truth.size != picture.size:
        yield f"{case.name}: truth is {truth.size}, reference {picture.size}"
    same = suite.media[case.truth].sha256 == suite.media[case.driving].sha256
    if truth.small.shape == clip.small.shape:
        apart = np.abs(truth.small.astype(np.int16) - clip.small).mean()
        same = same or bool(apart < NEAR)
    if same:
        yield f"{case.name}: its driving clip shows its truth: a system need only copy it"
