#!/usr/bin/env bash
# The recipe's rows that docs/results.md compares, on a machine with GPUs, behind scripts/gpu.sh:
#
#   scripts/gpu.sh base HOME OUT minutes=7    nano as an image-to-video model, frozen from then on
#   scripts/claims.sh caches HOME SHARDS [NAME...]
#                                             render pairs to keep; examples beside the pools, for
#                                             all rows or some: pose, plain, twins, placed
#   scripts/claims.sh rows HOME OUT NAME...   an adapter each, spread over the GPUs, of STEPS steps
#   scripts/claims.sh pairs HOME OUT COUNT    bootstrap with the row FULL: COUNT pairs a process
#   scripts/claims.sh all HOME OUT SHARDS COUNT PAIRS
#                                             all of that until SECONDS_LIMIT: caches, the rows of
#                                             STAGE1, pairs of FULL, the rows of STAGE2, bench
#   scripts/claims.sh bench HOME OUT PAIRS NAME...
#                                             measure rows on held-out pairs, some on each GPU,
#                                             and join them in bench-rows-joined/report.md
#
# Rows are in `kind` below, and NAME@SEED is a seed of a row: full@0 full@1 channel@0 channel@1; a
# row has a seed in its name always or never. Rows of stage 2 start from FULL (`full`) and want
# `pairs` first; rows that distil want the cache `placed` and HOME/teacher.safetensors. BASELINE
# (FULL's row, or the first) is what the joined report compares with. HOME and OUT as of gpu.sh. Where the clock ends rows before their STEPS, they have had equal time, each
# its part of a GPU. HOME/base, if it is there, is a base that `train export` wrote before.
# From the environment: GPUS, FIRST_GPU, SPREAD (1: GPUs of a row, which BATCH is over), SLOTS (rows at a
# time; all), STEPS (1000, of `full`; rows of another cost per step have as many as take its operations),
# BATCH (32), MINUTES (of a row, over as many commands as it takes; by default this command's, of `all`
# none), MORE (settings of every row: "compile=true held=16"), SECONDS_LIMIT (570), PROCESSES (8 a GPU),
# KEEP (0.5 of the pairs pass), EXACT (true: rows by true skeletons too), SIZE (256), DEVICE (cuda).
set -euo pipefail
verb=$1 home=$2
spread=${SPREAD:-1} limit=${SECONDS_LIMIT:-570} steps=${STEPS:-1000} batch=${BATCH:-32} each=${PROCESSES:-8}
slots=${SLOTS:-0} size=${SIZE:-256} device=${DEVICE:-cuda} full=${FULL:-full}
gpus=${GPUS:-$(nvidia-smi -L | wc -l)} first=${FIRST_GPU:-0}
export PYTHONPATH=$home/src:$home/site PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=2 TOKENIZERS_PARALLELISM=false
vendor=/usr/local/nvidia/share/glvnd/egl_vendor.d/10_nvidia.json
if [ -f $vendor ]; then export __EGL_VENDOR_LIBRARY_FILENAMES=$vendor; fi
vae=$home/start/vae.safetensors base=$home/base/transformer.safetensors
pools=$(cat "$home/pools")

dreamactor() { python3 -m dreamactor.cli "$@"; }
on() {
  local from=$((first + $1 * spread % gpus))
  CUDA_VISIBLE_DEVICES=$(seq -s, "$from" $((from + spread - 1))) PORT=$((29600 + from)) "${@:2}"
}
left() { echo $((limit - SECONDS)); }
done_in() { echo "$1 after $SECONDS s"; }

# of OPERATIONS: steps that take what those of `full` take together; a step's operations over those of
# the canvas in full, which tests/test_injection.py counts for both sizes
if [ "$size" -gt 128 ]; then aligned=.81 channel=.40 cross=.54; else aligned=.92 channel=.47 cross=.56; fi
of() { awk "BEGIN {print \"steps=\" int($steps * $aligned / $1)}"; }

# kind NAME: stage, cache and settings of an adapter
kind() {
  case $1 in
    full) echo pose pose ;;                      # the paper's stage 1
    seed1) echo pose pose seed=1 ;;
    plain) echo pose plain ;;                    # bones as they are
    silent) echo pose pose no_text=1 ;;          # without text
    overlaid) echo pose pose injection=overlaid ;;
    temporal) echo pose pose injection=temporal "$(of 1)" ;;
    channel) echo pose pose injection=channel "$(of $channel)" ;;
    cross-attention) echo pose pose injection=cross-attention "$(of $cross)" ;;
    rank16 | rank64) echo pose pose "rank=${1#rank}" ;;
    attention) echo pose pose targets=attention ;;
    whole) echo pose pose targets=full rate=2e-4 ;;  # no adapter: every weight learns
    paper) echo pose pose attention=full "$(of 1)" ;;  # every token sees every token
    noised) echo pose pose motion=noised attention=full "$(of 1)" ;;
    rgb) echo rgb reversed ;;                    # the paper's stage 2
    unfiltered) echo rgb all ;;
    checked) echo rgb checked ;;                 # what the gate let pass, and the truth too
    forward) echo rgb forward ;;                 # towards the synthetic clip
    twins) echo rgb twins ;;                     # true pairs: as good as bootstrapping could get
    distilled | sharper)                             # weights of nano, to 4 steps
      echo distill placed targets=full rate=4e-5 score_rate=8e-5 shift=2 average=0.98 continued=0.5 no_text=0.5 \
        "adversary=$([ "$1" = sharper ] && echo 0.5 || echo 0)" ;;
    *) echo "no row $1" >&2; exit 2 ;;
  esac
}

