"""Where the time of `--offload group` goes, on a GPU, with random weights of Wan 14B's blocks.

    python scripts/group_offload.py [layers=6 device=cuda]

Prints GB/s between host and device, pinned and not; GB of a block, and of what is in none; seconds
of five passes over 832x480x81 without offload, as diffusers does it alone (no `folder.settle`), and
as `folder.place` does it. Expected: alone, a pass is longer than place's by the rest's way up and
down without pins, and its first by all blocks' transfers; place's is longer than none's by one
block's. If blocks do not overlap at all, every pass is longer by all their transfers.
"""

import sys
import time
from types import SimpleNamespace

import torch
from diffusers import WanTransformer3DModel

from dreamactor.backbones import folder

given = dict(word.split("=") for word in sys.argv[1:])
layers, device = int(given.get("layers", 6)), given.get("device", "cuda")
small = {"num_attention_heads": 2, "ffn_dim": 32} if device == "cpu" else {}
wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
settle = folder.settle


def seconds(call) -> float:
    """Of one call, to its end on the device."""
    wait()
    began = time.monotonic()
    call()
    wait()
    return time.monotonic() - began


def passes(way: str) -> list[float]:
    """Seconds of five passes of a fresh network."""
    folder.settle = settle if way == "place" else (lambda pipe: None)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        net = WanTransformer3DModel(in_channels=36, text_dim=16, num_layers=layers, **small)
        x = torch.zeros(1, 36, *((3, 4, 4) if small else (21, 60, 104)))
        shown = {"encoder_hidden_states": x.new_zeros(1, 4, 16), "timestep": x.new_ones(1).float()}
    torch.set_default_dtype(torch.float32)
    whole, *blocks = (sum(p.nbytes for p in m.parameters()) / 1e9 for m in (net, *net.blocks))
    print(f"{way}: block {blocks[0]:.3f} GB, rest {whole - sum(blocks):.3f} GB; s", end=" ")
    pipe = SimpleNamespace(components={"transformer": net.eval()}, to=net.to)
    folder.place(pipe, device, "none" if way == "none" else "group")
    with torch.inference_mode():
        return [seconds(lambda: net(hidden_states=x, **shown)) for _ in range(5)]


host = torch.ones(1 << 29, dtype=torch.uint8)
there, pinned = host.to(device), host.pin_memory() if device == "cuda" else host
calls = {"up": lambda: there.copy_(host), "up, pinned": lambda: there.copy_(pinned)}
for name, call in (calls | {"down": there.cpu}).items():
    print(name, f"{host.nbytes / 1e9 / min(seconds(call) for _ in range(3)):.1f} GB/s")
for way in ("none", "diffusers", "place", "none"):
    print(" ".join(f"{took:.3f}" for took in passes(way)), flush=True)
