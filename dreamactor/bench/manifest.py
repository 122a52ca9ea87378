"""Suites: the cases of a benchmark, as a folder that anybody can make.

    suite.json      format, name, version, licence, and how it was made
    media.jsonl     one file a line: what it shows by the axes below, licence, sha256
    cases.jsonl     one case a line: its reference, its driving clip, its truth if there is one
    media/          the files

The axes are those of AW Bench (arXiv 2601.21716, section 5), and a scenario names what they make
together. A truth is the reference's subject doing the driver's motion, frame by frame of the
driving clip; beside it may lie arrays.npz: mask, joints and flow, for metrics that need them.

Results of a system over a suite are a folder of clips, one a case, named by `result_name`.

Legend: T frames of H x W pixels, S subjects, N joints.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from dreamactor.errors import ConfigError, MediaError
from dreamactor.image import Rgb, atomic, read_image
from dreamactor.runs import write_text
from dreamactor.video import ClipInfo, iter_frames, probe

FORMAT = 1
Kind = Literal["reference", "driving", "truth"]
Subject = Literal["human", "animal", "cartoon", "object"]
Region = Literal["face", "upper", "full"]
Age = Literal["child", "young", "elderly"]
Activity = Literal["dance", "daily", "work", "fight", "travel", "still"]
CameraMoves = Literal["static", "tracked"]
Scenario = Literal[
    "human2human", "human2toon", "half2full", "animal2animal", "toon2toon",
    "human2animal", "human2object", "one2many", "many2many",
]  # fmt: skip
NAME = re.compile(r"[a-z0-9]+(?:[-_/][a-z0-9]+)*")
"""Of media and cases: small letters, digits, - _ and /, which parts a case's scenario off."""
AXES = ("subject", "species", "region", "age", "activity", "camera", "subjects")
"""Fields of `Media` by which results are grouped."""

T = TypeVar("T")


@dataclass(frozen=True)
class Media:
    """A picture or clip, and what it shows."""

    name: str
    """Unique among the media."""
    kind: Kind
    file: str
    """Relative to the suite's folder, with /."""
    sha256: str
    licence: str
    """SPDX name, such as CC-BY-SA-3.0."""
    subject: Subject
    attribution: str = ""
    """Whom the licence wants named."""
    species: str | None = None
    """Of an animal, in English; of a person none."""
    region: Region = "full"
    """How much of the subject is seen."""
    age: Age | None = None
    """Of a person; none where it cannot be told."""
    activity: Activity | None = None
    """Of a clip."""
    camera: CameraMoves | None = None
    """Of a clip."""
    subjects: int = 1
    """How many are seen."""
    caption: str = ""
    """What is seen, in words."""
    arrays: str | None = None
    """Of a truth: file of its arrays, relative as `file` is."""
    arrays_sha256: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    """Anything else, such as how it was drawn."""

    def __post_init__(self) -> None:
        _check_name(self.name)
        for file in (self.file, self.arrays):
            if file is not None:
                _check_file(self.name, file)
        for digest in (self.sha256, self.arrays_sha256):
            if digest is not None and not re.fullmatch(r"[0-9a-f]{64}", digest):
                raise ConfigError(f"{self.name}: sha256 {digest!r}: want 64 hex digits")
        if (self.arrays is None) != (self.arrays_sha256 is None):
            raise ConfigError(f"{self.name}: want arrays and arrays_sha256 together, or neither")
        if self.subjects < 1:
            raise ConfigError(f"{self.name}: subjects={self.subjects}: want at least 1")


@dataclass(frozen=True)
class SuiteCase:
    """A reference and a driving clip that shall be brought together."""

    name: str
    """Unique among the cases, such as human2human/0007."""
    scenario: Scenario
    reference: str
    """Name of a picture."""
    driving: str
    """Name of a clip."""
    truth: str | None = None
    """Name of the clip that a perfect system makes, where it is known."""
    prompt: str | None = None
    """What the result should show, for systems that read text; none lets them describe it."""

    def __post_init__(self) -> None:
        _check_name(self.name)

    @property
    def result_name(self) -> str:
        """Stem of the file that a system's clip of this case has: / becomes _."""
        return self.name.replace("/", "_")


@dataclass(frozen=True)
class Truth:
    """What is known of a truth besides its pixels."""

    mask: NDArray[np.uint8]
    """(T, H, W): 0 background, 1.. the subject."""
    joints: Mapping[int, tuple[tuple[str, ...], NDArray[np.float32], NDArray[np.bool_]]]
    """Of subject 1..: names (N), pixels (T, N, 2) as of `world.scene.Joints`, visible (T, N)."""
    flow: NDArray[np.float32]
    """(T - 1, H, W, 2) pixels from frame t to t + 1, 0 on the background."""


