"""What the middle of the network knows, read off its tokens while it trains.

After representation alignment (Yu et al. 2024, arXiv 2410.06940), with truth of the world in the
place of another network's features. The readers are thrown away once training is over.

Legend: B pairs or clips, F latent frames, rows x columns tokens of one half, n halves (2; 1 for a
clip by itself), S frames of a latent frame (4), J = 17 joints, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamactor.backbones.nano_vae import STRIDE_T
from dreamactor.conditioning.skeleton import JOINTS

MATCHED, POSED = 1 / 2, 2 / 3
"""How far up the network matches and joints are read."""
CELLS = 4  # of a token, 2 x 2
FEATURES = 32


class Read(NamedTuple):
    """A prediction, and what was read on the way."""

    latents: Tensor
    """(B, C, F, h, n w)."""
    joints: Tensor
    """(B, F, rows, n columns, S * J) scores (`training.poses`)."""
    seek: Tensor
    """(B, F - 1, rows, columns, S * 4 * D) of the target's tokens (`training.matches`)."""
    offer: Tensor
    """(B, rows, columns, 4 * D) of the reference's tokens."""


class Reader(nn.Module):
    """A transformer with readers on two of its blocks.

    Args:
        transformer: diffusers' WanTransformer3DModel.
        width: Channels of its tokens.
        halves: n, side by side, the first of which is generated.
    """

    def __init__(self, transformer: nn.Module, width: int, halves: int = 2) -> None:
        super().__init__()
        self.transformer = transformer
        self.halves = halves
        self.joints = nn.Linear(width, STRIDE_T * len(JOINTS))
        self.seek = nn.Linear(width, STRIDE_T * CELLS * FEATURES)
        self.offer = nn.Linear(width, CELLS * FEATURES)
        self._tokens: dict[float, Tensor] = {}
        blocks = transformer.blocks
        assert isinstance(blocks, nn.ModuleList)
        for depth in (MATCHED, POSED):
            block = blocks[max(0, round(len(blocks) * depth) - 1)]
            block.register_forward_hook(self._tap(depth))

    def forward(self, x: Tensor, timestep: Tensor, text: Tensor) -> Read:
        """Predict latents from the network's input (B, 2C + 4, F, h, n w)."""
        latents: Tensor = self.transformer(
            hidden_states=x, timestep=timestep, encoder_hidden_states=text, return_dict=False
        )[0]
        shape = (x.shape[2], x.shape[3] // 2, x.shape[4] // 2)  # 2 x 2 patches
        matched, posed = (self._take(depth, shape) for depth in (MATCHED, POSED))
        left = matched[:, :, :, : shape[2] // self.halves]
        return Read(latents, self.joints(posed), self.seek(left[:, 1:]), self.offer(left[:, 0]))

    def _take(self, depth: float, shape: tuple[int, int, int]) -> Tensor:
        """(B, F, rows, n columns, width) tokens of one block, normalised."""
        tokens = self._tokens.pop(depth).float()
        return F.layer_norm(tokens, tokens.shape[-1:]).unflatten(1, shape)

    def _tap(self, depth: float) -> Callable[[nn.Module, object, Tensor], None]:
        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def keep(block: nn.Module, given: object, tokens: Tensor) -> None:
            self._tokens[depth] = tokens

        return cast(Callable[[nn.Module, object, Tensor], None], keep)
