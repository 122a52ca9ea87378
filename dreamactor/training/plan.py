"""What a training of an adapter will take, before it begins: memory of each GPU, and hours.

Scaled from what was measured; a step of Wan 14B took 5 % longer on one H200 than foreseen here for
an H100, and 1 % less memory (docs/train_your_own.md):

    forward(n)   = a n + b n^2 seconds for n tokens, through two forward passes measured on one H100
                   (`FORWARD`); a is what linear layers take, b attention. Another backbone of the
                   family has a by its parameters and b by layers * width
    step         = (3 + 4 adapter / parameters) a n + 4.5 b n^2 for each example. A frozen linear
                   layer is passed forward, again for the activations that were not kept, and
                   backward to its input; those of the adapter also to their weights; attention
                   costs 2.5 passes backward
    memory       = weights + 20 bytes of the adapter + kept + block
    kept         = layers * n * width * 2 bytes: the input of each block
    block        = n * width * `SAVED` bytes that one block keeps for its own backward pass, and
                   the room of one measured forward pass (`Entry.activations`), by the tokens

    one-way-aligned   `ALIGNED` times the step of full, and its memory (2 % more were measured)

Sharded (FSDP2), weights and adapter are shared out, and two blocks of weights are whole at a time.
Communication, DDP's second copy of gradients, reading, looks and states are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dreamactor.backbones.catalogue import CATALOGUE, GIB, Entry, Family, Mode, Shape
from dreamactor.backbones.injection import BESIDE, HALF
from dreamactor.backbones.load import check_backbone
from dreamactor.backbones.lora import read_info
from dreamactor.errors import ConfigError
from dreamactor.training.cache import Cache
from dreamactor.training.stage import AdaptConfig, share_of

FORWARD: dict[Family, tuple[str, float, float]] = {
    "wan": ("wan2.1-i2v-14b-480p", 3.39, 9.88),
    "hunyuan": ("hunyuanvideo-1.5-480p-i2v", 1.69, 4.98),
}
"""Family -> backbone and seconds of a forward pass over MEASURED tokens, bfloat16, eager, without a
mask, one H100 (torch 2.11, diffusers 0.42.1, random weights)."""
MEASURED = 32_760, 65_520
SAVED: dict[Family, float] = {"wan": 50.7, "hunyuan": 46.3, "nano": 50.7}
"""Bytes that a block saves for its backward pass, for each token and channel: counted on a CPU by
autograd's hooks, with frozen weights and autocast in bfloat16 and an adapter in float32 on its
feed-forward layers, 1,024 tokens, 1,280 and 1,024 channels. nano's blocks are Wan's."""
ADAPTER_BYTES = 20
"""Of each trained number: weight, gradient, AdamW's two moments and the average, all float32."""
ALIGNED = 0.78
"""Seconds of a step in mode one-way-aligned over those in mode full: Wan 14B, 832x480x49, rank
256, one H200. With more frames it is less."""
FRAMES = 49
"""Of the paper's shortest clips; taken where there is no cache yet."""
PIXELS = 16
"""Side of a token."""
PAPER = 50_000, 2
"""Steps of a stage and examples a step."""
GPUS = 1, 2, 4, 8


@dataclass(frozen=True)
class Load:
    """Memory of one GPU in GiB."""

    weights: float
    adapter: float
    kept: float
    """Inputs of blocks; without checkpoints all that is saved."""
    block: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.adapter + self.kept + self.block


