"""`dreamactor bench calibrate`: is a judge to be trusted, dimension by dimension?

Truths of a suite are damaged one way at a time and four times harder each, so the right order of
the clips is known; the judge scores them as it would a system's. A folder is a run, and the same
command resumes it:

    calibrate.json      settings of the damages
    clips/              the damaged clips, in folders as systems have them
    answers.jsonl, judge.json   as of `bench judge`
    calibration.json    the verdicts, for `bench judge calibration=`
    report.md, calibration.png
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dreamactor import __version__
from dreamactor.bench import damages
from dreamactor.bench.calibration_report import RULE_VERSION, Verdict, draw, find_verdicts, report
from dreamactor.bench.coverage import choose_cases
from dreamactor.bench.judge import AskConfig
from dreamactor.bench.judging import Scene, Task, check_settings, run
from dreamactor.bench.manifest import Suite, SuiteCase, load_suite, read_clip
from dreamactor.bench.results import Clips
from dreamactor.bench.settings import open_folder
from dreamactor.config import check_least
from dreamactor.errors import AnswerError
from dreamactor.mllm import Client
from dreamactor.runs import numpy_generator, write_text
from dreamactor.video import ClipInfo, write_clip

CLEAN = "clean"
Clip = NDArray[np.uint8]


@dataclass(frozen=True)
class Bare:
    """What damages are made from."""

    truth: Clip
    """(T, H, W, 3)."""
    driving: Clip
    """(T', h, w, 3)."""
    subject: NDArray[np.bool_]
    """(T, H, W); everywhere where nobody knows."""
    fps: float
    rng: np.random.Generator

    @property
    def scale(self) -> float:
        """Of lengths that are meant for a shorter side of 256 pixels."""
        return min(self.truth.shape[1:3]) / 256

    def frames(self, seconds: float) -> int:
        """At least one."""
        return max(1, round(seconds * self.fps))


@dataclass(frozen=True)
class Kind:
    """One way to damage a clip."""

    name: str
    dimension: str
    """Which should see it."""
    unit: str
    strengths: tuple[float, ...]
    """Rising; the same number for all kinds."""
    make: Callable[[Bare, float], Clip]

    def system(self, level: int) -> str:
        """Folder of the clips of a strength; levels count from 1."""
        return f"{self.name}-{level}"


def _blur(bare: Bare, x: float) -> Clip:
    return damages.blur(bare.truth, x * bare.scale)


def _stutter(bare: Bare, x: float) -> Clip:
    return damages.stutter(bare.truth, 1 + bare.frames(x))


def _recolour(bare: Bare, x: float) -> Clip:
    return damages.recolour(bare.truth, bare.subject, x)


KINDS = (
    Kind("blur", "imaging_quality", "px", (0.7, 1.2, 2.0, 3.5), _blur),
    Kind("noise", "imaging_quality", "levels of 255", (4, 8, 16, 32),
         lambda b, x: damages.noise(b.truth, x, b.rng)),
    Kind("stutter", "motion_smoothness", "s", (0.1, 0.2, 0.4, 0.8), _stutter),
    Kind("shake", "motion_smoothness", "s", (0.1, 0.2, 0.4, 0.8),
         lambda b, x: damages.shake(b.truth, b.frames(x), b.rng)),
    Kind("flicker", "temporal_consistency", "of brightness", (0.03, 0.06, 0.12, 0.24),
         lambda b, x: damages.flicker(b.truth, x, b.rng)),
    Kind("drift", "temporal_consistency", "of the way to red", (0.1, 0.2, 0.4, 0.8),
         lambda b, x: damages.tint(b.truth, x)),
    Kind("recolour", "appearance_consistency", "of the way to violet", (0.15, 0.3, 0.6, 1.0),
         _recolour),
    Kind("swap", "appearance_consistency", "of the frames", (0.25, 0.5, 0.75, 1.0),
         lambda b, x: damages.replace(b.truth, b.driving, x)),
    Kind("late", "motion_following", "s", (0.2, 0.4, 0.6, 0.9),
         lambda b, x: damages.delay(b.truth, b.frames(x))),
    Kind("slow", "motion_following", "of the speed", (0.25, 0.5, 0.75, 1.0),
         lambda b, x: damages.slow(b.truth, x)),
)  # fmt: skip
LEVELS = 4


@dataclass(frozen=True)
class CalibrateConfig(AskConfig):
    """Settings of `bench calibrate`."""

    cases: int = 12
    """How many of the suite's that have a truth; 0 = all."""
    again: int = 2
    """Times that the clean and the worst clips are asked about, by the very same question."""

    def __post_init__(self) -> None:
        """As of `AskConfig`."""
        check_least(self, {"again": 1})
        super().__post_init__()


def calibrate(
    suite: Path,
    out: Path,
    config: CalibrateConfig,
    client: Client | None = None,
    dry_run: bool = False,
    say: Callable[[str], object] = str,
) -> str:
    """Damage truths, have them judged, and say what the judge sees.

    Args:
        suite: Folder of a suite with truths.
        out: Folder of the run.
        config: Settings.
        client: A model to ask; None takes the one that the environment names.
        dry_run: Only say what it would take.
        say: Is told that before anything is asked.

    Returns:
        What to tell the user.

    Raises:
        AnswerError: Nothing was said to some questions; the others are kept.
        ConfigError: Suite, settings or judge cannot be.
    """
    known = load_suite(suite)
    cases = [case.name for case in choose_cases(known, config.cases, truth=True)]
    judge = config.open_judge(client, dry_run)
    kinds = [kind for kind in KINDS if kind.dimension in config.asked_for()]
    clips = _paths(known, out / "clips", cases, kinds)
    scene = Scene(known, clips, judge, config.examples, config.seed, redraw=False)
    tasks = tasks_of(cases, kinds, config.asked_for(), config.again)
    cost = config.told(scene.estimate(tasks, like=_truths(known, clips)))
    if dry_run:
        return f"{judge.name}: {cost}"
    say(f"{judge.name}: {cost}")
    planned = {"kinds": [(k.name, k.strengths) for k in kinds], "seed": config.seed,
               "cases": cases, "suite": [known.name, known.version],
               "truths": [known.media[str(known.case(c).truth)].sha256 for c in cases],
               "version": __version__}  # fmt: skip
    check_settings(open_folder(out) / "calibrate.json", planned)
    for name in tqdm(cases, unit="case", desc="damage", disable=None, leave=False):
        damage(known, known.case(name), kinds, clips, config.seed)
    answers = run(scene, tasks, out, config.settings())
    if len(answers) < len(tasks):
        raise AnswerError(
            f"{out}: {len(tasks) - len(answers)} of {len(tasks)} questions got no answer; the same "
            "command asks them again"
        )
    owners = {k.system(level): (k.name, k.dimension, level) for k in kinds
              for level in range(1, LEVELS + 1)}  # fmt: skip
    verdicts = find_verdicts(answers, owners, CLEAN, config.asked_for(), config.seed)
    about = {d: dict(judge.about(d)) for d in config.asked_for()}
    write_text(out / "calibration.json", _plain(judge.name, known, about, verdicts))
    draw(out / "calibration.png", answers, owners, CLEAN, config.asked_for())
    command = config.command("calibrate", f"--suite {known.name}")
    strengths = {k.name: f"{', '.join(f'{x:g}' for x in k.strengths)} {k.unit}" for k in kinds}
    head = f"judge {judge.name}, suite {known.name} {known.version}, {len(cases)} cases"
    text = report(verdicts, answers, owners, CLEAN, strengths, f"Made by `{command}`: {head}", cost)
    write_text(out / "report.md", text)
    return str(out / "report.md")


def tasks_of(
    cases: Sequence[str], kinds: Sequence[Kind], dimensions: Sequence[str], again: int
) -> list[Task]:
    """Questions: a dimension sees its own damages at every strength, others at the worst.

    Args:
        cases: Names.
        kinds: Those that are planted.
        dimensions: Those that are asked for.
        again: Times that the clean and the worst clips of its own are asked about.
    """
    tasks = []
    for case in cases:
        wanted = [Task(case, CLEAN, d, k) for d in dimensions for k in range(again)]
        for kind in kinds:
            for level in range(1, LEVELS + 1):
                worst = level == LEVELS
                for d in dimensions:
                    own = d == kind.dimension
                    times = again if own and worst else int(own or worst)
                    wanted += [Task(case, kind.system(level), d, k) for k in range(times)]
        tasks += wanted
    return tasks


def damage(suite: Suite, case: SuiteCase, kinds: Sequence[Kind], clips: Clips, seed: int) -> None:
    """Write the clips of a case that are not there yet.

    Args:
        suite: Where it is from.
        case: It has a truth.
        kinds: Those that are planted.
        clips: Where they shall lie.
        seed: Of noise, flicker and jitter.
    """
    paths = {name: mine[case.name] for name, mine in clips.items()}
    if all(path.is_file() for path in paths.values()):
        return
    truth, info = read_clip(suite.path(str(case.truth)))
    driving, _ = suite.driving(case)
    arrays = suite.arrays(case)
    subject = np.ones(truth.shape[:3], np.bool_) if arrays is None else arrays.mask > 0
    _write(paths[CLEAN], truth, info)
    for kind in kinds:
        for level, strength in enumerate(kind.strengths, 1):
            # the same draws at every strength: the stronger damage is the weaker one, larger
            rng = numpy_generator(seed, f"judge/damage/{kind.name}/{case.name}", 0)
            bare = Bare(truth, driving, subject, float(info.fps), rng)
            _write(paths[kind.system(level)], kind.make(bare, strength), info)


def _write(path: Path, clip: Clip, info: ClipInfo) -> None:
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip(path, np.ascontiguousarray(clip), info.fps)


def _paths(
    suite: Suite, root: Path, cases: Sequence[str], kinds: Sequence[Kind]
) -> dict[str, dict[str, Path]]:
    """Where the clips lie or shall lie."""
    systems = [CLEAN, *(k.system(level) for k in kinds for level in range(1, LEVELS + 1))]
    files = {name: f"{suite.case(name).result_name}.mp4" for name in cases}
    return {s: {name: root / s / file for name, file in files.items()} for s in systems}


def _truths(suite: Suite, clips: Clips) -> Clips:
    """The truths in place of the clips that will be made of them; they have the same size."""
    truth = {
        name: suite.path(str(suite.case(name).truth)) for mine in clips.values() for name in mine
    }
    return dict.fromkeys(clips, truth)


def _plain(
    judge: str, suite: Suite, about: Mapping[str, object], verdicts: Mapping[str, Verdict]
) -> str:
    rows = {d: {**asdict(v), "trusted": v.trusted, "about": about[d]} for d, v in verdicts.items()}
    head = {"judge": judge, "suite": f"{suite.name} {suite.version}", "version": __version__,
            "rule": RULE_VERSION}  # fmt: skip
    return json.dumps({**head, "dimensions": rows}, indent=1) + "\n"
