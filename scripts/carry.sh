#!/usr/bin/env bash
# Gather what a GPU machine without a network needs: ./scripts/carry.sh FULL_CASTPACK [PUBLIC_ZIP]
#
#   .whl      wheels that the machine lacks       .gl       OpenGL loaders (Debian packages)
#   .carry/1  cast pack (goes with .whl and .gl)
#   .carry/2  weights that ship: shipped/, and start/vae.safetensors, the autoencoder to start from
#   .carry/3  text encoder, half precision
#   .carry/4  VGG, AlexNet, wheels of PyAV, ftfy and py-spy
#   .carry/5  still pictures, if PUBLIC_ZIP is named: only the autoencoder is trained on them
#
# Each is a load of less than 64 MiB, tracked files included, if dreamactor/data and docs/img stay at home
# (the last lines say how, and how large each load is). `scripts/gpu.sh ready HOME` says there
# whether all have come.
set -euo pipefail
cd "$(dirname "$0")/.."
pack=$1 zip=${2:-}
rm -rf .carry/[1-5] .whl .gl wheels
mkdir -p .whl .gl .carry/1 .carry/2/shipped/nano .carry/2/start .carry/3/text .carry/4/whl wheels
cp "$pack" .carry/1/full.castpack
platforms=(--platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64
  --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform manylinux1_x86_64)
wheels() { .venv/bin/pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  "${platforms[@]}" -d "$@"; }
wheels .whl diffusers==0.42.1 moderngl==5.13.0 glcontext importlib-metadata
wheels .carry/4/whl "av==$(.venv/bin/python -c 'import av; print(av.__version__)')" ftfy wcwidth py-spy
data=dreamactor/data
cp $data/keypoints.safetensors .carry/2/shipped/
cp $data/nano/{manifest.json,magnitudes.json,transformer.safetensors} .carry/2/shipped/nano/
cp $data/nano/vae.safetensors .carry/2/start/
(cd .gl && apt-get download -qq libvulkan1 libegl1 libglvnd0 libopengl0 libgl1 libglx0 libgles2)
if [ -n "$zip" ]; then
mkdir -p .carry/5/stills
(cd wheels && apt-get download -qq mate-backgrounds plasma-workspace-wallpapers &&
  for f in *.deb; do dpkg -x "$f" .; done)
.venv/bin/pip download -q --no-deps -d wheels scikit-image scikit-learn
for f in wheels/*.whl; do python3 -m zipfile -e "$f" wheels/packages; done
.venv/bin/python scripts/stills.py "$zip" .carry/5/stills wheels/usr/share/backgrounds \
  wheels/usr/share/wallpapers wheels/packages/skimage/data wheels/packages/sklearn/datasets
fi
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
export_weights("vgg", Path(".carry/4/vgg.safetensors"), layers=3)
export_weights("alex", Path(".carry/4/alex.safetensors"))
PY
stay=('!dreamactor/data/nano' '!dreamactor/data/*.castpack' '!dreamactor/data/suite_mini' '!dreamactor/data/keypoints.safetensors'
  '!docs/img')
tracked=$(git ls-files -z -- . "${stay[@]/#!/:!}" | xargs -0 stat -c %s | paste -sd+ | bc)
for part in .carry/[1-5]; do
  size=$(find "$part" $([ "$part" = .carry/1 ] && echo .whl .gl) -type f -print0 | xargs -0 stat -c %s | paste -sd+ | bc)
  echo "$part: $(((size + tracked) >> 20)) of 64 MiB"
done
echo "before a call, all committed: git sparse-checkout set --no-cone '/*'$(printf " '%s'" "${stay[@]}"); after it: git sparse-checkout disable"
