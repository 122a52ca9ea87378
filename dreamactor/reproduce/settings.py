"""What the chain is asked for; configs/reproduce.yaml states it for nano."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from dreamactor.bench.scores import HIGHEST, LOWEST
from dreamactor.bootstrap.triplets import THRESHOLD
from dreamactor.config import Section, check_least
from dreamactor.errors import ConfigError

STAGES = {
    "pool": "render pairs for the estimator and stage 1",
    "base": "image-to-video model on single clips, from then on frozen",
    "keypoints": "pose estimator on exact joints",
    "pose_cache": "encode clips and their skeletons",
    "pose": "stage 1: an adapter that skeletons drive",
    "pairs": "bootstrap: motions of clips onto other identities",
    "filter": "gate, review, triplets",
    "rgb_cache": "encode triplets: the synthetic clip drives, the real one is the target",
    "rgb": "stage 2: an adapter that clips drive, from stage 1's",
    "bench": "measure on held-out pairs",
}
"""What each stage does, in order."""


@dataclass(frozen=True)
class ReproduceConfig:
    """Settings of one `reproduce`. A section holds settings of the command of its stage."""

    cast: Path
    """Cast pack with train and test splits."""
    out: Path
    """Folder of the chain; the same settings go on there."""
    minutes: float
    """For all stages together."""
    shares: Section
    """Of the time, a number a stage: what is left is shared out anew before each of them. Stages
    that work through what others made (filter, bench) take what they take."""
    size: int = 256
    """Pixels of a side."""
    processes: int = 2
    """Renderers; on a machine with a GPU workers of the bench too."""
    seed: int = 0
    """Of everything but the held-out pairs, which are the same for all."""
    vae: Path | None = None
    """Autoencoder; None takes the one that ships."""
    steps: int = 4
    """Sampling steps wherever something is sampled."""
    shift: float = 3.0
    """Of the sampler's schedule."""
    threshold: float = THRESHOLD
    """What a pair's average score has to exceed."""
    least: int = 0
    """Triplets wanted in any case: where fewer pairs pass, the threshold falls."""
    reviewers: int = 0
    """People who have to look at every pair; 0 = nobody does, and the report says so."""
    pool: Section = field(default_factory=Section)
    """shards and gpus (`stages.Shards`)."""
    fresh: Section = field(default_factory=Section)
    """What is rendered beside the base's training: shards, short, room, short_room and gpus
    (`stages.Fresh`)."""
    base: Section = field(default_factory=Section)
    """Of `train nano-base`."""
    keypoints: Section = field(default_factory=Section)
    """Of `train keypoints`."""
    pose_cache: Section = field(default_factory=Section)
    """Of `train cache --task pose`."""
    pose: Section = field(default_factory=Section)
    """Of `train pose`."""
    pairs: Section = field(default_factory=Section)
    """Of `bootstrap pairs`."""
    rgb_cache: Section = field(default_factory=Section)
    """Of `train cache --task rgb`."""
    rgb: Section = field(default_factory=Section)
    """Of `train rgb`."""
    bench: Section = field(default_factory=Section)
    """Of `bench variants`."""

    def __post_init__(self) -> None:
        """Check what can be checked without the stages.

        Raises:
            ConfigError: A value that cannot work.
        """
        check_least(self, {"size": 16, "processes": 1, "least": 0, "reviewers": 0, "steps": 1})
        if not 0 < self.minutes < math.inf:
            raise ConfigError(f"minutes={self.minutes}: want more than 0, such as 480")
        if not LOWEST <= self.threshold < HIGHEST:
            raise ConfigError(
                f"threshold={self.threshold}: want {LOWEST:.0f} to below {HIGHEST:.0f}"
            )
        if self.size % 16:
            raise ConfigError(f"size={self.size}: want a multiple of 16")
        if unknown := sorted(self.shares.keys() - STAGES.keys()):
            raise ConfigError(f"shares.{unknown[0]}: no such stage; known: {', '.join(STAGES)}")
        if missing := [name for name in STAGES if name not in self.shares]:
            raise ConfigError(f"shares: {missing[0]} is missing; want a number for every stage")
        if min(self.parts.values()) <= 0:
            raise ConfigError("shares: want numbers over 0")

    @property
    def parts(self) -> dict[str, float]:
        """The shares as numbers."""
        try:
            return {name: float(text) for name, text in self.shares.items()}
        except ValueError as error:
            raise ConfigError(f"shares: {error}; want numbers") from error
