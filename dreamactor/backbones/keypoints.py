"""keypoints: a small network that finds the 17 joints of one human or animal in a picture.

A pyramid of depthwise blocks down to 1/32 and back up to 1/4; every joint gets a map of scores,
a distribution over the cells once normalised, and a probability that it is in the picture at all.
Joints that something hides are found too: training knows where they are.

Legend: B pictures, J = 17 joints, H x W pixels (256), h x w cells (64).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamactor.backbones.headers import check_model
from dreamactor.backbones.layers import ChannelNorm
from dreamactor.backbones.weights import load_weights
from dreamactor.conditioning.framing import to_half
from dreamactor.conditioning.pose import checked
from dreamactor.conditioning.skeleton import JOINTS, Array, PoseTrack
from dreamactor.errors import WeightsError
from dreamactor.image import BACKGROUND, Box, Rgb, fit

DATA = Path(__file__).parent.parent / "data" / "keypoints.safetensors"
DIGEST = "f6dd891837c0873ca28dd0f0dd9757e7c549cf77dddc3d3118055d69e53ab70d"
"""sha256 of the weights that ship, as `data/nano/manifest.json` has those of nano."""
SIZE = 256
"""Pixels of a side that the network sees."""
STRIDE = 4
REACH = 3
"""Cells around the best one that share in the place of a joint."""
AT_ONCE = 16
"""Frames that go through the network together."""
ROOM = 1.6
"""Side of the square around a subject against the extent of its joints."""
SMALL = 0.6
"""Part of the picture's longer side below which that square is looked at again."""
SMALLEST = 64
"""Pixels that are looked at, at least."""


@dataclass(frozen=True)
class KeypointsConfig:
    """Shape of the network."""

    widths: tuple[int, int, int, int] = (48, 96, 192, 320)
    """Channels at 1/4, 1/8, 1/16 and 1/32."""
    depths: tuple[int, int, int, int] = (2, 2, 6, 3)
    """Blocks there."""
    neck: int = 64
    """Channels on the way up."""


class PoseBlock(nn.Module):
    """Residual block: each channel by itself over 7 x 7, then all channels of a cell."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.space = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = ChannelNorm(channels)
        self.widen = nn.Conv2d(channels, 2 * channels, 1)
        self.narrow = nn.Conv2d(2 * channels, channels, 1)
        nn.init.zeros_(self.narrow.weight)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, h, w)
        """One residual step."""
        y: Tensor = self.widen(self.norm(self.space(x)))
        return x + self.narrow(F.silu(y))


class KeypointNet(nn.Module):
    """Pictures to maps of scores and to logits of being there."""

    def __init__(self, config: KeypointsConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or KeypointsConfig()
        widths = (3, *config.widths)
        self.down = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, 4 if k == 0 else 2, stride=4 if k == 0 else 2),
                *(PoseBlock(b) for _ in range(depth)),
            )
            for k, (a, b, depth) in enumerate(zip(widths, widths[1:], config.depths, strict=False))
        )
        self.across = nn.ModuleList(nn.Conv2d(width, config.neck, 1) for width in config.widths)
        self.up = nn.ModuleList(PoseBlock(config.neck) for _ in config.widths[:-1])
        self.norm = ChannelNorm(config.neck)
        self.scores = nn.Conv2d(config.neck, len(JOINTS), 1)
        self.there = nn.Parameter(torch.zeros(len(JOINTS), config.neck))
        self.bias = nn.Parameter(torch.zeros(len(JOINTS)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Find joints.

        Args:
            x: (B, 3, H, W) in [-1, 1]; sides are multiples of 32.

        Returns:
            Scores (B, J, h, w) and logits (B, J) that the joint is in the picture, which are
            read off where its scores are high.
        """
        levels = []
        for stage in self.down:
            x = stage(x)
            levels.append(x)
        y: Tensor = self.across[-1](levels[-1])
        for level in range(len(levels) - 2, -1, -1):
            y = F.interpolate(y, scale_factor=2.0) + self.across[level](levels[level])
            y = self.up[level](y)
        y = self.norm(y)  # (B, C, h, w)
        scores: Tensor = self.scores(y)
        weight = scores.detach().flatten(2).float().softmax(dim=-1)  # (B, J, h w)
        pooled = weight @ y.flatten(2).mT.float()  # (B, J, C)
        return scores.float(), (pooled * self.there).sum(dim=-1) + self.bias


