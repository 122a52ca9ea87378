"""The plan of a study: who is shown what, in which order, and what nobody is told.

    plan.json       private: cases, systems, raters, items, the rule of the checks
    consent.txt     what raters agree to; to be edited before the first of them comes
    media/          clips and pictures under names that say nothing
    answers.jsonl   what the raters said (`answers.py`)

A folder of these is complete by itself: neither suite nor results are needed to go on.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from dreamactor.errors import ConfigError
from dreamactor.image import atomic

FORMAT = 1
DIMENSIONS = ("imaging", "motion", "appearance")
"""Rated 1 to 5: imaging quality, motion consistency, appearance consistency (the paper's)."""
CHOICES = ("a", "same", "b")
"""What can be said of a pair."""
SCALE = (1, 2, 3, 4, 5)
ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"
"""Of raters' codes: nothing that could be read as something else."""
CODE = 10
"""Letters of a code: 31 ** 10 is 8e14."""

Kind = Literal["rate", "pair"]
Check = Literal["repeat", "noise", "frozen", "identical"]


@dataclass(frozen=True)
class Item:
    """One page of one rater."""

    id: str
    """Says nothing; unique in the study."""
    kind: Kind
    case: str
    reference: str
    """File in media/, as the following ones."""
    driving: str
    shown: tuple[str, ...]
    """Of the result that is rated; or of A and B."""
    systems: tuple[str, ...]
    """Whose they are; those of a check that no system made, whose clip was spoilt."""
    check: Check | None = None
    """repeat: `of` again; noise, frozen: a clip that was spoilt; identical: A is B."""
    of: str | None = None
    """Id of the item that is repeated."""

    def public(self) -> dict[str, Any]:
        """What its rater's page is told."""
        return {
            "id": self.id, "kind": self.kind, "reference": self.reference,
            "driving": self.driving, "shown": list(self.shown),
        }  # fmt: skip


@dataclass(frozen=True)
class Rater:
    """Somebody with a code; who that is, the study does not know."""

    number: int
    """From 1 on."""
    code: str
    items: tuple[Item, ...]
    """In their order: ratings first, then pairs."""

    @cached_property
    def by_id(self) -> Mapping[str, Item]:
        """Items by their ids."""
        return {item.id: item for item in self.items}


@dataclass(frozen=True)
class Rule:
    """When a rater is left out; written down before there is any answer."""

    low: int = 2
    """A spoilt clip passes with at most this score: noise in imaging, frozen in motion."""
    fails: float = 0.34
    """Share of failed checks (spoilt and identical) that is too many when it is exceeded."""
    repeat: float = 1.0
    """Mean difference, in points, between first and repeated ratings that is too large when it
    is exceeded."""
    least: float = 0.5
    """Share of the items that must have been answered."""

    def words(self) -> str:
        """For the report."""
        return (
            f"left out is who answered fewer than {self.least:.0%} of their items, or failed more "
            f"than {self.fails:.0%} of the checks (a noisy clip must get at most {self.low} in "
            f"imaging, a frozen one at most {self.low} in motion, two identical clips must be "
            f'"the same"), or whose ratings of the same clip differ by more than {self.repeat:g} '
            "points in the mean"
        )


@dataclass(frozen=True)
class Plan:
    """All of a study but its answers."""

    root: Path
    suite: Mapping[str, str]
    """Name and version."""
    settings: Mapping[str, Any]
    """Of `dreamactor study make`."""
    secret: str
    """Hex; names, ids and codes are made of it, so that nobody can work them out."""
    systems: tuple[str, ...]
    gsb: str | None
    """System that pairs hold against every other one; None = there are no pairs."""
    scenarios: Mapping[str, str]
    """Of every case."""
    raters: tuple[Rater, ...]
    rule: Rule = Rule()
    media: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """What lies in media/: where each file is from, and its sha256."""

    @property
    def answers(self) -> Path:
        """File of what was said."""
        return self.root / "answers.jsonl"

    @cached_property
    def by_code(self) -> Mapping[str, Rater]:
        """Raters by their codes."""
        return {rater.code: rater for rater in self.raters}

    @cached_property
    def by_number(self) -> Mapping[int, Rater]:
        """Raters by their numbers."""
        return {rater.number: rater for rater in self.raters}

    def consent(self) -> str:
        """What raters agree to.

        Raises:
            ConfigError: The file is gone.
        """
        path = self.root / "consent.txt"
        try:
            return path.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def blind(secret: str, *words: str) -> str:
    """16 hex digits that stand for some words; without the secret nobody can tell for which."""
    return _hmac(secret, *words).hex()[:16]


def code(secret: str, number: int) -> str:
    """The code of a rater."""
    value, letters = int.from_bytes(_hmac(secret, "code", str(number)), "big"), []
    for _ in range(CODE):
        value, letter = divmod(value, len(ALPHABET))
        letters.append(ALPHABET[letter])
    return "".join(letters)


def _hmac(secret: str, *words: str) -> bytes:
    return hmac.digest(bytes.fromhex(secret), "\0".join(words).encode(), hashlib.sha256)


def save_plan(plan: Plan) -> None:
    """Write plan.json, whole or not at all, readable by its owner alone."""
    raters = [
        {"number": r.number, "code": r.code, "items": [_lean(item) for item in r.items]}
        for r in plan.raters
    ]
    told = {
        "format": FORMAT, "suite": dict(plan.suite), "settings": dict(plan.settings),
        "secret": plan.secret, "systems": list(plan.systems), "gsb": plan.gsb,
        "rule": asdict(plan.rule), "scenarios": dict(plan.scenarios),
        "media": {name: dict(about) for name, about in plan.media.items()}, "raters": raters,
    }  # fmt: skip
    with atomic(plan.root / "plan.json") as hidden:
        hidden.touch(0o600)
        hidden.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load_plan(root: Path) -> Plan:
    """Read a study.

    Raises:
        ConfigError: There is none, or it is damaged.
    """
    path = root / "plan.json"
    if not path.is_file():
        raise ConfigError(f"{root}: no study: want a folder with plan.json, of `study make`")
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if told["format"] != FORMAT:
            raise ConfigError(f"{path}: format={told['format']!r}: want {FORMAT}")
        raters = tuple(
            Rater(r["number"], r["code"], tuple(_item(line) for line in r["items"]))
            for r in told["raters"]
        )
        return Plan(
            root, told["suite"], told["settings"], told["secret"], tuple(told["systems"]),
            told["gsb"], told["scenarios"], raters, Rule(**told["rule"]), told["media"],
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: no plan of a study: {error!r}; make it again") from error


def _lean(item: Item) -> dict[str, Any]:
    return {key: value for key, value in asdict(item).items() if value is not None}


def _item(line: Mapping[str, Any]) -> Item:
    lists: dict[str, Sequence[str]] = {key: tuple(line[key]) for key in ("shown", "systems")}
    return Item(**{**line, **lists})
