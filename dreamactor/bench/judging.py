"""Ask a judge every question of a run, and keep what it said.

    judge.json      settings, prompts and clips that the scores belong to; others are refused
    answers.jsonl   one question a line, written as it is answered, the raw words with it

The same command goes on where an earlier one stopped. A question whose answers hold no score is
unjudged, for good: at temperature 0 another run would hear the same. One to which nothing was said
is left out, and the next run asks it; after three of those in a row the run stops.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dreamactor.bench.evaluate import alone
from dreamactor.bench.judges import Judge
from dreamactor.bench.manifest import Suite, SuiteCase, read_clip
from dreamactor.bench.questions import Cost, Footage, Shown, draw_pool
from dreamactor.bench.results import Clips
from dreamactor.bench.settings import open_folder
from dreamactor.errors import AnswerError, ConfigError
from dreamactor.image import Rgb, read_image
from dreamactor.provenance import sha256
from dreamactor.runs import write_text
from dreamactor.video import iter_frames, probe

PATIENCE = 3
"""Questions in a row to which nothing is said before a run stops."""
Key = tuple[str, str, str, int]


@dataclass(frozen=True, order=True)
class Task:
    """One question."""

    case: str
    system: str
    dimension: str
    repeat: int = 0

    @property
    def key(self) -> Key:
        """What answers are kept by."""
        return self.case, self.system, self.dimension, self.repeat


@dataclass(frozen=True)
class Answer:
    """What was said to one question."""

    case: str
    system: str
    dimension: str
    repeat: int
    pool: list[str]
    """Systems whose first frames stood beside the clip."""
    score: float | None
    """None = unjudged."""
    why: str = ""
    """Why there is no score."""
    answers: list[str] = field(default_factory=list)
    """The words as they came: every try, and what a chain of query said before."""
    request: str = ""
    """`mllm.request_id` of the question."""
    seconds: float = 0.0

    @property
    def key(self) -> Key:
        """As of its `Task`."""
        return self.case, self.system, self.dimension, self.repeat


@dataclass(frozen=True)
class Scene:
    """Whom a run asks what, and about which clips."""

    suite: Suite
    clips: Clips
    judge: Judge
    pool: int
    """Examples in a question, as far as there are other systems."""
    seed: int
    redraw: bool
    """Whether each repeat draws its own examples; else it is the very same question."""

    def examples(self, task: Task) -> list[str]:
        """Systems whose first frames stand beside a clip."""
        there = [name for name, mine in self.clips.items() if task.case in mine]
        repeat = task.repeat if self.redraw else 0
        return draw_pool(there, task.system, self.pool, self.seed, task.case, repeat)

    def estimate(self, tasks: Iterable[Task], like: Clips | None = None) -> Cost:
        """What the questions take; opens the clips' headers, and no frame of them.

        Args:
            tasks: The questions.
            like: Clips whose sizes count, where those of the run are not made yet.
        """
        clips, seen = like or self.clips, _Sizes(self.suite)
        total = Cost()
        for task in tasks:
            case = self.suite.case(task.case)
            pool = [seen.footage(clips[name][case.name]) for name in self.examples(task)]
            clip = seen.footage(clips[task.system][case.name])
            total += seen.cost(self.judge, task.dimension, case, clip, pool)
        return total


def run(
    scene: Scene, tasks: Sequence[Task], out: Path, settings: Mapping[str, Any]
) -> list[Answer]:
    """Ask what has not been asked yet.

    Args:
        scene: Whom, and about what.
        tasks: The questions; those of one clip want to stand together.
        out: Folder of the run, made or gone on with.
        settings: JSON values that the answers depend on, besides judge, suite and clips.

    Returns:
        The answers to `tasks`, in their order; those that nobody gave are missing.

    Raises:
        AnswerError: Nothing was said to `PATIENCE` questions in a row.
        ConfigError: The folder belongs to other settings, or another process works on it.
    """
    check_settings(open_folder(out) / "judge.json", _about(scene, tasks, settings))
    with alone(out / "answers.jsonl") as file:
        known = {answer.key: answer for answer in read_answers(out / "answers.jsonl", mend=True)}
        todo = [task for task in tasks if task.key not in known]
        bar = tqdm(total=len(tasks), initial=len(tasks) - len(todo), unit="question", disable=None,
                   leave=False)  # fmt: skip
        silent: list[str] = []
        with bar:
            for task, shown, pool in _shown(scene, todo):
                start = time.perf_counter()
                try:
                    said = scene.judge.judge(task.dimension, shown)
                except AnswerError as error:
                    silent.append(str(error))
                    if len(silent) >= PATIENCE:
                        raise AnswerError(
                            f"{out}: no answer to {PATIENCE} questions in a row; the same command "
                            f"goes on. The last: {error}"
                        ) from error
                    continue
                silent.clear()
                spent = round(time.perf_counter() - start, 3)
                answer = Answer(
                    *task.key, pool, said.score, said.why, list(said.answers), said.request, spent
                )
                file.write(json.dumps(asdict(answer), ensure_ascii=False) + "\n")
                file.flush()
                known[task.key] = answer
                bar.update()
    return [known[task.key] for task in tasks if task.key in known]


def read_answers(path: Path, mend: bool = False) -> list[Answer]:
    """Answers of a file, a half-written last line left out.

    Args:
        path: answers.jsonl.
        mend: Also cut that line off.

    Raises:
        ConfigError: It holds something else.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    whole = text[: text.rfind("\n") + 1]
    if mend and whole != text:
        with path.open("r+", encoding="utf-8") as file:
            file.truncate(len(whole.encode()))
    try:
        return [Answer(**json.loads(line)) for line in whole.splitlines()]
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: no answers of a judge: {error}") from error


