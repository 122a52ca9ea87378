"""What weight files and adapters say of themselves; torch is not imported, numbers are not read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dreamactor.errors import WeightsError

NANO = Path(__file__).parents[1] / "data" / "nano"
"""Folder of the weights that ship."""
FIRST, SECOND = "transformer", "transformer_2"
"""Experts, as parts of a large model are called."""


def read_header(path: Path) -> dict[str, Any]:
    """What a file of `save_weights` says of itself; its numbers stay on the disk.

    Raises:
        WeightsError: The file is missing, damaged or not ours.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: weights are missing; want a safetensors file here")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error
    if "dreamactor" not in metadata:
        raise WeightsError(f"{path}: no DreamActor header; want weights this program wrote")
    try:
        header = json.loads(metadata["dreamactor"])
    except ValueError as error:
        raise WeightsError(f"{path}: its header is not JSON ({error}); is it damaged?") from error
    if not isinstance(header, dict):
        raise WeightsError(f"{path}: its header is no table of values; is it damaged?")
    return header


def check_model(path: Path, header: Mapping[str, Any], kind: str) -> None:
    """Refuse weights of another model.

    Raises:
        WeightsError: Says what the file holds and what was wanted.
    """
    if header.get("model") != kind:
        raise WeightsError(f"{path}: weights of {header.get('model')!r}, want {kind!r}")


def check_base(path: Path, trained: tuple[str, str], here: tuple[str, str]) -> None:
    """Refuse an adapter of another backbone, or of other weights of it.

    Args:
        path: The adapter.
        trained: Name of the backbone that it was trained on, and sha256 of its transformer.
        here: Those of the backbone at hand.

    Raises:
        WeightsError: They differ.
    """
    if trained != here:
        raise WeightsError(
            f"{path}: an adapter of {trained[0]} {trained[1][:12]}..., here is {here[0]} "
            f"{here[1][:12]}...; want the backbone it was trained on"
        )


def adapter_files(path: Path) -> list[Path]:
    """The weight files behind a path.

    Raises:
        WeightsError: There are none.
    """
    if path.is_file():
        return [path]
    known = [[f"{FIRST}.safetensors", f"{SECOND}.safetensors"], [f"{FIRST}.safetensors"]]
    known += [["adapter_model.safetensors"], ["pytorch_lora_weights.safetensors"]]
    for names in known:
        if all((path / name).is_file() for name in names):
            return [path / name for name in names]
    raise WeightsError(
        f"{path}: low-rank layers are missing; want a safetensors file, or a folder of "
        f"{FIRST}.safetensors and {SECOND}.safetensors, or one that peft wrote"
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of a weights folder."""
    path = folder / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise WeightsError(
            f"{folder}: nano's weights are missing (no manifest.json); reinstall dreamactor, "
            "or make them with `dreamactor train nano`"
        ) from error
    except OSError as error:
        raise WeightsError(
            f"{path}: cannot be read: {error.strerror}; want the folder of nano's weights"
        ) from error
    except ValueError as error:
        raise WeightsError(f"{path}: not JSON ({error})") from error
    return manifest