@dataclass(frozen=True)
class Suite:
    """A benchmark's cases, read from a folder; files are looked at only when asked for."""

    root: Path
    name: str
    version: str
    licence: str
    media: Mapping[str, Media]
    cases: Sequence[SuiteCase]
    about: Mapping[str, Any] = field(default_factory=dict)
    """How it was made: command, seeds, digest of the cast."""

    def __post_init__(self) -> None:
        names: dict[str, str] = {}
        for case in self.cases:
            other = names.get(case.result_name)
            if other == case.name:
                raise ConfigError(f"{self.root}: two cases are named {case.name}")
            if other is not None:
                raise ConfigError(
                    f"{self.root}: results of cases {other} and {case.name} would both be "
                    f"{case.result_name}.mp4: want another name for one"
                )
            names[case.result_name] = case.name
            for kind in ("reference", "driving", "truth"):
                wanted = getattr(case, kind)
                if wanted is None:
                    continue
                found = self.media.get(wanted)
                if found is None:
                    raise ConfigError(
                        f"{self.root}: case {case.name}: no media named {wanted!r}"
                        + nearest(wanted, self.media)
                    )
                if found.kind != kind:
                    raise ConfigError(
                        f"{self.root}: case {case.name}: {wanted} is a {found.kind}, want a {kind}"
                    )

    @cached_property
    def digest(self) -> str:
        """As of `digest_of`."""
        return digest_of(self.root)

    @cached_property
    def by_name(self) -> Mapping[str, SuiteCase]:
        """Cases by their names."""
        return {case.name: case for case in self.cases}

    def case(self, name: str) -> SuiteCase:
        """One case.

        Raises:
            ConfigError: There is none of that name.
        """
        if name not in self.by_name:
            raise ConfigError(f"no case named {name!r}" + nearest(name, self.by_name))
        return self.by_name[name]

    def path(self, name: str) -> Path:
        """The file of a medium."""
        return self.root / self.media[name].file

    def reference(self, case: SuiteCase) -> Rgb:
        """(H, W, 3) the picture of a case."""
        return read_image(self.path(case.reference))

    def driving(self, case: SuiteCase) -> tuple[NDArray[np.uint8], ClipInfo]:
        """(T, H, W, 3) the driving clip of a case, and its facts."""
        return read_clip(self.path(case.driving))

    def truth(self, case: SuiteCase) -> NDArray[np.uint8] | None:
        """(T, H, W, 3) the truth of a case, where there is one."""
        return None if case.truth is None else read_clip(self.path(case.truth))[0]

    def arrays(self, case: SuiteCase) -> Truth | None:
        """What else is known of the truth of a case, if anything is."""
        found = None if case.truth is None else self.media[case.truth].arrays
        return None if found is None else read_arrays(self.root / found)

    def groups(self, case: SuiteCase) -> dict[str, str]:
        """Scenario, and the axes of reference and driving clip, as words for tables."""
        words = {"scenario": str(case.scenario)}
        for side in ("reference", "driving"):
            media = self.media[getattr(case, side)]
            words |= {
                f"{side} {axis}": str(value)
                for axis in AXES
                if (value := getattr(media, axis)) is not None
            }
        return words


def load_suite(root: Path | str) -> Suite:
    """Read a suite; its files are not opened yet (`bench validate` does that).

    Raises:
        ConfigError: It is no suite, or one of its lines is wrong: file and line are named.
    """
    root = Path(root)
    path = root / "suite.json"
    if not path.is_file():
        raise ConfigError(f"{root}: no suite: want a folder with suite.json")
    head = _object(path, _text(path))
    if head.get("format") != FORMAT:
        raise ConfigError(f"{path}: format={head.get('format')!r}: want {FORMAT}")
    missing = [key for key in ("name", "version", "licence") if not isinstance(head.get(key), str)]
    if missing:
        raise ConfigError(f"{path}: no {missing[0]}: want text")
    media: dict[str, Media] = {}
    for place, line in _lines(root / "media.jsonl"):
        found = _from(Media, line, place)
        if found.name in media:
            raise ConfigError(f"{place}: two media are named {found.name}")
        for file in (found.file, found.arrays):
            if file is not None:
                _check_link(root, file, place)
        media[found.name] = found
    cases = [_from(SuiteCase, line, place) for place, line in _lines(root / "cases.jsonl")]
    if not cases:
        raise ConfigError(f"{root}: a suite without cases")
    about = head.get("about", {})
    return Suite(root, head["name"], head["version"], head["licence"], media, cases, about)


def save_suite(suite: Suite) -> None:
    """Write suite.json last, so that a folder without it is an unfinished suite."""
    for name, rows in (("media", suite.media.values()), ("cases", suite.cases)):
        text = "".join(json.dumps(_lean(row), ensure_ascii=False) + "\n" for row in rows)
        write_text(suite.root / f"{name}.jsonl", text)
    head = {
        "format": FORMAT, "name": suite.name, "version": suite.version,
        "licence": suite.licence, "about": dict(suite.about),
    }  # fmt: skip
    write_text(suite.root / "suite.json", json.dumps(head, indent=1, ensure_ascii=False) + "\n")


def digest_of(root: Path) -> str:
    """sha256 over the lines of media.jsonl and cases.jsonl, and so over every file they name."""
    digest = hashlib.sha256()
    for name in ("media.jsonl", "cases.jsonl"):
        digest.update((root / name).read_bytes())
    return digest.hexdigest()


