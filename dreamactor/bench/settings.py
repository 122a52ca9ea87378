"""What all commands of the bench are asked for, and checks of it before anything heavy loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamactor.config import check_device, check_least
from dreamactor.errors import ConfigError, MediaError

if TYPE_CHECKING:
    from dreamactor.bench.perceptual import Perceptual

LEAST = {"count": 1, "lpips": 0, "batch": 0, "processes": 0, "size": 64}


@dataclass(frozen=True)
class BenchConfig:
    """Settings of every `dreamactor bench`."""

    count: int = 200
    """Held-out pairs."""
    seed: int = 0
    """Of pairs, noise and intervals."""
    device: str = "cpu"
    """Where networks run: cpu, cuda or cuda:N."""
    weights: Path | None = None
    """Other weights than those that ship with the package."""
    lpips: int = 4
    """Frames of a clip that ST-LPIPS looks at; 0 leaves it out (it rules the time on a CPU)."""
    perceptual: Path | None = None
    """AlexNet weights of `perceptual.export_weights`; None takes the PyPI package's."""
    size: int = 256
    """Pixels of a side."""
    batch: int = 0
    """Cases that a network gets at once; 0 = 8 on a GPU, 1 on the CPU."""
    processes: int = 0
    """Workers that draw and measure; 0 = this process alone."""

    def __post_init__(self) -> None:
        """Check every value by itself.

        Raises:
            ConfigError: One that cannot work.
        """
        check_least(self, LEAST)
        if self.size % 8:
            nearest = self.size // 8 * 8
            raise ConfigError(f"size={self.size}: want a multiple of 8, nearest is {nearest}")
        check_device(self.device)

    @property
    def at_once(self) -> int:
        """`batch`, with its default."""
        return self.batch or (1 if self.device == "cpu" else 8)

    def check_device(self) -> None:
        """Load torch and see whether the device is there.

        Raises:
            ConfigError: It is not.
        """
        import torch

        if self.device != "cpu" and not torch.cuda.is_available():
            raise ConfigError(f"device={self.device}: torch sees no CUDA device here; want cpu")

    def load_perceptual(self) -> Perceptual | None:
        """The network of ST-LPIPS on its device, if any frame is to be looked at."""
        if not self.lpips:
            return None
        from dreamactor.bench.perceptual import Perceptual

        return Perceptual.load("alex", self.perceptual).to(self.device)

    def command(self, verb: str, cast: Path) -> str:
        """The command that repeats a run, without the folders of this machine."""
        words = [f"dreamactor bench {verb} --cast {cast.name} --out FOLDER"]
        for f in fields(self):
            value = getattr(self, f.name)
            if value != f.default:
                words.append(f"{f.name}={value.name if isinstance(value, Path) else value}")
        return " ".join(words)


def open_folder(out: Path) -> Path:
    """Make a run's folder if it is not there.

    Raises:
        MediaError: There is a file of that name, or it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MediaError(f"{out}: cannot be a folder: {error.strerror or error}") from error
    return out


def notes_of(config: BenchConfig, about: Mapping[str, Any]) -> str:
    """What a reader needs besides the command: pack, program, weights, frames of ST-LPIPS."""
    return notes_on(about, config.lpips)


def notes_on(about: Mapping[str, Any], lpips: int | None) -> str:
    """As `notes_of`, from what a results file says; `lpips` counts frames, 0 = left out."""
    notes = [f"Cast pack sha256 {about['cast'][:12]}, dreamactor {about['version']}."]
    notes += [f"{name} sha256 {digest[:12]}." for name, digest in about["weights"].items()]
    if lpips != 0:
        notes.append(f"ST-LPIPS looks at {lpips or 'all'} frames of each clip.")
    return " ".join(notes)


def notes_on_joints(about: Mapping[str, Any]) -> str:
    """Of who found the joints, from `Pointing.about`."""
    weights = ", ".join(digest[:12] for digest in about["weights"])
    return (
        f"Joints of result and truth are found by {about['estimator']} (sha256 {weights}) in "
        f"{about['frames']} frames of each."
    )