def channels_last(network: KeypointNet) -> KeypointNet:
    """The network with its kernels laid out as convolutions are fastest."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def locate(scores: Tensor) -> Tensor:
    """Place of each joint: the mean over the cells around the best one, by their probability.

    Args:
        scores: (B, J, h, w).

    Returns:
        (B, J, 2) x right, y down, in parts of the side.
    """
    height, width = scores.shape[2:]
    best = scores.flatten(2).argmax(dim=-1)  # (B, J)
    rows = torch.arange(height, device=scores.device)
    columns = torch.arange(width, device=scores.device)
    near_y = (rows - (best // width).unsqueeze(-1)).abs() <= REACH  # (B, J, h)
    near_x = (columns - (best % width).unsqueeze(-1)).abs() <= REACH  # (B, J, w)
    near = near_y.unsqueeze(-1) & near_x.unsqueeze(-2)
    masked = scores.masked_fill(~near, -torch.inf)
    share = masked.flatten(2).softmax(dim=-1).view_as(scores)
    x = (share.sum(dim=2) * (columns + 0.5)).sum(dim=-1) / width
    y = (share.sum(dim=3) * (rows + 0.5)).sum(dim=-1) / height
    return torch.stack([x, y], dim=-1)


class Keypoints:
    """The estimator: one subject, any plan of limbs.

    Each frame is looked at by itself; a subject that is small in all of the clip is then looked
    at again from nearer by, in one box for all frames.

    Args:
        network: Trained.
        device: Where it runs, in float32.
        weights: File name -> sha256, for the record.
    """

    name = "keypoints"

    def __init__(
        self,
        network: KeypointNet,
        device: str | torch.device = "cpu",
        weights: dict[str, str] | None = None,
    ) -> None:
        self.weights = weights or {}
        self.device = torch.device(device)
        self.network = channels_last(network.eval().requires_grad_(False).to(self.device))

    def __call__(self, frames: Iterable[Rgb], fps: float) -> PoseTrack:
        """Joints of JOINTS of the subject; confidence is the probability of being there."""
        positions, sure, (height, width) = self._look(frames)
        box = nearer(positions, sure, (height, width))
        if box is not None:
            positions, sure, _ = self._look(map(box.cut, frames))
            positions = positions + np.array([box.left, box.top], np.float32)
        inside = ((positions >= 0) & (positions <= (width, height))).all(axis=-1)
        confidence = (sure * inside)[:, None]
        return PoseTrack(JOINTS, positions[:, None], confidence, height, width, fps)

    @torch.inference_mode()
    def _look(self, frames: Iterable[Rgb]) -> tuple[Array, Array, tuple[int, int]]:
        """(T, J, 2) pixels and (T, J) probabilities, and (H, W) of the frames."""
        places, sure, source = [], [], checked(frames)
        while group := list(islice(source, AT_ONCE)):
            fitted = [fit(frame, (SIZE, SIZE), "letterbox", BACKGROUND) for frame in group]
            batch = torch.stack([to_half(picture) for picture, _ in fitted])
            scores, there = self.network(batch.to(self.device))
            places.append(locate(scores).cpu())
            sure.append(there.sigmoid().cpu())
            box, (height, width) = fitted[0][1], group[0].shape[:2]
        scale = np.array([width / box.width, height / box.height])
        positions = (torch.cat(places).numpy() * SIZE - (box.left, box.top)) * scale
        return positions.astype(np.float32), torch.cat(sure).numpy(), (height, width)


def nearer(positions: Array, sure: Array, size: tuple[int, int]) -> Box | None:
    """Where to look again: a square around all joints of the clip, if it is small.

    Args:
        positions: (T, J, 2) pixels.
        sure: (T, J) probabilities; below one half does not count, nor do the outermost 2 %.
        size: (height, width) of the picture.
    """
    found = positions[sure >= 0.5]  # (N, 2)
    if not len(found):
        return None
    low, high = np.quantile(found, (0.02, 0.98), axis=0)
    side = max(SMALLEST, round(ROOM * float((high - low).max())))
    if side > SMALL * max(size):
        return None
    high_wide = min(side, size[0]), min(side, size[1])
    left, top = (
        int(np.clip((low + high)[axis] / 2 - extent / 2, 0, limit - extent))
        for axis, extent, limit in zip((0, 1), high_wide[::-1], size[::-1], strict=True)
    )
    return Box(top, left, *high_wide)


def header_of(network: KeypointNet, steps: int) -> dict[str, object]:
    """JSON values that describe a network's weights."""
    config = asdict(network.config)
    return {"model": Keypoints.name, "joints": list(JOINTS), "config": config, "steps": steps}


def load_network(path: Path = DATA) -> KeypointNet:
    """The network of a weight file.

    Raises:
        WeightsError: It is missing, damaged, or of another model or other joints; or it is the one
            that ships and has another hash.
    """
    if path == DATA and not path.is_file():
        raise WeightsError(
            f"{path.name}: the weights of keypoints are missing; reinstall dreamactor, or make "
            "them with `dreamactor train keypoints`"
        )
    state, header = load_weights(path, DIGEST if path == DATA else None)
    check_model(path, header, Keypoints.name)
    if header.get("joints") != list(JOINTS):
        raise WeightsError(f"{path}: finds {header.get('joints')}, this program wants {JOINTS}")
    try:
        shape: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in header["config"].items()
        }
        network = KeypointNet(KeypointsConfig(**shape))
        network.load_state_dict(state)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: weights do not fit keypoints: {first}") from error
    return network
