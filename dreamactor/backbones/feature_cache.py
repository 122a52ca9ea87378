"""Blocks that are not computed where a step hardly differs from one before: diffusers' caches.

    first-block     a step computes the first block; where what that adds to the tokens differs by
                    less than a share from what it added at the last step that was computed in full,
                    the other blocks are skipped, and what they added then is added again
    magcache        by how much what all blocks add grows or shrinks from step to step is known
                    beforehand; a step is skipped, and what the last one added is added again, while
                    the product of these ratios is off one by little, summed over what is skipped

Rules and hooks are diffusers' (`FirstBlockCacheConfig`, `MagCacheConfig`). Here stands what they
leave to the caller: where they may be used, that every clip of a batch and every branch of guidance
is judged by itself, that nothing is left behind from segment to segment, and how many blocks were
skipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from dreamactor.backbones.catalogue import CATALOGUE, Offload
from dreamactor.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Method = Literal["none", "first-block", "magcache"]
THRESHOLDS: dict[Method, float] = {"none": 0.1, "first-block": 0.1, "magcache": 0.06}
"""Where none is named."""
LEAST_STEPS = 2
CONTEXT = "context"
"""Name of the state that a one-way mode's context has while it is computed."""


@dataclass(frozen=True)
class FeatureCache:
    """Which blocks are skipped."""

    method: Method = "none"
    threshold: float = THRESHOLDS["none"]
    """first-block: share by which the first block's part may differ; 0 skips nothing, inf all but a
    clip's first step. magcache: error that may add up; at most three steps in a row are skipped,
    and none of the first fifth."""

    @property
    def on(self) -> bool:
        """Whether there is one."""
        return self.method != "none"

    def __str__(self) -> str:
        """As `parse` reads it."""
        return f"{self.method}:{self.threshold:g}" if self.on else self.method


NOTHING = FeatureCache()


def parse(word: str) -> FeatureCache:
    """A setting as the command line has it: METHOD, or METHOD:NUMBER of one that has a number.

    Raises:
        ConfigError: It is none.

    Example:
        >>> parse("first-block:0.2")
        FeatureCache(method='first-block', threshold=0.2)
    """
    method, colon, number = word.partition(":")
    usual = THRESHOLDS.get(method, math.nan)  # type: ignore[call-overload]  # may be none
    try:
        threshold = float(number) if colon else usual
    except ValueError:
        threshold = math.nan
    if method not in get_args(Method) or (colon and method == "none") or not threshold >= 0:
        raise ConfigError(
            f"feature_cache={word!r}: want none, or first-block:SHARE or magcache:ERROR with a "
            f"number of 0 or more, such as first-block:{THRESHOLDS['first-block']:g}"
        )
    return FeatureCache(method, threshold)  # type: ignore[arg-type]  # checked just now


def check_settings(
    word: str,
    backbone: str,
    steps: int | None,
    compile: bool,
    offload: Offload,
    begins: float = 0.0,
) -> None:
    """Refuse what a feature cache does not go with, as far as settings tell.

    Args:
        word: The setting.
        backbone: Name of the model.
        steps: Of sampling, if that is known.
        compile: Whether blocks are compiled.
        offload: What waits in the host's memory.
        begins: Share of the steps before guidance does.

    Raises:
        ConfigError: Says what it does not go with.
    """
    setting = parse(word)
    if not setting.on:
        return
    given = f"feature_cache={setting}"
    if CATALOGUE[backbone].family == "hunyuan":
        raise ConfigError(f"{given}: {backbone}'s blocks are none that diffusers' cache knows")
    if compile:
        # whether blocks run is decided by a number of each step, which cuts every graph in pieces
        raise ConfigError(f"{given}: not with compile=true; leave one of them out")
    if offload == "group":
        raise ConfigError(f"{given}: not with offload=group, never tried; want none or model")
    if setting.method == "magcache" and begins > 0:
        # each branch counts its own passes, and the ratios are those of steps
        raise ConfigError(
            f"{given}: not with guidance_span={begins:g}:..., which begins late; want 0:..."
        )
    if steps is not None and steps < LEAST_STEPS:
        raise ConfigError(
            f"{given}: with steps={steps} there is no step before; want {LEAST_STEPS} or more"
        )


def check_loaded(setting: FeatureCache, backbone: Any, steps: int, processes: int = 1) -> None:
    """Refuse a loaded backbone on which a feature cache cannot work.

    Args:
        setting: Which.
        backbone: The model.
        steps: Of sampling.
        processes: That sample together.

    Raises:
        ConfigError: Says why, and what would do.
    """
    from dreamactor.backbones.compiled import is_compiled

    if not setting.on:
        return
    check_settings(str(setting), backbone.name, steps, is_compiled(backbone), "none")
    if processes > 1:
        raise ConfigError(
            f"feature_cache={setting}: {processes} processes each see a part of the tokens and "
            "would decide apart; want one process, or none"
        )
    _networks(setting, backbone)


