"""Several processes that sample one clip together, a GPU each.

Of a sequence every process holds a contiguous share of the tokens, and all that looks at one token
at a time runs on the share. For self-attention they exchange: every process then has all tokens of
its share of the heads, attends, and exchanges back (Ulysses). What it keeps of a context is its own
heads' alone.

In mode full, and for a transformer that knows no canvas, diffusers does the like by itself
(`by_diffusers`).

Legend: B clips, N tokens, n of them a process's own, H heads of d channels.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from dreamactor.backbones.catalogue import Keeping
from dreamactor.errors import ConfigError, DreamActorError

STALL = timedelta(minutes=10)
"""How long processes wait for each other; one may compile while another is done."""
T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """The processes at work on one clip, seen from one of them."""

    rank: int = 0
    count: int = 1
    name: str = ""
    """Of torch's process group; none of a process by itself."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def meet(self) -> None:
        """Wait for all."""
        if self.count > 1:
            dist.barrier()

    def everyone(self, mine: T) -> list[T]:
        """What each process has, in their order."""
        if self.count == 1:
            return [mine]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, mine)
        return found

    def agree(self, mine: T | None) -> T:
        """What the first process has, such as a look at the clock; the others' does not count."""
        found = self.everyone(mine)[0]
        assert found is not None
        return found


ALONE = Team()


@dataclass(frozen=True)
class Spread:
    """A sequence of tokens over the processes of a team; shares differ by one token at most."""

    team: Team
    tokens: int
    """N."""

    @property
    def shares(self) -> list[int]:
        """Tokens of every process."""
        whole, over = divmod(self.tokens, self.team.count)
        return [whole + (rank < over) for rank in range(self.team.count)]

    @property
    def own(self) -> int:
        """Tokens of this process."""
        return self.shares[self.team.rank]

    def share(self, x: Tensor) -> Tensor:
        """Own tokens (B, n, ...) of all (B, N, ...)."""
        start = sum(self.shares[: self.team.rank])
        return x[:, start : start + self.own].contiguous()

    def to_heads(self, *sides: Tensor) -> tuple[Tensor, ...]:
        """All tokens of own heads, (B, N, H / count, d), from own tokens of all heads.

        Args:
            sides: (B, n, H, d) each; one is packed while the one before is on its way.
        """
        count, name = self.team.count, self.team.name
        sent, shapes = [], []
        for side in sides:
            parts = side.unflatten(2, (count, -1)).permute(2, 1, 0, 3, 4)  # (count, n, B, H', d)
            row = parts.shape[2:].numel()
            there = [share * row for share in self.shares]
            sent.append(_send(parts, there, [self.own * row] * count, name))
            shapes.append((self.tokens, *parts.shape[2:]))
        return tuple(
            _arrived(part).view(shape).transpose(0, 1)
            for part, shape in zip(sent, shapes, strict=True)
        )

    def to_tokens(self, x: Tensor) -> Tensor:
        """Back again: own tokens of all heads (B, n, H, d), from (B, N, H / count, d)."""
        count, row = self.team.count, x[:, :1].numel()
        there = [self.own * row] * count
        sent = _send(x.transpose(0, 1), there, [n * row for n in self.shares], self.team.name)
        parts = _arrived(sent).view(count, self.own, len(x), *x.shape[2:])
        return parts.permute(2, 1, 0, 3, 4).flatten(2, 3)

    def gather(self, x: Tensor) -> Tensor:
        """All tokens (B, N, K), in every process, from own ones (B, n, K)."""
        longest = max(self.shares)
        padded = F.pad(x, (0, 0, 0, longest - self.own)).contiguous()
        ops = torch.ops._c10d_functional
        sent = ops.all_gather_into_tensor(padded, self.team.count, self.team.name)
        parts = _arrived(sent).split(len(x))  # (B, longest, K) of every process
        return torch.cat([p[:, :n] for p, n in zip(parts, self.shares, strict=True)], dim=1)


def _send(x: Tensor, there: list[int], here: list[int], name: str) -> Tensor:
    """Start an exchange: numbers for each process in `here`, from each in `there`.

    torch's functional collectives, which are part of a compiled graph. Flat, since that is the one
    order of axes which a compiler cannot choose otherwise.
    """
    found: Tensor = torch.ops._c10d_functional.all_to_all_single(x.flatten(), there, here, name)
    return found


def _arrived(x: Tensor) -> Tensor:
    found: Tensor = torch.ops._c10d_functional.wait_tensor(x)
    return found


def check_team(team: Team, heads: int) -> None:
    """Refuse a number of processes that cannot share out the heads.

    Raises:
        ConfigError: Heads are not a multiple of it.
    """
    if heads % team.count:
        near = max(n for n in range(1, team.count) if heads % n == 0)
        raise ConfigError(
            f"{team.count} processes: {heads} heads are not shared out evenly; nearest is {near}"
        )


def check_keeping(keeping: Keeping, count: int) -> None:
    """Refuse to keep what several processes cannot each keep a part of.

    Raises:
        ConfigError: States, of which each would make keys of all heads at every step.
    """
    if count > 1 and keeping.holds == "states":
        raise ConfigError(
            f"states with {count} processes: each keeps the keys and values of its own heads; "
            "nearest is keys"
        )


def by_diffusers(transformer: Any, team: Team, even: bool) -> None:
    """Have diffusers spread a transformer's passes; it is not taken back.

    Args:
        transformer: diffusers', in mode full; changed in place.
        team: The processes.
        even: Whether they have equally many tokens; if not, sizes are exchanged at every block.
    """
    from diffusers import ContextParallelConfig

    mesh = init_device_mesh(team.device.type, (1, team.count), mesh_dim_names=("ring", "ulysses"))
    config = ContextParallelConfig(ulysses_degree=team.count, ulysses_anything=not even, mesh=mesh)
    transformer.enable_parallelism(config=config)


@contextmanager
def all_or_none() -> Iterator[None]:
    """End this process at once if the block fails; what started all of them ends the others then.

    To leave in order it would wait for them, who wait for it.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, DreamActorError):
            print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201
            os._exit(2)
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


@contextmanager
def together(device: str) -> Iterator[Team]:
    """Join the processes that torchrun started, or be the only one.

    An error in one of several ends it at once, for the others may be waiting for it; torchrun then
    ends them.

    Args:
        device: cpu, or cuda, where torchrun's processes take a GPU each.

    Raises:
        ConfigError: Each of several processes is to have the same GPU, or there are too few.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        yield Team(device=torch.device(device))
        return
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    place = torch.device(device)
    if place.type == "cuda":
        if place.index is not None:
            raise ConfigError(f"device={device}: {count} processes have a GPU each; want cuda")
        if local >= torch.cuda.device_count():
            found = torch.cuda.device_count()
            raise ConfigError(f"process {local} here finds {found} GPU(s); want one for each")
        place = torch.device("cuda", local)
        torch.cuda.set_device(place)
    on_gpu = place.type == "cuda"
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", timeout=STALL, device_id=place if on_gpu else None
    )
    with all_or_none():
        group = dist.group.WORLD
        assert group is not None
        yield Team(rank, count, group.group_name, place)
    dist.barrier()  # on a busy machine one may leave while another still talks
    dist.destroy_process_group()
