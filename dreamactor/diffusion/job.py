"""What `animate` is asked for, checked before anything heavy is imported.

`AnimateConfig` is what the user states; `prepare` reads the inputs and gives a `Job`, in which
everything that does not depend on the backbone is settled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from dreamactor.backbones.catalogue import (
    Cache,
    CacheDtype,
    CacheHolds,
    Dtype,
    Offload,
    Options,
    Storage,
)
from dreamactor.backbones.feature_cache import check_settings
from dreamactor.backbones.load import (
    ESTIMATOR,
    Variant,
    check_backbone,
    check_options,
    check_pose,
)
from dreamactor.backbones.presets import Choice, Preset, chosen
from dreamactor.config import check_device
from dreamactor.diffusion.segments import GuardChoice
from dreamactor.diffusion.span import parse_span
from dreamactor.errors import ConfigError, MediaError
from dreamactor.image import Rgb, check_input, check_output, read_image, refusals
from dreamactor.interpolate import Interpolation
from dreamactor.manifest import check_signer, sidecar
from dreamactor.mllm import Client, Describer, choose
from dreamactor.video import CLIP_SUFFIXES, ClipInfo, ClipWriter, as_rate, probe

if TYPE_CHECKING:
    from dreamactor.conditioning.guidance import Texts
    from dreamactor.conditioning.skeleton import PoseTrack

Fit = Literal["letterbox", "crop"]
MAX_STEPS = 1000
MAX_GUIDANCE = 100.0
MAX_THREADS = 256


def check_counts(steps: int | None, threads: int) -> None:
    """Refuse numbers of sampling steps or CPU threads that cannot be.

    Raises:
        ConfigError: Names the first.
    """
    if steps is not None and not 1 <= steps <= MAX_STEPS:
        raise ConfigError(f"steps={steps}: want 1 to {MAX_STEPS}")
    if not 1 <= threads <= MAX_THREADS:
        raise ConfigError(f"threads={threads}: want 1 to {MAX_THREADS}")


@dataclass(frozen=True)
class AnimateConfig:
    """Settings of one `animate`."""

    reference: Path
    """Picture of the subject."""
    driving: Path
    """Clip whose motion the subject does."""
    out: Path
    """Clip to write, .mp4 .mov .mkv .webm or .gif; its record goes beside it as .json."""
    backbone: str = "nano"
    """Which model."""
    weights: Path | None = None
    """Folder of the model's weights, or for a large one its hub id; None takes those that ship with
    the package, or that the hub's cache holds."""
    variant: Variant = "rgb"
    """What drives: the driving clip itself, or with pose the skeleton found in it. The weights, or
    their adapter, must be trained for it."""
    pose: str | None = None
    """Who finds the joints of the pose variant; None takes keypoints."""
    adapter: Path | None = None
    """File of low-rank layers that teach the model the canvas; None means none. For a large model
    of two transformers a file that holds both, or a folder of transformer.safetensors and
    transformer_2.safetensors."""
    prompt: str | None = None
    """What the result should show, in words; empty means none, None has it described."""
    negative: str = ""
    """What the result should not show: guidance leads away from it; empty means no text."""
    describer: Describer = "auto"
    """Who finds the prompt: auto is the model that the environment names (see `mllm.py`), and the
    offline describer where it names none; offline is always that one."""
    preset: Preset | None = None
    """Named settings (`backbones.presets`) for steps, compile, offload and cache, where those are
    not named; None leaves their defaults."""
    steps: int | None = None
    """Sampling steps; None takes the backbone's default."""
    guidance: float | None = None
    """Classifier-free guidance on the prompt, 1 = off; None takes the backbone's default."""
    guidance_span: str = "0:1"
    """Share of the steps in which it works, FROM:TO; the others take one pass, not two."""
    seed: int = 0
    """Seed of the noise."""
    fit: Fit = "letterbox"
    """How pictures come to the backbone's size: letterbox shows all, crop fills the frame."""
    guard: GuardChoice = "auto"
    """Against drift over a long clip: statistics brings every segment's colours to the first one's,
    anchor starts every fourth one from the reference alone (see `seams.py`); auto does so for clips
    of more than ten segments, of nano ten seconds."""
    fps: float | None = None
    """Frames a second of the output; None takes the driving clip's."""
    interpolate: Interpolation = "flow"
    """How the backbone's frames come to that rate: along the optical flow, or the nearest."""
    audio: bool = True
    """Whether the driving clip's sound is carried over."""
    watermark: bool = True
    """Whether frames are marked invisibly; see `watermark.py`."""
    manifest: bool = True
    """Whether the clip gets a signed C2PA manifest; see `manifest.py`."""
    overwrite: bool = False
    """Whether a clip and record that are there are replaced."""
    device: str = "cpu"
    """Where the backbone runs: cpu, cuda or cuda:N."""
    dtype: Dtype = "auto"
    """Precision of a large backbone; auto is bfloat16 on a GPU, float32 on the CPU."""
    storage: Storage = "auto"
    """What the layers of a large backbone's transformer wait in: auto is `dtype`, float8 takes half
    of bfloat16's memory and rounds the weights."""
    offload: Offload | None = None
    """What of a large backbone waits in the host's memory: none, model (all networks but the one
    at work) or group (all blocks but those at work); None takes none."""
    compile: bool | None = None
    """Whether the blocks of the transformer are compiled: quicker steps after a first one that
    takes long, on a CPU minutes. None takes no."""
    size: str | None = None
    """WIDTHxHEIGHT of a large backbone's half in pixels; None takes its own."""
    frames: int | None = None
    """Frames of a large backbone's segment, 4 * k + 1; None takes its own."""
    lora: Sequence[str] = ()
    """More low-rank layers for a backbone of Wan, FILE or FILE@SCALE; HIGH,LOW for two
    transformers."""
    cache: Cache | None = None
    """Where the context of weights in a one-way mode is kept from step to step: none, device or
    host (streamed from its memory); None takes device. Weights of mode full keep nothing."""
    cache_dtype: CacheDtype = "auto"
    """What it is kept in: auto (as it is computed), bfloat16 or int8."""
    cache_holds: CacheHolds = "keys"
    """What is kept: keys (and values), or the states they are projected from, half as large."""
    feature_cache: str = "none"
    """Which blocks are skipped in a step that hardly differs from one before: none, or first-block
    or magcache, with or without a number (`backbones.feature_cache`)."""
    threads: int = 4
    """CPU threads. Not the machine's number: sums round otherwise for another one, and the same
    settings would give other bytes elsewhere. More cores than threads help a little."""

    def __post_init__(self) -> None:
        """Take str for Path, and check every value by itself.

        Raises:
            ConfigError: A value that cannot work.
        """
        for name in ("reference", "driving", "out", "weights", "adapter"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else Path(value))
        check_backbone(self.backbone)
        check_counts(self.steps, self.threads)
        if self.guidance is not None and not 0 <= self.guidance <= MAX_GUIDANCE:
            raise ConfigError(f"guidance={self.guidance}: want 0 to {MAX_GUIDANCE:.0f}, 1 is off")
        if self.fps is not None and not (math.isfinite(self.fps) and 0.1 <= self.fps <= 240):
            raise ConfigError(f"fps={self.fps}: want 0.1 to 240")
        choices = {
            "variant": Variant, "fit": Fit, "interpolate": Interpolation, "describer": Describer,
            "dtype": Dtype, "guard": GuardChoice, "storage": Storage,
        }  # fmt: skip
        for name, words in ((name, get_args(choice)) for name, choice in choices.items()):
            if getattr(self, name) not in words:
                raise ConfigError(f"{name}={getattr(self, name)!r}: want {' or '.join(words)}")
        check_pose(self.variant, self.pose)
        check_device(self.device)
        object.__setattr__(self, "lora", tuple(self.lora or ()))
        choice = self.choice
        options = replace(self.options, compile=choice.compile, offload=choice.offload)
        check_options(self.backbone, self.device, options)
        check_settings(
            self.feature_cache, self.backbone, choice.steps, choice.compile, choice.offload,
            parse_span(self.guidance_span)[0],
        )  # fmt: skip

    @property
    def options(self) -> Options:
        """How a large backbone runs."""
        return Options(
            self.dtype, "none" if self.offload is None else self.offload, self.size, self.frames,
            tuple(self.lora), self.cache, self.cache_dtype, self.cache_holds, bool(self.compile),
            self.storage,
        )  # fmt: skip

    @property
    def choice(self) -> Choice:
        """What the preset sets, under what was named."""
        named = self.preset
        choice = Choice() if named is None else chosen(named, self.backbone, self.device)
        return choice.over(self.steps, self.compile, self.offload)

    @property
    def estimator(self) -> str:
        """Who finds the joints, if someone has to."""
        return self.pose or ESTIMATOR

    @property
    def record(self) -> Path:
        """Where the record goes: `out` with the suffix .json."""
        return self.out.with_suffix(".json")

    @property
    def sidecar(self) -> Path | None:
        """Where the manifest goes if `out` cannot carry it: `out` with the suffix .c2pa."""
        return sidecar(self.out)

    def plain(self) -> dict[str, Any]:
        """Values for JSON, paths as text."""
        values = {**vars(self), "lora": list(self.lora)}
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}


