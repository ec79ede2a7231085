#!/usr/bin/env bash
# FanLoRA's steps as a chain of SLURM jobs: LoRA on all linears, scoring and selection, then one downstream task with the setting.
#
#   launch/slurm/fanlora.sh LORA.yaml SCORE.yaml FANLORA.yaml [SBATCH OPTION ...]
#
# Each job starts when the one before has ended well; each is stopped, requeued and resumed as docs/cluster.md says. SCORE.yaml's
# score.adapter is the adapter folder of LORA.yaml's run, FANLORA.yaml's adapter.setting the setting.json of SCORE.yaml's output.
# The options (--nodes, --ntasks-per-node, --time, ...) go to all three. Prints the three job numbers.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

usage() {
  printf 'graft: error: usage: fanlora.sh: %s, allowed: LORA.yaml SCORE.yaml FANLORA.yaml [SBATCH OPTION ...]\n' "$1" >&2
  exit 64
}

[ $# -ge 3 ] || usage "found '$*'"
for recipe in "${@:1:3}"; do [ -r "$recipe" ] || usage "$recipe cannot be read"; done
lora="$1" score="$2" fanlora="$3"
shift 3

# submit SCRIPT RECIPE [JOB BEFORE]: the new job's number.
submit() {
  local before=()
  [ $# -lt 3 ] || before=("--dependency=afterok:$3" --kill-on-invalid-dep=yes)
  sbatch --parsable "${before[@]}" "${options[@]}" "$here/$1" "$2"
}

options=("$@")
first="$(submit train.sbatch "$lora")"
second="$(submit score.sbatch "$score" "${first%%;*}")"
third="$(submit train.sbatch "$fanlora" "${second%%;*}")"
echo "LoRA ${first%%;*}, score ${second%%;*}, FanLoRA ${third%%;*}"
