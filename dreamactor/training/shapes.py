"""What `bench training` trains: transformers of random weights, their examples and operations.

Legend: C latent channels, F latent frames, h x w latent cells of a half; L tokens of text, N of a
picture.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamactor.backbones.base import Trainee
from dreamactor.backbones.catalogue import Mode
from dreamactor.backbones.hunyuan import drop_padding_mask, pack_text, trainee_of
from dreamactor.backbones.shapes import (
    JOINT_NETWORKS,
    NETWORKS,
    Blocks,
    JointNetwork,
    Network,
    Size,
    build,
    build_joint,
)
from dreamactor.backbones.wan_training import predict
from dreamactor.bench import flops
from dreamactor.training.stage import in_mode

RANDOM = "random"
"""In the place of a file's sha256."""


@dataclass(frozen=True)
class Shape(ABC):
    """A transformer that can be trained without weights or a cache."""

    backbone: str
    """Whose settings it is trained with."""
    network: Blocks

    @abstractmethod
    def trainee(self, mode: Mode, device: torch.device, dtype: torch.dtype) -> Trainee:
        """It, with random weights that are made on the device, as `load_trainee` gives one.

        Args:
            mode: Of attention, one that the backbone can be in.
            device: Where.
            dtype: Of its weights.
        """

    @abstractmethod
    def example(self, size: Size, draws: torch.Generator) -> dict[str, Tensor]:
        """A random one of all that its cache has, float32 on the CPU.

        Args:
            size: Of a half.
            draws: Where numbers come from.

        Returns:
            target and motion (C, F, h, w), text (L, D), and what else `training.cache` names.
        """

    @abstractmethod
    def flops(self, size: Size, mode: Mode, rank: int, checkpoint: bool) -> int:
        """Operations of a step over an example; as of `bench.flops.training`."""


@dataclass(frozen=True)
class WanShape(Shape):
    """Of Wan's kind; nano's is one."""

    network: Network

    def trainee(self, mode: Mode, device: torch.device, dtype: torch.dtype) -> Trainee:
        """As `Shape` says."""
        network = self.network
        transformer = build(network, "wan", device, dtype)
        trainee = Trainee(self.backbone, transformer, predict, network.grid, RANDOM, {})
        return in_mode(trainee, mode, torch.zeros(network.text, device=device))

    def example(self, size: Size, draws: torch.Generator) -> dict[str, Tensor]:
        """As `Shape` says."""
        network = self.network
        latents = (network.channels, *size.latents(network.grid))
        names = ("target", "motion", "canvas")
        found = {name: torch.randn(latents, generator=draws) for name in names}
        found["text"] = torch.randn(network.text, generator=draws)
        if network.image is not None:
            found["image"] = torch.randn(network.image, generator=draws)
        return found

    def flops(self, size: Size, mode: Mode, rank: int, checkpoint: bool) -> int:
        """As `Shape` says."""
        return flops.training(self.network, size, mode, rank, checkpoint)


@dataclass(frozen=True)
class HunyuanShape(Shape):
    """Of HunyuanVideo-1.5's kind, whose attention has mode full alone.

    The empty prompt has as many tokens as any other, so all steps are alike, and several examples
    at once are without a mask.
    """

    network: JointNetwork

    def trainee(self, mode: Mode, device: torch.device, dtype: torch.dtype) -> Trainee:
        """As `Shape` says."""
        assert mode == "full"  # settings refuse all others
        transformer = build_joint(self.network, device, dtype)
        drop_padding_mask(transformer)
        silence = self._text(torch.Generator().manual_seed(0)).to(device)
        return trainee_of(self.backbone, transformer, silence, self.network.grid, RANDOM)

    def example(self, size: Size, draws: torch.Generator) -> dict[str, Tensor]:
        """As `Shape` says."""
        network = self.network
        latents = (network.channels, *size.latents(network.grid))
        found = {name: torch.randn(latents, generator=draws) for name in ("target", "motion")}
        found["text"] = self._text(draws)
        found["image"] = torch.randn(network.image, generator=draws)
        return found

    def _text(self, draws: torch.Generator) -> Tensor:
        """(L, D) of a prompt."""
        said, drawn = (
            torch.randn(1, *shape, generator=draws)
            for shape in (self.network.words, self.network.glyphs)
        )
        (text,) = pack_text(said, torch.ones(said.shape[:2]), drawn, torch.ones(drawn.shape[:2]))
        return text

    def flops(self, size: Size, mode: Mode, rank: int, checkpoint: bool) -> int:
        """As `Shape` says."""
        assert mode == "full"
        return flops.joint_training(self.network, size, rank, checkpoint)


SHAPES: dict[str, Shape] = {
    "wan-14b": WanShape("wan2.1-i2v-14b-480p", NETWORKS["wan-14b"]),
    "wan-1.3b": WanShape("wan2.1-fun-1.3b-inp", NETWORKS["wan-1.3b"]),
    "nano": WanShape("nano", NETWORKS["nano"]),
    "hunyuan-1.5": HunyuanShape("hunyuanvideo-1.5-480p-i2v", JOINT_NETWORKS["hunyuan-1.5"]),
    "tiny": WanShape("wan2.1-i2v-14b-480p", NETWORKS["tiny"]),
    "tiny-hunyuan": HunyuanShape("hunyuanvideo-1.5-480p-i2v", JOINT_NETWORKS["tiny-hunyuan"]),
}
"""By name, as `backbones.shapes` has their networks."""
