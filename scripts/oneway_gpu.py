"""What the one-way modes cost at the size of Wan2.1-I2V-14B, on a GPU, with random weights.

    python scripts/oneway_gpu.py [LAYERS] [WIDTHxHEIGHTxFRAMES]

First that the kernels of `backbones.attention` agree with attention by its definition, then the
seconds of one pass: plain image-to-video (one half alone), the whole canvas, and the one-way modes
with their context kept, in bfloat16 and in 8 bits, on the GPU and in the host's memory. Medians
are printed, per block: 40 of them are the whole network.
"""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from diffusers import WanTransformer3DModel

from dreamactor.backbones.attention import attend, attend_by_frame, attend_lse
from dreamactor.backbones.catalogue import Keeping
from dreamactor.backbones.incontext import Context, predict, predicted_bytes, set_mode

TURNS = 5
LAYERS = 40  # of the whole network


def check_kernels(device: torch.device) -> None:
    """Largest errors of the kernels, against float64 by the definition."""
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        sides = [torch.randn(2, n, 5, 128, device=device, dtype=dtype) for n in (600, 900, 900)]
        exact = [side.double().transpose(1, 2) for side in sides]
        scores = exact[0] @ exact[1].mT * 128**-0.5
        out, lse = attend_lse(*sides)
        wanted = (scores.softmax(-1) @ exact[2]).transpose(1, 2)
        own = [torch.randn(2, 3 * 70, 5, 128, device=device, dtype=dtype) for _ in range(2)]
        by_frame = attend_by_frame(sides[0], (sides[1], sides[2]), (own[0], own[1]), 3)
        beside = []
        for f in range(3):
            key, value = (
                torch.cat([side, part[:, 70 * f : 70 * (f + 1)]], dim=1)
                for side, part in zip(sides[1:], own, strict=True)
            )
            beside.append(attend(sides[0][:, 200 * f : 200 * (f + 1)], key, value))
        errors = {
            "attention": (out - wanted).abs().max(),
            "log-sum-exp": (lse.transpose(1, 2) - scores.logsumexp(-1)).abs().max(),
            "merged": (by_frame - torch.cat(beside, dim=1)).abs().max(),
        }
        print(dtype, " ".join(f"{name} {float(error):.1e}" for name, error in errors.items()))


def inputs_for(canvas: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a pass takes beside the canvas: 512 tokens of text, 257 of a picture."""
    device, dtype = canvas.device, canvas.dtype
    return {
        "hidden_states": canvas,
        "timestep": torch.full((1,), 500.0, device=device),
        "encoder_hidden_states": torch.randn(1, 512, 4096, device=device, dtype=dtype),
        "encoder_hidden_states_image": torch.randn(1, 257, 1280, device=device, dtype=dtype),
    }


@torch.inference_mode()
def main(layers: int = 4, size: str = "832x480x81") -> None:
    """Print all of it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    check_kernels(device)
    width, height, count = (int(part) for part in size.split("x"))
    frames, rows, columns = (count - 1) // 4 + 1, height // 8, width // 8
    heads, ffn = (40, 13824) if on_gpu else (2, 64)
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with device:
        transformer = WanTransformer3DModel(
            num_attention_heads=heads, in_channels=36, ffn_dim=ffn, num_layers=layers,
            image_dim=1280, added_kv_proj_dim=heads * 128,
        ).eval()  # fmt: skip
        canvas = torch.randn(1, 36, frames, rows, 2 * columns)
    torch.set_default_dtype(torch.float32)
    ways = {
        "plain image-to-video": ("full", None),
        "canvas, full": ("full", None),
        "canvas, one-way": ("one-way", Keeping()),
        "canvas, aligned": ("one-way-aligned", Keeping()),
        "canvas, aligned, 8 bits": ("one-way-aligned", Keeping(dtype="int8")),
        "canvas, aligned, states": ("one-way-aligned", Keeping(holds="states")),
    }
    if on_gpu:
        ways["canvas, aligned, host"] = ("one-way-aligned", Keeping("host"))
        ways["canvas, aligned, host, 8 bits"] = ("one-way-aligned", Keeping("host", "int8"))
    print(f"{frames * rows * columns // 2} tokens of a half, {layers} blocks, {dtype}")
    plain = 0.0
    for name, (mode, keeping) in ways.items():
        set_mode(transformer, mode)
        x = canvas[..., :columns] if name.startswith("plain") else canvas
        step, filling, held, foreseen = measure(transformer, x, keeping)
        plain = plain or step
        line = f"{name:32}{1000 * step / layers:8.1f} ms a block {step / plain:6.3f} of plain"
        if keeping is not None:
            line += f"; filling {filling / plain:.2f}, {held * LAYERS / layers / 2**30:.1f} GiB"
            line += f" ({held / foreseen:.3f} of what was foreseen)"
        print(line, flush=True)


def measure(
    transformer: WanTransformer3DModel, x: torch.Tensor, keeping: Keeping | None
) -> tuple[float, float, int, int]:
    """Seconds of a pass and of filling its cache; bytes of the cache and those foreseen."""
    given, context = inputs_for(x), None
    filling, held, foreseen = 0.0, 0, 0
    if keeping is not None:
        given["silence"] = torch.zeros_like(given["encoder_hidden_states"])
        foreseen = predicted_bytes(transformer, x, keeping)
        for _ in range(2):  # the first to warm up
            context = Context(keeping)
            filling = seconds(partial(context.of, transformer, given))
        held = context.of(transformer, given).bytes
    turns = [seconds(partial(predict, transformer, context, **given)) for _ in range(TURNS + 1)]
    return statistics.median(turns[1:]), filling, held, foreseen


def seconds(work: Callable[[], object]) -> float:
    """What a call takes, all work on the GPU included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4, *sys.argv[2:3])
