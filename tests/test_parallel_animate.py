"""`dreamactor animate` started by torchrun: Wan in a one-way mode, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import wan_folder
from filming import film, frames_of

from dreamactor.backbones.lora import AdapterInfo, attach
from dreamactor.backbones.parallel import Team
from dreamactor.backbones.stacking import save_layers
from dreamactor.backbones.wan import check_spread, load_wan
from dreamactor.errors import ConfigError
from dreamactor.image import write_png

NAME = "wan2.1-i2v-14b-480p"


def test_two_processes_make_the_clip_of_one(tmp_path: Path) -> None:
    """same: several segments, guided; one clip and one record, by the first process."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    write_png(tmp_path / "reference.png", noise)
    film(tmp_path / "driving.mp4", 20, fps=16)
    folder = wan_folder.write(tmp_path / "wan")
    wan, info = load_wan(NAME, folder), AdapterInfo("rgb", NAME, "f" * 64, 2, attention="one-way")
    attach(wan.pipe.transformer, info)
    save_layers(tmp_path / "adapter.safetensors", wan.experts, info)
    options = {
        "reference": tmp_path / "reference.png", "driving": tmp_path / "driving.mp4",
        "backbone": NAME, "weights": folder, "adapter": tmp_path / "adapter.safetensors",
        "size": wan_folder.SIZE, "frames": wan_folder.FRAMES, "steps": 2, "guidance": 3,
        "prompt": "a bird", "threads": 1,
    }  # fmt: skip
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    script = Path(__file__).parent / "parallel_animate.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), *words],
        env=environment, capture_output=True, timeout=180, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("20 frames of 32 x 16") == 2
    one, two = (np.stack(frames_of(tmp_path / f"{count}.mp4")).astype(int) for count in (1, 2))
    assert np.abs(one - two).max() <= 2  # levels: rounding, then the codec
    segments = json.loads((tmp_path / "2.json").read_text())["segments"]
    assert segments > 1
    passes = 2 * 2 * segments  # steps, and branches of guidance
    assert done.stderr.count(f"\n{passes} passes gathered") == 2


@pytest.mark.parametrize(("name", "mode"), [("nano", "one-way"), (NAME, "full")])
def test_refuses_what_samples_in_one_process(name: str, mode: str) -> None:
    check_spread(name, mode, Team())  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match=f"2 processes: {name} samples in one here; several want Wan"
    ):
        check_spread(name, mode, Team(0, 2))  # type: ignore[arg-type]
