"""What makes V_o: any callable that puts the motion of a source clip onto an identity.

`Animator` runs a backbone of this package: with an adapter of `train pose` on the source's
skeletons, which is the paper's stage 1, or as it is on the clip itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dreamactor.bootstrap.triplets import Forward
from dreamactor.diffusion import animator


class Generator(Protocol):
    """The seam to stage 1; it is sent to worker processes, so it loads its weights when called."""

    @property
    def about(self) -> Mapping[str, Any]:
        """JSON values: all that has a say in the pixels besides inputs and seed."""
        ...

    def __call__(self, forward: Forward, out: Path) -> None:
        """Write an mp4 of as many frames, at the same rate, as the source clip has."""
        ...


@dataclass(frozen=True)
class Animator(animator.Animator):
    """A backbone of this package."""

    marked: bool = False  # these clips are for training, and no model shall learn the mark

    def __call__(self, forward: Forward, out: Path) -> None:
        """Animate the identity with the source clip; the record goes beside `out`."""
        self.animate(forward.identity.path, forward.source.path, out, forward.seed)
