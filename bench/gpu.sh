#!/bin/bash
# Everything that graft measures on one GPU, in under 10 minutes: the GPU tests, loss curves against the CPU, and speed and memory
# against HF transformers + PEFT. Results go to FOLDER: gpu_test.log, curves.log, compare.jsonl.
# Usage: gpu.sh FOLDER PYTHON GRAFT GPU_TEST [MPIRUN ...]
#   PYTHON    has torch, transformers, peft
#   GRAFT, GPU_TEST   the programs; in a bundle (gpu_bundle.sh): "BUNDLE/run.sh TORCH_FOLDER graft" and "... gpu_test"
#   MPIRUN    with its options for two ranks: curves of two ranks too (in a bundle "BUNDLE/run.sh TORCH_FOLDER mpirun -np 2", and
#             SHARE_GPU=1 in the environment where there is one GPU)
# PART=test|curves|speed does one part only.
set -euo pipefail
[ $# -ge 4 ] || { sed -n '2,10s/^# //p' "$0" >&2; exit 64; }
here=$(dirname "$(realpath "$0")")
folder=$1 python=$2 graft=$3 gpu_test=$4
shift 4
mkdir -p "$folder"
part() { [ "${PART:-$1}" = "$1" ] && echo "== $1 $(date -u +%T)"; }

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$folder/gpu.txt"
# shellcheck disable=SC2086  # GRAFT and GPU_TEST are commands with arguments
{
  $graft --version | tee -a "$folder/gpu.txt"
  if part test; then
    $gpu_test --gtest_brief=1 > "$folder/gpu_test.log" 2>&1 || { tail -c 6000 "$folder/gpu_test.log"; exit 1; }
    tail -3 "$folder/gpu_test.log"
  fi
  if part curves; then
    "$python" "$here/gpu_curves.py" --graft $graft --out "$folder/curves" --ranks "$*" | tee "$folder/curves.log"
  fi
  if part speed; then
    for shape in llama-1b llama-8b; do
      "$python" "$here/compare_gpu.py" --graft $graft --shape $shape --pairs 3 --out "$folder/$shape" | tee -a "$folder/compare.jsonl"
    done
    for kind in int8 nf4; do
      "$python" "$here/compare_gpu.py" --graft $graft --skip-peer --pairs 1 --quantize $kind --out "$folder/$kind" | tee -a "$folder/compare.jsonl"
    done
  fi
}
