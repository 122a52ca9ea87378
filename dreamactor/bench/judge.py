"""`dreamactor bench judge`: scores of 1 to 5 for every system's clips of a suite.

    suite, clips  ->  questions.py  ->  judges.py  ->  judging.run  ->  judge_report.py

A folder is a run, and the same command resumes it:

    judge.json      what the scores belong to (judging.py)
    answers.jsonl   every answer as it came
    scores.jsonl    one clip and dimension a line: its score, its repeats, its examples
    report.md       tables with intervals
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from dreamactor import __version__
from dreamactor.bench.coverage import choose_cases
from dreamactor.bench.judge_report import load_calibration, report, scores_of
from dreamactor.bench.judges import ByMeasure, ByModel, Judge, named_client
from dreamactor.bench.judging import Scene, Task, run
from dreamactor.bench.manifest import load_suite
from dreamactor.bench.questions import LOOKS, Cost, Rule, Style
from dreamactor.bench.results import find_clips, missing_clips
from dreamactor.bench.scores import DIMENSIONS, PER_SECOND
from dreamactor.config import check_device, check_least
from dreamactor.errors import AnswerError, ConfigError
from dreamactor.mllm import Client
from dreamactor.runs import write_text

WITHOUT_SAY = ("price_in", "price_out", "rule", "device", "calibration", "judge")
"""Settings that no score depends on; the judge stands in judge.json by itself."""


@dataclass(frozen=True)
class AskConfig:
    """Settings of whatever asks a judge."""

    judge: Literal["mllm", "measured"] = "mllm"
    """The model that DREAMACTOR_MLLM_* name, or the gate's measurements."""
    dimensions: str = ",".join(DIMENSIONS)
    """Parted by commas; motion_following is a fifth."""
    cases: int = 0
    """Only so many of the suite's, evenly from all scenarios; 0 = all."""
    pool: int = 3
    """Examples in a question: first frames of other systems' clips."""
    seed: int = 0
    """Of examples and intervals."""
    tries: int = 2
    """Times that an answer without a score is asked for."""
    chain: bool = False
    """Describe, ask and reply first (three more questions each)."""
    per_second: float = PER_SECOND
    """Frames that are shown of a second; Video-Bench has 2."""
    side: int = 512
    """Most pixels of a picture that shows one frame."""
    tokens: int = 600
    """Most tokens of an answer."""
    rule: Rule = "tiles"
    """How the estimate counts pictures; see `questions.picture_tokens`."""
    price_in: float | None = None
    """For a million tokens that are sent, in any currency."""
    price_out: float | None = None
    """For a million tokens of answers."""
    device: str = "cpu"
    """Where a local model runs."""

    def __post_init__(self) -> None:
        """Check every value by itself.

        Raises:
            ConfigError: One that cannot work.
        """
        least = {"cases": 0, "pool": 0, "tries": 1, "side": 64, "tokens": 50}
        check_least(self, least)
        if not 0 < self.per_second <= 60:
            raise ConfigError(f"per_second={self.per_second}: want more than 0 and at most 60")
        if (self.price_in is None) != (self.price_out is None):
            raise ConfigError("price_in and price_out: want both, or neither")
        check_device(self.device)
        self.asked_for()

    def asked_for(self) -> list[str]:
        """The dimensions.

        Raises:
            ConfigError: Others than there are, or none.
        """
        names = words_of(self.dimensions)
        unknown = [name for name in names if name not in LOOKS]
        if unknown or not names:
            raise ConfigError(f"dimensions={self.dimensions}: want some of {', '.join(LOOKS)}")
        if self.judge == "measured" and not set(names) <= set(DIMENSIONS):
            raise ConfigError(f"judge=measured: want some of {', '.join(DIMENSIONS)}")
        return names

    def settings(self) -> dict[str, Any]:
        """What scores depend on."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in WITHOUT_SAY}
        return {**own, "version": __version__}

    def command(self, verb: str, folders: str) -> str:
        """The command that repeats a run, without the folders of this machine."""
        words = [f"dreamactor bench {verb} {folders} --out FOLDER"]
        for f in fields(self):
            value = getattr(self, f.name)
            if value != f.default:
                words.append(f"{f.name}={value.name if isinstance(value, Path) else value}")
        return " ".join(words)

    def open_judge(self, client: Client | None = None, only_cost: bool = False) -> Judge:
        """Who judges.

        Args:
            client: A model; None takes the one that the environment names.
            only_cost: Whether it will not be asked.
        """
        if self.judge == "measured":
            return ByMeasure()
        client = client or named_client(self.device, self.tokens, only_cost)
        return ByModel(client, self.tries, self.chain, Style(self.per_second, self.side), self.rule)

    @property
    def examples(self) -> int:
        """`pool`, where the judge looks at examples at all."""
        return self.pool if self.judge == "mllm" else 0

    def told(self, cost: Cost) -> str:
        """An estimate in words."""
        if not cost.tokens_in:
            return f"{cost.questions} questions, no tokens"
        words = (
            f"{cost.questions} questions, {cost.pictures} pictures, about "
            f"{cost.tokens_in / 1e6:.2f} M tokens in, {cost.tokens_out / 1e6:.2f} M out"
        )
        if self.price_in is None or self.price_out is None:
            return words
        return f"{words}, about {cost.money(self.price_in, self.price_out):.2f} in money"


@dataclass(frozen=True)
class JudgeConfig(AskConfig):
    """Settings of `bench judge`."""

    systems: str = ""
    """Names of folders, parted by commas; none means all."""
    repeats: int = 3
    """Times each clip is judged; a case's score is their mean."""
    redraw: bool = True
    """Each repeat draws its own examples; false asks the very same question again."""
    calibration: Path | None = None
    """calibration.json of a `bench calibrate` by the same judge."""

    def __post_init__(self) -> None:
        """As of `AskConfig`."""
        check_least(self, {"repeats": 1})
        super().__post_init__()


