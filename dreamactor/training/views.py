"""Training views of pictures with joints: turned, mirrored, cut out, covered, recoloured.

The world's pictures are few in kind, and estimators meet everything; so half of all subjects are
cut out and put before another picture, and things are laid over them while their joints are kept:
what hides a joint does not take it away.

Everything random is made on the CPU from one generator. Legend: B pictures of H = W pixels, J
joints, x right and y down in parts of the side; NaN = not in the picture or not of this body.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamactor.conditioning.skeleton import JOINTS

MIRRORED = [JOINTS.index(n[:-2] + {"_l": "_r", "_r": "_l"}.get(n[-2:], n[-2:])) for n in JOINTS]
"""Which joint stands in the place of each in the mirrored picture."""
TURN = 30.0
"""Degrees of turning, at most."""
COVERS = 3
"""Things laid over a picture, at most."""


def views(
    pictures: Tensor, joints: Tensor, draws: torch.Generator, stills: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Training views of pictures.

    Args:
        pictures: (B, H, W, 4) uint8; channel 3 is the subject mask.
        joints: (B, J, 2).
        draws: Random generator on the CPU.
        stills: (N, h, w, 3) uint8 backgrounds and covers; None takes smooth random colours.

    Returns:
        (B, 3, H, W) in [-1, 1] and (B, J, 2).
    """
    x = pictures.permute(0, 3, 1, 2).float() / 255
    matrix, shift = _draw_frames(len(x), draws)
    x, joints = warp(x, joints, matrix.to(x.device), shift.to(x.device))
    behind = _scenery(len(x), x.shape[-1], draws, stills).to(x.device)
    cut = (torch.rand(len(x), 1, 1, 1, generator=draws) < 0.5).to(x.device)
    keep = torch.where(cut, x[:, 3:4], x[:, 4:5])  # the subject alone, or all that was seen
    rgb = x[:, :3] * keep + behind * (1 - keep)
    rgb = cover(rgb, _scenery(len(x), x.shape[-1], draws, stills).to(x.device), draws)
    return recolour(rgb, draws) * 2 - 1, joints


def warp(x: Tensor, joints: Tensor, matrix: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Show pictures through other frames.

    Args:
        x: (B, 4, H, W) in [0, 1].
        joints: (B, J, 2).
        matrix: (B, 2, 2) from the new frame to the old, both in [-1, 1].
        shift: (B, 2) where the new frame's centre is in the old.

    Returns:
        (B, 5, H, W), channel 4 being 1 where the old picture reached, and (B, J, 2). Where a
        frame mirrors, left and right joints change their names.
    """
    reach = torch.ones_like(x[:, :1])
    theta = torch.cat([matrix, shift[:, :, None]], dim=2)  # (B, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    x = F.grid_sample(torch.cat([x, reach], dim=1), grid, align_corners=False)
    back = torch.linalg.inv(matrix)[:, None]  # (B, 1, 2, 2)
    at = (back * (2 * joints - 1 - shift[:, None]).unsqueeze(-2)).sum(dim=-1)  # (B, J, 2)
    at = torch.where((torch.linalg.det(matrix) < 0)[:, None, None], at[:, MIRRORED], at)
    inside = (at.abs() < 1).all(dim=-1, keepdim=True)
    return x, torch.where(inside, (at + 1) / 2, torch.nan)


def cover(rgb: Tensor, things: Tensor, draws: torch.Generator) -> Tensor:
    """Lay up to COVERS ellipses and boxes of other pictures over each (B, 3, H, W)."""
    count, side = len(rgb), rgb.shape[-1]
    steps = (torch.arange(side, device=rgb.device) + 0.5) / side
    for _ in range(COVERS):
        used = torch.rand(count, generator=draws) < 0.35
        centre = torch.rand(count, 2, generator=draws)
        size = 0.03 + 0.17 * torch.rand(count, 2, generator=draws)
        power = torch.where(torch.rand(count, generator=draws) < 0.5, 2.0, 8.0)
        centre, size, power = (v.to(rgb.device) for v in (centre, size, power))
        far = (steps - centre[..., None]).abs() / size[..., None]  # (B, 2, H)
        far = far ** power[:, None, None]
        on = far[:, 1, :, None] + far[:, 0, None, :] < 1  # (B, H, W)
        on = on & used.to(rgb.device)[:, None, None]
        rgb = torch.where(on[:, None], things, rgb)
        things = things.roll(1, dims=0)
    return rgb


def recolour(rgb: Tensor, draws: torch.Generator) -> Tensor:
    """Other light, contrast, saturation and balance, some blur and grain; stays in [0, 1]."""
    count = len(rgb)

    def between(low: float, high: float, channels: int = 1) -> Tensor:
        drawn = torch.rand(count, channels, 1, 1, generator=draws)
        return (low + (high - low) * drawn).to(rgb.device)

    grey = rgb.mean(dim=1, keepdim=True)
    rgb = torch.lerp(grey.expand_as(rgb), rgb, between(0, 1.5))
    mean = rgb.mean(dim=(1, 2, 3), keepdim=True)
    rgb = mean + (rgb - mean) * between(0.6, 1.4)
    rgb = rgb * between(0.6, 1.4) * between(0.85, 1.15, 3)
    soft = F.interpolate(F.avg_pool2d(rgb, 2), scale_factor=2.0, mode="bilinear")
    rgb = torch.where(between(0, 1) < 0.3, soft, rgb)
    grain = torch.randn(rgb.shape[1:], generator=draws).to(rgb.device)
    return (rgb + grain * between(0, 0.04)).clamp(0, 1)


def _draw_frames(count: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """(B, 2, 2) and (B, 2) of `warp`: turned, 0.6 to 1.4 times as large, moved, mirrored."""
    angle = (torch.rand(count, generator=draws) * 2 - 1) * math.radians(TURN)
    angle = angle * (torch.rand(count, generator=draws) < 0.6)
    scale = 0.6 * (1.4 / 0.6) ** torch.rand(count, generator=draws)
    shift = (torch.rand(count, 2, generator=draws) * 2 - 1) * 0.3
    mirror = torch.where(torch.rand(count, generator=draws) < 0.5, -1.0, 1.0)
    c, s = angle.cos() / scale, angle.sin() / scale
    rows = [torch.stack([c * mirror, -s], dim=-1), torch.stack([s * mirror, c], dim=-1)]
    return torch.stack(rows, dim=1), shift


def _scenery(count: int, side: int, draws: torch.Generator, stills: Tensor | None) -> Tensor:
    """(B, 3, H, W) in [0, 1]: parts of stills, or smooth random colours."""
    if stills is None:
        coarse = torch.rand(count, 3, 4, 4, generator=draws)
        return F.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    which = torch.randint(len(stills), (count,), generator=draws).to(stills.device)
    x = stills[which].permute(0, 3, 1, 2).float() / 255
    matrix, shift = _draw_frames(count, draws)
    theta = torch.cat([matrix * 0.5, shift[:, :, None]], dim=2).to(x.device)
    grid = F.affine_grid(theta, [count, 3, side, side], align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
