"""`dreamactor study make`: from a suite and the systems' clips to a folder that can be served.

Every clip is written anew, all in the same way: H.264 at one quality, no sound, no metadata, no
date, at most `side` pixels long. So neither a file's name, nor its coding, nor what a program wrote
into it tells whose it is. Size, length and rate of the pictures stay the system's own.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dreamactor.bench.manifest import Suite, load_suite
from dreamactor.bench.study.design import (
    Deck,
    Shown,
    StudyConfig,
    choose_cases,
    draw_raters,
    planted,
)
from dreamactor.bench.study.plan import Plan, Rule, blind, load_plan, save_plan
from dreamactor.errors import ConfigError
from dreamactor.image import Rgb, atomic, read_image, refusals, resize, write_png
from dreamactor.provenance import sha256
from dreamactor.runs import numpy_generator, write_text
from dreamactor.video import CLIP_SUFFIXES, iter_frames, probe, resample, write_clip

SUFFIXES = (*CLIP_SUFFIXES, ".avi", ".webp")
"""Of results, in the order in which they are looked for."""
NOISE = 90.0
"""Of 255: standard deviation of what is added to a clip that must be rated low."""
BEGUN = "begun.json"
"""Secret and settings of a study that is not whole yet."""
SMALL = 32
"""Pixels of the side on which the motion of a driving clip is looked at."""
CONSENT = """\
You will see short clips and judge them by eye. Most of them were made by computer programs. A
program was given a picture of somebody or something, and a driving clip; it tried to make the one
in the picture move as the driving clip does.

Kept are your answers, when you gave them and how long each of them took, under a number. Your
name, your address or anything else about you is not asked for and not kept.

Taking part is voluntary. You can stop at any time without giving a reason; what you have answered
is kept, and the same link brings you back to where you stopped. If you want your answers to be
removed, say so to the person who gave you the link.
"""


@dataclass(frozen=True)
class Source:
    """Where a file of media/ is from."""

    what: str
    """reference, driving, result, noise, frozen or twin."""
    path: Path
    about: Mapping[str, str]
    """Case and system, or the medium's name: for plan.json."""


def find_systems(clips: Path, wanted: str | None) -> list[str]:
    """Names of the systems: folders in `clips`, or those of them that are wanted.

    Raises:
        ConfigError: There is none, or not the one that is wanted.
    """
    if not clips.is_dir():
        raise ConfigError(f"{clips}: no such folder; want one with a folder of clips per system")
    there = sorted(p.name for p in clips.iterdir() if p.is_dir() and not p.name.startswith("."))
    names = there if wanted is None else [name.strip() for name in wanted.split(",")]
    missing = [name for name in names if name not in there]
    if missing or not names:
        raise ConfigError(
            f"{clips}: no system {missing[0] if missing else ''!r}; there are "
            f"{', '.join(there) or 'no folders'}"
        )
    if len(set(names)) < len(names):
        raise ConfigError(f"systems={wanted}: one is named twice")
    return names


def find_clips(suite: Suite, clips: Path, systems: Sequence[str]) -> dict[str, dict[str, Path]]:
    """The clips by case and system, of the cases for which every system has one.

    Raises:
        ConfigError: There is no such case.
    """
    found: dict[str, dict[str, Path]] = {}
    lacking: dict[str, str] = {}
    for case in suite.cases:
        paths = {name: _clip(clips / name, case.result_name) for name in systems}
        if none := [name for name, path in paths.items() if path is None]:
            lacking.setdefault(none[0], case.result_name)
        else:
            found[case.name] = {name: path for name, path in paths.items() if path is not None}
    if not found:
        system, name = next(iter(lacking.items()))
        raise ConfigError(
            f"{clips}: no case has a clip of every system; {system} has no {name}.mp4, for instance"
        )
    return found