def tokens_of(frames: int, height: int, width: int) -> int:
    """Tokens of a canvas.

    Args:
        frames: Of pixels, 4 k + 1.
        height: Pixels of a half.
        width: Likewise; the canvas is twice as wide.
    """
    return ((frames - 1) // 4 + 1) * (height // PIXELS) * (2 * width // PIXELS)


def adapter_size(shape: Shape, rank: int, targets: str) -> int:
    """Numbers that are trained: two matrices beside every linear layer.

    Args:
        shape: Of the transformer.
        rank: Of the adapter.
        targets: ff or attention.
    """
    if targets == "ff":
        return shape.layers * rank * 2 * (shape.width + shape.ffn)
    return shape.layers * rank * 4 * 2 * shape.width


def forward_rates(entry: Entry) -> tuple[float, float] | None:
    """Seconds a token, and a token squared, of a forward pass on one H100; None = not measured."""
    if entry.family not in FORWARD:
        return None
    name, short, long = FORWARD[entry.family]
    known, (n, twice) = CATALOGUE[name], MEASURED
    b = (long - 2 * short) / (twice**2 - 2 * n**2)
    a = (short - b * n**2) / n
    linear = entry.parts["transformer"] / known.parts["transformer"]
    attention = _reach(entry.shape) / _reach(known.shape)
    return a * linear, b * attention


def _reach(shape: Shape) -> int:
    return shape.layers * shape.width


def step_seconds(entry: Entry, config: AdaptConfig, tokens: int, examples: int) -> float | None:
    """Seconds of a step on an H100 that has so many examples; None = nothing was measured."""
    rates, mode = forward_rates(entry), mode_of(entry, config)
    if rates is None or mode == "one-way":
        return None
    trained = adapter_size(entry.shape, config.rank, config.targets)
    share = trained / entry.parts["transformer"]
    again = 1 if config.checkpoint else 0
    linear = (2 + again + 4 * share) * rates[0] * tokens
    whole = examples * (linear + (3.5 + again) * rates[1] * tokens**2)
    return whole if mode == "full" else ALIGNED * whole


def mode_of(entry: Entry, config: AdaptConfig) -> Mode:
    """Of attention, by the settings alone: what `stage.mode_for` says once weights are read."""
    if config.injection not in BESIDE:
        return "full"
    if config.attention is not None:
        return config.attention
    if config.start is not None and config.start.is_file():
        return read_info(config.start).attention
    able = "one-way-aligned" in entry.modes
    return "one-way-aligned" if able and config.motion == "clean" else "full"


def memory(entry: Entry, config: AdaptConfig, tokens: int, at_once: int, shards: int = 1) -> Load:
    """What one GPU holds at the height of a step.

    Args:
        entry: The backbone.
        config: Of the run.
        tokens: Of an example.
        at_once: Examples in one pass.
        shards: GPUs that the network is shared out to; 1 = each has all of it.
    """
    shape = entry.shape
    trained = adapter_size(shape, config.rank, config.targets)
    weights = entry.bytes_of(entry.expert(config.expert)) / GIB
    each = weights / shape.layers
    saved = at_once * tokens * shape.width * SAVED[entry.family] / GIB
    room = (entry.activations or 0.0) * at_once * tokens / _native_tokens(entry)
    whole = weights if shards == 1 else weights / shards + 2 * each
    kept = at_once * shape.layers * tokens * shape.width * 2 / GIB
    return Load(
        weights=whole,
        adapter=trained * ADAPTER_BYTES / shards / GIB,
        kept=kept if config.checkpoint else (shape.layers - 1) * saved,
        block=saved + room,
    )


def _native_tokens(entry: Entry) -> int:
    """Of the canvas that `Entry.activations` is for."""
    native = entry.native or {"frames": 17, "height": 256, "width": 256}
    return tokens_of(native["frames"], native["height"], native["width"])


def plan(config: AdaptConfig) -> Iterator[str]:
    """The lines of `dreamactor train pose|rgb --dry-run`; no network is loaded.

    Raises:
        ConfigError: The cache is another backbone's, or settings cannot work.
        WeightsError: A shard is damaged.
    """
    entry = CATALOGUE[check_backbone(config.backbone)]
    if config.targets == "full":
        raise ConfigError("targets=full: only adapters are predicted; want targets=ff or attention")
    if config.cache.is_dir():
        tokens, where = _cached(config, entry)
    else:
        native = entry.native or {"height": 256, "width": 256}
        frames = FRAMES if entry.native else 17
        tokens = tokens_of(frames, native["height"], native["width"])
        size = f"{native['width']}x{native['height']}, {frames} frames"
        where = f"{size}; no cache at {config.cache} yet"
    if config.injection in HALF:
        tokens //= 2
    trained = adapter_size(entry.shape, config.rank, config.targets)
    mode = mode_of(entry, config)
    yield f"adapter    rank {config.rank} on {config.targets}: {trained / 1e6:.1f} million numbers"
    yield f"injection  {config.injection}"
    yield f"attention  {mode}"
    yield f"example    {tokens:,} tokens ({where})"
    yield f"run        {config.steps:,} steps of {config.batch}"
    yield ""
    yield "GPUs   at once   GiB each, whole   sharded   s a step      hours"
    for gpus in GPUS:
        if config.batch % gpus == 0:
            yield _row(entry, config, tokens, gpus)
    one = memory(entry, config, tokens, share_of(config, 1)[1])
    yield ""
    yield (
        f"One GPU: weights {one.weights:.1f}, adapter, optimiser and average {one.adapter:.1f}, "
        f"kept activations {one.kept:.1f}, one block at work {one.block:.1f} GiB."
    )
    seconds = step_seconds(entry, config, tokens, PAPER[1])
    if seconds is not None and (config.steps, config.batch) != PAPER:
        hours = PAPER[0] * seconds / 3600
        yield f"The paper's {PAPER[0]:,} steps of {PAPER[1]}: {hours:,.0f} hours of one GPU."
    yield "Predicted, not measured: scaled from forward passes measured on one H100, without"
    yield "communication (dreamactor/training/plan.py has the formulas)."


def _row(entry: Entry, config: AdaptConfig, tokens: int, gpus: int) -> str:
    mine, at_once = share_of(config, gpus)
    whole = memory(entry, config, tokens, at_once).total
    sharded = "-"  # one-way modes cannot be
    if gpus > 1 and mode_of(entry, config) == "full":
        sharded = f"{memory(entry, config, tokens, at_once, gpus).total:.1f}"
    seconds = step_seconds(entry, config, tokens, mine)
    times = ("unknown", "unknown")
    if seconds is not None:
        times = (f"{seconds:.1f}", f"{config.steps * seconds / 3600:,.0f}")
    return f"{gpus:4}{at_once:10}{whole:18.1f}{sharded:>10}{times[0]:>11}{times[1]:>11}"


def _cached(config: AdaptConfig, entry: Entry) -> tuple[int, str]:
    """Tokens of an example of a cache, and what there is in it."""
    cache = Cache(config.cache)
    if cache.header.backbone != entry.name:
        raise ConfigError(
            f"{config.cache}: latents of {cache.header.backbone}, want {entry.name}'s"
        )
    _, frames, height, width = cache.shape
    cell = 1 if entry.family == "hunyuan" else 2  # latent cells of a token's side
    size = sum(path.stat().st_size for path in config.cache.glob("*.safetensors")) / 1e9
    count = len(cache)
    cache.close()
    tokens = frames * (height // cell) * (2 * width // cell)
    return tokens, f"{count:,} in {config.cache}, {size:.1f} GB"