def judge_suite(
    suite: Path,
    clips: Path,
    out: Path,
    config: JudgeConfig,
    client: Client | None = None,
    dry_run: bool = False,
    say: Callable[[str], object] = str,
) -> str:
    """Ask what has not been asked yet, and write scores and report.

    Args:
        suite: Folder of a suite.
        clips: Has a folder of clips for each system.
        out: Folder of the run.
        config: Settings.
        client: A model to ask; None takes the one that the environment names.
        dry_run: Only say what it would take.
        say: Is told that before anything is asked.

    Returns:
        What to tell the user.

    Raises:
        AnswerError: Nothing was said to some questions; the others are kept.
        ConfigError: Suite, clips, settings or judge cannot be.
    """
    known = load_suite(suite)
    cases = [case.name for case in choose_cases(known, config.cases)]
    found = find_clips(known, clips, words_of(config.systems))
    judge = config.open_judge(client, dry_run)
    trusted = None if config.calibration is None else load_calibration(config.calibration, judge)
    scene = Scene(known, found, judge, config.examples, config.seed, config.redraw)
    tasks = [
        Task(case, system, dimension, repeat)
        for case in cases
        for system, mine in found.items()
        if case in mine
        for dimension in config.asked_for()
        for repeat in range(config.repeats)
    ]
    cost = config.told(scene.estimate(tasks))
    if dry_run:
        return f"{judge.name}: {cost}"
    say(f"{judge.name}: {cost}")
    answers = run(scene, tasks, out, config.settings())
    write_text(out / "scores.jsonl", scores_of(answers, judge))
    command = config.command("judge", f"--suite {known.name} --clips CLIPS")
    lacking = missing_clips(found, cases)
    text = report(answers, judge, scene, command, cost, lacking, trusted)
    write_text(out / "report.md", text)
    if len(answers) < len(tasks):
        raise AnswerError(
            f"{out}: {len(tasks) - len(answers)} of {len(tasks)} questions got no answer; the same "
            "command asks them again"
        )
    return str(out / "report.md")


def words_of(text: str) -> list[str]:
    """Words that are parted by commas, each once."""
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
