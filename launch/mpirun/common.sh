# Shared by the scripts of launch/mpirun and launch/slurm: source it, do not run it.
# shellcheck shell=bash
#
# Settings, all by environment:
#   GRAFT=PATH                the program (default: build/graft of this tree, else `graft` on the PATH)
#   GRAFT_INTERFACE=NAME      network interface, or subnet such as 10.1.0.0/16, for MPI's and NCCL's TCP traffic: needed where
#                             a node has several (login nodes, containers with bridges)
#   GRAFT_BIND=none           do not bind ranks to cores
#   GRAFT_MPIRUN_FLAGS="..."  more flags for mpirun, split at spaces
LAUNCH_DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

say() { printf '== %s\n' "$*" >&2; }

# Ends the script with graft's error line: fail KIND CODE MESSAGE.
fail() {
  printf 'graft: error: %s: %s\n' "$1" "$3" >&2
  exit "$2"
}

# Prints the program's path.
find_graft() {
  local tree="$LAUNCH_DIR/../build/graft"
  if [ -n "${GRAFT:-}" ]; then
    command -v "$GRAFT" || fail usage 64 "GRAFT=$GRAFT: no such program"
  elif [ -x "$tree" ]; then
    echo "$tree"
  else
    command -v graft || fail usage 64 "no build/graft in this tree (launch/setup.sh --build makes it) and no graft on the PATH"
  fi
}

# True for a number of ranks.
is_count() { [[ "$1" =~ ^[1-9][0-9]{0,4}$ ]]; }

# mpirun's flags for so many ranks on each node, one a line: mpirun_flags RANKS_PER_NODE.
mpirun_flags() {
  local per_node="$1" cores more=()
  cores="${SLURM_CPUS_ON_NODE:-$(nproc)}"
  echo -q # its banner would come after graft's last line
  [ "$(id -u)" -ne 0 ] || echo --allow-run-as-root
  if [ "$per_node" -gt "$cores" ]; then
    # More ranks than cores: nobody is bound, and who waits gives its core away.
    printf '%s\n' --oversubscribe --bind-to none --mca mpi_yield_when_idle 1
  elif [ "${GRAFT_BIND:-cores}" = none ]; then
    printf '%s\n' --bind-to none
  else
    # Each rank gets cores of its own; graft makes as many threads as it finds there.
    printf '%s\n' --map-by "ppr:$per_node:node:PE=$((cores / per_node))" --bind-to core
  fi
  if [ -n "${GRAFT_INTERFACE:-}" ]; then
    printf '%s\n' --mca btl_tcp_if_include "$GRAFT_INTERFACE" --mca oob_tcp_if_include "$GRAFT_INTERFACE"
    printf '%s\n' -x "NCCL_SOCKET_IFNAME=$GRAFT_INTERFACE"
  fi
  # A node that is gone is noticed in half a minute, and a shorter gap in the network survived; Open MPI's own setting is eight
  # minutes.
  printf '%s\n' --mca oob_tcp_keepalive_time 10 --mca oob_tcp_keepalive_intvl 5 --mca oob_tcp_keepalive_probes 4
  read -r -a more <<<"${GRAFT_MPIRUN_FLAGS:-}"
  [ "${#more[@]}" -eq 0 ] || printf '%s\n' "${more[@]}"
}

# mpirun waits up to a quarter of an hour for a node that does not answer, when its own ranks have long ended: then it is killed.
STUCK_SECONDS=20
end_stuck_launcher() {
  local launcher="$1" name had_ranks=0 idle=0
  name="$(basename "$(find_graft)" | cut -c 1-15)"
  while sleep 2 && kill -0 "$launcher" 2>/dev/null; do
    if pgrep -P "$launcher" -x "$name" >/dev/null; then
      had_ranks=1 idle=0
    elif [ "$had_ranks" -eq 1 ]; then
      idle=$((idle + 2))
    fi
    [ "$idle" -ge "$STUCK_SECONDS" ] || continue
    say "mpirun still waits for another node $idle s after the last rank here ended: killed"
    kill -KILL "$launcher"
    return
  done
}

# Runs a command so that USR1, TERM and INT to this script become USR1 for it, which is how graft is asked to save and stop: a
# TERM would make mpirun kill its ranks within two seconds. Returns the command's exit code.
child=
stop_asked= # also for launch/slurm/job.sh
forward() {
  # shellcheck disable=SC2034
  stop_asked=1
  [ -z "$child" ] || kill -USR1 "$child" 2>/dev/null
}
run_forwarding() {
  local guard
  trap forward USR1 TERM INT
  # In a session of its own: Ctrl-C in a terminal reaches this script alone.
  setsid "$@" &
  child=$!
  end_stuck_launcher "$child" &
  guard=$!
  # A trapped signal ends `wait` early: again, until the command is gone. The shell keeps its exit code.
  while kill -0 "$child" 2>/dev/null; do wait "$child"; done
  wait "$child"
  local code=$?
  child=
  kill "$guard" 2>/dev/null
  return "$code"
}
