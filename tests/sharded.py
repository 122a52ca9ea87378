"""A small model, trained for three steps; run by torchrun it is sharded by FSDP2."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from dreamactor.runs import generator
from dreamactor.training.state import load_state, put_back, read_out, save_state

Parts = tuple[nn.Module, dict[str, Tensor], torch.optim.Optimizer]


def fresh(shard: bool = False) -> Parts:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3))
    if shard:
        from torch.distributed.fsdp import fully_shard

        for layer in (model[0], model[2], model):
            fully_shard(layer)
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    return model, average, torch.optim.AdamW(model.parameters(), lr=0.1)


def trained(shard: bool = False) -> Parts:
    model, average, optimiser = fresh(shard)
    for step in range(3):
        x = torch.randn(4, 6, generator=generator(0, "x", step))
        optimiser.zero_grad()
        model(x).square().mean().backward()
        optimiser.step()
        for name, p in model.named_parameters():
            average[name].lerp_(p.detach(), 0.5)
    return model, average, optimiser


def main(path: Path) -> None:
    torch.distributed.init_process_group("gloo")
    model, average, optimiser = trained(shard=True)
    state = read_out(dict(model.named_parameters()), average, optimiser)
    if torch.distributed.get_rank() == 0:
        save_state(path, state, {"step": 3})
    torch.distributed.barrier()
    found = load_state(path)
    assert found is not None
    other, mean, unused = fresh(shard=True)
    put_back(found[0], dict(other.named_parameters()), mean, unused)
    again = read_out(dict(other.named_parameters()), mean, unused)
    assert again.tensors.keys() == state.tensors.keys()
    assert all(torch.equal(again.tensors[name], value) for name, value in state.tensors.items())
    shards = [p.to_local().numel() for p in other.parameters()]  # type: ignore[attr-defined]
    assert sum(shards) < sum(p.numel() for p in other.parameters())
    torch.distributed.barrier()  # on a busy machine one may leave while the other still talks
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
