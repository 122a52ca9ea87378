#!/usr/bin/env bash
# What half an hour on two GPUs or more is spent on. Each verb is one call of at most ten minutes; what
# it stands on is looked for first, for a call that fails late takes all that follow with it. Before them, as
# scripts/carry.sh says: `scripts/lease.sh begin HOME` with .whl .gl .carry/1, `scripts/gpu.sh load HOME` with
# .carry/2, .carry/3, .carry/4 and what else is there, in turn.
#
#   scripts/lease.sh begin HOME            setup; pairs are rendered from here on
#   scripts/lease.sh base HOME OUT MINUTES key=value...
#                                          the frozen model on all GPUs but the last, which measures COMMANDS;
#                                          its weights come back in OUT, as pieces of base.part.*
#   scripts/lease.sh rows HOME SECONDS SHARDS ROW...
#                                          a cache, then rows of scripts/claims.sh in the background, a GPU each
#   scripts/lease.sh look HOME OUT UNTIL   sheets and figures of the rows when UNTIL seconds have passed; where
#                                          their Python spends its time
#   scripts/lease.sh end HOME OUT ROW...   wait for them, bring their weights back
#   scripts/lease.sh table HOME SHARDS COUNT PAIRS
#                                          `claims.sh all` in the background; its environment is this one's
#   scripts/lease.sh wait HOME OUT UNTIL   how far it has come when it ends, or UNTIL seconds have passed
#
# After `rows` and `end`: scripts/claims.sh bench HOME OUT PAIRS ROW... COMMANDS is a file of commands, a line each,
# run in turn as `python3 -m dreamactor.cli ...` (or as `python3 HOME/scripts/...`), each in HOME. SIZE (256) is the
# pictures', BATCH the base's on a GPU (72).
set -euo pipefail
verb=$1 home=$2
here=$(cd "$(dirname "$0")" && pwd)
gpus=$(nvidia-smi -L | wc -l)
export PYTHONPATH=$home/src:$home/site PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
vendor=/usr/local/nvidia/share/glvnd/egl_vendor.d/10_nvidia.json
if [ -f $vendor ]; then export __EGL_VENDOR_LIBRARY_FILENAMES=$vendor; fi
if [ "$verb" != begin ]; then "$here/gpu.sh" ready "$home"; fi
alone() { CUDA_VISIBLE_DEVICES=$((gpus - 1)) "$@"; }
running() { pgrep -f "claims.sh ${1:-rows} $home" > /dev/null; }

