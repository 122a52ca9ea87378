"""Settings as frozen dataclasses, stated on the command line as key=value.

Only what differs from the defaults is stated; an unknown key or a value of the wrong type is an
error that names the nearest key.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dreamactor.errors import ConfigError

T = TypeVar("T")


def from_words(cls: type[T], words: Iterable[str]) -> T:
    """A config from words such as `minutes=7`.

    Args:
        cls: A frozen dataclass.
        words: key=value, each key at most once.

    Raises:
        ConfigError: An unknown key, a repeated one, a missing one or a value of another type.
    """
    named = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    hints = {name: kind for name, kind in get_type_hints(cls).items() if name in named}
    values: dict[str, Any] = {}
    for word in words:
        key, sign, text = word.partition("=")
        if not sign:
            raise ConfigError(f"{word!r}: want key=value, such as {key}=1")
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1)
            hint = f"; nearest is {near[0]}" if near else ""
            raise ConfigError(f"unknown setting {key!r}{hint}; known: {', '.join(hints)}")
        if key in values:
            raise ConfigError(f"setting {key!r} is given twice")
        values[key] = parse(key, text, hints[key])
    try:
        return cls(**values)
    except TypeError as error:
        needed = [name for name in hints if name not in values]
        raise ConfigError(f"{error}; settings not given: {', '.join(needed)}") from error


def check_least(config: object, least: Mapping[str, float]) -> None:
    """Refuse numbers that are too small.

    Args:
        config: Has an attribute of every name.
        least: Names to the least value that works.

    Raises:
        ConfigError: Names the first that is smaller.
    """
    for name, value in least.items():
        if getattr(config, name) < value:
            raise ConfigError(f"{name}={getattr(config, name)}: want {value} or more")


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
    if kind in (int, float, str, Path):
        try:
            return kind(text)
        except ValueError as error:
            raise ConfigError(f"{key}={text}: want {kind.__name__}") from error
    raise ConfigError(f"{key}: cannot be set from the command line")
