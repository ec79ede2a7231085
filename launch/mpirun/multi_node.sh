#!/usr/bin/env bash
# Runs graft on several machines that reach each other by ssh without a password and share (or have equal copies of) the
# program, the model, the data set and the folder of the recipe.
#
#   launch/mpirun/multi_node.sh HOSTFILE RANKS_PER_NODE COMMAND --config RECIPE [section.key=value ...]
#   launch/mpirun/multi_node.sh hosts 2 train --config my.yaml parallel.data=2 parallel.pipeline=2
#
# HOSTFILE: one host name a line, # for comments. Hosts x RANKS_PER_NODE = parallel.data x parallel.pipeline; the stages of one
# replica are neighbours, so that with RANKS_PER_NODE = parallel.pipeline hidden states stay inside a machine. Where machines
# have several network interfaces, GRAFT_INTERFACE names the one to use. Stops like single_node.sh. Other settings by
# environment: launch/mpirun/common.sh.
set -uo pipefail
# shellcheck source=launch/mpirun/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if [ $# -lt 3 ] || ! is_count "$2"; then
  fail usage 64 "multi_node.sh: found '$*', allowed: HOSTFILE RANKS_PER_NODE COMMAND --config RECIPE [section.key=value ...]"
fi
hostfile="$1" per_node="$2"
shift 2
[ -r "$hostfile" ] || fail usage 64 "multi_node.sh: $hostfile: cannot be read, must be a file with one host name a line"
mapfile -t hosts < <(sed -e 's/#.*//' "$hostfile" | awk 'NF {print $1}')
[ "${#hosts[@]}" -gt 0 ] || fail usage 64 "multi_node.sh: $hostfile: holds no host name"
graft="$(find_graft)" || exit $?
list="$(printf "%s:$per_node," "${hosts[@]}")"
mapfile -t flags < <(mpirun_flags "$per_node")
say "${#hosts[@]} hosts x $per_node ranks"
run_forwarding mpirun "${flags[@]}" --host "${list%,}" -np "$((${#hosts[@]} * per_node))" "$graft" "$@"
