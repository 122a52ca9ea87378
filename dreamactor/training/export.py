"""Turn what training wrote into a weights folder that `animate` loads."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from dreamactor.backbones.base import Native
from dreamactor.backbones.nano import check_header
from dreamactor.backbones.weights import load_weights, save_weights
from dreamactor.runs import write_text

NATIVE = Native(
    height=256,
    width=256,
    fps=12.0,
    frames=17,
    overlap=4,
    steps=4,
    shift=3.0,
    guidance=1.0,
)
"""What the world's pairs are made at, and the sampler's defaults."""


def export_nano(vae: Path, transformer: Path, out: Path, eight_bit: tuple[bool, bool]) -> int:
    """Write vae.safetensors, transformer.safetensors and manifest.json.

    Args:
        vae: Weights of `train_nano_vae`.
        transformer: Weights of `train_nano`.
        out: The folder; made if needed.
        eight_bit: Whether the matrices of the autoencoder, and of the transformer, are stored as
            8-bit rows.

    Returns:
        Bytes of the folder's weights.

    Raises:
        WeightsError: A file is missing or of the wrong kind.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = {}
    sources = ((vae, "nano-vae", eight_bit[0]), (transformer, "nano", eight_bit[1]))
    for source, kind, small in sources:
        state, header = load_weights(source)
        check_header(source, header, kind)
        name = "vae.safetensors" if kind == "nano-vae" else "transformer.safetensors"
        files[name] = save_weights(out / name, state, header, small)
    manifest = {"files": files, "native": asdict(NATIVE)}
    write_text(out / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return sum((out / name).stat().st_size for name in files)
