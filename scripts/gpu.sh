#!/usr/bin/env bash
# Train nano on a GPU machine, from what scripts/carry.sh gathered. Each verb is one command:
#
#   scripts/gpu.sh setup HOME            unpack wheels, loaders and whatever is in .carry
#   scripts/gpu.sh render HOME MINUTES   start rendering pairs in the background
#   scripts/gpu.sh vae HOME MINUTES      train the autoencoder in the foreground
#   scripts/gpu.sh nano HOME MINUTES     train the transformer in the foreground
#   scripts/gpu.sh export HOME FILE OUT  split a weight file into pieces of 15 MB
#
# HOME is a folder outside the checkout, which survives between commands. A repeated vae or nano
# with the same MINUTES resumes.
set -euo pipefail
verb=$1 home=$2
gpus=$(nvidia-smi -L | wc -l)
cores=$(getconf _NPROCESSORS_ONLN)
export PYTHONPATH=$home/src:$home/site PYTHONUNBUFFERED=1 OMP_NUM_THREADS=4 TOKENIZERS_PARALLELISM=false
vendor=/usr/local/nvidia/share/glvnd/egl_vendor.d/10_nvidia.json
if [ -f $vendor ]; then export __EGL_VENDOR_LIBRARY_FILENAMES=$vendor; fi
train() { torchrun --nproc-per-node "$gpus" -m dreamactor.cli train "$@"; }
case $verb in
  setup)
    mkdir -p "$home/src"
    if [ -d .whl ]; then python3 -m pip install -q --no-index --no-deps --no-compile --upgrade \
      --target "$home/site" .whl/*.whl; fi
    if [ -d .gl ]; then for f in .gl/*.deb; do dpkg -x "$f" /; done; ldconfig; fi
    rm -rf "$home/src/dreamactor"; cp -r dreamactor "$home/src/"
    for part in .carry/*/; do cp -r "$part"/. "$home/"; done ;;
  render)
    setsid nohup python3 -m dreamactor.cli world pool --cast "$home/full.castpack" \
      --out "$home/pool" --shards 1000000 --processes $((cores * 3 / 4)) --minutes "$3" \
      --gpus "$gpus" --room 800 > "$home/render.log" 2>&1 &
    python3 -m dreamactor.cli world pool --cast "$home/full.castpack" --out "$home/pool_test" \
      --shards 4 --processes 4 --minutes 2 --split test --seed 1 ;;
  vae)
    train nano-vae --out "$home/vae" pool="$home/pool" stills="$home/stills" \
      perceptual="$home/vgg4_fp16.safetensors" minutes="$3" "${@:4}" 2>&1 | tee "$home/vae.log" | tail -25 ;;
  nano)
    train nano --out "$home/nano" pool="$home/pool" vae="$home/vae/vae.safetensors" \
      text="$home/text" consume=true minutes="$3" "${@:4}" 2>&1 | tee "$home/nano.log" | tail -40 ;;
  export)
    split -b 15000000 "$3" "$4/$(basename "$3").part." ;;
  *) echo "unknown verb $verb" >&2; exit 2 ;;
esac