case $verb in
  begin)
    "$here/gpu.sh" setup "$home"
    cp -r tests configs "$home/"
    GPUS=$((gpus > 1 ? gpus - 1 : 1)) "$here/gpu.sh" render "$home" 12 ;;
  base)
    out=$3 minutes=$4
    (GPUS=$((gpus > 1 ? gpus - 1 : 1)) SECONDS_LIMIT=$((${minutes%.*} * 60 + 110)) "$here/gpu.sh" base "$home" "$out" \
      minutes="$minutes" batch=$((72 * (gpus > 1 ? gpus - 1 : 1))) pairs=24000 average=0.999 half_share=0 \
      single_share=0.5 pictures=12 pictures_from=0.85 decay_from=0.4 > "$home/base.out" 2>&1 || true
     for name in pool short; do kill -- "-$(cat "$home/$name.pid")" || true; done) &
    training=$!
    if [ -n "${COMMANDS:-}" ]; then
      while read -r -a words; do
        by=(-m dreamactor.cli)
        case ${words[0]} in scripts/*) by=() ;; esac
        (cd "$home" && alone timeout 250 python3 "${by[@]}" "${words[@]}" > "$home/command.log" 2>&1) || true
        tail -3 "$home/command.log"
        echo "${words[*]:0:5} after $SECONDS s"
      done < "$COMMANDS"
      for file in "$home"/measured-*/{report.md,results.jsonl}; do
        if [ -f "$file" ]; then cp "$file" "$out/$(basename "$(dirname "$file")")_$(basename "$file")"; fi
      done
    fi
    wait $training
    tail -6 "$home/base.out"
    python3 -m dreamactor.cli train export --vae "$home/start/vae.safetensors" --shift 2 --size "${SIZE:-256}" \
      --out "$home/base" --transformer "$home/nano-base/transformer.safetensors"
    rm -rf "$(cat "$home/pools")"/{pool,short} "$out"/transformer.safetensors.part.*
    split -b 16000000 "$home/base/transformer.safetensors" "$out/base.part." ;;
  rows)
    seconds=$3 shards=$4
    test -f "$home/base/manifest.json"
    SPREAD=$gpus PROCESSES=$((7 * gpus)) RENDERERS=$((15 * gpus)) SECONDS_LIMIT=220 "$here/claims.sh" caches "$home" \
      "$shards" pose
    tail -n 1 "$home/cache-pose.log"
    rm -rf "$(cat "$home/pools")/keep"
    mkdir -p "$home/o"
    number=0
    for row in "${@:5}"; do
      GPUS=1 FIRST_GPU=$number MORE="compile=true held=16" BATCH=64 STEPS=1000000 SECONDS_LIMIT=$seconds \
        setsid nohup "$home/scripts/claims.sh" rows "$home" "$home/o" "$row" > "$home/row-$row.log" 2>&1 < /dev/null &
      number=$((number + 1))
    done
    sleep 45
    for row in "${@:5}"; do tail -n 2 "$home/rows/$row.log"; done
    running ;;
  look)
    out=$3 until=$4
    running
    sleep 60
    for log in "$home"/rows/*.log; do
      row=$(basename "$log" .log)
      pid=$(pgrep -f "train pose.*rows/$row " | sort -n | tail -1 || true)
      "$home/site/bin/py-spy" record -d 8 -f raw -o "$out/pyspy-$row.txt" --pid "$pid" > "$home/spy.log" 2>&1 ||
        tail -2 "$home/spy.log"
    done
    nvidia-smi dmon -c 4 -s u | tail -n $((4 * gpus))
    while running && [ $SECONDS -lt "$until" ]; do sleep 1; done
    for log in "$home"/rows/*.log; do
      row=$(basename "$log" .log)
      tail -n 1 "$log"
      grep swapped_1 "$home/rows/$row/metrics.jsonl" | tail -n 3
      cp "$home/rows/$row/samples/$(ls "$home/rows/$row/samples" | tail -1)" "$out/$row.png"
    done ;;
  end)
    out=$3
    while running; do sleep 1; done
    for row in "${@:4}"; do
      cat "$home/row-$row.log"
      for kind in adapter transformer; do
        if [ -f "$home/rows/$row/$kind.safetensors" ]; then
          split -b 16000000 "$home/rows/$row/$kind.safetensors" "$out/$row.$kind.part."; fi
      done
    done
    tar --exclude='*.safetensors' -czf "$out/rows.tar.gz" -C "$home" rows ;;
  table)
    test -f "$home/base/manifest.json"
    mkdir -p "$home/o"
    setsid nohup "$home/scripts/claims.sh" all "$home" "$home/o" "${@:3}" > "$home/table.log" 2>&1 < /dev/null &
    sleep 60
    cat "$home/table.log"
    running all ;;
  wait)
    out=$3
    while running all && [ $SECONDS -lt "$4" ]; do sleep 1; done
    cat "$home/table.log"
    for log in "$home"/rows/*.log; do echo "$(basename "$log" .log): $(tail -n 1 "$log")"; done
    mkdir -p "$out/metrics"
    for folder in "$home"/rows/*/; do
      cp "$folder/metrics.jsonl" "$out/metrics/$(basename "$folder").jsonl" || true
    done
    tar -czf "$out/metrics.tar.gz" -C "$out" metrics
    rm -r "$out/metrics"
    cat "$home"/bench-rows-[0-9]*/results.jsonl | gzip > "$out/bench.jsonl.gz" || true
    cp "$home/bench-rows-joined/"*.md "$home/bench-rows-joined/"*.png "$home/bench-rows-0/contact.png" "$out/" || true
    if ! running all; then tail -n 3 "$home"/bench-rows-*.log; fi ;;
  *) echo "unknown verb $verb" >&2; exit 2 ;;
esac
