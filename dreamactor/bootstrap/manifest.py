"""A data set of syntheses on disk, written by many workers, read while it grows.

    dataset.json                      format, and what the generator is
    inputs/<sha256>.mp4 .png          source clips, identities, and truths of world pairs, once each
    items/<id>/clip.mp4               V_o; a generator may leave its record beside it as clip.json
    items/<id>/item.json              inputs, seed, generator, frames, sha256 of the clip
    items/<id>/gate.<judge>.json      scores
    items/<id>/review.<name>.json     one person's decision
    claims/                           who is at what just now
    manifest.jsonl                    all of it, one item a line: for reading, made from the rest

An item's folder appears whole (a rename) once its clip is finished. <id> is a hash of the two
inputs, the seed and the generator, so the same request is the same item on every machine.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamactor.bench.scores import Scores
from dreamactor.bootstrap.triplets import (
    Accepted,
    Decision,
    Forward,
    Identity,
    SourceClip,
    Synthesis,
    SyntheticClip,
    Triplet,
    Verdict,
    why_refused,
)
from dreamactor.conditioning.guidance import describe_clip
from dreamactor.errors import ConfigError, MediaError
from dreamactor.image import atomic, refusals
from dreamactor.mllm import Client
from dreamactor.provenance import sha256
from dreamactor.runs import write_text
from dreamactor.work.claims import EXPIRY, Claim, Claims

FORMAT = 1
ID = 20
"""Hex digits of an item's name: 80 bits."""
REVIEWER = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
"""What a reviewer or judge may be called: it is part of file names."""

Facts = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """An item to be made."""

    forward: Forward
    generator: Mapping[str, Any]
    """JSON values: all that has a say in the pixels besides inputs and seed."""
    notes: Mapping[str, Any]
    """JSON values that are kept with the item and have no say: where its inputs come from."""

    @property
    def item(self) -> str:
        """Name of the item."""
        f = self.forward
        key = [f.source.sha256, f.identity.sha256, f.seed, dict(self.generator)]
        text = json.dumps(key, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:ID]


