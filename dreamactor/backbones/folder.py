"""Folders in diffusers' format: what is missing, whose weights they are, where and how they run.

Nothing heavy is imported before weights are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dreamactor.errors import ConfigError, WeightsError
from dreamactor.provenance import sha256

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
"""Number format of a large model; auto is bfloat16 on a GPU and float32 on the CPU."""
Offload = Literal["none", "model", "group"]
"""What lies in main memory while it does not work: nothing; whole models, one of which is on the
GPU at a time; or besides, all but a few layers of the one that works."""
INDEX = "model_index.json"


def dtype_of(name: Dtype, device: str) -> torch.dtype:
    """The number format that is meant."""
    import torch

    if name == "auto":
        return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    found: torch.dtype = getattr(torch, name)
    return found


def check_folder(
    folder: Path | None, pipeline: str, sizes: Mapping[str, float], source: str
) -> None:
    """Refuse a folder that is not there, not whole, or of another model.

    Args:
        folder: The one that was named, if one was.
        pipeline: Class that model_index.json has to name.
        sizes: The parts that have weights, and how many GB each has as published.
        source: Where they are published, on the hub.

    Raises:
        ConfigError: No folder was named.
        WeightsError: Says which parts are missing, how large they are, and how to get them.
    """
    total = sum(sizes.values())
    if folder is None:
        raise ConfigError(
            f"weights=none: want a folder of {source} ({total:.1f} GB); "
            f"`hf download {source} --local-dir FOLDER` fetches it"
        )
    fetch = f"`hf download {source} --local-dir {folder}`"
    index = folder / INDEX
    if not index.is_file():
        raise WeightsError(
            f"{folder}: no {INDEX}; want a folder in diffusers' format ({total:.1f} GB), which "
            f"{fetch} fetches"
        )
    try:
        parts: dict[str, Any] = json.loads(index.read_text())
        found = parts.get("_class_name")
    except (ValueError, AttributeError) as error:
        raise WeightsError(f"{index}: not a table of JSON ({error}); is it damaged?") from error
    if found != pipeline:
        raise WeightsError(f"{folder}: a folder of {found}, want {pipeline}")
    missing: dict[str, float] = {}
    for part, size in sizes.items():
        missing |= _missing(folder, part, size)
    named = [name for name, kind in parts.items() if isinstance(kind, list) and kind[0]]
    missing |= {name: 0.0 for name in named if name not in sizes and not any_file(folder / name)}
    if missing:
        listed = ", ".join(f"{k} ({v:.1f} GB)" if v else k for k, v in missing.items())
        raise WeightsError(f"{folder}: missing {listed}; {fetch} fetches what is not there")


def any_file(folder: Path) -> bool:
    """Whether there is something in a folder."""
    return folder.is_dir() and any(folder.iterdir())


def _missing(folder: Path, part: str, size: float) -> dict[str, float]:
    """Files that a part lacks and their GB: the whole part, or some of its shards."""
    indices = sorted((folder / part).glob("*.safetensors.index.json"))
    if not indices:
        whole = any((folder / part).glob("*.safetensors"))
        return {} if whole and (folder / part / "config.json").is_file() else {part: size}
    try:
        index = json.loads(indices[0].read_text())
        shards = sorted(set(index["weight_map"].values()))
        total = float(index["metadata"]["total_size"]) / 1e9
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{indices[0]}: not an index of shards; is it damaged?") from error
    gone = [shard for shard in shards if not (folder / part / shard).is_file()]
    there = sum((folder / part / shard).stat().st_size for shard in shards if shard not in gone)
    return {f"{part}/{shard}": max(0.0, total - there / 1e9) / len(gone) for shard in gone}


def hashes(folder: Path, parts: Mapping[str, float]) -> dict[str, str]:
    """sha256 of every weight file, by its path within the folder."""
    paths = sorted(path for part in parts for path in (folder / part).glob("*.safetensors"))
    with ThreadPoolExecutor(8) as pool:  # hashing lets go of the interpreter
        found = pool.map(sha256, paths)
        return {str(p.relative_to(folder)): digest for p, digest in zip(paths, found, strict=True)}


def digest_of(weights: Mapping[str, str], part: str = "transformer") -> str:
    """What stands for one part's weights: its file's sha256, or that of its files' together."""
    own = [v for k, v in sorted(weights.items()) if k.partition(".")[0] == part]
    own += [v for k, v in sorted(weights.items()) if k.startswith(f"{part}/")]
    if len(own) < 2:
        return own[0] if own else ""
    return hashlib.sha256("".join(own).encode()).hexdigest()


@contextmanager
def quiet() -> Iterator[None]:
    """Neither progress bars nor advice to developers while weights load; errors are shown."""
    from diffusers.utils import logging as ours
    from transformers.utils import logging as theirs

    before = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in (ours, theirs)]
    for log, _, _ in before:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, verbosity, bars in before:
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()


def read_pipeline(
    folder: Path,
    pipeline: type[DiffusionPipeline],
    models: Mapping[str, Any],
    dtype: torch.dtype,
) -> DiffusionPipeline:
    """A pipeline with all its models, none of whose numbers are missing.

    diffusers and transformers fill a gap with random numbers, or with none; here it is a fault.

    Args:
        folder: In diffusers' format, which `check_folder` has seen.
        pipeline: Its class.
        models: Class of each part that has weights.
        dtype: Of all of them.

    Raises:
        WeightsError: A part is damaged, or is another one; says which.
    """
    from safetensors import SafetensorError

    parts, part = {}, "pipeline"
    faults = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError)
    try:
        with quiet():
            for part, kind in models.items():
                parts[part], found = kind.from_pretrained(
                    folder / part, dtype=dtype, local_files_only=True, output_loading_info=True
                )
                if missing := sorted(found["missing_keys"]):
                    raise WeightsError(
                        f"{folder / part}: no numbers for {len(missing)} of its tensors, such as "
                        f"{missing[0]}; is it damaged?"
                    )
            part = "pipeline"
            return pipeline.from_pretrained(folder, local_files_only=True, **parts)
    except (*faults, SafetensorError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{folder}: its {part} cannot be read: {first}") from error


def place(pipe: DiffusionPipeline, device: str, offload: Offload) -> None:
    """Put all models of a pipeline where they are to run, with diffusers' own means.

    Raises:
        ConfigError: Something is to be offloaded from the CPU.
    """
    import torch

    if offload == "none":
        pipe.to(device)
        return
    if torch.device(device).type == "cpu":
        raise ConfigError(f"offload={offload} on device={device}: want a GPU, or offload=none")
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.enable_group_offload(
            onload_device=torch.device(device), offload_type="leaf_level", use_stream=True
        )
