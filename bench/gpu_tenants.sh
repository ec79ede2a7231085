#!/bin/bash
# What many tenants on one backbone cost on a GPU (docs/tenants.md), with CUDA graphs and without, on a 1B and an 8B shape with
# random weights in bfloat16: batches of 1, 8 and 32 rows, each with an adapter of its own. The tests come first. Each part leaves
# its results in FOLDER when it ends (tests.log, SHAPE-bBATCH/tenants.json, tables.txt); one that fails stops no other. Planned for 5
# minutes on an H200; parts that would begin after 7 are left out, so that it ends within 8.
# Usage: gpu_tenants.sh FOLDER GRAFT GPU_TEST
#   GRAFT, GPU_TEST   the programs; in a bundle (gpu_bundle.sh): "BUNDLE/run.sh TORCH_FOLDER graft" and "... gpu_test"
# In the environment, to try the script elsewhere: DEVICE=cpu (leaves the tests out), DTYPE, SHAPES, BATCHES, REPEATS, PROMPT, NEW_TOKENS.
set -uo pipefail
[ $# -eq 3 ] || { sed -n '2,9s/^# //p' "$0" >&2; exit 64; }
folder=$1 graft=$2 gpu_test=$3
device=${DEVICE:-cuda}
mkdir -p "$folder"
: > "$folder/tables.txt"
failed=()
left() { echo $((420 - SECONDS)); }  # seconds in which parts may begin

# part NAME LOG COMMAND ...: runs it for 150 s at most, in the 8 minutes of all.
part() {
  local name=$1 log=$2
  shift 2
  if [ "$(left)" -le 0 ]; then
    echo "== $name: left out, no time"
    failed+=("$name")
    return 1
  fi
  echo "== $name $(date -u +%T)"
  local limit=$(($(left) + 60))
  [ $limit -le 150 ] || limit=150
  timeout -k 5 $limit "$@" > "$log" 2> "$log.err" && return
  echo "== $name failed with $?:"
  tail -n 15 "$log" "$log.err"
  failed+=("$name")
  return 1
}

# measure SHAPE BATCH METHODS KERNELS
measure() {
  local name=$1-b$2
  mkdir -p "$folder/$name"
  cat > "$folder/$name/recipe.yaml" <<RECIPE
run: {output: $folder/$name}
model: {shape: $1, dtype: ${DTYPE:-bfloat16}}
parallel: {device: $device}
tenants:
  methods: [$3]
  kernels: [$4]
  cuda_graphs: [true, false]
  batches: [$2]
  mixes: [distinct]
  prompts: [${PROMPT:-64}]
  new_tokens: [${NEW_TOKENS:-48}]
  repeats: ${REPEATS:-3}
RECIPE
  # shellcheck disable=SC2086  # GRAFT is a command with arguments
  part "$name" "$folder/$name/table.txt" $graft bench tenants --config "$folder/$name/recipe.yaml" &&
    { echo "$1, ${DTYPE:-bfloat16}"; cat "$folder/$name/table.txt"; echo; } | tee -a "$folder/tables.txt"
}

# shellcheck disable=SC2086
{
  [ "$device" = cpu ] || nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$folder/gpu.txt"
  $graft --version | tee -a "$folder/gpu.txt"
}
if [ "$device" != cpu ]; then
  # shellcheck disable=SC2086
  part tests "$folder/tests.log" $gpu_test --gtest_brief=1 '--gtest_filter=*Tenant*:*GpuGraph*:*GpuEngine*' && tail -n 2 "$folder/tests.log"
fi
for shape in ${SHAPES:-llama-1b llama-8b}; do
  methods="lora, fanlora, para, red"
  [ "$shape" = llama-8b ] || methods="$methods, ia3, lopa"
  for batch in ${BATCHES:-8 32 1}; do
    # Adapter by adapter a step of many rows takes hundreds of milliseconds: once is enough to show it.
    kernels=grouped
    [ "$shape $batch" != "llama-1b 8" ] || kernels="grouped, loop"
    measure "$shape" "$batch" "$methods" "$kernels"
  done
done
echo "== done in $SECONDS s; results in $folder"
[ ${#failed[@]} -eq 0 ] || { echo "not done: ${failed[*]}"; exit 1; }
