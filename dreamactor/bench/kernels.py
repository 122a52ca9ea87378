"""What a device can do at best, and whether its attention kernels are right.

Legend: B clips, Q queries, K keys, H heads of d channels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from dreamactor.backbones.attention import attend_by_frame, attend_lse

PRODUCT = {"cuda": 8192, "cpu": 512}
"""Rows of the square matrices whose product is the ceiling."""
PRODUCTS = {"cuda": 100, "cpu": 4}
"""In a turn: long enough for a GPU to leave its first, higher clock."""


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """What a call takes, all work on the device included."""
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large product of random matrices: the median of five turns."""
    side, count = PRODUCT[device.type], PRODUCTS[device.type]
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(one)

    def products() -> None:
        for _ in range(count):
            torch.mm(one, other, out=out)

    turns = [seconds(products, device) for _ in range(6)][1:]
    return 2 * side**3 * count / statistics.median(turns)


@torch.inference_mode()
def kernel_errors(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Largest errors of the kernels of `backbones.attention` against float64 by the definition.

    Of attention and of the logarithm of its sum over 900 keys, and of attention that was merged
    from shared keys and those of three frames; heads of 128 channels.
    """
    torch.manual_seed(0)

    def random(count: int) -> Tensor:
        return torch.randn(2, count, 5, 128, device=device, dtype=dtype)

    query, key, value = random(600), random(900), random(900)
    own_key, own_value = random(3 * 70), random(3 * 70)
    out, lse = attend_lse(query, key, value)
    wanted, wanted_lse = _exact(query, key, value)
    merged = attend_by_frame(query, (key, value), (own_key, own_value), 3).unflatten(1, (3, -1))
    queries, keys, values = (side.unflatten(1, (3, -1)) for side in (query, own_key, own_value))
    beside = [
        _exact(
            queries[:, f],
            torch.cat([key, keys[:, f]], dim=1),
            torch.cat([value, values[:, f]], dim=1),
        )[0]
        for f in range(3)
    ]
    pairs = {
        "attention": (out, wanted),
        "log-sum-exp": (lse, wanted_lse),
        "merged": (merged, torch.stack(beside, dim=1)),
    }
    return {name: float((found - exact).abs().max()) for name, (found, exact) in pairs.items()}


def _exact(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """(B, Q, H, d) and (B, Q, H) in float64."""
    queries, keys, values = (side.double().transpose(1, 2) for side in (query, key, value))
    scores = queries @ keys.mT * query.shape[-1] ** -0.5
    return (scores.softmax(-1) @ values).transpose(1, 2), scores.logsumexp(-1).transpose(1, 2)
