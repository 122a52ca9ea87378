#!/usr/bin/env bash
# Gather what a GPU machine without a network needs to train nano: ./scripts/carry.sh FULL_CASTPACK PUBLIC_ZIP
#
#   .whl      wheels that the machine lacks       .gl       OpenGL loaders (Debian packages)
#   .carry/1  cast pack, VGG, AlexNet (with .whl and .gl)
#   .carry/2  still pictures: only the autoencoder is trained on them
#   .carry/3  text encoder, half precision
#   .carry/3/start/vae.safetensors, if you put it there: an autoencoder to start from
#
# Three loads, each under 64 MiB with the tracked files but those of dreamactor/data.
set -euo pipefail
cd "$(dirname "$0")/.."
pack=$1 zip=$2
rm -rf .carry/1 .carry/2 .carry/3/text .whl .gl wheels  # .carry/3/start may hold weights
mkdir -p .whl .gl .carry/1 .carry/2/stills .carry/3/text wheels
cp "$pack" .carry/1/full.castpack
platforms=(--platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64
  --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform manylinux1_x86_64)
pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  "${platforms[@]}" -d .whl diffusers==0.42.1 moderngl==5.13.0 glcontext importlib-metadata
(cd .gl && apt-get download -qq libvulkan1 libegl1 libglvnd0 libopengl0 libgl1 libglx0 libgles2)
(cd wheels && apt-get download -qq mate-backgrounds plasma-workspace-wallpapers &&
  for f in *.deb; do dpkg -x "$f" .; done)
pip download -q --no-deps -d wheels scikit-image scikit-learn
for f in wheels/*.whl; do python3 -m zipfile -e "$f" wheels/packages; done
.venv/bin/python scripts/stills.py "$zip" .carry/2/stills wheels/usr/share/backgrounds \
  wheels/usr/share/wallpapers wheels/packages/skimage/data wheels/packages/sklearn/datasets
rm -rf wheels
.venv/bin/python - <<'PY'
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from dreamactor.bench.perceptual import export_weights
from dreamactor.conditioning.text import _package_folder

out, folder = Path(".carry/3"), _package_folder()
for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
    if (folder / name).exists():
        shutil.copy(folder / name, out / "text" / name)
state = {k: v.half() if v.is_floating_point() else v for k, v in load_file(folder / "model.safetensors").items()}
save_file(state, out / "text" / "model.safetensors", metadata={"format": "pt"})
export_weights("vgg", Path(".carry/1/vgg.safetensors"), layers=3)
export_weights("alex", Path(".carry/1/alex.safetensors"))
PY
du -sm .whl .gl .carry/*
