"""`dreamactor train pose` with the network sharded over processes of a CPU, started by torchrun.

accelerate shards on GPUs alone; here its place is taken by what it calls there, on each block and
then on the rest (`accelerate.utils.fsdp_utils.fsdp2_prepare_model`).
"""

from __future__ import annotations

import sys

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from dreamactor.cli import main


def prepare(self: Accelerator, model: torch.nn.Module, optimiser: torch.optim.Optimizer):
    groups = optimiser.param_groups[0]
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(isinstance(p, DTensor) for p in model.parameters())
    assert isinstance(model, FSDPModule)
    sharded = torch.optim.AdamW(trained, groups["lr"], weight_decay=groups["weight_decay"])
    return model, self.prepare_optimizer(sharded)


if __name__ == "__main__":
    Accelerator.prepare = prepare
    sys.argv[0] = "dreamactor"
    main()