def make_study(suite_root: Path, clips: Path, out: Path, config: StudyConfig) -> Plan:
    """Make a study; the same command goes on where it was, and does nothing once all is there.

    Args:
        suite_root: Folder of the suite.
        clips: Folder with a folder of clips per system, named by `SuiteCase.result_name`.
        out: The study.
        config: Settings.

    Raises:
        ConfigError: Settings, suite and clips do not fit, or `out` holds another study.
        MediaError: A clip cannot be read or written.
    """
    settings = {**asdict(config), "suite": str(suite_root), "clips": str(clips)}
    if (out / "plan.json").is_file():
        known = load_plan(out)
        _check_same(out, known.settings, settings)
        return known
    suite = load_suite(suite_root)
    systems = find_systems(clips, config.systems)
    if config.gsb is not None and (config.gsb not in systems or len(systems) < 2):
        raise ConfigError(
            f"gsb={config.gsb}: want one of at least two systems; there are {', '.join(systems)}"
        )
    found = find_clips(suite, clips, systems)
    scenarios = {name: str(suite.case(name).scenario) for name in found}
    names = choose_cases(scenarios, config.wanted, config.seed)
    if not (out / BEGUN).is_file():
        _check_media(suite, found, names)
    secret = _secret(out, settings)
    deck, sources = _inputs(suite, config, secret, systems, names, out)
    sources |= _results(deck, found, names)
    raters = draw_raters(deck)
    used = {
        name
        for rater in raters
        for item in rater.items
        for name in (item.reference, item.driving, *item.shown)
    }
    sources = {name: source for name, source in sources.items() if name in used}
    _write(sources, out, config, "clips")
    media = {
        name: {"what": s.what, **s.about, "sha256": sha256(out / "media" / name)}
        for name, s in sorted(sources.items())
    }
    rule = Rule(fails=config.fails, repeat=config.repeat, least=config.least)
    about = {"name": suite.name, "version": suite.version}
    if not (out / "consent.txt").is_file():
        write_text(out / "consent.txt", CONSENT)
    chosen = {name: scenarios[name] for name in names}
    plan = Plan(
        out, about, settings, secret, tuple(systems), config.gsb, chosen, raters, rule, media
    )
    save_plan(plan)
    (out / BEGUN).unlink(missing_ok=True)
    return plan


def summary(plan: Plan) -> str:
    """For people."""
    kinds = ("rate", "pair")
    most = [max(sum(i.kind == kind for i in r.items) for r in plan.raters) for kind in kinds]
    scenarios = len(set(plan.scenarios.values()))
    return (
        f"{plan.root}: {len(plan.scenarios)} cases of {scenarios} scenarios, "
        f"{len(plan.systems)} systems, {len(plan.raters)} raters with {most[0]} ratings and "
        f"{most[1]} pairs each, checks among them"
    )


def _check_media(
    suite: Suite, found: Mapping[str, Mapping[str, Path]], names: Sequence[str]
) -> None:
    """Decode all that may be shown, so that no study is begun over a file that cannot be read."""
    cases = [suite.case(name) for name in names]
    for medium in {case.reference for case in cases}:
        read_image(suite.path(medium))
    clips = {suite.path(case.driving) for case in cases}
    clips.update(path for name in names for path in found[name].values())
    for path in tqdm(sorted(clips), desc="look at clips", unit="clip", disable=None, leave=False):
        probe(path)
        for _ in iter_frames(path):
            pass


def _secret(out: Path, settings: Mapping[str, Any]) -> str:
    """Of the study; one that was left half made goes on with what it was begun with."""
    with refusals(out):
        (out / "media").mkdir(parents=True, exist_ok=True)
    path = out / BEGUN
    if not path.is_file():
        with atomic(path) as hidden:
            hidden.touch(0o600)
            told = {"settings": dict(settings), "secret": secrets.token_hex(16)}
            hidden.write_text(json.dumps(told) + "\n")
    told = json.loads(path.read_text())
    _check_same(out, told["settings"], settings)
    return str(told["secret"])


