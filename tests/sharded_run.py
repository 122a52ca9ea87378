"""`dreamactor`'s training with the network sharded over processes of a CPU, started by torchrun.

accelerate shards on GPUs alone; here its place is taken by what it calls there, on each block and
then on the rest (`accelerate.utils.fsdp_utils.fsdp2_prepare_model`).
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from dreamactor.cli import main


def prepare(self: Accelerator, model: torch.nn.Module, optimiser: torch.optim.Optimizer):
    groups = optimiser.param_groups[0]
    policy = self.state.fsdp_plugin.mixed_precision_policy
    assert not policy.cast_forward_inputs  # timesteps and positions stay float32
    for block in model.blocks:
        fully_shard(block, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(isinstance(p, DTensor) for p in model.parameters())
    assert isinstance(model, FSDPModule)
    sharded = torch.optim.AdamW(trained, groups["lr"], weight_decay=groups["weight_decay"])
    return model, self.prepare_optimizer(sharded)


if __name__ == "__main__":
    Accelerator.prepare = prepare
    Accelerator.is_fsdp2 = property(lambda self: True)
    AcceleratorState.fsdp_plugin = SimpleNamespace(mixed_precision_policy=None)
    sys.argv[0] = "dreamactor"
    main()
