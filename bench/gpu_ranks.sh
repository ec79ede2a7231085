#!/bin/bash
# What two ranks that share one GPU do, and what kernels and the training step with its switches on and off cost, planned for 9 minutes
# on an H200 (parts of it took: tests 56 s, kernels 11, pipeline 25, curves 44, graphs 90): the GPU tests, the contract of the NCCL groups, the pipeline that once stood still (docs/gpu.md), loss curves of every
# layout over nccl and mpi, speed and memory. Each part has a time limit of its own, goes on after a failure and leaves its
# result in FOLDER when it ends: *.log, curves.log, compare.jsonl, and of the first pipeline what each rank did last.
# Usage: gpu_ranks.sh FOLDER PYTHON BUNDLE TORCH_FOLDER
#   PYTHON   has torch, transformers, peft
#   BUNDLE   made by gpu_bundle.sh BUILD BUNDLE graft gpu_test comm_nccl_test graft_kernel_bench; TORCH_FOLDER: .../site-packages/torch
# PART=tests|kernels|pipeline|curves|speed|graphs does one part only.
set -uo pipefail
[ $# = 4 ] || { sed -n '2,10s/^# //p' "$0" >&2; exit 64; }
here=$(dirname "$(realpath "$0")")
mkdir -p "$1"
folder=$(realpath "$1") python=$2
run="$(realpath "$3")/run.sh $4"
mpi="$run mpirun -np 2"
export SHARE_GPU=1
failed=()
SECONDS=0

part() { [ "${PART:-$1}" = "$1" ] && echo "== [$SECONDS s] $1"; }
# limited NAME SECONDS COMMAND ...: into NAME.log; says how it ended, and the end of what went wrong.
limited() {
  local name=$1 limit=$2 status=0
  shift 2
  timeout -k 5 "$limit" "$@" > "$folder/$name.log" 2>&1 || status=$?
  echo "   $name: $([ $status = 0 ] && echo passed || echo "FAILED ($status)") [$SECONDS s]"
  [ $status = 0 ] || { failed+=("$name"); grep -vE '^frame|Writing' "$folder/$name.log" | tail -12 | cut -c1-300; }
  return $status
}
curves() { # NAME SECONDS OPTIONS: of two ranks
  local name=$1 limit=$2
  shift 2
  # shellcheck disable=SC2086  # a command with arguments
  limited "$name" "$limit" "$python" "$here/gpu_curves.py" --graft $run graft --out "$folder/$name" --methods --quantize \
    --ranks "$mpi" "$@"
  local status=$?
  grep -hE '^lora|^failed|^all' "$folder/$name.log" | tee -a "$folder/curves.log"
  return $status
}
compare() { # NAME SECONDS OPTIONS
  local name=$1 limit=$2
  shift 2
  # shellcheck disable=SC2086
  limited "$name" "$limit" "$python" "$here/compare_gpu.py" --graft $run graft --out "$folder/$name" "$@" &&
    tail -1 "$folder/$name.log" | sed "s/^{/{\"name\": \"$name\", /" | tee -a "$folder/compare.jsonl" | cut -c1-900
  cp "$folder/$name/graft-0/log" "$folder/$name.graft.log" 2> /dev/null
  cat "$folder/$name/graft-0/run/trace/"*.json > "$folder/$name.trace.json" 2> /dev/null || rm -f "$folder/$name.trace.json"
  rm -rf "${folder:?}/${name:?}"
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$folder/gpu.txt"
# shellcheck disable=SC2086
{
  if part tests; then
    limited gpu_test 120 $run gpu_test --gtest_brief=1
    limited comm_nccl_test 60 $mpi $run comm_nccl_test --gtest_brief=1
  fi
  if part kernels; then
    limited kernels 60 $run graft_kernel_bench cuda && cat "$folder/kernels.log"
  fi
  if part pipeline; then
    # Past 25 s in a step the watchdog writes what each rank did last and ends the run.
    watched='{"watchdog": {"step_seconds": 25}, "log": {"trace": 3}}'
    NCCL_DEBUG=INFO curves pipeline 75 --layouts pipeline --backends nccl --recipe "$watched" --run-seconds 45 || {
      tar czf "$folder/pipeline-ranks.tgz" -C "$folder/pipeline" --exclude checkpoints --exclude tiny .
      # The same with all kernels loaded at the start: passes when loading them is what stops the ranks.
      CUDA_MODULE_LOADING=EAGER curves pipeline-eager 75 --layouts pipeline --backends nccl --recipe "$watched" --run-seconds 45
    }
  fi
  if part curves; then
    curves curves-nccl 75 --layouts data pipeline shards --backends nccl --run-seconds 40
    curves curves-mpi 75 --layouts data pipeline shards --backends mpi --run-seconds 40
  fi
  if part speed; then
    alone="--pairs 1 --skip-peer"
    compare llama-8b 100 --shape llama-8b --pairs 2
    compare llama-8b-reserved 40 --shape llama-8b $alone --parallel '{"reserve_memory": true}'
    compare llama-1b 50 --shape llama-1b --pairs 1
    # Whether the host's launches hold up the GPU: operations are seen from the host, the end of a step from both.
    compare llama-1b-traced 30 --shape llama-1b $alone --steps 5 --trace 4
    compare llama-1b-reserved 30 --shape llama-1b $alone --parallel '{"reserve_memory": true}'
    pipeline="--shape llama-1b $alone --steps 5 --micro-batches 4"
    compare pipeline-nccl 40 $pipeline --parallel '{"pipeline": 2}' --ranks "$mpi"
    compare pipeline-mpi 40 $pipeline --parallel '{"pipeline": 2, "backend": "mpi"}' --ranks "$mpi"
    # Gradients of 45 MB, in three pieces, summed inside the last backward pass.
    compare data-nccl 40 $pipeline --parallel '{"data": 2}' --trace 3 --ranks "$mpi"
    shards="--shape llama-1b $alone --warmup 1 --steps 2 --micro-batches 2"
    compare shards-nccl 40 $shards --parallel '{"data": 2, "shard_weights": true}' --ranks "$mpi"
    compare shards-mpi 40 $shards --parallel '{"data": 2, "shard_weights": true, "backend": "mpi"}' --ranks "$mpi"
  fi
  if part graphs; then
    # A micro-batch's passes launched and replayed as a CUDA graph: the first three steps see, record and replay the layout.
    for length in 256 4096; do
      for graphs in false true; do
        compare "llama-1b-$length-graphs-$graphs" 40 --shape llama-1b --length $length --pairs 1 --skip-peer --warmup 5 --steps 20 \
          --parallel "{\"cuda_graphs\": $graphs}"
      done
    done
  fi
}
rm -rf "$folder"/*/*/run/checkpoints
echo "== [$SECONDS s] ${#failed[@]} failed: ${failed[*]:-none}"
[ ${#failed[@]} = 0 ]
