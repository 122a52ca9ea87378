"""Whatever turns a case of a suite into a clip, so that it can be judged.

    a name       a backbone of this package, as `animate` runs it, or copy, driving, warp
    a command    with {reference}, {driving} and {out} in it: run without a shell, one clip a call
    a folder     of clips that were made elsewhere, named by `SuiteCase.result_name`

They are sent to worker processes, so they hold no weights before they are called.
"""

from __future__ import annotations

import difflib
import json
import os
import shlex
import shutil
import signal
import string
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dreamactor import __version__
from dreamactor.backbones.catalogue import CATALOGUE
from dreamactor.bench.baselines import System, copy_reference, driving_itself, flow_warp
from dreamactor.bench.manifest import Suite, SuiteCase, read_clip
from dreamactor.bench.results import clip_of
from dreamactor.diffusion.animator import Animator
from dreamactor.errors import ConfigError, MediaError
from dreamactor.image import fit, read_image
from dreamactor.runs import seed_of
from dreamactor.video import write_clip

BASELINES: dict[str, System] = {
    "copy": copy_reference,
    "driving": driving_itself,
    "warp": flow_warp,
}
FIELDS = ("reference", "driving", "out", "prompt", "seed")
"""What a command may be told."""
NEEDED = ("reference", "driving", "out")
SHOWN = 400
"""Last characters of a failed command's words that are told."""


class Contestant(Protocol):
    """A system under test."""

    @property
    def about(self) -> Mapping[str, Any]:
        """JSON values: all that has a say in its clips besides the case."""
        ...

    @property
    def on_gpu(self) -> bool:
        """Whether a worker of it needs a GPU of its own."""
        ...

    def clip(self, suite: Suite, case: SuiteCase, out: Path) -> Path:
        """The clip of a case: made at `out`, or one that lies elsewhere already.

        Raises:
            DreamActorError: There is none; says why.
        """
        ...


@dataclass(frozen=True)
class Own:
    """A backbone of this package."""

    animator: Animator
    seed: int = 0
    """Case c gets a seed made from this and its name."""

    @property
    def about(self) -> Mapping[str, Any]:
        """As of the animator; loads the weights."""
        return {**self.animator.about, "seed": self.seed}

    @property
    def on_gpu(self) -> bool:
        """Whether it runs there."""
        return self.animator.device != "cpu"

    def clip(self, suite: Suite, case: SuiteCase, out: Path) -> Path:
        """Animate."""
        files = suite.path(case.reference), suite.path(case.driving)
        self.animator.animate(*files, out, case_seed(self.seed, case), case.prompt)
        return out


@dataclass(frozen=True)
class Baseline:
    """A system without learning."""

    name: str
    on_gpu = False

    @property
    def about(self) -> Mapping[str, Any]:
        """Its name and the program's version."""
        return {"name": self.name, "version": __version__}

    def clip(self, suite: Suite, case: SuiteCase, out: Path) -> Path:
        """Of the reference's size; the driving clip is brought to it."""
        reference = read_image(suite.path(case.reference))
        clip, info = read_clip(suite.path(case.driving))
        size = (reference.shape[0], reference.shape[1])
        driving = np.stack([fit(frame, size, "letterbox")[0] for frame in clip])
        write_clip(out, BASELINES[self.name](reference, driving), info.fps)
        return out


