"""Transformers whose repeated blocks are compiled: one graph serves all blocks of a kind.

Compiling waits for the first pass, and for the first of every other length: the last segment of a
clip may be shorter. The context of the one-way modes is a graph of its own.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

from dreamactor.errors import ConfigError

BACKEND = "inductor"
GRAPHS = 64
"""Of one kind of block; at torch's own 8 a server that makes clips of many lengths would fall back
to uncompiled blocks, and not say so."""
COMPILERS = ("g++", "clang++", "c++", "cl")

log = logging.getLogger(__name__)


def check_compiler(device: str) -> None:
    """Refuse to compile where what turns graphs into programs is missing.

    Raises:
        ConfigError: Says what.
    """
    if device != "cpu":
        if find_spec("triton") is None:
            raise ConfigError("compile=true: needs triton, which torch for CUDA brings on Linux")
        return
    named = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ((named,) if named else COMPILERS)):
        raise ConfigError(
            "compile=true: on the CPU it needs a C++ compiler, such as g++; leave --compile out"
        )


def compile_blocks(networks: Iterable[Any]) -> None:
    """Have the repeated blocks of diffusers' transformers compiled for fixed shapes.

    Args:
        networks: In their mode of attention, with their adapters, where they will run.
    """
    expect_graphs()
    for network in networks:
        network.compile_repeated_blocks(dynamic=False, backend=BACKEND)
    log.info("blocks are compiled at their first pass, which takes long: on a CPU minutes")


def expect_graphs() -> None:
    """Let a block have as many graphs as it needs; beyond torch's limit it would run eagerly."""
    import torch._dynamo

    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, GRAPHS)


def is_compiled(backbone: object) -> bool:
    """Whether `load_backbone` compiled a backbone's blocks."""
    return bool(getattr(backbone, "compiled", False))
