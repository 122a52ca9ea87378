"""A backbone of this package with its settings, as `dreamactor animate` runs it on many clips.

It can be sent to worker processes: weights are loaded when they are first needed, once a process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamactor import __version__
from dreamactor.backbones.load import (
    ESTIMATOR,
    Variant,
    check_variant,
    load_backbone,
    load_estimator,
)
from dreamactor.conditioning.pose import identity
from dreamactor.diffusion.job import AnimateConfig, check_counts, prepare
from dreamactor.diffusion.segments import Guard

if TYPE_CHECKING:
    from dreamactor.backbones.base import Backbone
    from dreamactor.conditioning.pose import PoseEstimator


@dataclass(frozen=True)
class Animator:
    """A backbone and its settings."""

    backbone: str = "nano"
    weights: Path | None = None
    steps: int | None = None
    device: str = "cpu"
    threads: int = 4
    adapter: Path | None = None
    variant: Variant = "rgb"
    pose: str | None = None
    """Who finds the joints of the pose variant."""
    estimator: Path | None = None
    """Weights of theirs; none takes those that ship."""
    guard: Guard = "none"
    """Against drift over a long clip."""
    marked: bool = True
    """Whether clips carry watermark and manifest."""

    def __post_init__(self) -> None:
        """Check what would refuse every clip.

        Raises:
            ConfigError: A number that cannot work.
        """
        check_counts(self.steps, self.threads)

    @property
    def about(self) -> Mapping[str, Any]:
        """Name, weights, adapter, estimator, steps and threads; loads the weights."""
        model, estimator = self._model(), self._estimator()
        about = {
            "name": model.name,
            "weights": dict(model.weights),
            "steps": self.steps or model.native.steps,
            "device": self.device.partition(":")[0],
            "threads": self.threads,
            "version": __version__,
        }
        # named only where there is one, so that items made without keep their names
        if model.adapter is not None:
            about["adapter"] = dict(model.adapter)
        if self.guard != "none":
            about["guard"] = self.guard
        if estimator is not None:
            about |= {"variant": self.variant, "estimator": identity(estimator)}
        return about

    def animate(
        self, reference: Path, driving: Path, out: Path, seed: int, prompt: str | None = None
    ) -> None:
        """Write a clip of as many frames, at the same rate, as `driving`; its record beside it."""
        from dreamactor.diffusion.pipeline import run

        config = AnimateConfig(
            reference,
            driving,
            out,
            backbone=self.backbone,
            weights=self.weights,
            variant=self.variant,
            pose=self.pose,
            prompt=prompt,
            steps=self.steps,
            seed=seed,
            audio=False,
            watermark=self.marked,
            manifest=self.marked,
            describer="offline",
            device=self.device,
            threads=self.threads,
            guard=self.guard,
        )
        run(prepare(config), self._model(), self._estimator())

    def _model(self) -> Backbone:
        model = _load(self.backbone, self.weights, self.device, self.adapter)
        check_variant(model, self.variant)
        return model

    def _estimator(self) -> PoseEstimator | None:
        if self.variant != "pose":
            return None
        return _load_estimator(self.pose or ESTIMATOR, self.estimator, self.device)


@lru_cache(maxsize=1)
def _load(backbone: str, weights: Path | None, device: str, adapter: Path | None) -> Backbone:
    return load_backbone(backbone, weights, device, adapter)


@lru_cache(maxsize=1)
def _load_estimator(name: str, weights: Path | None, device: str) -> PoseEstimator:
    return load_estimator(name, weights, device)
