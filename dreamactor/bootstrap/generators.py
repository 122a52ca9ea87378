"""What makes V_o: any callable that puts the motion of a source clip onto an identity.

Stage 1's pose variant estimates or reads the source's skeletons inside its call; until its
weights exist, `Animator` runs any backbone of this package on the clip itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dreamactor import __version__
from dreamactor.bootstrap.triplets import Forward

if TYPE_CHECKING:
    from dreamactor.backbones.base import Backbone


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
class Animator:
    """A backbone of this package, as `dreamactor animate` runs it."""

    backbone: str = "nano"
    weights: Path | None = None
    steps: int | None = None
    device: str = "cpu"
    threads: int = 4

    @property
    def about(self) -> Mapping[str, Any]:
        """Name, weights, steps and threads; loads the weights."""
        model = _load(self.backbone, self.weights, self.device)
        return {
            "name": model.name,
            "weights": dict(model.weights),
            "steps": self.steps or model.native.steps,
            "device": self.device.partition(":")[0],
            "threads": self.threads,
            "version": __version__,
        }

    def __call__(self, forward: Forward, out: Path) -> None:
        """Animate the identity with the source clip; the record goes beside `out`."""
        from dreamactor.diffusion.job import AnimateConfig, prepare
        from dreamactor.diffusion.pipeline import run

        config = AnimateConfig(
            forward.identity.path,
            forward.source.path,
            out,
            backbone=self.backbone,
            weights=self.weights,
            steps=self.steps,
            seed=forward.seed,
            audio=False,
            describer="offline",
            device=self.device,
            threads=self.threads,
        )
        run(prepare(config), _load(self.backbone, self.weights, self.device))


@lru_cache(maxsize=1)
def _load(backbone: str, weights: Path | None, device: str) -> Backbone:
    from dreamactor.backbones.load import load_backbone

    return load_backbone(backbone, weights, device)