def read_clip(path: Path) -> tuple[NDArray[np.uint8], ClipInfo]:
    """All frames of a clip (T, H, W, 3), and its facts."""
    info = probe(path)
    return np.stack([frame for _, frame in iter_frames(path)]), info


def write_arrays(path: Path, truth: Truth) -> None:
    """Write arrays.npz, whole or not at all; flows are rounded to 1/64 pixel and pack well so."""
    joints = {}
    for subject, (names, pixels, visible) in truth.joints.items():
        joints[f"names_{subject}"] = np.array(names)
        joints[f"joints_{subject}"] = pixels.astype(np.float32)
        joints[f"visible_{subject}"] = visible.astype(np.bool_)
    flow = np.clip(np.round(truth.flow * STEPS), -32768, 32767).astype(np.int16)
    with atomic(path) as hidden, hidden.open("wb") as file:
        np.savez_compressed(file, mask=truth.mask, flow=flow, **joints)


STEPS = 64.0
"""Of a pixel of flow."""


def read_arrays(path: Path) -> Truth:
    """Read arrays.npz.

    Raises:
        MediaError: It is missing, damaged, or does not hold what it should.
    """
    try:
        with np.load(path, allow_pickle=False) as found:
            held = {name: found[name] for name in found.files}
        subjects = sorted(int(n.split("_")[1]) for n in held if n.startswith("names_"))
        joints = {
            k: (
                tuple(map(str, held[f"names_{k}"])),
                np.asarray(held[f"joints_{k}"], np.float32),
                np.asarray(held[f"visible_{k}"], np.bool_),
            )
            for k in subjects
        }
        flow = np.asarray(held["flow"], np.float32) / np.float32(STEPS)
        return Truth(np.asarray(held["mask"], np.uint8), joints, flow)
    except FileNotFoundError as error:
        raise MediaError(f"{path}: no such file") from error
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise MediaError(f"{path}: no arrays of a truth: {error}") from error


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; a suite has suite.json, media.jsonl, cases.jsonl")
    for number, text in enumerate(_text(path).split("\n"), 1):
        if text.strip():
            place = f"{path}:{number}"
            yield place, _object(place, text)


def _text(path: Path) -> str:
    whole = path.read_bytes()
    try:
        return whole.decode("utf-8")
    except UnicodeDecodeError as error:
        line = whole.count(b"\n", 0, error.start) + 1
        byte = f"0x{whole[error.start]:02x}"
        raise ConfigError(f"{path}:{line}: byte {byte}: want UTF-8") from error


def _object(place: Path | str, text: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        held: dict[str, Any] = {}
        for key, value in pairs:
            if key in held:
                raise ConfigError(f"{place}: {key!r} is given twice: want it once")
            held[key] = value
        return held

    try:
        found = json.loads(text, object_pairs_hook=once)
    except ValueError as error:
        raise ConfigError(f"{place}: no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{place}: want an object, {{...}}")
    return found


def _from(cls: type[T], line: Mapping[str, Any], place: str) -> T:
    """A row from a line, every value checked against its field."""
    kinds = get_type_hints(cls)
    unknown = sorted(line.keys() - kinds.keys())
    if unknown:
        raise ConfigError(f"{place}: unknown {unknown[0]!r}" + nearest(unknown[0], kinds))
    for key, value in line.items():
        if not _is(value, kinds[key]):
            raise ConfigError(f"{place}: {key}={value!r}: want {_words(kinds[key])}")
    try:
        return cls(**line)
    except TypeError as error:
        lacking = [f.name for f in fields(cls) if f.name not in line]  # type: ignore[arg-type]
        raise ConfigError(f"{place}: no {lacking[0]}: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error


def _is(value: object, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return any(_is(value, choice) for choice in get_args(kind))
    if get_origin(kind) is not None:  # Mapping[str, Any]
        return isinstance(value, dict)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(get_args(kind))
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_words, get_args(kind)))
    return {str: "text", int: "a whole number", type(None): "null"}.get(kind, "an object")


def _lean(row: Any) -> dict[str, Any]:
    """Fields that differ from their defaults."""
    given = {f.name: f for f in fields(row)}
    return {
        name: value
        for name, value in asdict(row).items()
        if value != given[name].default and not (name == "about" and not value)
    }


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise ConfigError(f"name {name!r}: want small letters and digits, parted by - _ or /")


def _check_file(name: str, file: str) -> None:
    """Nothing outside the suite's folder is ever opened."""
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts or "\\" in file or not file:
        raise ConfigError(f"{name}: file {file!r}: want a path within the suite's folder")


def _check_link(root: Path, file: str, place: str) -> None:
    """Not by way of a link either."""
    real = Path(os.path.realpath(root / file))  # Path.resolve raises at a loop before Python 3.13
    if not real.is_relative_to(os.path.realpath(root)):
        raise ConfigError(f"{place}: file {file!r} leads to {real}: want a file in {root}")


def nearest(word: str, words: Iterable[str]) -> str:
    """The end of an error: which known word a wrong one is nearest to, if any is known."""
    found = difflib.get_close_matches(word, list(words), 1, 0)
    return f", nearest is {found[0]!r}" if found else ""
