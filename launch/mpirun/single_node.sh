#!/usr/bin/env bash
# Runs graft on several ranks of this machine, bound to cores of their own.
#
#   launch/mpirun/single_node.sh RANKS COMMAND --config RECIPE [section.key=value ...]
#   launch/mpirun/single_node.sh 2 train --config launch/recipes/red_smollm2.yaml
#
# RANKS = parallel.data x parallel.pipeline. Ctrl-C, TERM and USR1 save the state and stop with exit code 75; run it again to
# go on. Settings by environment: launch/mpirun/common.sh.
set -uo pipefail
# shellcheck source=launch/mpirun/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if [ $# -lt 2 ] || ! is_count "$1"; then
  fail usage 64 "single_node.sh: found '$*', allowed: RANKS COMMAND --config RECIPE [section.key=value ...]"
fi
ranks="$1"
shift
graft="$(find_graft)" || exit $?
mapfile -t flags < <(mpirun_flags "$ranks")
run_forwarding mpirun "${flags[@]}" -np "$ranks" "$graft" "$@"