def check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write what a folder's results depend on, or compare it with what was written.

    Raises:
        ConfigError: It differs; the names that do are told.
    """
    text = json.dumps(dict(settings), indent=1, sort_keys=True) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        old, new = json.loads(path.read_text(encoding="utf-8")), json.loads(text)
        differs = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
        raise ConfigError(
            f"{path}: begun with another {', '.join(differs)}; repeat that command to go on, or "
            "name another folder"
        )
    if not path.is_file():
        write_text(path, text)


def _about(scene: Scene, tasks: Sequence[Task], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, judge, suite and clips."""
    cases = sorted({task.case for task in tasks})
    files = [(s, c, sha256(mine[c])) for s, mine in scene.clips.items() for c in cases if c in mine]
    media = [
        (case, kind, scene.suite.media[name].sha256)
        for case in cases
        for kind in ("reference", "driving")
        if (name := getattr(scene.suite.case(case), kind))
    ]
    return {
        **settings,
        "judge": {d: dict(scene.judge.about(d)) for d in sorted({t.dimension for t in tasks})},
        "suite": {"name": scene.suite.name, "version": scene.suite.version},
        "media": _digest(media),
        "clips": _digest(sorted(files)),
    }


def _digest(rows: object) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _shown(scene: Scene, tasks: Iterable[Task]) -> Iterator[tuple[Task, Shown, list[str]]]:
    """What is shown with each question; a case's files are read once while it is asked about."""
    at: tuple[str, Rgb, Footage] | None = None
    clip: tuple[Path, Footage] | None = None
    firsts: dict[Path, Rgb] = {}
    for task in tasks:
        case = scene.suite.case(task.case)
        if at is None or at[0] != case.name:
            reference = read_image(scene.suite.path(case.reference))
            at, firsts = (case.name, reference, _footage(scene.suite.path(case.driving))), {}
        path = scene.clips[task.system][case.name]
        if clip is None or clip[0] != path:
            clip = (path, _footage(path))
        pool = scene.examples(task)
        for name in pool:
            other = scene.clips[name][case.name]
            if other not in firsts:
                firsts[other] = next(frame for _, frame in iter_frames(other))
        examples = [firsts[scene.clips[name][case.name]] for name in pool]
        yield task, Shown(at[1], at[2], clip[1], examples), pool


def _footage(path: Path) -> Footage:
    frames, info = read_clip(path)
    return Footage(frames, float(info.fps))


class _Sizes:
    """Clips as blank as they are long, which take no memory; a cost is looked up where it can."""

    def __init__(self, suite: Suite) -> None:
        self._suite = suite
        self._found: dict[Path, Footage] = {}
        self._costs: dict[object, Cost] = {}

    def footage(self, path: Path) -> Footage:
        """Of a clip: its length and size, and nothing to be seen."""
        if path not in self._found:
            info = probe(path)
            blank = np.broadcast_to(np.uint8(0), (info.frames, *info.size, 3))
            self._found[path] = Footage(blank, float(info.fps))
        return self._found[path]

    def cost(
        self, judge: Judge, dimension: str, case: SuiteCase, clip: Footage, pool: list[Footage]
    ) -> Cost:
        """Of one question."""
        driving = self.footage(self._suite.path(case.driving))
        reference = self._picture(self._suite.path(case.reference))
        every = [reference, driving, clip, *pool]
        key = (dimension, *((f.frames.shape, f.fps) for f in every))
        if key not in self._costs:
            examples = [f.frames[0] for f in pool]
            shown = Shown(reference.frames[0], driving, clip, examples)
            self._costs[key] = judge.cost(dimension, shown)
        return self._costs[key]

    def _picture(self, path: Path) -> Footage:
        if path not in self._found:
            self._found[path] = Footage(read_image(path)[None], 1.0)
        return self._found[path]