def _networks(setting: FeatureCache, backbone: Any) -> list[Any]:
    """Transformers of a backbone, if all of them can have hooks."""
    from diffusers import WanTransformer3DModel

    from dreamactor.backbones.incontext import mode_of

    experts: Mapping[str, Any] = getattr(backbone, "experts", {})
    found = list(experts.values()) or [getattr(backbone, "transformer", None)]
    if not all(isinstance(network, WanTransformer3DModel) for network in found):
        raise ConfigError(f"feature_cache={setting}: {backbone.name} has no blocks of Wan's kind")
    if any(len(network.blocks) < 2 for network in found):
        raise ConfigError(f"feature_cache={setting}: {backbone.name} has one block, none to skip")
    if mode_of(found[0]) != "full" and backbone.keeping.place == "none":
        raise ConfigError(
            f"feature_cache={setting}: attention {mode_of(found[0])} with cache=none computes its "
            "context in every block; want cache device or host"
        )
    if setting.method == "magcache" and _magnitudes(backbone) is None:
        raise ConfigError(
            f"feature_cache={setting}: its ratios are not known for these weights of "
            f"{backbone.name}, only for those that ship with nano; want first-block"
        )
    return found


def _magnitudes(backbone: Any) -> Sequence[float] | None:
    """Ratios of a backbone, from a step to the next, or None where they are not known."""
    if getattr(backbone, "adapter", None) is not None:
        return None  # which has others
    return getattr(backbone, "magnitudes", None)


@dataclass
class Tally:
    """Calls of blocks by sampling steps; a context that is computed once is not in it."""

    calls: int = 0
    """That there would have been without a cache."""
    skipped: int = 0
    """Of them."""

    def plain(self, setting: FeatureCache) -> dict[str, Any]:
        """For JSON."""
        return {"setting": str(setting), "block_calls": self.calls, "skipped": self.skipped}


@contextmanager
def skipping(setting: FeatureCache, backbone: Any, steps: int, tally: Tally) -> Iterator[None]:
    """Sample one segment of one batch of clips with a feature cache; nothing of it stays.

    Args:
        setting: Which; none changes nothing.
        backbone: The model, whose context was computed or will be.
        steps: Of sampling.
        tally: Is added to.

    Raises:
        ConfigError: As `check_loaded`.
    """
    if not setting.on:
        yield
        return
    networks = _networks(setting, backbone)
    for network in networks:
        network.enable_cache(_rule(setting, backbone, steps))
        network.tally = tally
    try:
        yield
    finally:
        for network in networks:
            network.tally = None
            network.disable_cache()


def _rule(setting: FeatureCache, backbone: Any, steps: int) -> Any:
    """As diffusers takes it."""
    from diffusers import FirstBlockCacheConfig, MagCacheConfig

    if setting.method == "first-block":
        return FirstBlockCacheConfig(threshold=setting.threshold)
    ratios = _magnitudes(backbone)
    assert ratios is not None
    return MagCacheConfig(
        threshold=setting.threshold, num_inference_steps=steps, mag_ratios=list(ratios)
    )


def measure_magnitudes(backbone: Any, steps: int, sample: Callable[[], object]) -> list[float]:
    """Ratios that `magcache` goes by: of the size of what all blocks add, from step to step.

    Args:
        backbone: Of one transformer.
        steps: Of sampling.
        sample: Samples one clip in so many steps, without guidance.

    Returns:
        One a step, the first of them 1.
    """
    from diffusers import MagCacheConfig

    network = backbone.transformer
    # of one step more, for at the last one diffusers prints the ratios and forgets them
    network.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=steps + 1))
    network.tally = Tally()
    try:
        sample()
        with network.cache_context("cond 0"):
            return list(_state(network).calibration_ratios)
    finally:
        network.tally = None
        network.disable_cache()


def at_work(network: Any) -> bool:
    """Whether `skipping` is, on a transformer."""
    return getattr(network, "tally", None) is not None


def runs(network: Any) -> bool:
    """Whether the blocks behind the first are computed in the pass at hand."""
    return not at_work(network) or bool(_state(network).should_compute)


def aside(network: Any) -> AbstractContextManager[None]:
    """For the pass that computes a context: it has a state of its own, and all blocks run."""
    return network.cache_context(CONTEXT) if at_work(network) else nullcontext()


def predict_each(network: Any, branch: str, inputs: Mapping[str, Any]) -> Tensor:
    """One pass with blocks skipped, clip by clip: diffusers' rule has one answer for a batch.

    Args:
        network: On which `skipping` is at work.
        branch: Of guidance; each has its own state, and in it each clip.
        inputs: Of the transformer, for all clips.

    Returns:
        As the transformer's, (B, C, F, h, 2w).
    """
    import torch

    count = len(inputs["hidden_states"])
    found = []
    for clip in range(count):
        with network.cache_context(f"{branch} {clip}"):
            own = {name: _of_clip(name, value, clip) for name, value in inputs.items()}
            found.append(network(**own, return_dict=False)[0])
            network.tally.calls += len(network.blocks)
            network.tally.skipped += 0 if runs(network) else _spared(network)
    return torch.cat(found)


def _spared(network: Any) -> int:
    """Blocks that a step skips if it skips any: all, or all but the first."""
    from diffusers import MagCacheConfig

    return len(network.blocks) - (not isinstance(network._cache_config, MagCacheConfig))


def _of_clip(name: str, value: Any, clip: int) -> Any:
    """An input's part of one clip; silence is the same for all."""
    if value is None or name == "silence":
        return value
    return value.of_clip(clip) if name == "cache" else value[clip : clip + 1]


def _state(network: Any) -> Any:
    """What the hook of the first block knows, in the context that is set."""
    from diffusers.hooks import HookRegistry

    hooks = HookRegistry.check_if_exists_or_initialize(network.blocks[0]).hooks.values()
    (manager,) = (hook.state_manager for hook in hooks if hasattr(hook, "state_manager"))
    return manager.get_state()
