"""Weights of large models on the disk: folders in diffusers format, and what is missing in them.

model_index.json
transformer/     config.json, diffusion_pytorch_model*.safetensors, an index where in pieces
text_encoder/    config.json, model*.safetensors; and so on, one folder a part
"""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dreamactor.backbones.catalogue import Entry
from dreamactor.errors import WeightsError
from dreamactor.provenance import sha256

HUB_ID = re.compile(r"[\w][\w.-]*/[\w.-]+")
WITHOUT_WEIGHTS = ("tokenizer", "scheduler")
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
    folders = (*entry.parts, *WITHOUT_WEIGHTS, "image_processor")
    patterns = ["model_index.json", *(f"{folder}/*" for folder in folders)]
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
    """Refuse a folder in which files are missing.

    Raises:
        WeightsError: Names all of them with their sizes.
    """
    absent = [] if (folder / "model_index.json").is_file() else ["model_index.json"]
    for part in entry.parts:
        absent += _absent(entry, folder, part)
    for part in (*WITHOUT_WEIGHTS, *(["image_processor"] * ("image_encoder" in entry.parts))):
        if not (folder / part).is_dir():
            absent.append(f"{part} (small)")
    if absent:
        raise WeightsError(
            f"{folder}: weights of {entry.name} are missing: {', '.join(absent)}; fetch them with "
            f"`hf download {entry.hub} --local-dir {folder}`"
        )


def fingerprints(entry: Entry, folder: Path) -> dict[str, str]:
    """part/file -> sha256 of all weight files."""
    files = [path for part in entry.parts for path in sorted((folder / part).glob("*.safetensors"))]
    with ThreadPoolExecutor(READERS) as readers:
        digests = list(readers.map(sha256, files))
    return {
        path.relative_to(folder).as_posix(): digest
        for path, digest in zip(files, digests, strict=True)
    }


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
            raise WeightsError(f"{index}: not an index of weights ({error})") from error
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
