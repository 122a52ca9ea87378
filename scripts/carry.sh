#!/usr/bin/env bash
# Gather what a GPU machine without a network needs to train nano: ./scripts/carry.sh FULL_CASTPACK PUBLIC_ZIP
#
#   .whl      wheels that the machine lacks          .gl     OpenGL loaders (Debian packages)
#   .carry/1  cast pack and still pictures           .carry/2  text encoder and VGG, half precision
#
# Each of .whl + .gl + .carry/1 and .carry/2 stays under 64 MiB.
set -euo pipefail
cd "$(dirname "$0")/.."
pack=$1 zip=$2
mkdir -p .whl .gl .carry/1/stills .carry/2/text wheels
cp "$pack" .carry/1/full.castpack
platforms=(--platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64
  --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform manylinux1_x86_64)
pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  "${platforms[@]}" -d .whl diffusers==0.42.1 moderngl==5.13.0 glcontext importlib-metadata
(cd .gl && apt-get download -qq libvulkan1 libegl1 libglvnd0 libopengl0 libgl1 libglx0 libgles2)
pip download -q --no-deps -d wheels gradio scikit-image scikit-learn ultralytics
.venv/bin/python scripts/stills.py "$zip" .carry/1/stills
rm -rf wheels
.venv/bin/python - <<'PY'
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from dreamactor.bench.perceptual import export_weights
from dreamactor.conditioning.text import _package_folder

out, folder = Path(".carry/2"), _package_folder()
for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
    if (folder / name).exists():
        shutil.copy(folder / name, out / "text" / name)
state = {k: v.half() if v.is_floating_point() else v for k, v in load_file(folder / "model.safetensors").items()}
save_file(state, out / "text" / "model.safetensors", metadata={"format": "pt"})
export_weights("vgg", out / "vgg4_fp16.safetensors", layers=4)
PY
du -sm .whl .gl .carry/1 .carry/2
