#!/usr/bin/env bash
# FanLoRA's four steps: LoRA on all linears tuned on instructions (a), the importance of each module (b), the setting that
# keeps the most important ones of every layer (c), and that setting on a downstream task beside LoRA on all linears and
# LoRA on q and v at the same number of trained parameters (d). What is the paper's and what is ours: docs/fanlora.md.
#
#   launch/fanlora.sh --model DIR --instructions DATA --scoring DATA --task DATA --held-out DATA [OPTION ...] [section.key=value ...]
#
#   --model DIR           an HF model folder
#   --instructions DATA   prepared data set of step a
#   --scoring DATA        prepared data set of step b: other samples than step a's
#   --second DATA         as --scoring, with no sample in common: the first score is taken on it too, and the report says how
#                         far the two agree
#   --task DATA           prepared data set of the downstream task
#   --held-out DATA       prepared data set that step d is judged on
#   --out FOLDER          everything it makes (runs/fanlora)
#   --method NAME         score.method of step b (ab); several in one word, as "ab taylor_sq magnitude": all are scored and
#                         compared, and each one's setting is a row of step d
#   --k N                 modules kept in each layer (3)
#   --rank N              LoRA's rank in step a (8); alpha is twice that
#   --samples N           scored samples (512; 0 = all)
#   --steps N             training steps of step a (200)
#   --task-steps N        training steps of step d (200)
#   --seeds "N ..."       seeds of step d ("0 1 2")
#   --metric NAME         metric of step d's table, as `graft eval` names it (loss)
#   --ranks N             data-parallel ranks on this machine (1)
#
# section.key=value goes to every step's recipe. Run again, it goes on where it stopped; finished steps are kept.
# GRAFT_BINARY=PROGRAM is another graft than build/graft.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

graft="${GRAFT_BINARY:-$ROOT/build/graft}"
model='' instructions='' scoring='' second='' task='' held_out=''
out=runs/fanlora methods=(ab) k=3 rank=8 samples=512 steps=200 task_steps=200 seeds=(0 1 2) metric=loss ranks=1
overrides=()

usage() { fail usage 64 "fanlora.sh: $1; see --help"; }

read_arguments() {
  while [ $# -gt 0 ]; do
    case "$1" in
      -h | --help)
        sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
        exit 0
        ;;
      --*)
        [ $# -ge 2 ] || usage "$1 needs a value"
        case "$1" in
          --model) model="$2" ;;
          --instructions) instructions="$2" ;;
          --scoring) scoring="$2" ;;
          --second) second="$2" ;;
          --task) task="$2" ;;
          --held-out) held_out="$2" ;;
          --out) out="$2" ;;
          --method) read -ra methods <<<"$2" ;;
          --k) k="$2" ;;
          --rank) rank="$2" ;;
          --samples) samples="$2" ;;
          --steps) steps="$2" ;;
          --task-steps) task_steps="$2" ;;
          --seeds) read -ra seeds <<<"$2" ;;
          --metric) metric="$2" ;;
          --ranks) ranks="$2" ;;
          *) usage "unknown option '$1'" ;;
        esac
        shift
        ;;
      *.*=*) overrides+=("$1") ;;
      *) usage "'$1' is neither an option nor section.key=value" ;;
    esac
    shift
  done
}

check_arguments() {
  local name value
  for name in model instructions scoring task held_out; do
    [ -n "${!name}" ] || usage "--${name//_/-} is missing"
    [ -d "${!name}" ] || fail io 74 "fanlora.sh: --${name//_/-} ${!name}: no such folder"
  done
  [ -z "$second" ] || [ -d "$second" ] || fail io 74 "fanlora.sh: --second $second: no such folder"
  for name in k rank steps task_steps ranks; do
    [[ "${!name}" =~ ^[1-9][0-9]{0,8}$ ]] || usage "--${name//_/-} '${!name}': a number of at least 1 is needed"
  done
  [[ "$samples" =~ ^[0-9]{1,9}$ ]] || usage "--samples '$samples': a number is needed"
  if [ "${#methods[@]}" -eq 0 ] || [ "${#seeds[@]}" -eq 0 ]; then usage "--method and --seeds need at least one word"; fi
  for value in "${seeds[@]}"; do [[ "$value" =~ ^[0-9]{1,9}$ ]] || usage "--seeds '$value': a number is needed"; done
  for value in "${methods[@]}"; do [[ "$value" =~ ^[a-z_]+$ ]] || usage "--method '$value': the name of a score is needed"; done
  [ -x "$graft" ] || fail io 74 "fanlora.sh: $graft: no such program; build it first (launch/setup.sh --build)"
}