@dataclass(frozen=True)
class Job:
    """A checked request: its inputs were read and its output can be written."""

    config: AnimateConfig
    reference: Rgb
    """(H, W, 3), as a viewer shows it."""
    clip: ClipInfo
    """Facts of the driving clip."""
    fps: Fraction
    """Frames a second of the output."""
    count: int
    """Frames of the output; frame k stands at k / fps."""
    client: Client | None = None
    """Who is asked for the prompt; None is the offline describer."""

    @property
    def describer(self) -> str:
        """Where the prompt comes from: given, offline, or a model's name."""
        if self.config.prompt is not None:
            return "given"
        return self.client.name if self.client else "offline"


def prepare(config: AnimateConfig) -> Job:
    """Check everything that can be checked without the model, outputs first.

    Args:
        config: What is asked for.

    Returns:
        The job. It holds one picture in memory; the clip was read once, not decoded.

    Raises:
        ConfigError: The output's suffix or rate cannot be, or the user's certificate cannot sign.
        MediaError: An input cannot be read, or an output not written; or they are one file.
    """
    check_output(config.out, config.overwrite, CLIP_SUFFIXES)
    check_output(config.record, config.overwrite)
    if config.sidecar is not None:
        check_output(config.sidecar, config.overwrite)
    if config.manifest:
        check_signer()
    extra: tuple[Path, ...] = ()
    if config.adapter is not None:
        with refusals(config.adapter, "reached"):
            extra = () if config.adapter.is_dir() else (config.adapter,)  # of a large backbone
    for path in (config.reference, config.driving, *extra):
        check_input(path)
        for target in (config.out, config.record):
            if target.exists() and target.samefile(path):
                raise MediaError(f"{target}: is an input too; choose another --out")
    reference = read_image(config.reference)
    clip = probe(config.driving)
    fps = clip.fps if config.fps is None else as_rate(config.fps)
    # made only to be asked: it refuses rates and sizes that its container cannot hold
    ClipWriter(config.out, fps, (2, 2), overwrite=config.overwrite)
    count = max(1, int(clip.duration * fps + Fraction(1, 2)))
    client = None if config.prompt is not None else choose(config.describer, config.device)
    return Job(settled(config), reference, clip, fps, count, client)


def settled(config: AnimateConfig) -> AnimateConfig:
    """With what its preset chooses, and how the model is loaded, said outright.

    Only of weights that keep a context it says where, for others are refused a place.
    """
    choice, cache = config.choice, config.cache
    if cache is None and choice.cache != "device" and config.adapter is not None:
        from dreamactor.backbones.stacking import mode_in

        cache = None if mode_in(config.adapter) == "full" else choice.cache
    return replace(
        config, steps=choice.steps, compile=choice.compile, offload=choice.offload, cache=cache
    )


def describe(job: Job, track: PoseTrack | None = None) -> Texts:
    """The prompt of a job and where it comes from: given, or described.

    Args:
        job: From `prepare`.
        track: Joints of the driving clip, where an estimator looked for them anyway.

    Raises:
        ConfigError: The settings of the model that is asked are wrong.
        MediaError: The driving clip cannot be read.
        WeightsError: A local model that is asked is missing or of the wrong kind.
    """
    from dreamactor.conditioning import guidance

    config = job.config
    if config.prompt is not None:
        return guidance.given(config.prompt)
    seconds = float(job.clip.duration)
    scene = guidance.look(job.reference, config.driving, seconds, track)
    return guidance.describe(scene, job.client)
