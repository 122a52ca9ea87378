"""A backbone without weights that copies the driving clip, for tests of everything around it.

Its latents are the pixels rearranged, so encoding and decoding lose nothing, and its velocity
points at the motion half: whatever the noise, sampling ends at the driver's frames.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from dreamactor.backbones.base import Cond, Native
from dreamactor.conditioning.canvas import LatentGrid, fold_mask, motion_half, reference_half
from dreamactor.conditioning.placement import Placement

NATIVE = Native(
    height=64, width=64, fps=12.0, frames=17, overlap=4, steps=2, shift=3.0, guidance=1.0
)
GRID = LatentGrid(stride_t=4, stride_s=8, channels=768)


@dataclass
class Copycat:
    native: Native = NATIVE
    name: str = "copycat"
    grid: LatentGrid = GRID
    weights: dict = field(default_factory=lambda: {"copycat.safetensors": "0" * 64})
    variant: str = "rgb"
    lead: int = 13
    """Of the pose variant: twelve frames are cut."""
    adapter: dict | None = None
    placement: Placement | None = None
    canvases: list = field(default_factory=list)
    """What it was shown, (canvas, text) each."""
    noises: list = field(default_factory=list)
    """The first x of each segment, (B, C, F, h, 2w)."""
    passes: int = 0
    asked: int = 0
    """How often where the driver belongs."""

    def encode_text(self, prompts):
        return torch.stack([torch.full((2, 3), float(len(prompt))) for prompt in prompts])

    def encode(self, canvas, text):
        self.canvases.append((canvas, text))
        return Cond(pack(canvas.pixels), fold_mask(canvas.mask, self.grid), text)

    def place(self, reference, driving):
        self.asked += 1
        return self.placement

    def velocity(self, x, sigma, cond):
        self.passes += 1
        if sigma == 1:
            self.noises.append(x)
        assert torch.equal(motion_half(x), motion_half(cond.latents))  # clean at every step
        target = motion_half(cond.latents)
        left = (reference_half(x) - target) / sigma
        return torch.cat([left, torch.zeros_like(left)], dim=-1)

    def decode(self, latents):
        return unpack(latents)


def pack(clip):
    """(B, 3, T, H, W) -> (B, 768, F, h, w)."""
    runs = torch.cat([clip[:, :, :1].expand(-1, -1, 4, -1, -1), clip[:, :, 1:]], dim=2)
    runs = runs.unflatten(2, (-1, 4)).permute(0, 2, 1, 3, 4, 5)  # (B, F, 3, 4, H, W)
    cells = F.pixel_unshuffle(runs.flatten(2, 3).flatten(0, 1), 8)
    return cells.unflatten(0, (len(clip), -1)).transpose(1, 2)


def unpack(latents):
    """(B, 768, F, h, w) -> (B, 3, T, H, W)."""
    cells = latents.transpose(1, 2)  # (B, F, 768, h, w)
    runs = F.pixel_shuffle(cells.flatten(0, 1), 8).unflatten(0, cells.shape[:2])
    runs = runs.unflatten(2, (3, 4)).permute(0, 2, 1, 3, 4, 5).flatten(2, 3)
    return runs[:, :, 3:]
