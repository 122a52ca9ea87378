"""What makes V_o: any callable that puts the motion of a source clip onto an identity.

`Animator` runs a backbone of this package: with an adapter of `train pose` on the source's
skeletons, which is the paper's stage 1, or as it is on the clip itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dreamactor import __version__
from dreamactor.backbones.load import (
    ESTIMATOR,
    Variant,
    check_variant,
    load_backbone,
    load_estimator,
)
from dreamactor.bootstrap.triplets import Forward
from dreamactor.conditioning.pose import identity

if TYPE_CHECKING:
    from dreamactor.backbones.base import Backbone
    from dreamactor.conditioning.pose import PoseEstimator


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
    adapter: Path | None = None
    variant: Variant = "rgb"
    pose: str | None = None
    """Who finds the joints of the pose variant."""
    estimator: Path | None = None
    """Weights of theirs; none takes those that ship."""

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
        if estimator is not None:
            about |= {"variant": self.variant, "estimator": identity(estimator)}
        return about

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
            variant=self.variant,
            pose=self.pose,
            steps=self.steps,
            seed=forward.seed,
            audio=False,
            watermark=False,  # these clips are for training, and no model shall learn the mark
            manifest=False,
            describer="offline",
            device=self.device,
            threads=self.threads,
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
