"""Attention in parts: of one set of queries over two sets of keys, merged by their log-sum-exp.

Legend: B clips, H heads, d channels of a head, Q queries, K keys.
"""

from __future__ import annotations

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def attend(query: Tensor, key: Tensor, value: Tensor, backend: str | None = None) -> Tensor:
    """Softmax attention, by the backend that diffusers was told to use.

    Args:
        query: (B, Q, H, d).
        key: (B, K, H, d).
        value: Likewise.
        backend: Name of diffusers' attention backend; None takes the process's.

    Returns:
        (B, Q, H, d).
    """
    found: Tensor = dispatch_attention_fn(query, key, value, backend=backend)
    return found


def attend_lse(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax attention with the logarithm of what each query's weights were divided by.

    The kernels behind it give no gradient of that logarithm, so it is not for training.

    Args:
        query: (B, Q, H, d).
        key: (B, K, H, d).
        value: Likewise.

    Returns:
        (B, Q, H, d), and (B, Q, H) in float32 (float64 of float64).
    """
    sides = [side.transpose(1, 2) for side in (query, key, value)]  # (B, H, Q or K, d)
    ops = torch.ops.aten
    if query.device.type == "cpu":
        out, lse = ops._scaled_dot_product_flash_attention_for_cpu(*sides)
    elif _by_cudnn(query):
        out, lse = ops._scaled_dot_product_cudnn_attention(*sides, None, True)[:2]
        lse = lse.reshape(out.shape[:3])
    elif query.device.type == "cuda" and query.dtype in HALF:
        out, lse = ops._scaled_dot_product_flash_attention(*sides)[:2]
    elif query.device.type == "cuda":
        out, lse = ops._scaled_dot_product_efficient_attention(*sides, None, True)[:2]
    else:
        out, lse = _plain(*sides)
    # the third pads its rows to a multiple of 32
    return out.transpose(1, 2), lse[:, :, : query.shape[1]].transpose(1, 2)


def _by_cudnn(query: Tensor) -> bool:
    """Whether cuDNN's kernel is there, which is the quickest from Hopper on."""
    return (
        query.device.type == "cuda"
        and query.dtype in HALF
        and query.shape[-1] <= 128
        and query.shape[-1] % 8 == 0
        and torch.backends.cuda.cudnn_sdp_enabled()
        and torch.cuda.get_device_capability(query.device) >= (9, 0)
    )


def _plain(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The same by its definition, heads before queries; all pairs are in memory at once."""
    scores = (query @ key.mT).float() * query.shape[-1] ** -0.5
    return scores.softmax(-1).to(value.dtype) @ value, scores.logsumexp(-1)


def merge(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """What attention over both sets of keys would have given.

    Args:
        one: (B, Q, H, d) and (B, Q, H) of the same queries over some keys.
        other: Over other keys.

    Returns:
        (B, Q, H, d): each part weighs by its share of the sum, exp(lse) / (exp(lse) + exp(lse')).
    """
    (out, lse), (out_other, lse_other) = one, other
    share = torch.sigmoid(lse_other - lse).unsqueeze(-1)
    return torch.lerp(out.to(share.dtype), out_other.to(share.dtype), share).type_as(out)


def attend_by_frame(
    query: Tensor,
    shared: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    frames: int,
    backend: str | None = None,
) -> Tensor:
    """Attention of frames that all see the same keys, and each frame some keys of its own.

    With gradients one frame goes after another, its keys beside the shared ones. Without, there
    is one attention over the shared keys and one of frames by themselves, and no keys are copied.

    Args:
        query: (B, frames * m, H, d).
        shared: Keys and values (B, K, H, d) that every query sees.
        own: Keys and values (B, frames * n, H, d); frame f sees those of f.
        frames: How many.
        backend: As in `attend`.

    Returns:
        (B, frames * m, H, d).
    """
    key, value = (side.unflatten(1, (frames, -1)) for side in own)  # (B, frames, n, H, d)
    split = query.unflatten(1, (frames, -1))
    if torch.is_grad_enabled():
        parts = [
            attend(
                split[:, f],
                torch.cat([shared[0], key[:, f]], dim=1),
                torch.cat([shared[1], value[:, f]], dim=1),
                backend,
            )
            for f in range(frames)
        ]
        return torch.cat(parts, dim=1)
    out, lse = attend_lse(*(side.flatten(0, 1) for side in (split, key, value)))
    by_frame = out.reshape(query.shape), lse.reshape(*query.shape[:3])
    return merge(attend_lse(query, *shared), by_frame)
