"""What the options of a large backbone take on a GPU, with random weights of Wan 14B's blocks.

    python scripts/options.py FOLDER [layers=6 size=832x480 frames=81 steps=4 device=cuda]

Writes a pipeline of Wan 2.1 there (a transformer of so many of its 40 blocks, all other networks
tiny), an adapter of mode one-way-aligned, a picture and a clip; then animates with each option by
`dreamactor.animate`, each beside no option at all: seconds of the denoising, the GPU's peak of
memory beside what all weights of the transformer take, and how far frames are off. A row that is
there is not measured again (on another machine bring results.jsonl along). Without options it is
measured twice: once to warm up.
"""

import gc
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import WanTransformer3DModel

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import wan_folder

import dreamactor
from dreamactor.backbones.lora import AdapterInfo, adapter_state, attach, save_adapter
from dreamactor.image import write_png
from dreamactor.provenance import sha256
from dreamactor.video import iter_frames, write_clip

NAME, GIB = "wan2.1-i2v-14b-480p", 1 << 30
ROWS: dict[str, dict[str, object]] = {
    "none": {},
    "offload model": {"offload": "model"},
    "offload group": {"offload": "group"},
    "storage float8": {"storage": "float8"},
    "storage float8, offload model": {"storage": "float8", "offload": "model"},
    "cache host": {"cache": "host"},
    "cache host, offload group": {"cache": "host", "offload": "group"},
    "cache int8": {"cache_dtype": "int8"},
    "feature cache, nothing skipped": {"feature_cache": "first-block:0"},
    "feature cache": {"feature_cache": "first-block:0.5"},
    "feature cache, offload model": {"feature_cache": "first-block:0.5", "offload": "model"},
    "feature cache, storage float8": {"feature_cache": "first-block:0.5", "storage": "float8"},
    "feature cache, cache host": {"feature_cache": "first-block:0.5", "cache": "host"},
    "compile": {"compile": True},
    "compile, offload model": {"compile": True, "offload": "model"},
}


def prepare(folder: Path, layers: int, width: int, height: int, frames: int, tiny: bool) -> None:
    """Weights, adapter, picture and clip."""
    if (folder / "driving.mp4").exists():
        return
    pipe = wan_folder.write(folder / "weights")
    torch.manual_seed(0)
    if not tiny:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("cuda"):
            transformer = WanTransformer3DModel(
                in_channels=36, text_dim=wan_folder.TEXT_WIDTH, num_layers=layers,
                image_dim=wan_folder.CLIP_WIDTH, added_kv_proj_dim=5120,
            )  # fmt: skip
        torch.set_default_dtype(torch.float32)
        transformer.save_pretrained(pipe / "transformer", max_shard_size="60GB")
    else:
        transformer = wan_folder.transformer(1, clip=True)
    digest = sha256(pipe / "transformer/diffusion_pytorch_model.safetensors")
    info = AdapterInfo("rgb", NAME, digest, rank=8, attention="one-way-aligned")
    attach(transformer, info)
    state = {
        k: torch.randn_like(v, dtype=torch.float32) * 0.02
        for k, v in adapter_state(transformer).items()
    }
    save_adapter(folder / "adapter.safetensors", state, info)
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (frames, height // 16, width // 16, 3), np.uint8)
    clip = coarse.repeat(16, axis=1).repeat(16, axis=2)
    write_png(folder / "reference.png", clip[0])
    write_clip(folder / "driving.mp4", clip, 16)


def measure(folder: Path, out: Path, settings: dict[str, object]) -> dict[str, float]:
    """One animation."""
    gc.collect()
    on_gpu = settings["device"] == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    began = time.monotonic()
    found = dreamactor.animate(
        reference=folder / "reference.png", driving=folder / "driving.mp4", out=out, backbone=NAME,
        weights=folder / "weights", adapter=folder / "adapter.safetensors", prompt="a man",
        guidance=1.0, watermark=False, manifest=False, overwrite=True, **settings,
    )  # fmt: skip
    took = {"all": time.monotonic() - began, **found.facts["seconds"]}
    if on_gpu:
        took["peak"] = torch.cuda.max_memory_allocated() / GIB
    took["skipped"] = (found.facts.get("feature_cache") or {}).get("skipped", 0)
    return took


def main() -> None:
    """Every row that is not there."""
    folder = Path(sys.argv[1])
    given = dict(word.split("=") for word in sys.argv[2:])
    size, device = given.get("size", "832x480"), given.get("device", "cuda")
    frames, steps = int(given.get("frames", 81)), int(given.get("steps", 4))
    folder.mkdir(parents=True, exist_ok=True)
    width, height = map(int, size.split("x"))
    prepare(folder, int(given.get("layers", 6)), width, height, frames, device == "cpu")
    common = {"size": size, "frames": frames, "steps": steps, "device": device}
    results = folder / "results.jsonl"
    done = (
        [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    )
    plain = folder / "none.mp4"
    if not plain.exists():
        measure(folder, plain, common)
    for name, options in ROWS.items():
        if name in {row["name"] for row in done}:
            continue
        out = folder / f"{name.replace(' ', '_').replace(',', '')}.mp4"
        row: dict[str, object] = {"name": name}
        try:
            row |= measure(folder, out, common | options)
            both = zip(iter_frames(plain), iter_frames(out), strict=True)
            row["off"] = max(float(np.abs(a.astype(int) - b).mean()) for (_, a), (_, b) in both)
        except Exception as error:  # the next row is another matter
            row["failed"] = f"{type(error).__name__}: {error}"[:300]
        done.append(row)
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(
            " ".join(
                f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
