"""The figures of docs/fast.md.

    python scripts/oneway.py seconds    a sampling step by mode of attention, random weights, CPU
    python scripts/oneway.py bits       what fewer bits do to a prediction of the weights that ship
    python scripts/oneway.py compiled   what compiling their blocks does to it, and takes
    python scripts/oneway.py memory MODE PLACE    the process's peak over a segment of theirs
    python scripts/oneway.py float8 CAST PAIRS    what layers in 8-bit floats do to their clips

Modes take turns, so that what else the machine does falls on all of them; medians are printed.
"""

import statistics
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch

from dreamactor.backbones.base import Cond
from dreamactor.backbones.catalogue import Cache, Keeping, Mode
from dreamactor.backbones.compiled import compile_blocks
from dreamactor.backbones.incontext import Context, predict, set_mode
from dreamactor.backbones.nano import NanoConfig, inputs_of, load_nano
from dreamactor.bench import stats
from dreamactor.bench.cases import cases
from dreamactor.bench.systems import Animation
from dreamactor.conditioning.canvas import Canvas, LatentGrid, build_canvas, reference_half
from dreamactor.provenance import peak_memory
from dreamactor.world.cast import load_cast

TURNS = 5
GRID = LatentGrid(stride_t=4, stride_s=8, channels=64)
CASES = {  # latent frames, cells of a side of a half, blocks
    "nano: 256 x 256, 17 frames, 12 blocks": (5, 32, 12),
    "its width: 384 x 384, 33 frames, 2 blocks": (9, 48, 2),
}


@torch.inference_mode()
def measure(frames: int, side: int, layers: int) -> dict[str, list[float]]:
    """Seconds of each turn, by mode and whether the context is kept."""
    torch.manual_seed(0)
    transformer = NanoConfig(layers=layers).build().eval()
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.02)
    inputs = {
        "hidden_states": torch.randn(1, 100, frames, side, 2 * side),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.zeros(1, 32, 384),
    }
    ways = {}
    for mode in ("full", "one-way", "one-way-aligned"):
        set_mode(transformer, mode)
        kept = None if mode == "full" else Context(Keeping())
        ways[mode] = (mode, kept)
        if kept is not None:
            ways[f"{mode}, nothing kept"] = (mode, None)
            ways[f"{mode}, filling"] = (mode, kept)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(TURNS + 1):  # the first to warm up
        for name, (mode, kept) in ways.items():
            set_mode(transformer, mode)
            if name.endswith("filling"):
                start = time.perf_counter()
                Context(Keeping()).of(transformer, dict(inputs))
            else:
                if kept is not None:
                    kept.of(transformer, dict(inputs))
                start = time.perf_counter()
                predict(transformer, kept, **inputs)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def print_seconds() -> None:
    """By case and mode, with the share of mode full."""
    for case, sizes in CASES.items():
        found = {name: statistics.median(turns) for name, turns in measure(*sizes).items()}
        print(f"{case}: {sizes[0] * sizes[1] * sizes[1] // 2} tokens")
        for name, median in found.items():
            print(f"  {name:34}{median:8.3f} s {median / found['full']:6.2f}")


@torch.inference_mode()
def print_bits() -> None:
    """Relative error of the target's predicted latents, noise in the place of all latents.

    The weights that ship were trained in mode full; here they run in the one-way modes.
    """
    transformer = load_nano().transformer
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(4, 48, 5, 32, 64, generator=draws)
    cond = Cond(torch.randn(x.shape, generator=draws), torch.ones(4, 4, 5, 32, 64),
                torch.zeros(4, 1, 384))  # fmt: skip
    for mode in ("one-way", "one-way-aligned"):
        set_mode(transformer, mode)
        inputs = inputs_of(x, torch.full((4,), 0.7), cond)
        exact = target(predict(transformer, None, **inputs))
        for dtype, holds in product(("auto", "bfloat16", "int8"), ("keys", "states")):
            context = Context(Keeping("device", dtype, holds))
            found = target(predict(transformer, context, **inputs))
            error = float((found - exact).norm() / exact.norm())
            print(f"{mode:18}{dtype:10}{holds:8}{error:.1e}")


@torch.inference_mode()
def print_compiled() -> None:
    """Seconds of a step of the weights that ship, in mode full, and how far it is off."""
    nano, canvas = load_nano(), noise_canvas()

    def step() -> tuple[torch.Tensor, float]:
        cond = nano.encode(canvas, nano.encode_text([""]))
        start = time.process_time()
        return nano.velocity(cond.latents, torch.tensor(0.5), cond), time.process_time() - start

    plain = [step() for _ in range(TURNS)]
    compile_blocks([nano.transformer])
    start = time.perf_counter()
    first, _ = step()
    print(f"first pass {time.perf_counter() - start:.0f} s by the clock")
    taken = [statistics.median(s for _, s in turns) for turns in (plain, [step() for _ in plain])]
    error = float((first - plain[0][0]).norm() / first.norm())
    print(f"a step {taken[0]:.2f} s of the CPU, compiled {taken[1]:.2f}; off by {error:.1e}")


@torch.inference_mode()
def print_memory(mode: Mode, place: Cache) -> None:
    """Of loading, encoding, one step and decoding; a peak is a process's, so one way at a time."""
    nano = load_nano(keeping=Keeping(place))
    set_mode(nano.transformer, mode)
    cond = nano.encode(noise_canvas(), nano.encode_text([""]))
    nano.decode(reference_half(nano.velocity(cond.latents, torch.tensor(0.5), cond)))
    print(f"{mode}, cache {place}: {peak_memory():.0f} MiB")


def print_float8(cast: str, pairs: str) -> None:
    """PSNR on the subject, dB, of pairs of the test split in 4 steps."""
    plain, small = load_nano(), load_nano()
    small.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    found: list[tuple[float, float, float]] = []
    for case in cases(load_cast(Path(cast)), int(pairs)):
        clips = [Animation(nano, 4).animate([case])[0] for nano in (plain, small)]
        a, b, truth = (clip.astype(float)[case.mask] for clip in (*clips, case.truth))
        found.append((decibels(a, truth), decibels(b, truth), decibels(a, b)))
    rows = np.array(found)
    more = stats.bootstrap(rows[:, 1] - rows[:, 0])
    print(f"{rows[:, 0].mean():.2f} dB, in float8 {rows[:, 1].mean():.2f}, between them "
          f"{rows[:, 2].mean():.1f}; difference {stats.format_interval(more, 3)}")  # fmt: skip


def decibels(a: np.ndarray, b: np.ndarray) -> float:
    """PSNR of numbers up to 255."""
    return float(10 * np.log10(255**2 / np.square(a - b).mean()))


def noise_canvas() -> Canvas:
    """A whole segment of nano's."""
    clip = torch.rand(1, 3, 17, 256, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return build_canvas(clip[:, :, 0], clip, GRID)


def target(x: torch.Tensor) -> torch.Tensor:
    """What is generated of a canvas."""
    return reference_half(x)[:, :, 1:]


if __name__ == "__main__":
    torch.set_num_threads(1)
    kinds = {
        "seconds": print_seconds, "bits": print_bits, "compiled": print_compiled,
        "memory": print_memory, "float8": print_float8,
    }  # fmt: skip
    kinds[sys.argv[1]](*sys.argv[2:])