# row NAME or NAME@SEED: the same, with the seed
row() {
  local found
  found=$(kind "${1%@*}")
  case $1 in *@*) found+=" seed=${1##*@}" ;; esac
  echo "$found"
}

# result NAME: what a row has trained
result() { if whole "$1"; then echo "$home/$1-weights"; else
  echo "$home/rows/$1/adapter.safetensors"; fi; }

# whole NAME: whether it has no adapter
whole() { case " $(row "$1") " in *" targets=full "*) true ;; *) false ;; esac }

train() {
  local name=$1 stage cache more start=() from=$base
  read -r stage cache more <<< "$(row "$name")"
  if [ "$stage" = rgb ]; then start=("start=$home/rows/$full/adapter.safetensors"); fi
  if [ "$stage" = distill ]; then start=(start=none) from=$home/teacher.safetensors; fi
  local setting
  for setting in rate=5e-4 average=0.995 "steps=$steps"; do
    case " $more ${MORE:-}" in *" ${setting%=*}="*) ;; *) more="$more $setting" ;; esac
  done
  local by=(python3) here
  here=$(awk "BEGIN {print ($(left) - 65) / 60}")
  if [ "$spread" -gt 1 ]; then by=(torchrun --nproc-per-node "$spread" --master-port "$PORT"); fi
  # shellcheck disable=SC2086  # settings are words
  timeout -k 20 "$(left)" "${by[@]}" -m dreamactor.cli train "$stage" --out "$home/rows/$name" \
    cache="$pools/cache-$cache" base="$from" vae="$vae" batch="$batch" \
    warmup=100 decay_from=0.5 checkpoint=false look_every=500 save_minutes=60 \
    "minutes=${MINUTES:-$here}" "pause_minutes=$here" "${start[@]}" $more ${MORE:-} > "$home/rows/$name.log" 2>&1
}

# slot NUMBER: train what is left in the queue, one after the other, on the same GPUs
slot() {
  local name
  while [ "$(left)" -gt 90 ]; do
    name=$(flock "$home/queue.lock" sed -i -e '1w /dev/stdout' -e 1d "$home/queue")
    if [ -z "$name" ]; then break; fi
    on "$1" train "$name" || true
  done
}

# examples NAME TASK settings...: a cache, by several processes on one GPU
examples() {
  timeout -k 20 "$(left)" torchrun --standalone --nproc-per-node "$each" -m dreamactor.cli train cache \
    --task "$2" --out "$pools/cache-$1" vae="$vae" text="$home/text" "${@:3}" > "$home/cache-$1.log" 2>&1 || tail -5 "$home/cache-$1.log"
  done_in "cache $1, $(du -sm "$pools/cache-$1" | cut -f1) MB,"
}

