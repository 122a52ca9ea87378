"""Muon for the matrices of a transformer, with equal shapes orthogonalised in one batch.

torch.optim.Muon treats every matrix by itself: on a small network most of a step would go into
launching kernels (12 layers have 120 matrices, five iterations each). Here all matrices of one
shape are stacked; the update is torch's, to rounding (tests/test_optim.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024, "Muon"; torch's defaults


def orthogonalise(stack: Tensor, steps: int = 5) -> Tensor:
    """Push the singular values of each matrix towards 1.

    Args:
        stack: (n, rows, columns).
        steps: Newton-Schulz iterations.

    Returns:
        Same shape, bfloat16.
    """
    a, b, c = NEWTON_SCHULZ
    x = stack.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; the step's size matches AdamW's root mean square.

    Args:
        params: Matrices only.
        lr: As one would give AdamW (the update is scaled by 0.2 sqrt(max(rows, columns))).
        momentum: Nesterov momentum.
        weight_decay: Decoupled, as in AdamW.

    Source: Liu et al. 2025 (arXiv 2502.16982), section 2.2.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of all matrices."""
        assert closure is None
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None:
                    shapes[param.shape].append(param)
            for params in shapes.values():
                self._step_shape(params, group)

    def _step_shape(self, params: list[nn.Parameter], group: dict[str, Any]) -> None:
        grads = [param.grad for param in params]
        buffers = [
            self.state[param].setdefault("momentum_buffer", torch.zeros_like(param))
            for param in params
        ]
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        updates = torch._foreach_lerp(grads, buffers, group["momentum"])
        rows, columns = params[0].shape
        size = 0.2 * max(rows, columns) ** 0.5
        stack = orthogonalise(torch.stack(updates)).to(params[0].dtype)
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(params, list(stack.unbind()), alpha=-group["lr"] * size)


def split_parameters(
    model: nn.Module,
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """(matrices inside blocks, other matrices, vectors) of a diffusers transformer."""
    hidden, outer, vectors = [], [], []
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        if name.startswith("blocks.") and param.dim() == 2:
            hidden.append(param)
        elif param.dim() >= 2 and "scale_shift_table" not in name:
            outer.append(param)
        else:
            vectors.append(param)
    return hidden, outer, vectors
