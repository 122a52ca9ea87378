"""Measure a training step of a large backbone on one GPU: seconds and memory, random weights.

    python scripts/training_step.py wan2.1-i2v-14b-480p 832x480 49 --rank 256

The network has its published shape; weights, latents and text are random, which changes neither.
What a step does is the trainer's own: `stage.prepare`, `stage.draw`, `examples.lay_out`, the
backbone's `predict`, `flow.flow_loss`, AdamW, and the average of the weights.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import HunyuanVideo15Transformer3DModel, WanTransformer3DModel

from dreamactor.backbones import hunyuan, wan_training
from dreamactor.backbones.base import Trainee
from dreamactor.backbones.catalogue import CATALOGUE, GIB
from dreamactor.conditioning.canvas import LatentGrid
from dreamactor.diffusion.flow import flow_loss
from dreamactor.training.cache import CacheHeader
from dreamactor.training.examples import lay_out
from dreamactor.training.stage import AdaptConfig, draw, prepare

WAN = {
    "num_attention_heads": 40, "attention_head_dim": 128, "in_channels": 36, "out_channels": 16,
    "text_dim": 4096, "freq_dim": 256, "ffn_dim": 13824, "num_layers": 40,
    "qk_norm": "rms_norm_across_heads", "cross_attn_norm": True,
}  # fmt: skip
SMALL = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
WARM, TIMED = 1, 2


def network(name: str, layers: int | None, device: torch.device) -> torch.nn.Module:
    """The transformer at its published shape, random, in bfloat16; perhaps of fewer layers."""
    torch.set_default_dtype(torch.bfloat16)
    with device:
        if CATALOGUE[name].family == "hunyuan":
            made = HunyuanVideo15Transformer3DModel(**({"num_layers": layers} if layers else {}))
        else:
            shape = WAN | (SMALL if "1.3b" in name else {})
            if "image_encoder" in CATALOGUE[name].parts:
                width = shape["num_attention_heads"] * shape["attention_head_dim"]
                shape |= {"image_dim": 1280, "added_kv_proj_dim": width}
            made = WanTransformer3DModel(**shape | ({"num_layers": layers} if layers else {}))
    torch.set_default_dtype(torch.float32)
    return made.eval()


def trainee_of(name: str, transformer: torch.nn.Module) -> tuple[Trainee, dict[str, torch.Tensor]]:
    """What the trainer asks, and text and image of a batch of one."""
    if CATALOGUE[name].family == "hunyuan":
        hunyuan.drop_padding_mask(transformer)
        text = torch.randn(1, 200, 3584 + 1472)
        text[:, :, 3584:] = 0
        text[:, -20:, :3584] = 0
        text[:, -20:, 3584:] = torch.randn(1, 20, 1472)
        ask = partial(hunyuan.predict, silence=text[0], width=3584)
        beside = {"text": text, "image": torch.randn(1, 729, 1152)}
        return Trainee(name, transformer, ask, LatentGrid(4, 16, 32), "", {}), beside
    beside = {"text": torch.randn(1, 512, 4096)}
    if "image_encoder" in CATALOGUE[name].parts:
        beside["image"] = torch.randn(1, 257, 1280)
    grid = LatentGrid(4, 8, 16)
    return Trainee(name, transformer, wan_training.predict, grid, "", {}), beside


def measure(
    name: str, size: str, frames: int, rank: int, checkpoint: bool, layers: int | None = None
) -> dict[str, object]:
    """Seconds of a forward pass and of a step; on a GPU also peaks of memory in GiB."""
    width, height = map(int, size.split("x"))
    accelerator = Accelerator(mixed_precision="bf16")
    device, gpu = accelerator.device, accelerator.device.type == "cuda"
    trainee, beside = trainee_of(name, network(name, layers, device))
    config = AdaptConfig(cache=Path(), base=Path(), backbone=name, rank=rank, pure=0.0, no_text=0.0)
    header = CacheHeader("rgb", name, "", 16.0, {})
    transformer, grid = trainee.transformer, trainee.grid
    prepare(trainee, config, header, "")
    if checkpoint:
        transformer.enable_gradient_checkpointing()
    trained = [p for p in transformer.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, 5e-5)
    model, optimiser = accelerator.prepare(transformer, optimiser)
    average = [p.detach().clone() for p in trained]
    shape = (1, grid.channels, grid.frames(frames), height // grid.stride_s, width // grid.stride_s)
    batch = {**beside, "target": torch.randn(shape), "motion": torch.randn(shape)}
    batch = {key: value.to(device) for key, value in batch.items()}
    if isinstance(trainee.predict, partial):
        kept = {**trainee.predict.keywords, "silence": batch["text"][0]}
        trainee = replace(trainee, predict=partial(hunyuan.predict, **kept))
    static = torch.cuda.memory_allocated() / GIB if gpu else 0.0

    def forward(step: int) -> torch.Tensor:
        drawn = draw(config, batch["target"], [step])
        made = lay_out(batch, drawn, "clean")
        with accelerator.autocast():
            found = trainee.predict(model, made.x, drawn.sigma, made.cond)
        return flow_loss(found, made.latents, drawn.sigma, torch.ones_like(made.shown), "clean")

    def step(k: int) -> None:
        loss = forward(k).mean()
        optimiser.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            for kept, parameter in zip(average, trained, strict=True):
                kept.lerp_(parameter, 0.002)
        assert loss.isfinite()

    out: dict[str, object] = {"backbone": name, "size": size, "frames": frames, "rank": rank}
    out |= {"device": torch.cuda.get_device_name() if gpu else "cpu", "torch": torch.__version__}
    out |= {"adapter": sum(p.numel() for p in trained), "static": static}
    for label, work in (("forward", torch.no_grad()(forward)), ("step", step)):
        seconds = []
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        for k in range(WARM + TIMED):
            start = time.perf_counter()
            work(k)
            if gpu:
                torch.cuda.synchronize()
            seconds.append(round(time.perf_counter() - start, 3))
        out[f"{label}_seconds"] = seconds[WARM:]
        if gpu:
            out[f"{label}_peak"] = torch.cuda.max_memory_allocated() / GIB
    return out


def main() -> None:
    """Print one line of JSON."""
    said = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    said.add_argument("name")
    said.add_argument("size")
    said.add_argument("frames", type=int)
    said.add_argument("--rank", type=int, default=256)
    said.add_argument("--layers", type=int, help="fewer than it has, to try this script")
    said.add_argument("--no-checkpoint", action="store_true")
    asked = said.parse_args()
    kept = not asked.no_checkpoint
    found = measure(asked.name, asked.size, asked.frames, asked.rank, kept, asked.layers)
    print(json.dumps({k: round(v, 2) if isinstance(v, float) else v for k, v in found.items()}))


if __name__ == "__main__":
    main()