# graft COMMAND on all ranks: one rank needs no mpirun.
on_ranks() {
  if [ "$ranks" -eq 1 ]; then "$graft" "$@"; else local_ranks "$ranks" "$graft" "$@"; fi
}

# The recipe of steps a to c; `graft score` reads model, data and adapter as the training run did.
write_recipe() {
  cat >"$out/lora.yaml" <<YAML
run: {name: lora, output: "$out/lora"}
model: {path: "$model"}
task: {type: causal_lm}
data: {train: "$instructions", eval: "$scoring", shuffle: true}
adapter: {method: lora, sites: all, rank: $rank, alpha: $((2 * rank))}
parallel: {data: $ranks}
optim: {lr: 1.0e-3, schedule: cosine, warmup_steps: $((steps / 20 + 1)), steps: $steps, global_batch: 16, micro_batch: 4}
score: {data: "$scoring", adapter: "$out/lora/adapter", max_samples: $samples, select: {rule: top_k_per_layer, k: $k}}
YAML
}

# Steps b and c for one score, score METHOD FOLDER [KEY=VALUE]; a finished setting is kept.
score() {
  local method="$1" folder="$out/$2"
  shift 2
  if [ -f "$folder/setting.json" ]; then
    say "importance by $method: done before, $folder"
    return
  fi
  say "importance by $method: $folder"
  on_ranks score --config "$out/lora.yaml" "score.method=$method" "score.output=$folder" "$@" "${overrides[@]}"
}

# What step a trained: the budget of those rows of step d whose rank is to be chosen.
trained_parameters() { grep --only-matching --max-count=1 '"trainable_parameters": *[0-9]*' "$out/lora/metrics.jsonl" | grep -o '[0-9]*$'; }

# The downstream comparison as compare.py reads it.
write_study() {
  local method
  cat <<YAML
title: LoRA and FanLoRA at equal parameters
metric: $metric
budget: $(trained_parameters)
seeds: [$(IFS=,; echo "${seeds[*]}")]
recipe:
  model: {path: "$model"}
  task: {type: causal_lm}
  data: {train: "$task", eval: "$held_out", shuffle: true}
  parallel: {data: $ranks}
  optim: {lr: 1.0e-3, schedule: cosine, warmup_steps: $((task_steps / 20 + 1)), steps: $task_steps, global_batch: 16, micro_batch: 4}
methods:
  - {name: backbone}
  - {name: lora-all, adapter: {method: lora, sites: all, rank: $rank, alpha: $((2 * rank))}}
  - {name: lora-qv, adapter: {method: lora, sites: [attn.q, attn.v]}}
YAML
  for method in "${methods[@]}"; do
    echo "  - {name: fanlora-$method, adapter: {method: fanlora, setting: \"$out/score-$method/setting.json\"}}"
  done
}

# The heat map of the scores and how far they agree.
report_scores() {
  local files=() method
  for method in "${methods[@]}"; do files+=("$method=$out/score-$method/importance.json"); done
  [ -z "$second" ] || files+=("${methods[0]}-second=$out/second-${methods[0]}/importance.json")
  "$ROOT/launch/score_report.py" "${files[@]}" --setting "$out/score-${methods[0]}/setting.json" --k "$k" --out "$out"
}

read_arguments "$@"
check_arguments
mkdir -p "$out"
write_recipe
say "LoRA on all linears: $out/lora"
on_ranks train --config "$out/lora.yaml" "${overrides[@]}"
for method in "${methods[@]}"; do score "$method" "score-$method"; done
[ -z "$second" ] || score "${methods[0]}" "second-${methods[0]}" "score.data=$second"
report_scores
write_study >"$out/study.yaml"
say "downstream: $out/downstream"
"$ROOT/launch/compare.py" --study "$out/study.yaml" --out "$out/downstream" --graft "$graft" "${overrides[@]}"
