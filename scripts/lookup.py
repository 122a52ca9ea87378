"""The reference's pixels by the spots that nano generates: a picture of docs/training.md.

    python scripts/lookup.py WEIGHTS FULL_CASTPACK OUT.png [PEOPLE]

WEIGHTS is a folder from `dreamactor train export` whose autoencoder knows surfaces. Columns:
reference, driver, truth, the network's clip, that with the reference's pixels at the generated
spots, and at the spots read off the truth. PSNR on the subject's box of the last three.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree

from dreamactor.backbones.nano import load_nano
from dreamactor.backbones.nano_guide import by_frame
from dreamactor.bench.cases import as_case
from dreamactor.bench.metrics import psnr, subject_box
from dreamactor.bench.systems import Animation
from dreamactor.conditioning.framing import to_half
from dreamactor.image import write_png
from dreamactor.world.cast import load_cast
from dreamactor.world.pairs import PairSampler

MARGIN, STEPS, SHOWN = 8, 4, 8


def on_pixels(spots: torch.Tensor, sure: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(T, H, W, 3) and (T, H, W) of cells (T, 3 and 1, h, w)."""
    both = torch.cat([spots, sure], dim=1)
    fine = F.interpolate(both, scale_factor=8.0, mode="bilinear", align_corners=False)
    fine = fine.permute(0, 2, 3, 1).numpy()
    return fine[..., :3], fine[..., 3] > 0.5


@torch.inference_mode()
def main(weights: str, pack: str, out: str, count: int = 8) -> None:
    """Print a line for each pair, and write the picture."""
    nano = load_nano(Path(weights))
    assert nano.vae.surface is not None
    surface, first = nano.vae.surface, nano.vae.config.latent_channels
    scale, shift = (x.view(1, -1, 1, 1, 1) for x in (nano.vae.latent_std, nano.vae.latent_mean))
    generated: list[torch.Tensor] = []
    decode = nano.decode
    nano.decode = lambda latents: (generated.append(latents), decode(latents))[1]  # type: ignore

    def read(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = surface(torch.stack([to_half(picture) for picture in pictures]))
        return on_pixels(found.spots, found.subject.sigmoid())

    sampler, rows, numbers, index = PairSampler(load_cast(Path(pack)), "test", 256), [], [], -1
    while len(rows) < count:
        index += 1
        pair = sampler.pair(0, index, truth=True)
        if pair.spec.domain != "human":
            continue
        case = as_case(pair, str(index), index)
        made = Animation(nano, STEPS).animate([case])[0]
        spots, sure = by_frame((generated[-1] * scale + shift)[:, first:])
        own, mine = read(case.reference[None])
        tree, colours = cKDTree(own[0][mine[0]]), case.reference[mine[0]]
        clips = [made]
        for where, shown in (on_pixels(spots[0, 1:], sure[0, 1:]), read(case.truth)):
            clip = made.copy()
            clip[shown[: len(made)]] = colours[
                tree.query(where[: len(made)][shown[: len(made)]])[1]
            ]
            clips.append(clip)
        boxes = subject_box(case.mask, MARGIN)
        numbers.append([psnr(clip, case.truth, boxes) for clip in clips])
        print(index, *(f"{value:.2f}" for value in numbers[-1]), flush=True)
        stills = [x[SHOWN] for x in (case.driving, case.truth, *clips)]
        rows.append(np.concatenate([case.reference, *stills], axis=1))
        write_png(Path(out), np.concatenate(rows))
    print("mean", *(f"{value:.2f}" for value in np.mean(numbers, axis=0)))


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:5]))