case $verb in
  caches)
    OMP_NUM_THREADS=1 dreamactor world pool --cast "$home/full.castpack" --out "$pools/keep" \
      --shards "$3" --size "$size" --processes "${RENDERERS:-16}" --minutes 3 --gpus "$gpus" --first-gpu "$first" --seed 7 \
      > "$home/keep.log" 2>&1
    done_in "$(find "$pools/keep" -name '*.json' | wc -l) shards"
    names=("${@:4}") number=0
    if [ ${#names[@]} = 0 ]; then names=(pose plain twins); fi
    for name in "${names[@]}"; do
      case $name in
        pose) more=(pose draws=2) ;;
        plain) more=(pose draws=2 scale_share=0) ;;
        twins) more=(rgb) ;;
        placed) more=(rgb reference=other placed=true) ;;
        *) echo "no cache $name" >&2; exit 2 ;;
      esac
      on "$number" examples "$name" "${more[@]}" pool="$pools/keep" &
      number=$((number + 1))
    done
    wait ;;
  rows)
    mkdir -p "$home/rows"
    number=0
    declare -A begun=()
    for name in "${@:4}"; do
      read -r stage cache more <<< "$(row "$name")"
      if [ "$stage" != distill ] && [ ! -f "$base" ]; then
        dreamactor train export --vae "$vae" --transformer "$home/nano-base/transformer.safetensors" \
          --shift 2 --size "$size" --out "$home/base"
      fi
      if [ "$stage" = rgb ] && [ ! -d "$pools/cache-$cache" ] && [ -z "${begun[$cache]:-}" ]; then
        begun[$cache]=1
        on "$number" examples "$cache" rgb size="$size" triplets="$home/data/$cache.jsonl" &
        number=$((number + 1))
      fi
    done
    wait
    printf '%s\n' "${@:4}" > "$home/queue"
    if [ "$slots" = 0 ]; then slots=$(($# - 3)); fi
    for number in $(seq 0 $((slots - 1))); do slot "$number" & done
    wait
    for name in "${@:4}"; do
      if whole "$name" && [ -f "$home/rows/$name/transformer.safetensors" ]; then
        dreamactor train export --vae "$vae" --transformer "$home/rows/$name/transformer.safetensors" \
          --shift 2 --size "$size" --out "$home/$name-weights"
      fi
      echo "== $name: $(tail -1 "$home/rows/$name.log")"
      grep missed_1 "$home/rows/$name/metrics.jsonl" | tail -1 || true
      cp "$home/rows/$name/metrics.jsonl" "$3/row_$name.jsonl" || true
    done
    done_in rows ;;
  pairs)
    for number in $(seq 0 $((each * gpus - 1))); do
      on "$number" timeout -k 10 "$(left)" python3 -m dreamactor.cli bootstrap pairs --out "$home/data" \
        --cast "$home/full.castpack" count="$4" seed="$number" size="$size" weights="$home/base" variant=pose \
        adapter="$home/rows/$full/adapter.safetensors" device="$device" threads=2 \
        > "$home/pairs-$number.log" 2>&1 || tail -2 "$home/pairs-$number.log" &
    done
    wait
    done_in "$(find "$home/data" -name item.json | wc -l) pairs"
    python3 "$home/scripts/claims_triplets.py" "$home/data" "$((each * gpus))" "${KEEP:-0.5}"
    done_in triplets ;;
  bench)
    declare -A mine=()
    number=0 oracle=
    if [ "$size" != 256 ]; then  # it draws at that size what it was trained for at 256
      oracle=$home/oracle
      dreamactor train export --vae "$home/src/dreamactor/data/nano/vae.safetensors" --shift 2 --size "$size" \
        --transformer "$home/src/dreamactor/data/nano/transformer.safetensors" --out "$oracle"
    fi
    for name in "${@:5}"; do
      key=$((number % gpus))
      if [ "${name%@*}" = silent ]; then key+=s; fi  # measured as it was trained, without text
      mine[$key]+="${mine[$key]:+,}$name:$(result "$name")"
      number=$((number + 1))
    done
    for number in "${!mine[@]}"; do
      on "${number%s}" timeout -k 10 "$(left)" python3 -m dreamactor.cli bench variants \
        --cast "$home/full.castpack" --out "$home/bench-rows-$number" weights="$home/base" \
        others="${mine[$number]}" count="$4" size="$size" exact="${EXACT:-false}" ${oracle:+"oracle=$oracle"} \
        compare="$([ "$number" = 0 ] && echo "${COMPARE:-true}" || echo false)" \
        captions="$([ "${number%s}" = "$number" ] && echo true || echo false)" device="$device" \
        perceptual="$home/alex.safetensors" processes="${WORKERS:-12}" > "$home/bench-rows-$number.log" 2>&1 &
    done
    wait
    runs=() baseline=${BASELINE:-}
    for number in $(printf '%s\n' "${!mine[@]}" | sort); do
      tail -1 "$home/bench-rows-$number.log"
      if [ -f "$home/bench-rows-$number/results.jsonl" ]; then runs+=("$home/bench-rows-$number"); fi
    done
    if [ -z "$baseline" ]; then
      case " ${*:5} " in *" $full "*) baseline=${full%@*} ;; *) baseline=${5%@*} ;; esac
    fi
    dreamactor bench join --out "$home/bench-rows-joined" --baseline "$baseline" "${runs[@]}" ||
      echo "not joined: repeat bench, or bench join on what lies in $3/rows.tar.gz"
    tar -czf "$3/rows.tar.gz" -C "$home" $(cd "$home" && ls -d bench-rows-* pairs-0.log cache-*.log rows/*.log rows/*/samples)
    done_in bench ;;
  all)
    part() { SECONDS_LIMIT=$1 "$0" "${@:2}" || echo "failed: ${*:2}"; }
    part $((limit / 5)) caches "$home" "$4" pose plain twins
    export MINUTES=${MINUTES:-inf}  # rates go by steps, not by the clock that rows share
    read -r -a one <<< "$STAGE1"
    read -r -a two <<< "$STAGE2"
    part $((limit * 58 / 100 - SECONDS)) rows "$home" "$3" "${one[@]}"
    part $((limit * 12 / 100)) pairs "$home" "$3" "$5"
    export STEPS=${STAGE2_STEPS:-$steps}
    part $((limit * 84 / 100 - SECONDS)) rows "$home" "$3" "${two[@]}"
    trained=()
    for name in "${one[@]}" "${two[@]}"; do
      if [ -e "$(result "$name")" ]; then trained+=("$name"); else echo "untrained: $name"; fi
    done
    part "$(left)" bench "$home" "$3" "$6" "${trained[@]}"
    done_in all ;;
  *) echo "unknown verb $verb" >&2; exit 2 ;;
esac
