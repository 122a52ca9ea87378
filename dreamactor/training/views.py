"""Training views of pictures with their joints or surfaces: turned, mirrored, cut out, recoloured.

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
    matrix, shift = (part.to(x.device) for part in _draw_frames(len(x), draws))
    rgb = _placed(reframed(x, matrix, shift), draws, stills)
    rgb = cover(rgb, _scenery(len(x), x.shape[-1], draws, stills).to(x.device), draws)
    return recolour(rgb, draws) * 2 - 1, reframed_joints(joints, matrix, shift)


def surface_views(
    pictures: Tensor, surface: Tensor, draws: torch.Generator, stills: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Training views of pictures with the spots that their cells show; nothing is laid over them.

    Args:
        pictures: As for `views`.
        surface: (B, h, w, 3) spots of the body; NaN = no subject.
        draws: Random generator on the CPU.
        stills: As for `views`.

    Returns:
        (B, 3, H, W) in [-1, 1] and (B, h, w, 3).
    """
    x = pictures.permute(0, 3, 1, 2).float() / 255
    matrix, shift = (part.to(x.device) for part in _draw_frames(len(x), draws))
    rgb = _placed(reframed(x, matrix, shift), draws, stills)
    return recolour(rgb, draws) * 2 - 1, reframed_surface(surface, matrix, shift)


def _placed(x: Tensor, draws: torch.Generator, stills: Tensor | None) -> Tensor:
    """(B, 3, H, W) of `reframed` pictures: half of the subjects before another picture."""
    behind = _scenery(len(x), x.shape[-1], draws, stills).to(x.device)
    cut = (torch.rand(len(x), 1, 1, 1, generator=draws) < 0.5).to(x.device)
    keep = torch.where(cut, x[:, 3:4], x[:, 4:5])  # the subject alone, or all that was seen
    return x[:, :3] * keep + behind * (1 - keep)


def reframed(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """Pictures seen through other frames.

    Args:
        x: (B, 4, H, W) in [0, 1].
        matrix: (B, 2, 2) from the new frame to the old, both in [-1, 1].
        shift: (B, 2) where the new frame's centre is in the old.

    Returns:
        (B, 5, H, W), channel 4 being 1 where the old picture reached.
    """
    x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    grid = _grid(matrix, shift, x.shape)
    return F.grid_sample(x, grid, align_corners=False)


def reframed_joints(joints: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """Joints (B, J, 2) seen through other frames, as `reframed` takes them.

    Where a frame mirrors, left and right joints change their names.
    """
    back = torch.linalg.inv(matrix)[:, None]  # (B, 1, 2, 2)
    at = (back * (2 * joints - 1 - shift[:, None]).unsqueeze(-2)).sum(dim=-1)  # (B, J, 2)
    mirrors = (torch.linalg.det(matrix) < 0)[:, None, None]
    at = torch.where(mirrors, at[:, MIRRORED], at)
    inside = (at.abs() < 1).all(dim=-1, keepdim=True)
    return torch.where(inside, (at + 1) / 2, torch.nan)


def reframed_surface(surface: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """Spots (B, h, w, 3) seen through other frames: those of the nearest cells.

    Where a frame mirrors, what was on the left of the body is on its right.
    """
    x = surface.float().permute(0, 3, 1, 2)
    x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    grid = _grid(matrix, shift, x.shape)
    x = F.grid_sample(x, grid, mode="nearest", align_corners=False)
    spots = torch.where(x[:, 3:] > 0, x[:, :3], torch.nan).permute(0, 2, 3, 1)
    side = torch.linalg.det(matrix).sign()
    return torch.cat([spots[..., :1] * side.view(-1, 1, 1, 1), spots[..., 1:]], dim=-1)


def _grid(matrix: Tensor, shift: Tensor, shape: torch.Size) -> Tensor:
    theta = torch.cat([matrix, shift[:, :, None]], dim=2)  # (B, 2, 3)
    return F.affine_grid(theta, list(shape), align_corners=False)


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
    """(B, 2, 2) and (B, 2) of `reframed`: turned, 0.6 to 1.4 times as large, moved, mirrored."""
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
    grid = _grid(matrix * 0.5, shift, torch.Size((count, 3, side, side))).to(x.device)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
