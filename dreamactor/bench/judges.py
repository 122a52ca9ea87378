"""Who judges: a vision-language model that is asked, or the faults that can be measured.

A judge never guesses. A model's answer without one clear score is asked for again, and a clip
that stays without is unjudged; the words are kept either way.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dreamactor.bench.faults import Faults, Watched, find_faults
from dreamactor.bench.measured import Measured
from dreamactor.bench.questions import (
    CHAIN,
    LOOKS,
    Cost,
    Question,
    Rule,
    Shown,
    Style,
    chain_of,
    estimate,
    prompt_digest,
    prompt_version,
    questions_of,
)
from dreamactor.bench.scores import DIMENSIONS, parse_numbers
from dreamactor.errors import AnswerError, ConfigError, ShapeError
from dreamactor.mllm import VARIABLES, Client, from_environment, request_id


@dataclass(frozen=True)
class Said:
    """What a judge made of one question."""

    score: float | None
    """1 to 5; None = unjudged."""
    answers: tuple[str, ...]
    """All that was said, as it came."""
    why: str = ""
    """Why there is no score."""
    request: str = ""
    """`mllm.request_id` of the question that ends in the score."""


class Judge(Protocol):
    """Gives a score for one dimension of one clip."""

    @property
    def name(self) -> str:
        """Who it is, for tables."""
        ...

    @property
    def dimensions(self) -> Sequence[str]:
        """What it can be asked for."""
        ...

    def about(self, dimension: str) -> Mapping[str, Any]:
        """JSON values: all that a score depends on besides what is shown."""
        ...

    def cost(self, dimension: str, shown: Shown) -> Cost:
        """An estimate; only sizes and lengths of `shown` are looked at."""
        ...

    def judge(self, dimension: str, shown: Shown) -> Said:
        """A score, or why there is none.

        Raises:
            AnswerError: Nothing was said at all, and asking another time may help.
        """
        ...


@dataclass(frozen=True)
class ByModel:
    """A vision-language model, asked one question a dimension."""

    client: Client
    tries: int = 2
    """Times that an answer without a score is asked for."""
    chain: bool = False
    """Ask, reply and describe first; see `questions.chain_of`."""
    style: Style = field(default_factory=Style)
    rule: Rule = "tiles"
    """How pictures are counted in the estimate."""

    @property
    def name(self) -> str:
        """The model's."""
        return self.client.name

    @property
    def dimensions(self) -> Sequence[str]:
        """All there are prompts for."""
        return tuple(LOOKS)

    def about(self, dimension: str) -> Mapping[str, Any]:
        """Model, prompts, frames."""
        return {
            "model": self.client.name,
            "prompt": prompt_digest(dimension, self.chain),
            "version": prompt_version(dimension),
            "per_second": self.style.per_second,
            "side": self.style.side,
            "tries": self.tries,
            "chain": self.chain,
        }

    def cost(self, dimension: str, shown: Shown) -> Cost:
        """Of one try."""
        spent: list[Cost] = []

        def note(question: Question) -> str:
            spent.append(estimate(question, self.rule))
            return "x" * (4 * spent[-1].tokens_out)

        notes = chain_of(dimension, shown, self.style, note) if self.chain else ""
        last = estimate(questions_of(dimension, shown, self.style, notes), self.rule)
        return sum(spent, last)

    def judge(self, dimension: str, shown: Shown) -> Said:
        """See `Judge`."""
        answers: list[str] = []

        def ask(question: Question) -> str:
            answers.append(self.client.ask(question.images, question.text))
            return answers[-1]

        notes = chain_of(dimension, shown, self.style, ask) if self.chain else ""
        question = questions_of(dimension, shown, self.style, notes)
        request, why = request_id(question.images, question.text), ""
        for _ in range(self.tries):
            try:
                answer = ask(question)
            except AnswerError as error:
                if len(answers) <= (len(CHAIN) if self.chain else 0):
                    raise
                why = str(error)  # something was said before: that is kept
                break
            try:
                score = parse_numbers(answer, [dimension])[dimension]
            except AnswerError as error:
                why = str(error)
                continue
            return Said(score, tuple(answers), request=request)
        return Said(None, tuple(answers), why, request)


class ByMeasure:
    """Faults that are measured without the truth, on the scales of the gate of `bootstrap`.

    It looks at every frame, at no examples, and costs nothing; it is no model.

    Args:
        measured: The gate's judge; None takes its scales as they ship.
    """

    name = "measured"
    dimensions = DIMENSIONS

    def __init__(self, measured: Measured | None = None) -> None:
        self._measured = measured or Measured()
        self._source: Watched | None = None
        self._last: tuple[Watched, Watched, Faults] | None = None

    def about(self, dimension: str) -> Mapping[str, Any]:
        """The scales."""
        return self._measured.about

    def cost(self, dimension: str, shown: Shown) -> Cost:
        """Nothing but time."""
        return Cost(questions=1)

    def judge(self, dimension: str, shown: Shown) -> Said:
        """See `Judge`; clips that have not the driving clip's frames are unjudged."""
        try:
            faults = self._faults(shown)
        except ShapeError as error:
            return Said(None, (), str(error))
        told = json.dumps({name: round(x, 4) for name, x in faults.plain().items()})
        return Said(self._measured.scores(faults).plain()[dimension], (told,))

    def _faults(self, shown: Shown) -> Faults:
        """A driving clip is looked at once for all clips of its case, a clip for all questions."""
        clip, driving = shown.clip.frames, shown.driving.frames
        if self._source is None or self._source.clip is not driving:
            self._source = Watched(driving)
        if self._last is not None:
            source, result, faults = self._last
            if source is self._source and result.clip is clip:
                return faults
        result = Watched(clip)
        faults = find_faults(self._source, shown.reference, result)
        self._last = (self._source, result, faults)
        return faults


class Unnamed:
    """Stands for a model that nobody named, where only the cost is asked for."""

    name = "unnamed"

    def ask(self, images: Sequence[Any], text: str) -> str:
        """Never."""
        raise ConfigError(f"judge=mllm: {VARIABLES[0]} and {VARIABLES[1]} name no model; set them")


def named_client(device: str, tokens: int, only_cost: bool = False) -> Client:
    """The model that the environment names.

    Args:
        device: Where a local one runs.
        tokens: Most of an answer.
        only_cost: Whether none is needed.

    Raises:
        ConfigError: It names none.
    """
    client = from_environment(os.environ, device, tokens)
    if client is None:
        if only_cost:
            return Unnamed()
        raise ConfigError(
            f"judge=mllm: {VARIABLES[0]} and {VARIABLES[1]} name no model; set them, or take "
            "judge=measured"
        )
    return client
