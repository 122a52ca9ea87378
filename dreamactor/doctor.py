"""What this machine can run, and with which settings: one screen, with or without a GPU.

`look` asks the machine; `advice` is arithmetic on what it answered, and needs no machine.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from dreamactor import __version__
from dreamactor.backbones.catalogue import CATALOGUE, GIB, Dtype, Entry, Offload, Storage
from dreamactor.backbones.folder import find_folder
from dreamactor.errors import DreamActorError
from dreamactor.manifest import MISSING
from dreamactor.mllm import choose
from dreamactor.signer import users

EXTRAS = {
    "world": ("moderngl",),
    "bench": ("matplotlib",),
    "train": ("accelerate", "tensorboard"),
    "review": ("fastapi", "uvicorn"),
    "studio": ("fastapi", "uvicorn"),
    "ray": ("ray",),
    "mediapipe": ("mediapipe",),
    "rtmlib": ("rtmlib", "onnxruntime"),
}
"""Optional extra -> modules that it brings (pyproject.toml)."""
ENCODERS = {"libx264": "mp4, mov, mkv", "libvpx-vp9": "webm", "gif": "gif"}
"""Encoder of PyAV -> the suffixes of --out that need it."""
SPARE = 0.94
"""Part of a GPU's memory that may be planned with: the driver and fragments take the rest."""
HOST_SPARE = 4.0
"""GiB of the host's memory beside weights that wait there."""
SPARING: tuple[tuple[Offload, Storage], ...] = (
    ("model", "auto"), ("model", "float8"), ("group", "auto"),
)  # fmt: skip
"""What spares memory, the quickest first."""


@dataclass(frozen=True)
class Gpu:
    """One that torch can use."""

    name: str
    memory: float
    """GiB."""
    bfloat16: bool
    """Whether it computes in bfloat16 at speed."""


@dataclass(frozen=True)
class Machine:
    """What counts for the choice of settings."""

    cores: int
    memory: float
    """GiB of the host."""
    gpus: tuple[Gpu, ...] = ()


def look() -> Machine:
    """Ask the machine."""
    import torch

    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        found = torch.cuda.get_device_properties(index)
        gpus.append(Gpu(found.name, found.total_memory / GIB, found.major >= 8))
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    except (AttributeError, ValueError, OSError):  # Windows
        memory = 0.0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Machine(cores or 1, memory, tuple(gpus))


def advice(entry: Entry, machine: Machine) -> str:
    """Whether a backbone runs on a machine, and the settings that it takes there.

    Args:
        entry: The backbone.
        machine: Its first GPU counts.

    Returns:
        One line: yes with options of `animate`, or no with what is short.
    """
    if not entry.hub:
        return "yes, on the CPU" + (" or with --device cuda" if machine.gpus else "")
    if not machine.gpus:
        return f"no: wants a GPU of {entry.needs('group'):.0f} GiB or more"
    gpu = machine.gpus[0]
    dtype: Dtype = "bfloat16" if gpu.bfloat16 else "float32"
    options = "--device cuda" + ("" if gpu.bfloat16 else " --dtype float32")
    weights = sum(entry.bytes_of(part, dtype) for part in entry.parts) / GIB
    if entry.needs("none", dtype) <= gpu.memory * SPARE:
        return f"yes: {options}"
    for offload, storage in SPARING:
        if entry.needs(offload, dtype, storage) > gpu.memory * SPARE:
            continue
        spares = "--preset low-memory" if offload == "group" else f"--offload {offload}"
        if storage != "auto":
            spares += f" --storage {storage}"
        if machine.memory and machine.memory < weights + HOST_SPARE:
            return (
                f"no: {spares} keeps {weights:.0f} GiB in the host's memory, here are "
                f"{machine.memory:.0f}"
            )
        return f"yes: {options} {spares}"
    return (
        f"no: wants {entry.needs('group', dtype):.0f} GiB of GPU memory, here are {gpu.memory:.0f}"
    )


def report(machine: Machine) -> Iterator[str]:
    """The lines of `dreamactor doctor`."""
    python = platform.python_version()
    yield f"dreamactor   {__version__}, Python {python}, {platform.system()} {platform.machine()}"
    free = shutil.disk_usage(Path.cwd()).free / GIB
    yield f"machine      {machine.cores} cores, {machine.memory:.1f} GiB, {free:.0f} GiB free here"
    yield f"torch        {_torch(machine)}"
    yield f"clips        {_clips()}"
    yield f"drawing      {_drawing()}"
    yield f"prompts      {_prompts()}"
    yield f"marks        {_marks()}"
    yield from _extras()
    yield ""
    yield "backbones    --backbone, and what else on this machine"
    for entry in CATALOGUE.values():
        yield f"  {entry.name:27}{advice(entry, machine)}"
        if entry.hub:
            yield f"  {'':27}{_weights(entry)}"


def _torch(machine: Machine) -> str:
    import torch

    if machine.gpus:
        found = ", ".join(f"{gpu.name} of {gpu.memory:.0f} GiB" for gpu in machine.gpus)
        old = [gpu.name for gpu in machine.gpus if not gpu.bfloat16]
        return f"{torch.__version__}, {found}" + ("; no bfloat16: --dtype float32" if old else "")
    if torch.version.cuda is None and shutil.which("nvidia-smi"):
        return f"{torch.__version__}: a build for CPUs, but there is a GPU; install one for CUDA"
    return f"{torch.__version__}, no GPU that it can use"


def _clips() -> str:
    import av

    able, lacking = [], []
    for encoder, suffixes in ENCODERS.items():
        try:
            av.codec.Codec(encoder, "w")
            able.append(suffixes)
        except (av.codec.codec.UnknownCodecError, ValueError):
            lacking.append(f"no {encoder} for {suffixes}")
    return f"PyAV {av.__version__}, writes {', '.join(able)}" + "".join(f"; {x}" for x in lacking)


def _drawing() -> str:
    """Of the synthetic world alone; animating needs none."""
    if find_spec("moderngl") is None:
        return "not installed; only the synthetic world needs it"
    from dreamactor.world.render import open_context

    try:
        context = open_context()
    except DreamActorError as error:
        return str(error)
    name = str(context.info["GL_RENDERER"])
    context.release()
    return f"OpenGL through EGL, {name}"


def _prompts() -> str:
    try:
        client = choose("auto")
    except DreamActorError as error:
        return str(error)
    return "described offline; DREAMACTOR_MLLM_* name a model" if client is None else client.name


def _marks() -> str:
    """What results are marked by here; see docs/marks.md."""
    try:
        found = users()
    except DreamActorError as error:
        return str(error)
    if find_spec("c2pa") is None:
        return f"a watermark, but no C2PA manifest: {MISSING}"
    return f"watermark and C2PA manifest, signed by {'your' if found else 'a local'} certificate"


def _extras() -> Iterator[str]:
    there: list[str] = []
    absent: list[str] = []
    for extra, modules in EXTRAS.items():
        (there if all(find_spec(module) for module in modules) else absent).append(extra)
    yield f"extras       {', '.join(there) or 'none'}"
    if absent:
        yield f"             not installed: {', '.join(absent)}; pip install 'dreamactor[NAME]'"


def _weights(entry: Entry) -> str:
    try:
        return f"weights in {find_folder(entry, None)}"
    except DreamActorError:
        size = sum(map(entry.bytes_of, entry.parts)) / 1e9
        return f"{size:.0f} GB of weights, none in the hub's cache; see `dreamactor backbones`"
