"""DreamActor: animate the subject of a picture with the motion of any clip."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dreamactor.diffusion.job import AnimateConfig
    from dreamactor.diffusion.pipeline import Result, animate

__version__ = "0.1.0"
__all__ = ["AnimateConfig", "Result", "__version__", "animate"]


def __getattr__(name: str) -> object:
    """Import what is asked for, so that `import dreamactor` needs no torch."""
    if name == "AnimateConfig":
        from dreamactor.diffusion import job

        return job.AnimateConfig
    if name in ("animate", "Result"):
        from dreamactor.diffusion import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
