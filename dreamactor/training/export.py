"""Turn what training wrote into a weights folder that `animate` loads."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from dreamactor.backbones.base import Native
from dreamactor.backbones.headers import read_header
from dreamactor.backbones.nano import check_header
from dreamactor.backbones.weights import load_weights, save_weights
from dreamactor.runs import write_text

STEPS, SHIFT = 4, 3.0
"""Of the sampler, for weights that were not distilled to others."""


def export_nano(
    vae: Path,
    transformer: Path,
    out: Path,
    steps: int | None = None,
    shift: float | None = None,
    size: int = 256,
) -> int:
    """Write vae.safetensors, transformer.safetensors and manifest.json.

    Matrices and kernels are stored as 8-bit rows; that costs less than .1 dB (docs/training.md).

    Args:
        vae: Weights of `train_nano_vae`.
        transformer: Weights of `train_nano`.
        out: The folder; made if needed.
        steps: The sampler's default steps with these weights; None takes those that they were
            distilled to, or STEPS.
        shift: The shift of its schedule; None likewise, or SHIFT.
        size: Pixels of a side that they were trained at.

    Returns:
        Bytes of the folder's weights.

    Raises:
        WeightsError: A file is missing or of the wrong kind.
    """
    distilled = read_header(transformer).get("sampling") or (STEPS, SHIFT)
    steps, shift = steps or distilled[0], shift or distilled[1]
    out.mkdir(parents=True, exist_ok=True)
    files = {}
    for source, kind in ((vae, "nano-vae"), (transformer, "nano")):
        state, header = load_weights(source)
        check_header(source, header, kind)
        name = "vae.safetensors" if kind == "nano-vae" else "transformer.safetensors"
        files[name] = save_weights(out / name, state, header, eight_bit=True)
    native = Native(  # what the world's pairs are made at
        height=size,
        width=size,
        fps=12.0,
        frames=17,
        overlap=4,
        steps=steps,
        shift=shift,
        guidance=1.0,
    )
    manifest = {"files": files, "native": asdict(native)}
    write_text(out / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return sum((out / name).stat().st_size for name in files)
