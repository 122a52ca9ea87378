"""Weights of large models in folders of diffusers' format: what is missing, whose, and where to.

model_index.json
transformer/     config.json, diffusion_pytorch_model*.safetensors, an index where in pieces
text_encoder/    config.json, model*.safetensors; and so on, one folder a part

Nothing heavy is imported before weights are read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamactor.backbones.catalogue import Dtype, Entry, Offload, Storage
from dreamactor.errors import ConfigError, WeightsError
from dreamactor.provenance import sha256

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

INDEX = "model_index.json"
HUB_ID = re.compile(r"[\w][\w.-]*/[\w.-]+")
READERS = 4
"""Files that are hashed at once."""


def find_folder(entry: Entry, source: Path | None) -> Path:
    """The folder of a model's weights.

    Args:
        entry: Which model.
        source: A folder, or a hub id, whose files are then fetched; None takes the published id,
            if its files are in the hub's cache.

    Raises:
        WeightsError: There is no such folder, or the hub does not give it.
    """
    if source is not None and source.is_dir():
        return source
    hub = entry.hub if source is None else source.as_posix()
    size = sum(map(entry.bytes_of, entry.parts)) / 1e9
    wanted = f"weights of {entry.name}, about {size:.0f} GB in bfloat16"
    if not HUB_ID.fullmatch(hub):
        raise WeightsError(f"{source}: no such folder; want {wanted}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise WeightsError(f"{hub}: huggingface_hub is not installed; want a folder") from error
    patterns = [INDEX, *(f"{folder}/*" for folder in (*entry.parts, *entry.small))]
    try:
        return Path(
            snapshot_download(hub, allow_patterns=patterns, local_files_only=source is None)
        )
    except (OSError, ValueError) as error:
        if source is None:
            hint = f"want --weights FOLDER, or --weights {hub} to fetch them from the hub"
            raise WeightsError(f"{wanted}, are not in the hub's cache; {hint}") from error
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"{source}: no such folder, and the hub does not give it ({first}); want {wanted}"
        ) from error


def check_folder(entry: Entry, folder: Path) -> None:
    """Refuse a folder of another model, or in which files are missing.

    Raises:
        WeightsError: Names all that is missing with its size.
    """
    absent = [] if (folder / INDEX).is_file() else [INDEX]
    if not absent and entry.pipeline:
        _check_class(entry, folder / INDEX)
    for part in entry.parts:
        absent += _absent(entry, folder, part)
    for part in entry.small:
        if not (folder / part).is_dir() or not any((folder / part).iterdir()):
            absent.append(f"{part} (small)")
    if absent:
        raise WeightsError(
            f"{folder}: weights of {entry.name} are missing: {', '.join(absent)}; fetch them with "
            f"`hf download {entry.hub} --local-dir {folder}`"
        )


def fingerprints(folder: Path, parts: Iterable[str]) -> dict[str, str]:
    """part/file -> sha256 of all weight files of these parts."""
    files = [path for part in parts for path in sorted((folder / part).glob("*.safetensors"))]
    with ThreadPoolExecutor(READERS) as readers:
        digests = list(readers.map(sha256, files))
    return {
        path.relative_to(folder).as_posix(): digest
        for path, digest in zip(files, digests, strict=True)
    }


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


def dtype_of(name: Dtype, device: str) -> torch.dtype:
    """What "auto" means on a device: bfloat16 but on a CPU, most of which are slower in it."""
    import torch

    if name == "auto":
        name = "float32" if torch.device(device).type == "cpu" else "bfloat16"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def read_pipeline(
    folder: Path,
    pipeline: type[DiffusionPipeline],
    models: Mapping[str, Any],
    dtypes: Mapping[str, torch.dtype],
    absent: Mapping[str, None] | None = None,
) -> DiffusionPipeline:
    """A pipeline with all its models, none of whose numbers are missing.

    diffusers and transformers fill a gap with random numbers, or with none; here it is a fault.

    Args:
        folder: In diffusers' format, which `check_folder` has seen.
        pipeline: Its class.
        models: Class of each part that has weights.
        dtypes: Number format of each.
        absent: Parts to do without.

    Raises:
        WeightsError: A part is damaged, or is another one; says which.
    """
    parts = {part: read_model(folder, part, kind, dtypes[part]) for part, kind in models.items()}
    with _readable(folder, "pipeline"), quiet():
        return pipeline.from_pretrained(folder, local_files_only=True, **(absent or {}), **parts)


def read_model(folder: Path, part: str, kind: Any, dtype: torch.dtype) -> Any:
    """One part of a pipeline's folder, none of whose numbers are missing.

    Raises:
        WeightsError: It is damaged, or is another one.
    """
    with _readable(folder, part), quiet():
        model, found = kind.from_pretrained(
            folder / part, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    if missing := sorted(found["missing_keys"]):
        raise WeightsError(
            f"{folder / part}: no numbers for {len(missing)} of its tensors, such as "
            f"{missing[0]}; is it damaged?"
        )
    return model


def read_config(folder: Path, part: str) -> Any:
    """config.json of a part, as attributes.

    Raises:
        WeightsError: It is damaged.
    """
    from diffusers.configuration_utils import FrozenDict

    path = folder / part / "config.json"
    try:
        return FrozenDict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(f"{path}: not a table of JSON ({error}); is it damaged?") from error


@contextmanager
def _readable(folder: Path, part: str) -> Iterator[None]:
    """Say of any fault that it is this part's."""
    from safetensors import SafetensorError

    faults = (
        OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError
    )  # fmt: skip
    try:
        yield
    except (*faults, SafetensorError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{folder}: its {part} cannot be read: {first}") from error


def open_pipeline(
    entry: Entry,
    source: Path | None,
    pipeline: type[DiffusionPipeline],
    models: Mapping[str, Any],
    dtype: torch.dtype,
    without: Iterable[str] = (),
) -> tuple[Path, Any]:
    """A model's folder, which is whole, and its pipeline.

    Args:
        entry: Which model.
        source: As in `find_folder`.
        pipeline: Its class.
        models: Class of each part that has weights.
        dtype: Number format of all parts but those that the catalogue keeps in float32.
        without: Parts whose weights are not read.

    Raises:
        WeightsError: As `find_folder`, `check_folder` and `read_pipeline`.
    """
    import torch

    folder = find_folder(entry, source)
    check_folder(entry, folder)
    dtypes = dict.fromkeys(entry.parts, dtype) | dict.fromkeys(entry.full_precision, torch.float32)
    absent = dict.fromkeys(without)
    parts = {part: models[part] for part in entry.parts if part not in absent}
    return folder, read_pipeline(folder, pipeline, parts, dtypes, absent)


def store(networks: Iterable[Any], storage: Storage, dtype: torch.dtype) -> None:
    """Have the layers of transformers wait in fewer bits, by diffusers' layerwise casting.

    Embeddings and norms stay as they are. Low-rank layers that come later do too; those that are
    there would be rounded, so merge them before.

    Args:
        networks: diffusers' transformers, before they are placed; changed in place.
        storage: In what; auto changes nothing.
        dtype: What they compute in.
    """
    import torch

    if storage == "float8":
        for network in networks:
            network.enable_layerwise_casting(torch.float8_e4m3fn, dtype)


def place(pipe: DiffusionPipeline, device: str, offload: Offload) -> None:
    """Bring the networks of a pipeline to a device, or have them come when they are needed.

    Raises:
        ConfigError: Offload without what it takes.
    """
    import torch
    from diffusers.hooks import apply_group_offloading

    target = torch.device(device)
    if offload == "none":
        pipe.to(target)
    elif offload == "model":
        try:
            pipe.enable_model_cpu_offload(device=target)
        except ImportError as error:
            raise ConfigError(
                "offload=model: needs accelerate; pip install 'dreamactor[train]'"
            ) from error
    else:
        kept: dict[str, Any] = {"onload_device": target, "offload_device": torch.device("cpu")}
        kept["use_stream"] = target.type == "cuda"
        networks: dict[str, Any] = {
            name: part
            for name, part in pipe.components.items()
            if isinstance(part, torch.nn.Module)
        }
        for name, module in networks.items():
            if name.startswith("transformer"):
                module.enable_group_offload(
                    offload_type="block_level", num_blocks_per_group=1, **kept
                )
            elif name == "vae":
                module.to(target)
            else:
                apply_group_offloading(module, offload_type="leaf_level", **kept)
        settle(pipe)


def settle(pipe: DiffusionPipeline) -> None:
    """Have group offload of transformers move their blocks alone, each while another computes.

    Left alone, diffusers at every pass brings what is in no block from memory that is not pinned,
    and copies it back there; here it stays on the device. And it learns which block is next from a
    first pass in which none comes early; here it is told: transformers of `place` run one list in
    order. To be called again after low-rank layers came or went, for diffusers then starts anew.

    Args:
        pipe: Its transformers are changed in place, if they are offloaded by groups.
    """
    for name, network in pipe.components.items():
        hooks = getattr(network, "_diffusers_hook", None)
        if not name.startswith("transformer") or hooks is None:
            continue
        if (own := hooks.get_hook("group_offloading")) is None:
            continue
        rest = own.group
        rest.onload_()
        rest.modules, rest.parameters, rest.buffers = [], [], []
        if order := hooks.get_hook("lazy_prefetch_group_offloading"):  # there with streams
            for block in network.modules():
                hooks = getattr(block, "_diffusers_hook", None)
                if hooks and (tracker := hooks.get_hook("layer_execution_tracker")):
                    tracker.execution_order_update_callback()
            order.post_forward(network, None)  # takes itself and trackers away


def _check_class(entry: Entry, index: Path) -> None:
    """Refuse the index of another pipeline."""
    try:
        found = json.loads(index.read_text()).get("_class_name")
    except (ValueError, AttributeError) as error:
        raise WeightsError(f"{index}: not a table of JSON ({error}); is it damaged?") from error
    if found != entry.pipeline:
        raise WeightsError(
            f"{index.parent}: a folder of {found}; that is not {entry.name}, want {entry.pipeline}"
        )


def _absent(entry: Entry, folder: Path, part: str) -> list[str]:
    """What is missing of a part, with its size."""
    here = folder / part
    whole = _size(entry, part)
    if not (here / "config.json").is_file():
        return [f"{part} ({whole})"]
    wanted: set[str] = set()
    total = 0
    for index in here.glob("*.safetensors.index.json"):
        try:
            stated = json.loads(index.read_text())
            wanted |= set(stated["weight_map"].values())
            total += int(stated.get("metadata", {}).get("total_size", 0))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsError(
                f"{index}: not an index of weights ({error}); is it damaged?"
            ) from error
    missing = sorted(name for name in wanted if not (here / name).is_file())
    if missing:
        each = total / len(wanted) / 1e9
        return [f"{part}/{name} (about {each:.1f} GB)" for name in missing]
    if not wanted and not any(here.glob("*.safetensors")):
        return [f"{part} ({whole})"]
    return []


def _size(entry: Entry, part: str) -> str:
    half, full = (entry.bytes_of(part, dtype) / 1e9 for dtype in ("bfloat16", "float32"))
    if half == full:
        return f"{full:.1f} GB"
    return f"{half:.1f} GB in bfloat16, {full:.1f} in float32"