class DataSet:
    """A data set that exists.

    Args:
        root: Its folder.

    Raises:
        ConfigError: There is none in that folder, or of another format.
    """

    def __init__(self, root: Path, expiry: float = EXPIRY) -> None:
        about = _read(root / "dataset.json")
        if about is None:
            raise ConfigError(
                f"{root}: no data set (dataset.json is missing); make one by `bootstrap pairs`"
            )
        if about.get("format") != FORMAT:
            raise ConfigError(f"{root}: format {about.get('format')}, want {FORMAT}")
        self.root, self.generator = root.absolute(), dict(about["generator"])
        self.claims = Claims(self.root / "claims", expiry)

    @classmethod
    def begin(cls, root: Path, generator: Mapping[str, Any], expiry: float = EXPIRY) -> DataSet:
        """A new data set, or one that is there and has the same generator.

        Raises:
            ConfigError: It was begun with another generator.
            MediaError: The folder cannot be made.
        """
        with refusals(root):
            (root / "items").mkdir(parents=True, exist_ok=True)
            (root / "inputs").mkdir(exist_ok=True)
        about = {"format": FORMAT, "generator": dict(generator)}
        known = _read(root / "dataset.json")
        if known is None:
            write_text(root / "dataset.json", json.dumps(about, indent=1) + "\n")
        elif known.get("generator") != about["generator"]:
            old = known.get("generator") or {}
            keys = sorted(old.keys() | generator.keys())
            differs = [k for k in keys if old.get(k) != generator.get(k)]
            raise ConfigError(
                f"{root}: begun with another {', '.join(differs)} of the generator; "
                "repeat that command to go on, or name another --out folder"
            )
        return cls(root, expiry)

    # ---- inputs -----------------------------------------------------------------------------

    def keep(self, path: Path) -> tuple[Path, str]:
        """Copy a file into the data set, once for each content; its place there and sha256."""
        digest = sha256(path)
        kept = self.root / "inputs" / f"{digest}{path.suffix.lower()}"
        if not (kept.is_file() and kept.stat().st_size == path.stat().st_size):
            with atomic(kept) as hidden:
                shutil.copyfile(path, hidden)
        return kept, digest

    # ---- items ------------------------------------------------------------------------------

    def folder(self, item: str) -> Path:
        """Where an item is or will be.

        Raises:
            ConfigError: No name of an item.
        """
        if not re.fullmatch(rf"[0-9a-f]{{{ID}}}", item):
            raise ConfigError(f"item {item!r}: want {ID} hex digits")
        return self.root / "items" / item

    def items(self) -> list[str]:
        """Names of the items that are there, sorted."""
        return sorted(path.parent.name for path in (self.root / "items").glob("[!.]*/item.json"))

    def facts(self, item: str) -> Facts:
        """What item.json says.

        Raises:
            MediaError: The item is not there, or damaged.
        """
        found = _read(self.folder(item) / "item.json")
        if found is None:
            raise MediaError(f"{self.root}: no item {item}")
        return found

    def is_whole(self, item: str) -> bool:
        """Whether an item is there and its clip has the bytes that were written."""
        found, clip = _read(self.folder(item) / "item.json"), self.folder(item) / "clip.mp4"
        return found is not None and clip.is_file() and sha256(clip) == found["clip"]["sha256"]

    @contextmanager
    def publishing(self, claim: Claim) -> Iterator[Path]:
        """A hidden folder that becomes the item when the block ends well.

        What a dead worker left of the same item goes first. If the claim was lost meanwhile, this
        worker's result is dropped, because the new owner's counts.
        """
        final = self.folder(claim.item)
        for rest in final.parent.glob(f".{claim.item}.*.part"):
            shutil.rmtree(rest, ignore_errors=True)
        hidden = final.with_name(f".{claim.item}.{secrets.token_hex(4)}.part")
        with refusals(hidden):
            hidden.mkdir()
        try:
            yield hidden
            if claim.held:
                with refusals(final):
                    if final.exists():
                        shutil.rmtree(final)  # torn
                    hidden.rename(final)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)

    def synthesis(self, item: str) -> Synthesis:
        """An item as a value."""
        facts = self.facts(item)
        source, identity = (self._input(facts[name]) for name in ("source", "identity"))
        return Synthesis(
            item,
            Forward(SourceClip(*source), Identity(*identity), facts["seed"]),
            SyntheticClip(self.folder(item) / "clip.mp4", facts["clip"]["sha256"]),
        )

    def _input(self, facts: Facts) -> tuple[Path, str]:
        return self.root / "inputs" / facts["file"], facts["sha256"]

    # ---- what was said of them -----------------------------------------------------------------

    def say(self, item: str, kind: str, name: str, facts: Mapping[str, Any]) -> None:
        """Keep what a judge ("gate") or a person ("review") says; replaces what was said before."""
        path = self._said(item, kind, name)
        if not path.parent.is_dir():
            raise MediaError(f"{self.root}: no item {item}")
        write_text(path, json.dumps(dict(facts), indent=1) + "\n")

    def unsay(self, item: str, kind: str, name: str) -> None:
        """Forget it."""
        self._said(item, kind, name).unlink(missing_ok=True)

    def said(self, item: str, kind: str) -> dict[str, Facts]:
        """What all judges or people said of an item, by their names."""
        paths = sorted(self.folder(item).glob(f"{kind}.*.json"))
        return {p.name.split(".")[1]: found for p in paths if (found := _read(p)) is not None}

    def _said(self, item: str, kind: str, name: str) -> Path:
        return self.folder(item) / f"{kind}.{check_name(name)}.json"

    def verdict(self, item: str, judge: str) -> Verdict | None:
        """A judge's verdict, if it has one."""
        found = self.said(item, "gate").get(judge)
        if found is None:
            return None
        return Verdict(judge, Scores(**found["scores"]), found["threshold"])

    def decisions(self, item: str) -> tuple[Decision, ...]:
        """All people's, by their names."""
        said = self.said(item, "review").items()
        return tuple(Decision(name, found["motion"], found["identity"]) for name, found in said)

    # ---- what comes of them --------------------------------------------------------------------

    def triplets(self, judge: str, reviewers: int = 1) -> Iterator[Triplet]:
        """The training samples: gate passed, enough people looked, and none refused."""
        for item in self.items():
            verdict, decisions = self.verdict(item, judge), self.decisions(item)
            if verdict and not why_refused(verdict, decisions, reviewers):
                yield Triplet(Accepted(self.synthesis(item), verdict, decisions))

    def write_triplets(
        self, judge: str, reviewers: int = 1, client: Client | None = None
    ) -> tuple[Path, int]:
        """Put the training samples on one line each, paths from the data set on; how many.

        Args:
            judge: Whose gate counts.
            reviewers: People who must have accepted.
            client: Who describes a target without a caption; None takes the offline describer.
        """
        path, count = self.root / "triplets.jsonl", 0
        texts: dict[Path, str] = {}
        with atomic(path) as hidden, hidden.open("w", encoding="utf-8") as file:
            for triplet in self.triplets(judge, reviewers):
                clip = triplet.target.path
                target = clip.relative_to(self.root).as_posix()
                if clip not in texts:
                    given = self.facts(triplet.accepted.synthesis.item)["notes"].get("text")
                    texts[clip] = given or describe_clip(clip, client)
                line = {
                    "driving": triplet.driving.path.relative_to(self.root).as_posix(),
                    "reference": {"clip": target, "frame": 0},
                    "target": target,
                    "text": texts[clip],
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                count += 1
        return path, count

    def write_manifest(self) -> Path:
        """Put everything that is known on one line an item."""
        path = self.root / "manifest.jsonl"
        with atomic(path) as hidden, hidden.open("w", encoding="utf-8") as file:
            for item in self.items():
                said = {kind: self.said(item, kind) for kind in ("gate", "review")}
                file.write(json.dumps({**self.facts(item), **said}, ensure_ascii=False) + "\n")
        return path


def check_name(name: str) -> str:
    """A reviewer's or judge's name, if it can be part of a file name.

    Raises:
        ConfigError: It cannot.
    """
    if not REVIEWER.fullmatch(name):
        near = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")[:32] or "anna"
        raise ConfigError(f"name {name!r}: want a-z, 0-9, _ and -, at most 32; such as {near}")
    return name


def _read(path: Path) -> Facts | None:
    """A JSON object; None if it is not there or torn."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
