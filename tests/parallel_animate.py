"""`dreamactor animate` in one process, then in two, forked when all is imported.

python tests/parallel_animate.py FOLDER WORDS...    writes 1.mp4 and 2.mp4 there
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

import torch

from dreamactor.backbones import stacking, wan  # noqa: F401
from dreamactor.backbones.parallel import Spread
from dreamactor.cli import main
from dreamactor.diffusion import pipeline  # noqa: F401


def work(rank: int, count: int, port: int) -> None:
    if count > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()})
        os.environ["MASTER_ADDR"] = "localhost"
    folder, *words = sys.argv[1:]
    sys.argv = ["dreamactor", "animate", "--out", f"{folder}/{count}.mp4", *words]
    gathered: list[Any] = []
    gather = Spread.gather

    def counting(*given: Any) -> torch.Tensor:
        gathered.append(given)
        return gather(*given)

    Spread.gather = counting  # type: ignore[method-assign]
    try:
        main()
    finally:
        sys.stderr.write(f"\n{len(gathered)} passes gathered\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    for count in (1, 2):
        torch.multiprocessing.start_processes(
            work, (count, port), nprocs=count, start_method="fork"
        )
