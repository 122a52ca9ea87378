"""The judge that asks a multimodal language model, and the choice between it and the measured one.

`dreamactor bootstrap filter` takes either; this one asks through any `ask(images, text) -> str`.
Prompts are our own (the paper publishes none) and part of what a score is stored with. Frames are
laid out as Video-Bench does: two a second and the last, in rows, so that one picture is a clip.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dreamactor.bench.measured import Evidence, Measured, load_scales
from dreamactor.bench.scores import HEIGHT, PER_SECOND, ROW, Scores, key_frames, parse_scores
from dreamactor.bootstrap.gate import Judge, gate
from dreamactor.bootstrap.manifest import DataSet, check_name
from dreamactor.errors import AnswerError, ConfigError
from dreamactor.image import Rgb, contact_sheet
from dreamactor.mllm import VARIABLES, from_environment

Ask = Callable[[Sequence[Rgb], str], str]
"""Pictures (H, W, 3) and a text to an answer."""

PROMPT = """\
You are shown three pictures.
1. A reference picture of a subject.
2. Key frames of a driving clip, in reading order, {rate:g} a second.
3. Key frames of a generated clip at the same moments. It should show the subject of picture 1, on \
its background, doing what the driving clip does.

Rate the generated clip. Whole or half points from 1 to 5; 5 is a clip in which you find no fault.
- imaging_quality: Is each frame sharp, free of noise, smears, blocks and broken parts? \
1: hardly recognisable. 3: clearly soft or with visible artefacts. 5: like the reference picture.
- motion_smoothness: Does it move as fluently as the driving clip, without stalling, jumping or \
standing still where the driving clip moves? 1: frozen or jumping. 3: halting or partly still. \
5: as fluent as the driving clip.
- temporal_consistency: Do light, colours, background and the subject's parts stay the same from \
frame to frame? 1: flickers or turns into something else. 3: visible changes. 5: none.
- appearance_consistency: Is it the subject of the reference picture, not of the driving clip: \
face, clothes, colours, body, things held, background? 1: somebody else. 3: alike, with wrong \
parts. 5: the same.

First judge each point in a few words, then end with one line of JSON and nothing behind it:
{{"imaging_quality": x, "motion_smoothness": x, "temporal_consistency": x, \
"appearance_consistency": x}}"""


class Asked:
    """An MLLM as a judge of the gate.

    Args:
        ask: The model.
        model: What it is, for the record; part of the judge's name.
        tries: Times that an answer without scores is asked for again.
    """

    def __init__(self, ask: Ask, model: str, tries: int = 2) -> None:
        self.ask, self.model, self.tries = ask, model, max(1, tries)
        self.name = check_name(re.sub(r"[^a-z0-9_-]+", "-", model.lower()).strip("-_")[:32])

    @property
    def about(self) -> Mapping[str, Any]:
        """Model, prompt and choice of frames."""
        prompt = hashlib.sha256(PROMPT.encode()).hexdigest()
        return {"model": self.model, "prompt": prompt, "per_second": PER_SECOND, "row": ROW}

    def __call__(self, evidence: Evidence) -> tuple[Scores, Mapping[str, Any]]:
        """Scores and the answer.

        Raises:
            AnswerError: No answer of `tries` had scores.
        """
        images = [
            contact_sheet([("reference", [evidence.identity])], HEIGHT),
            key_frames("driving clip", evidence.source, evidence.fps),
            key_frames("generated clip", evidence.result, evidence.fps),
        ]
        for left in reversed(range(self.tries)):
            answer = self.ask(images, PROMPT.format(rate=PER_SECOND))
            try:
                return parse_scores(answer), {"answer": answer}
            except AnswerError:
                if not left:
                    raise
        raise AssertionError  # there is at least one try


def asked(device: str = "cpu") -> Asked:
    """The model that the environment names (see `mllm.py`) as a judge.

    Args:
        device: Where a local model runs.

    Raises:
        ConfigError: It names none, or one whose name is that of another judge.
    """
    client = from_environment(os.environ, device)
    if client is None:
        raise ConfigError(f"judge=mllm: {VARIABLES[0]} and {VARIABLES[1]} name no model; set them")
    judge = Asked(client.ask, client.name)
    if judge.name == Measured.name:
        raise ConfigError(f"judge=mllm: a model called {client.name!r}; want another name for it")
    return judge


def run_gate(
    folder: Path,
    word: str,
    scales: Path | None,
    threshold: float,
    device: str = "cpu",
    workers: int = 0,
) -> str:
    """What the command line asks for; says what came of it.

    Args:
        folder: The data set.
        word: "measured", or "mllm": the model that the environment names (see `mllm.py`).
        scales: Of the measured judge; None takes those that ship.
        threshold: What the average has to exceed.
        device: Where a local model runs.
        workers: Processes of the measured judge; 0 = this one alone.

    Raises:
        AnswerError: Some items got no scores; all others did.
        ConfigError: No such judge, no model named, or settings that have no say.
    """
    if word not in ("measured", "mllm"):
        raise ConfigError(f"judge={word!r}: want measured or mllm")
    if word == "mllm" and scales is not None:
        raise ConfigError(f"scales={scales}: only the measured judge has scales")
    if word == "mllm" and workers:
        raise ConfigError(f"workers={workers}: a model is asked by one process; want 0")
    data = DataSet(folder)
    judge: Judge
    if word == "mllm":
        judge = asked(device)
    else:
        judge = Measured(load_scales(scales) if scales else None)
    found = gate(data, judge, threshold, workers)
    told = f"{found.passed} of {found.items} items pass, {found.fresh} of them judged now"
    if found.unjudged:
        item, why = next(iter(found.unjudged.items()))
        raise AnswerError(
            f"{folder}: {told} by {judge.name}, {len(found.unjudged)} got no scores; the same "
            f"command asks again. The first, {item}: {why}"
        )
    return f"{folder}: {told} by {judge.name}"
