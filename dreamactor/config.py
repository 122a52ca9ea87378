"""Settings as frozen dataclasses, stated on the command line as key=value, or in a YAML file.

Only what differs from the defaults is stated; an unknown key or a value of the wrong type is an
error that names the nearest key. A field of the kind `Section` holds settings that are passed on
to something else: `pose: {rank: 64}` in a file, `pose.rank=64` as a word.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import math
import re
import textwrap
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from dreamactor.errors import ConfigError

T = TypeVar("T")
PACKAGE = Path(__file__).parent


class Section(dict[str, str]):
    """Settings of something else, as text."""

    @property
    def words(self) -> list[str]:
        """As `from_words` takes them."""
        return [f"{key}={text}" for key, text in self.items()]


def from_words(cls: type[T], words: Iterable[str]) -> T:
    """A config from words such as `minutes=7`.

    Args:
        cls: A frozen dataclass.
        words: key=value, each key at most once.

    Raises:
        ConfigError: An unknown key, a repeated one, a missing one or a value of another type.
    """
    named = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    hints = {name: kind for name, kind in get_type_hints(cls).items() if name in named}
    values: dict[str, Any] = {}
    for word in words:
        key, text = _split(word)
        section, dot, inner = key.partition(".")
        if dot and hints.get(section) is Section:
            values.setdefault(section, Section())[inner] = text
            continue
        if key not in hints:
            near = difflib.get_close_matches(section, hints, 1)
            hint = f"; nearest is {near[0]}" if near else ""
            raise ConfigError(f"unknown setting {key!r}{hint}; known: {', '.join(hints)}")
        if key in values:
            raise ConfigError(f"setting {key!r} is given twice")
        values[key] = parse(key, text, hints[key])
    lacking = [
        name
        for name, field in named.items()
        if name not in values and field.default is MISSING and field.default_factory is MISSING
    ]
    if lacking:
        wanted = " ".join(f"{name}=..." for name in lacking)
        raise ConfigError(f"{', '.join(lacking)}: not given; want {wanted}")
    return cls(**values)


def from_file(cls: type[T], path: Path, words: Iterable[str] = ()) -> T:
    """A config from a YAML file of settings and sections.

    Args:
        cls: A frozen dataclass.
        path: The file.
        words: key=value or section.key=value; they go over the file's.

    Raises:
        ConfigError: As `from_words`; or the file is missing or holds something else.
    """
    try:
        stated = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"{path}: no settings: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(stated, dict):
        raise ConfigError(f"{path}: want settings, such as minutes: 60")
    known: dict[str, str] = {}
    for key, value in stated.items():
        inner = value if isinstance(value, dict) else {None: value}
        known |= {f"{key}.{k}" if k else str(key): _text(path, key, v) for k, v in inner.items()}
    over = [_split(word) for word in words]
    if twice := [key for n, (key, _) in enumerate(over) if key in dict(over[:n])]:
        raise ConfigError(f"setting {twice[0]!r} is given twice")
    return from_words(cls, [f"{key}={text}" for key, text in (known | dict(over)).items()])


def _split(word: str) -> tuple[str, str]:
    key, sign, text = word.partition("=")
    if not sign:
        raise ConfigError(f"{word!r}: want key=value, such as {key}=1")
    return key, text


def _text(path: Path, key: object, value: object) -> str:
    """A value of a file as it would be typed."""
    if isinstance(value, dict | list):
        raise ConfigError(f"{path}: {key}: want one value, not {type(value).__name__}")
    return _typed(value)


def _typed(value: object) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Setting:
    """A field of a config, as help shows it."""

    name: str
    """What stands before the sign; of a section with `.key`."""
    kind: str
    """What may stand behind it: int, path|none, full|one-way, settings."""
    default: str | None
    """As it would be typed, files of the package by their names in it; None = none, give one."""
    meaning: str
    """The docstring below the field, on one line; empty without."""


def settings_of(cls: type) -> list[Setting]:
    """What can be stated of a config, in its order.

    Args:
        cls: A frozen dataclass.
    """
    hints, meanings = get_type_hints(cls), _meanings(cls)
    return [
        Setting(
            f.name + ".key" * (hints[f.name] is Section),
            _kind(hints[f.name]),
            _default(f),
            meanings.get(f.name, ""),
        )
        for f in fields(cls)
    ]


def _kind(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) in (Union, types.UnionType):
        return "|".join(map(_kind, get_args(kind)))
    names = {bool: "true|false", Section: "settings", types.NoneType: "none"}
    return names.get(kind) or str(kind.__name__).lower()


def _default(stated: Field[Any]) -> str | None:
    if stated.default_factory is not MISSING:
        value = stated.default_factory()
    elif stated.default is not MISSING:
        value = stated.default
    else:
        return None
    if isinstance(value, Section):
        return "value"
    if isinstance(value, Path) and value.is_relative_to(PACKAGE):
        return value.relative_to(PACKAGE.parent).as_posix()
    return _typed(value)


def _meanings(cls: type) -> dict[str, str]:
    """The docstrings below fields, inherited ones too: only the source has them."""
    found = {}
    for owner in filter(is_dataclass, reversed(cls.__mro__)):
        (defined,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(defined, ast.ClassDef)
        for pair in pairwise(defined.body):
            match pair:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[name] = " ".join(text.split())
    return found


def check_least(config: object, least: Mapping[str, float]) -> None:
    """Refuse numbers that are too small, or none at all (NaN).

    Args:
        config: Has an attribute of every name.
        least: Names to the least value that works.

    Raises:
        ConfigError: Names the first that is.
    """
    for name, value in least.items():
        if not getattr(config, name) >= value:
            raise ConfigError(f"{name}={getattr(config, name)}: want {value} or more")


def check_finite(config: object, *names: str) -> None:
    """Refuse infinity, where without an end nothing would work.

    Raises:
        ConfigError: Names the first attribute that is not finite.
    """
    for name in names:
        if not math.isfinite(getattr(config, name)):
            raise ConfigError(f"{name}={getattr(config, name)}: want a finite number")


def check_device(device: str) -> None:
    """Refuse what is no name of a device; whether it is there, only torch can say.

    Raises:
        ConfigError: Names those that are.
    """
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ConfigError(f"device={device!r}: want cpu, cuda or cuda:N")


def parse(key: str, text: str, kind: Any) -> Any:
    """A value of a declared type from its text.

    Raises:
        ConfigError: The text is not of that type.
    """
    origin = get_origin(kind)
    if origin is Literal:
        options = get_args(kind)
        if text not in options:
            raise ConfigError(f"{key}={text}: want one of {', '.join(map(str, options))}")
        return text
    if origin in (Union, types.UnionType):
        if text.lower() == "none":
            return None
        return parse(key, text, next(k for k in get_args(kind) if k is not type(None)))
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{key}={text}: want true or false")
        return text.lower() == "true"
    if kind is Section:
        raise ConfigError(f"{key}: want settings of it, such as {key}.key=value")
    if kind in (int, float, str, Path):
        try:
            value = kind(text)
        except ValueError as error:
            raise ConfigError(f"{key}={text}: want {kind.__name__}") from error
        if isinstance(value, float) and math.isnan(value):  # passes wherever less is refused
            raise ConfigError(f"{key}={text}: want a number")
        return value
    raise ConfigError(f"{key}: cannot be set from the command line")
