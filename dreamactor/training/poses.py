"""A second loss while nano trains: where the joints are, read off the middle of the network.

Most of the flow-matching loss is texture, so it teaches slowly what a pose is. A linear layer on
the tokens of a middle block names the token in which each joint lies, on both halves of the
canvas: recognised where the driver is shown, foreseen where the target is still noise. The world
knows the joints exactly; nothing of this is needed or kept once training is over.

Legend: B pairs or clips, F latent frames, rows x columns tokens, n halves side by side among the
columns (2; 1 for a clip by itself), J = 17 joints, S frames of a latent frame (4), T = S (F - 1).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from dreamactor.backbones.layers import STRIDE_T, in_runs

NOWHERE = -100  # label of a joint that is not in the picture


def pose_loss(scores: Tensor, joints: Tensor) -> Tensor:
    """Cross-entropy of the token that a joint lies in, among those of its half and frame.

    Args:
        scores: (B, F, rows, columns, S * J).
        joints: (B, n (T + 1), J, 2): reference and target, then driver; NaN = not seen.

    Returns:
        Scalar, the mean over all joints that are seen; 0 if there are none.
    """
    frames, rows, columns = scores.shape[1:4]
    where = by_latent_frame(joints.float(), frames)  # (B, n, F, S, J, 2)
    wide = columns // where.shape[1]
    halves = scores.float().unflatten(3, (-1, wide)).unflatten(-1, (STRIDE_T, -1))
    scores = halves.permute(0, 3, 1, 5, 6, 2, 4).flatten(-2)  # (B, n, F, S, J, rows * wide)
    column = (where[..., 0] * wide).floor().clamp(0, wide - 1)
    row = (where[..., 1] * rows).floor().clamp(0, rows - 1)
    label = (row * wide + column).nan_to_num(nan=NOWHERE).long()  # (B, n, F, S, J)
    total = F.cross_entropy(
        scores.flatten(0, -2), label.flatten(), ignore_index=NOWHERE, reduction="sum"
    )
    return total / (label != NOWHERE).sum().clamp_min(1)


def by_latent_frame(truth: Tensor, frames: int) -> Tensor:
    """What is known of each frame, under the latent frame that holds it.

    Args:
        truth: (B, n (T + 1), ...): reference and target, then driver.
        frames: F.

    Returns:
        (B, n, F, S, ...); frame 0 fills a latent frame.
    """
    halves = truth.unflatten(1, (-1, STRIDE_T * (frames - 1) + 1))  # (B, n, T + 1, ...)
    return in_runs(halves.flatten(0, 1)).unflatten(0, halves.shape[:2])
