"""What a judge is asked: one question a dimension, its pictures, and what it may cost.

    imaging quality, appearance    frames one by one: two a second, and the last
    motion, temporal consistency   the same frames laid out in rows of eight

After Video-Bench (CVPR 2025). First frames of other systems' clips of the same case, without
names, stand in the question as examples. Its prompts for two of these dimensions do not exist and
the paper publishes none: these (`prompts/`) are ours, and their hash is kept with every score.

Legend: T frames of H x W pixels.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Template
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dreamactor.bench.scores import PER_SECOND, key_frames, key_indices
from dreamactor.image import Rgb, resize
from dreamactor.mllm import read_prompt
from dreamactor.runs import numpy_generator

PROMPTS = Path(__file__).parent / "prompts"
QUESTION = "question"
"""The prompt that all dimensions share."""
CHAIN = ("describe", "ask", "reply")
"""Prompts of the chain of query, in order."""
ANSWER = 150
"""Tokens that an answer is estimated at."""
LETTERS = 4
"""Of English text in a token."""
Rule = Literal["tiles", "pixels"]


@dataclass(frozen=True)
class Look:
    """What a dimension needs to be shown."""

    rows: bool
    """Key frames in rows on one picture; else each by itself."""
    reference: bool = False
    driving: bool = False


LOOKS: Mapping[str, Look] = {
    "imaging_quality": Look(rows=False),
    "motion_smoothness": Look(rows=True, driving=True),
    "temporal_consistency": Look(rows=True),
    "appearance_consistency": Look(rows=False, reference=True),
    "motion_following": Look(rows=True, driving=True),
}
"""The paper's four dimensions, and what its people rated as motion."""


@dataclass(frozen=True)
class Footage:
    """A clip in memory."""

    frames: NDArray[np.uint8]
    """(T, H, W, 3)."""
    fps: float


@dataclass(frozen=True)
class Shown:
    """All that a judge may look at."""

    reference: Rgb
    """(H, W, 3)."""
    driving: Footage
    clip: Footage
    """What is rated."""
    pool: Sequence[Rgb] = ()
    """First frames of other systems' clips, (H, W, 3) each."""


@dataclass(frozen=True)
class Style:
    """How pictures are laid out."""

    per_second: float = PER_SECOND
    side: int = 512
    """Most pixels of the longer side of a picture that shows one frame."""


@dataclass(frozen=True)
class Question:
    """Pictures (H, W, 3) and words."""

    images: tuple[Rgb, ...]
    text: str


@dataclass(frozen=True)
class Cost:
    """What some questions are estimated to take."""

    questions: int = 0
    pictures: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.questions + other.questions,
            self.pictures + other.pictures,
            self.tokens_in + other.tokens_in,
            self.tokens_out + other.tokens_out,
        )

    def money(self, price_in: float, price_out: float) -> float:
        """At prices for a million tokens."""
        return (self.tokens_in * price_in + self.tokens_out * price_out) / 1e6


def draw_pool(
    systems: Sequence[str], judged: str, size: int, seed: int, case: str, repeat: int
) -> list[str]:
    """Whose first frames are shown beside the clip that is judged.

    All systems of a case are drawn from in one order, so two of them meet the same examples, but
    for themselves.

    Args:
        systems: All that have a clip of the case.
        judged: The one that is rated; never among its own examples.
        size: How many, as far as there are others.
        seed: Of the order, with the two that follow.
        case: Name of the case.
        repeat: Number of the repeat.
    """
    rng = numpy_generator(seed, f"judge/pool/{case}", repeat)
    order = [sorted(systems)[k] for k in rng.permutation(len(systems))]
    return [name for name in order if name != judged][:size]


def questions_of(dimension: str, shown: Shown, style: Style, notes: str = "") -> Question:
    """The question that ends in a score.

    Args:
        dimension: One of `LOOKS`.
        shown: What there is to see.
        style: How it is laid out.
        notes: What a chain of query has found, in words.
    """
    images, listed = _pictures(dimension, shown, style)
    what, anchors = _rubric(dimension)
    words = {"question": what, "anchors": anchors, "pictures": listed, "name": dimension}
    return Question(images, _fill(QUESTION, **words, notes=f"\n{notes}\n" if notes else ""))