def _check_same(out: Path, known: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    differs = [key for key in settings if known.get(key) != settings[key]]
    if differs:
        raise ConfigError(
            f"{out}: is a study with another {', '.join(differs)}; name another --out"
        )


def _inputs(
    suite: Suite,
    config: StudyConfig,
    secret: str,
    systems: Sequence[str],
    names: Sequence[str],
    out: Path,
) -> tuple[Deck, dict[str, Source]]:
    """References and driving clips, written, and the deck: its checks need to know what moves."""
    shown, sources = {}, {}
    for name in names:
        case, files = suite.case(name), {}
        for kind, suffix in (("reference", ".png"), ("driving", ".mp4")):
            medium = getattr(case, kind)
            files[kind] = blind(secret, kind, medium) + suffix
            sources[files[kind]] = Source(kind, suite.path(medium), {"medium": medium})
        shown[name] = Shown(str(case.scenario), files["reference"], files["driving"])
    _write(sources, out, config, "driving clips")
    motion = {name: _motion(out / "media" / shown[name].driving) for name in names}
    return Deck(config, secret, systems, shown, *planted(config, systems, motion)), sources


def _results(
    deck: Deck, found: Mapping[str, Mapping[str, Path]], names: Iterable[str]
) -> dict[str, Source]:
    """Every clip that an item may show."""
    whats = [("result", name, system) for name in names for system in deck.systems]
    whats += [(str(check), case, system) for check, case, system in deck.spoilt]
    whats += [("twin", case, system) for case, system in deck.twins]
    return {
        deck.clip(what, case, system): Source(
            what, found[case][system], {"case": case, "system": system}
        )
        for what, case, system in whats
    }


def _clip(folder: Path, name: str) -> Path | None:
    for suffix in SUFFIXES:
        if (path := folder / f"{name}{suffix}").is_file():
            return path
    return None


def _write(sources: Mapping[str, Source], out: Path, config: StudyConfig, what: str) -> None:
    """Write what is not there yet."""
    folder = out / "media"
    left = [name for name in sources if not (folder / name).is_file()]
    for name in tqdm(left, desc=what, unit="clip", disable=None, leave=False):
        source, path = sources[name], folder / name
        if source.what == "reference":
            write_png(path, _bounded(read_image(source.path), config.side))
            continue
        info = probe(source.path)
        frames = resample(iter_frames(source.path), info.fps, info.duration)
        bounded = (_bounded(frame, config.side) for frame in frames)
        write_clip(path, _spoil(source, bounded, config.seed), info.fps)


def _spoil(source: Source, frames: Iterator[Rgb], seed: int) -> Iterator[Rgb]:
    """The frames as they are shown: noisy, or all the first, or as they were."""
    first: Rgb | None = None
    for k, frame in enumerate(frames):
        if source.what == "noise":
            rng = numpy_generator(seed, "study/noise", k)
            noisy = frame + rng.normal(0, NOISE, frame.shape)  # (H, W, 3)
            yield np.clip(noisy, 0, 255).astype(np.uint8)
        elif source.what == "frozen":
            first = frame if first is None else first
            yield first
        else:
            yield frame


def _bounded(picture: Rgb, side: int) -> Rgb:
    """(H, W, 3), with its longer side at most that long."""
    height, width = picture.shape[:2]
    scale = min(1.0, side / max(height, width))
    if scale == 1:
        return picture
    return resize(picture, (max(2, round(height * scale)), max(2, round(width * scale))))


def _motion(path: Path) -> float:
    """Mean difference of neighbouring frames, levels of 255, where the clip is made tiny."""
    before, found = None, []
    for _, frame in iter_frames(path):
        tiny = resize(frame, (SMALL, SMALL)).astype(np.float64)
        if before is not None:
            found.append(float(np.abs(tiny - before).mean()))
        before = tiny
    return float(np.mean(found))
