"""A second loss while nano trains: where the joints are, read off the middle of the network.

Most of the flow-matching loss is texture, so it teaches slowly what a pose is. A linear layer on
the tokens of a middle block names the token in which each joint lies, on both halves of the
canvas: recognised where the driver is shown, foreseen where the target is still noise. The world
knows the joints exactly; nothing of this is needed or kept once training is over. After
representation alignment (Yu et al. 2024, arXiv 2410.06940), with poses instead of features.

Legend: B pairs, F latent frames, rows x columns tokens of the canvas (both halves), J = 17 joints,
S frames of a latent frame (4).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamactor.backbones.nano_vae import STRIDE_T
from dreamactor.conditioning.skeleton import JOINTS

DEPTH = 2 / 3
"""How far up the network the joints are read."""
NOWHERE = -100  # label of a joint that is not in the picture


class PoseReader(nn.Module):
    """A transformer with a reader of joints on one of its blocks.

    Args:
        transformer: diffusers' WanTransformer3DModel.
        width: Channels of its tokens.
    """

    def __init__(self, transformer: nn.Module, width: int) -> None:
        super().__init__()
        self.transformer = transformer
        self.head = nn.Linear(width, STRIDE_T * len(JOINTS))
        self._tokens: Tensor | None = None
        blocks = transformer.blocks
        assert isinstance(blocks, nn.ModuleList)
        blocks[round(len(blocks) * DEPTH) - 1].register_forward_hook(self._tap)

    def forward(self, x: Tensor, timestep: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, C, F, h, 2w), and scores of joints (B, F, rows, columns, S * J)."""
        latents: Tensor = self.transformer(
            hidden_states=x, timestep=timestep, encoder_hidden_states=text, return_dict=False
        )[0]
        tokens, self._tokens = self._tokens, None
        assert tokens is not None
        frames, rows, columns = x.shape[2], x.shape[3] // 2, x.shape[4] // 2  # 2 x 2 patches
        scores: Tensor = self.head(F.layer_norm(tokens.float(), tokens.shape[-1:]))
        return latents, scores.unflatten(1, (frames, rows, columns))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _tap(self, block: nn.Module, given: object, tokens: Tensor) -> None:
        self._tokens = tokens


def pose_loss(scores: Tensor, joints: Tensor) -> Tensor:
    """Cross-entropy of the token that a joint lies in, among those of its half and frame.

    Args:
        scores: (B, F, rows, columns, S * J).
        joints: (B, 2 T + 2, J, 2): reference and target, then driver; NaN = not seen.

    Returns:
        Scalar, the mean over all joints that are seen; 0 if there are none.
    """
    frames, rows, columns = scores.shape[1:4]
    wide = columns // 2
    halves = scores.float().unflatten(3, (2, wide)).unflatten(-1, (STRIDE_T, -1))
    scores = halves.permute(0, 3, 1, 5, 6, 2, 4).flatten(-2)  # (B, 2, F, S, J, rows * wide)
    where = joints.float().unflatten(1, (2, -1))  # (B, 2, 17, J, 2)
    first = where[:, :, :1].expand(-1, -1, STRIDE_T, -1, -1)  # frame 0 fills a latent frame
    where = torch.cat([first, where[:, :, 1:]], dim=2).unflatten(2, (frames, STRIDE_T))
    column = (where[..., 0] * wide).floor().clamp(0, wide - 1)
    row = (where[..., 1] * rows).floor().clamp(0, rows - 1)
    label = (row * wide + column).nan_to_num(nan=NOWHERE).long()  # (B, 2, F, S, J)
    total = F.cross_entropy(
        scores.flatten(0, -2), label.flatten(), ignore_index=NOWHERE, reduction="sum"
    )
    return total / (label != NOWHERE).sum().clamp_min(1)