@dataclass(frozen=True)
class Command:
    """A program of somebody else's."""

    template: str
    seed: int = 0
    timeout: float = 3600.0
    """Seconds for one clip."""
    gpu: bool = False

    def __post_init__(self) -> None:
        """Check the template.

        Raises:
            ConfigError: It lacks a place for a file, names one that is not known or wants it in a
                format, has a quote too few, or a program that is not there.
        """
        named = set()
        for _, name, spec, conversion in _parts(self.template):
            if name is None:
                continue
            if name not in FIELDS:
                near = difflib.get_close_matches(name, FIELDS, 1, 0.0)[0]
                raise ConfigError(f"{{{name}}} in a command: want {{{near}}}, or {{{{ for a brace")
            if spec or conversion:
                raise ConfigError(
                    f"command {self.template!r}: want {{{name}}} alone, without a format"
                )
            named.add(name)
        missing = [name for name in NEEDED if name not in named]
        if missing:
            raise ConfigError(
                f"command {self.template!r}: lacks {{{missing[0]}}}; want "
                "'program --ref {reference} --drive {driving} --out {out}'"
            )
        try:
            program = shlex.split(self.template)[0]
        except ValueError as error:
            raise ConfigError(f"command {self.template!r}: {error}; a quote is \\'") from error
        if shutil.which(program) is None:
            raise ConfigError(f"command {program!r}: no such program on the path")

    @property
    def about(self) -> Mapping[str, Any]:
        """The template; what the program is, only its owner knows."""
        return {"command": self.template, "seed": self.seed}

    @property
    def on_gpu(self) -> bool:
        """As it was told."""
        return self.gpu

    def clip(self, suite: Suite, case: SuiteCase, out: Path) -> Path:
        """Run the program once; what it says is kept for when it fails."""
        values = {
            "reference": suite.path(case.reference).absolute(),
            "driving": suite.path(case.driving).absolute(),
            "out": out.absolute(),
            "prompt": case.prompt or "",
            "seed": case_seed(self.seed, case),
        }
        words = [word.format(**values) for word in shlex.split(self.template)]
        try:
            code, errors = _run(words, self.timeout)
        except subprocess.TimeoutExpired as error:
            raise MediaError(f"{words[0]}: not done in {self.timeout:g} s") from error
        except OSError as error:
            raise MediaError(f"{words[0]}: cannot be started: {error.strerror}") from error
        if code:
            said = errors.decode(errors="replace").strip()[-SHOWN:]
            raise MediaError(f"{words[0]}: exit code {code}: {said or 'without a word'}")
        if not out.is_file():
            raise MediaError(f"{words[0]}: exit code 0, but no file at {{out}}")
        return out


@dataclass(frozen=True)
class Folder:
    """Clips that lie there."""

    path: Path
    on_gpu = False

    def __post_init__(self) -> None:
        """Take the path from where it is named: workers and later runs may be elsewhere."""
        object.__setattr__(self, "path", self.path.absolute())

    @property
    def about(self) -> Mapping[str, Any]:
        """Its name; what a clip is, its sha256 in the results tells."""
        return {"folder": self.path.name}

    def clip(self, suite: Suite, case: SuiteCase, out: Path) -> Path:
        """Find it."""
        found = clip_of(self.path, case)
        if found is None:
            raise MediaError(f"{self.path}: no clip named {case.result_name}.mp4")
        return found


def contestant(
    spec: str, animator: Animator, seed: int = 0, timeout: float = 3600.0, gpu: bool = False
) -> Contestant:
    """What a word on the command line means.

    Args:
        spec: A name, a command or a folder.
        animator: Settings of backbones; its name is replaced.
        seed: Of the noise.
        timeout: Seconds a command may take for one clip.
        gpu: Whether a command needs a GPU.

    Raises:
        ConfigError: It is none of them.
    """
    if "{" in spec:
        return Command(spec, seed, timeout, gpu)
    if spec in BASELINES:
        return Baseline(spec)
    if spec in CATALOGUE:
        return Own(replace(animator, backbone=spec), seed)
    if Path(spec).is_dir():
        return Folder(Path(spec))
    names = (*BASELINES, *CATALOGUE)
    near = difflib.get_close_matches(spec, names, 1, 0.0)[0]
    raise ConfigError(
        f"system {spec!r}: no folder of clips, no command with {{out}} in it, and no such name; "
        f"nearest is {near}, known: {', '.join(names)}"
    )


def case_seed(seed: int, case: SuiteCase) -> int:
    """Seed of a case's noise, by its name alone; fits everybody's 31 bits."""
    return seed_of(seed, f"suite/{case.name}", 0) & 0x7FFFFFFF


def about_of(system: Contestant) -> dict[str, Any]:
    """Its `about`, as JSON gives it back."""
    return dict(json.loads(json.dumps(dict(system.about))))


def _run(words: Sequence[str], timeout: float) -> tuple[int, bytes]:
    """Exit code and stderr; what is not done in time, or at Ctrl-C, ends with all that it began."""
    with subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            _, errors = process.communicate(timeout=timeout)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, errors


def _parts(template: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"command {template!r}: {error}; a brace itself is {{{{") from error
