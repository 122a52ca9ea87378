"""Forward syntheses and the training triplets that they become, each a type of its own.

    forward     V_o = stage1(skeletons of V_src, I_o)      the motion of a real clip, someone else
    gate        four scores of 1 to 5, average over 4.5
    review      a person finds the motion (V_src, V_o) and the identity (I_o, V_o) right
    reversed    V_o drives, V_src[0] is the reference, V_src the target

The reversal puts errors of the synthesis into the condition and never into the target. So real
and synthetic clips are types without a common base, a `Triplet` holds nothing but an `Accepted`,
and an `Accepted` cannot be made from what was refused: a type checker and the constructors
together leave no way to train towards a synthetic clip (tests/test_triplets.py runs mypy on it).

Source: DreamActor-M2 (arXiv 2601.21716), stage 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

from dreamactor.bench.scores import Scores
from dreamactor.errors import ConfigError

THRESHOLD = 4.5
"""An average has to be above it; from the paper."""


@final
@dataclass(frozen=True)
class SourceClip:
    """V_src: a clip that a stage was not asked to make."""

    path: Path
    sha256: str


@final
@dataclass(frozen=True)
class Identity:
    """I_o: a picture of somebody else than the source clip's subject."""

    path: Path
    sha256: str


@final
@dataclass(frozen=True)
class SyntheticClip:
    """V_o: what stage 1 made."""

    path: Path
    sha256: str


@final
@dataclass(frozen=True)
class FirstFrame:
    """V_src[0]: the first frame of a source clip, and no other frame of no other clip."""

    clip: SourceClip


@final
@dataclass(frozen=True)
class Forward:
    """What stage 1 is asked: the motion of `source`, done by `identity`."""

    source: SourceClip
    identity: Identity
    seed: int


@final
@dataclass(frozen=True)
class Synthesis:
    """What stage 1 answered."""

    item: str
    """Name in its data set: a hash of the inputs and of all that has a say in the pixels."""
    forward: Forward
    clip: SyntheticClip


@final
@dataclass(frozen=True)
class Verdict:
    """What one judge says of one synthesis."""

    judge: str
    scores: Scores
    threshold: float = THRESHOLD

    @property
    def passed(self) -> bool:
        """The paper's rule: the average is above the threshold."""
        return self.scores.average > self.threshold


@final
@dataclass(frozen=True)
class Decision:
    """What one person says of one synthesis."""

    reviewer: str
    motion: bool
    """Whether V_o does what V_src does."""
    identity: bool
    """Whether V_o shows who I_o shows."""

    @property
    def accepts(self) -> bool:
        """Whether both are right."""
        return self.motion and self.identity


@final
@dataclass(frozen=True)
class Accepted:
    """A synthesis that the gate passed and every person who looked at it accepted.

    Raises:
        ConfigError: It was refused, or nobody looked.
    """

    synthesis: Synthesis
    verdict: Verdict
    decisions: tuple[Decision, ...]

    def __post_init__(self) -> None:
        refusal = why_refused(self.verdict, self.decisions)
        if refusal:
            raise ConfigError(f"item {self.synthesis.item}: {refusal}; it cannot train anything")


def why_refused(
    verdict: Verdict | None, decisions: tuple[Decision, ...], reviewers: int = 1
) -> str:
    """Why a synthesis is not accepted, in words; "" if it is.

    Args:
        verdict: Of the gate, if it has judged.
        decisions: Of different people.
        reviewers: People who must have looked, at least 1.
    """
    if verdict is None:
        return "not gated yet"
    if not verdict.passed:
        return f"average {verdict.scores.average:.2f}, want more than {verdict.threshold}"
    against = [d.reviewer for d in decisions if not d.accepts]
    if against:
        return f"refused by {', '.join(against)}"
    if len(decisions) < max(1, reviewers):
        return f"reviewed by {len(decisions)} of {max(1, reviewers)}"
    return ""


@final
@dataclass(frozen=True)
class Triplet:
    """An accepted synthesis as stage 2 learns from it, with its roles reversed."""

    accepted: Accepted

    @property
    def driving(self) -> SyntheticClip:
        """V_o."""
        return self.accepted.synthesis.clip

    @property
    def reference(self) -> FirstFrame:
        """V_src[0]."""
        return FirstFrame(self.target)

    @property
    def target(self) -> SourceClip:
        """V_src."""
        return self.accepted.synthesis.forward.source