def chain_of(dimension: str, shown: Shown, style: Style, ask: Callable[[Question], str]) -> str:
    """A chain of query: a host describes, colleagues who see nothing ask, the host replies.

    Args:
        dimension: One of `LOOKS`.
        shown: What the host sees.
        style: How it is laid out.
        ask: Takes each of three questions.

    Returns:
        Notes for `questions_of`.
    """
    images, listed = _pictures(dimension, shown, style)
    what, _ = _rubric(dimension)
    said = ask(Question(images, _fill("describe", pictures=listed, question=what)))
    asked = ask(Question((), _fill("ask", description=said, question=what)))
    replied = ask(Question(images, _fill("reply", pictures=listed, questions=asked)))
    return (
        f"Notes that were taken before:\n{said.strip()}\n\n{asked.strip()}\n\n{replied.strip()}\n"
        "Where the notes and the pictures differ, the pictures count."
    )


def prompt_digest(dimension: str, chain: bool = False) -> str:
    """Sha256 of the prompts of a dimension, as they lie in `prompts/`."""
    names = [QUESTION, dimension, *(CHAIN if chain else ())]
    parts = (f"{name}\n{_prompt(name)}" for name in names)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def prompt_version(dimension: str) -> str:
    """Versions of the shared prompt and of the dimension's."""
    return f"{_prompt(QUESTION)[0]}.{_prompt(dimension)[0]}"


def estimate(question: Question, rule: Rule) -> Cost:
    """What one question takes.

    Args:
        question: Only the sizes of its pictures are looked at.
        rule: How pictures are counted, see `picture_tokens`.
    """
    pictures = sum(
        picture_tokens(image.shape[0], image.shape[1], rule) for image in question.images
    )
    words = math.ceil(len(question.text) / LETTERS)
    return Cost(1, len(question.images), pictures + words, ANSWER)


def picture_tokens(height: int, width: int, rule: Rule) -> int:
    """Tokens of a picture, by the rules that hosts publish; an estimate.

    tiles: shrunk into 2048 x 2048, then to a shorter side of 768, and 85 + 170 for each tile of
    512 x 512 that it touches. pixels: one for 750 pixels.
    """
    if rule == "pixels":
        return math.ceil(height * width / 750)
    scale = min(1.0, 2048 / max(height, width))
    scale *= min(1.0, 768 / (min(height, width) * scale))
    tiles = math.ceil(round(height * scale) / 512) * math.ceil(round(width * scale) / 512)
    return 85 + 170 * tiles


# ---- pictures and words ------------------------------------------------------------------------


def _pictures(dimension: str, shown: Shown, style: Style) -> tuple[tuple[Rgb, ...], str]:
    """The pictures of a question, and the list that says what each is."""
    look = LOOKS[dimension]
    groups: list[tuple[str, list[Rgb]]] = []
    pace = f"{style.per_second:g} a second and the last"
    if look.reference:
        groups.append(("the reference picture", [_shrunk(shown.reference, style.side)]))
    if look.driving:
        sheet = _sheet("driving clip", shown.driving, style)
        groups.append((f"frames of the driving clip, in reading order, {pace}", [sheet]))
    if shown.pool:
        examples = [_shrunk(frame, style.side) for frame in shown.pool]
        about = (
            "as examples, the first frames of clips that other programs made of the same. They "
            "are not rated; they show what is usual, and a better clip than those gets more"
        )
        groups.append((about, examples))
    if look.rows:
        sheet = _sheet("clip to be rated", shown.clip, style)
        groups.append((f"frames of the clip to be rated, in reading order, {pace}", [sheet]))
    else:
        chosen = key_indices(len(shown.clip.frames), shown.clip.fps, style.per_second)
        frames = [_shrunk(shown.clip.frames[k], style.side) for k in chosen]
        groups.append((f"frames of the clip to be rated, in order, {pace}", frames))
    lines, first = [], 1
    for about, pictures in groups:
        last = first + len(pictures) - 1
        where = f"picture {first}" if last == first else f"pictures {first} to {last}"
        lines.append(f"- {where}: {about}.")
        first = last + 1
    return tuple(image for _, pictures in groups for image in pictures), "\n".join(lines)


def _sheet(label: str, clip: Footage, style: Style) -> Rgb:
    return key_frames(label, clip.frames, clip.fps, style.per_second)


def _shrunk(image: Rgb, side: int) -> Rgb:
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return np.asarray(image)
    return resize(np.asarray(image), (max(1, round(height * scale)), max(1, round(width * scale))))


def _rubric(dimension: str) -> tuple[str, str]:
    """What is asked, on one line, and what the points mean."""
    what, _, anchors = _prompt(dimension)[1].partition("\n\n")
    return " ".join(what.split()), anchors


def _fill(name: str, /, **words: str) -> str:
    return Template(_prompt(name)[1]).substitute(words)


@cache
def _prompt(name: str) -> tuple[int, str]:
    return read_prompt(PROMPTS / f"{name}.txt")
