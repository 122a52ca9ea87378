"""Muon for matrices and convolutions, with equal shapes orthogonalised in one batch.

torch.optim.Muon takes matrices only, one at a time: on a small network most of a step would go
into launching kernels (12 layers have 120 matrices, five iterations each). Here all weights of
one shape are stacked, a convolution as the matrix (out, in * k * k); for matrices the update is
torch's, to rounding (tests/test_optim.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dreamactor.errors import ConfigError

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
    return x.mT if tall else x  # (n, rows, columns)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; the step's size matches AdamW's root mean square.

    Args:
        params: Matrices and convolution kernels only.
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
        weights: list[Tensor] = list(params)
        grads = [param.grad for param in params if param.grad is not None]
        for param in params:
            if "momentum_buffer" not in self.state[param]:
                self.state[param]["momentum_buffer"] = torch.zeros_like(param)
        buffers: list[Tensor] = [self.state[param]["momentum_buffer"] for param in params]
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        updates = torch._foreach_lerp(grads, buffers, group["momentum"])
        stack = torch.stack(list(updates)).flatten(2)  # (n, rows, columns)
        size = 0.2 * max(stack.shape[1:]) ** 0.5
        steps = orthogonalise(stack).to(stack.dtype).view(len(params), *params[0].shape)
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, list(steps.unbind()), alpha=-group["lr"] * size)


def split_parameters(
    model: nn.Module, inside: str
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Sort a network's parameters by how they are trained.

    Args:
        model: The network.
        inside: Part of the name of the repeated blocks, such as "blocks.".

    Returns:
        (weights inside the blocks, weights outside, vectors): for Muon, for AdamW with weight
        decay, for AdamW without.
    """
    hidden, outer, vectors = [], [], []
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        if param.dim() < 2 or "scale_shift_table" in name:
            vectors.append(param)
        elif inside in name:
            hidden.append(param)
        else:
            outer.append(param)
    return hidden, outer, vectors


def optimisers_for(
    model: nn.Module, inside: str, name: str, rate: float, decay: float
) -> list[torch.optim.Optimizer]:
    """Muon for the repeated blocks and AdamW for the rest, or AdamW for all.

    Args:
        model: The network.
        inside: As in `split_parameters`.
        name: "muon" or "adamw".
        rate: Peak learning rate; AdamW beside Muon gets at most 1e-3.
        decay: Weight decay of all but vectors.
    """
    hidden, outer, vectors = split_parameters(model, inside)
    groups = [
        {"params": outer, "weight_decay": decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if name == "adamw":
        groups.append({"params": hidden, "weight_decay": decay})
        return [torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))]
    if name != "muon":
        raise ConfigError(f"optimiser={name}: want muon or adamw")
    rest = torch.optim.AdamW(groups, lr=min(rate, 1e-3), betas=(0.9, 0.95))
    return [Muon(hidden, lr=rate, weight_decay=decay), rest]
