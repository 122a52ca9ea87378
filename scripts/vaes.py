"""nano's autoencoder beside diffusers' own causal ones, made as small, on a CPU.

    python scripts/vaes.py [seconds=120 threads=2 clips=24 rate=1e-3]

All have 48 latent channels, 8x smaller in space and 4x in time. Clips of the mini pack, 17 frames;
seconds are of one clip of 256 x 256, the median of three; then each trains on crops of 96 x 96 for
so many seconds with AdamW and L1 + L2, and reconstructs crops that were held out. One seed. nano's
begins, as in its own training, at a linear map of the data.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLCogVideoX, AutoencoderKLWan
from torch import Tensor, nn

import dreamactor
from dreamactor.backbones.nano_vae import NanoVAE
from dreamactor.world.cast import load_cast
from dreamactor.world.pairs import PairSampler

MINI = Path(dreamactor.__file__).parent / "data" / "mini.castpack"
CROP, BATCH = 96, 2
given = dict(word.split("=") for word in sys.argv[1:])
budget, threads = float(given.get("seconds", 120)), int(given.get("threads", 2))
count, rate = int(given.get("clips", 24)), float(given.get("rate", 1e-3))


def wan() -> nn.Module:
    """Wan 2.1's, a third as wide."""
    return AutoencoderKLWan(32, z_dim=48, num_res_blocks=1)


def cog() -> nn.Module:
    """CogVideoX's, a quarter as wide."""
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(32, 64, 64, 128), latent_channels=48, layers_per_block=1,
        norm_num_groups=16,
    )  # fmt: skip


def coder(vae: nn.Module) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Its two halves: (B, 3, 17, H, W) in [-1, 1] to latents, and back."""
    if isinstance(vae, NanoVAE):
        return vae.encode, vae.decode
    return lambda x: vae.encode(x).latent_dist.mode(), lambda z: vae.decode(z).sample


def draw(split: str, number: int) -> Tensor:
    """(N, 3, 17, 256, 256): references and what follows."""
    sampler, found = PairSampler(load_cast(MINI), split, 256), []
    for index in range(number):
        pair = sampler.pair(0, index)
        clip = np.concatenate([pair.reference[None, ..., :3], pair.target[..., :3]])
        found.append(torch.from_numpy(clip).permute(3, 0, 1, 2).float() / 127.5 - 1)
    return torch.stack(found)


def seconds(call: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Median of three, after one."""
    took = []
    for _ in range(4):
        began = time.monotonic()
        call(x)
        took.append(time.monotonic() - began)
    return statistics.median(took[1:])


def crops(clips: Tensor, draws: torch.Generator, number: int) -> Tensor:
    """Around the middle, where subjects are."""
    found = []
    for _ in range(number):
        k = int(torch.randint(len(clips), (), generator=draws))
        y, x = (int(torch.randint(40, 121, (), generator=draws)) for _ in range(2))
        found.append(clips[k, :, :, y : y + CROP, x : x + CROP])
    return torch.stack(found)


def main() -> None:
    """A row each."""
    torch.set_num_threads(threads)
    clips, held = draw("train", count), draw("test", 6)
    test = crops(held, torch.Generator().manual_seed(1), 12)
    made = {"nano": NanoVAE, "Wan, 32": wan, "CogVideoX": cog}
    print("| autoencoder | weights M | encode s | decode s | a step s | steps | held-out dB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, build in made.items():
        torch.manual_seed(0)
        vae, draws = build(), torch.Generator().manual_seed(0)
        encode, decode = coder(vae)
        if isinstance(vae, NanoVAE):
            vae.start_linear(crops(clips, torch.Generator().manual_seed(2), 32))
        with torch.inference_mode():
            times = [seconds(encode, held[:1]), seconds(decode, encode(held[:1]))]
        optimiser, steps, began = torch.optim.AdamW(vae.parameters(), rate), 0, time.monotonic()
        while time.monotonic() - began < budget:
            batch = crops(clips, draws, BATCH)
            error = decode(encode(batch)) - batch
            optimiser.zero_grad()
            (error.abs().mean() + error.square().mean()).backward()
            nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            for group in optimiser.param_groups:
                group["lr"] = rate * min(1.0, (steps + 1) / 50)
            optimiser.step()
            steps += 1
        took = (time.monotonic() - began) / steps
        with torch.inference_mode():
            mse = F.mse_loss(decode(encode(test)).clamp(-1, 1), test) / 4
        weights = sum(p.numel() for p in vae.parameters()) / 1e6
        numbers = f"{weights:.1f} | {times[0]:.2f} | {times[1]:.2f} | {took:.2f} | {steps}"
        print(f"| {name} | {numbers} | {-10 * torch.log10(mse):.1f} |", flush=True)


if __name__ == "__main__":
    main()
