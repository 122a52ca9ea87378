"""What a server is started with: the models behind it, and its limits.

dreamactor serve --folder FOLDER weights=FOLDER limit.queue=8
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from dreamactor.backbones.catalogue import CATALOGUE, Dtype, Offload
from dreamactor.backbones.headers import NANO
from dreamactor.backbones.load import Variant, check_files, check_present
from dreamactor.backbones.presets import Choice, Preset, chosen, offered
from dreamactor.config import Section, check_finite, check_least, from_words
from dreamactor.diffusion.job import AnimateConfig
from dreamactor.errors import ConfigError
from dreamactor.image import refusals
from dreamactor.mllm import Describer

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """How much anybody may ask of the server."""

    queue: int = 32
    """Jobs that wait or run; more are refused with 429."""
    picture_mb: int = 32
    """Size of an uploaded picture, MiB."""
    clip_mb: int = 256
    """Size of an uploaded clip, MiB."""
    seconds: float = 60.0
    """Length of an uploaded clip."""
    megapixels: int = 50
    """Of an uploaded picture, by its head."""
    frame_megapixels: int = 9
    """Of an uploaded clip's frames, by its head; 4096 x 2160 pass."""
    side: int = 1280
    """Pixels of the longer side that is kept of a picture or clip."""
    steps: int = 50
    """Sampling steps of a job."""
    uploads: int = 256
    """Uploads at once; more are refused with 503."""
    decoders: int = 2
    """Files that are decoded at once."""
    decode_seconds: float = 120.0
    """Of one file, in the child process."""
    decode_mb: int = 1024
    """Memory of that process, MiB, on top of what it begins with."""
    patience: float = 10.0
    """Seconds for the head of a request, and before the slowest rate counts."""
    slowest: int = 16
    """KiB a second that the body of a request must keep up."""
    listeners: int = 256
    """Streams of events at once; more are refused with 503."""
    connections: int = 1000
    """At once; more are closed with 503."""
    free_mb: int = 1024
    """MiB of disk below which nothing more is taken in."""

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            ConfigError: One is too small, or has no end.
        """
        check_least(self, dict.fromkeys(vars(self), 1) | {"seconds": 0.1, "patience": 0.1})
        check_finite(self, "seconds", "decode_seconds", "patience")

    def bytes_of(self, kind: str) -> int:
        """Most bytes of an upload."""
        return MIB * (self.picture_mb if kind == "reference" else self.clip_mb)


@dataclass(frozen=True)
class Setup:
    """The models behind a server: one for each variant."""

    backbone: str = "nano"
    """Which model (`dreamactor backbones`)."""
    weights: Path | None = None
    """Folder of other weights, or hub id of large ones."""
    adapter: Path | None = None
    """Low-rank layers of the RGB variant."""
    pose_weights: Path | None = None
    """For the pose variant, where there are such."""
    pose_adapter: Path | None = None
    """Low-rank layers of the pose variant, which is offered with these or such weights."""
    dtype: Dtype = "auto"
    """Of large models."""
    offload: Offload | None = None
    """Of large models: what waits in the host's memory."""
    compile: bool | None = None
    """Compile blocks: on a GPU quicker, but for the first step."""
    size: str | None = None
    """Of large models: half, such as 832x480."""
    frames: int | None = None
    """Of large models: frames of a segment."""
    describer: Describer = "auto"
    """auto: the model named by DREAMACTOR_MLLM_*, if any; or offline."""
    threads: int = 4
    """CPU threads; the result depends on it."""
    limit: Section = field(default_factory=Section)
    """Limits that differ, as limit.queue=8 (docs/serve.md)."""

    def __post_init__(self) -> None:
        """Check the limits, and take paths from where they are named.

        Raises:
            ConfigError: A limit that cannot be.
            MediaError: A path that nobody may follow.
        """
        from_words(Limits, self.limit.words)
        for name in ("weights", "adapter", "pose_weights", "pose_adapter"):
            path = getattr(self, name)
            if path is None:
                continue
            with refusals(path, "reached"):
                if path.exists():  # else the hub id of a large model
                    object.__setattr__(self, name, path.absolute())

    def check(self, device: str) -> None:
        """Refuse what no job could run with, before there is one; no weights are loaded.

        Args:
            device: Where jobs will run.

        Raises:
            ConfigError: A setting that cannot work there, or the device is not there.
            MediaError: A path that nobody may follow.
            WeightsError: Weights or an adapter are missing, or belong to another model.
        """
        file = Path("any")
        for variant in self.variants:
            config = self.config({"variant": variant}, device, file, file, file)
            check_files(config.backbone, config.weights, config.adapter, variant)
        check_present(device)

    @property
    def limits(self) -> Limits:
        """How much anybody may ask."""
        return from_words(Limits, self.limit.words)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Those that there are weights for."""
        pose = self.pose_weights is not None or self.pose_adapter is not None
        return get_args(Variant) if pose else ("rgb",)

    @property
    def steps(self) -> int | None:
        """Sampling steps where nobody says a number; None = the weights know."""
        if CATALOGUE[self.backbone].hub:
            return CATALOGUE[self.backbone].native.get("steps")
        path = (self.weights or NANO) / "manifest.json"
        return int(json.loads(path.read_text())["native"]["steps"]) if path.is_file() else None

    def choice(self, preset: Preset, device: str) -> Choice:
        """What a job's preset sets, under what this server was started with."""
        choice = chosen(preset, self.backbone, device)
        return choice.over(None, self.compile, self.offload)

    def presets(self, device: str, most: int) -> dict[Preset, dict[str, Any]]:
        """Those that a job may name: their steps, and in words what they mean.

        Args:
            device: Where jobs run.
            most: Steps of a job.
        """
        choices = {name: self.choice(name, device) for name in offered(self.backbone, device)}
        return {
            name: {"steps": choice.steps or self.steps, "means": choice.words()}
            for name, choice in choices.items()
            if (choice.steps or 0) <= most and not (choice.compile and choice.offload == "group")
        }

    def config(
        self, asked: Mapping[str, Any], device: str, reference: Path, driving: Path, out: Path
    ) -> AnimateConfig:
        """What `animate` is asked for.

        Args:
            asked: Of a job.
            device: Where it will run.
            reference: Picture.
            driving: Clip.
            out: Clip to write.

        Raises:
            ConfigError: A value that cannot work, or a variant without weights.
        """
        variant = asked["variant"]
        if variant not in self.variants:
            raise ConfigError(
                f"variant={variant}: this server has weights for {' and '.join(self.variants)}"
            )
        pose = variant == "pose"
        return AnimateConfig(
            **asked,
            reference=reference,
            driving=driving,
            out=out,
            overwrite=True,
            device=device,
            backbone=self.backbone,
            weights=(self.pose_weights or self.weights) if pose else self.weights,
            adapter=self.pose_adapter if pose else self.adapter,
            dtype=self.dtype,
            offload=self.offload,
            compile=self.compile,
            size=self.size,
            frames=self.frames,
            describer=self.describer,
            threads=self.threads,
        )
