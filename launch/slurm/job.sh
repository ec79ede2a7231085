# What the batch scripts of this folder share: source it, do not run it. The rules are those of docs/cluster.md.
# shellcheck shell=bash
#
# Settings by environment, beside those of launch/mpirun/common.sh:
#   GRAFT_HOME=DIR        this tree (default: where sbatch was called)
#   GRAFT_LAUNCHER=srun   start the ranks by `srun --mpi=pmix` instead of mpirun
#   GRAFT_STAGE=DIR       node-local folder; model.path is copied there once per node and read from there
#   GRAFT_MODEL=DIR       the folder to copy (required with GRAFT_STAGE)
#   GRAFT_MAX_RESTARTS=20 requeues of one job
#   GRAFT_RELAUNCHES=2    new starts inside one allocation after ranks were lost
# shellcheck source=launch/mpirun/common.sh
source "${GRAFT_HOME:-$SLURM_SUBMIT_DIR}/launch/mpirun/common.sh"
# shellcheck source=launch/slurm/lost_node.sh
source "${GRAFT_HOME:-$SLURM_SUBMIT_DIR}/launch/slurm/lost_node.sh"

STOPPED=75       # on request, state saved
NOT_STARTED=138  # USR1 reached mpirun before its handlers were there
PEER_LOST=76     # found by graft
NO_START=1       # of the launcher, never of graft: a node that has just come back does not start ranks yet
KILLED=137       # a rank was killed
CRASHED=139      # a rank died of a bad memory access; srun with PMIx does that now and then in MPI_Init
DAEMON_LOST=205  # mpirun lost a node
ORPHAN_SECONDS=5 # how long ranks may outlive a killed launcher

# A text value of the recipe, or of a word key=value on the command line, which wins:
# recipe_text SECTION KEY RECIPE [WORD ...]. Nothing when neither has it.
recipe_text() {
  local section="$1" key="$2" recipe="$3" word
  shift 3
  for word in "$@"; do
    if [[ "$word" == "$section.$key="* ]]; then
      echo "${word#*=}"
      return
    fi
  done
  awk -v section="$section" -v key="$key" '
    { sub(/(^|[ \t])#.*/, "") }
    /^[a-z_]+:/ { inside = ($0 ~ "^" section ":"); sub(/^[a-z_]+:/, "") }
    inside && match($0, "(^|[{, \t])" key ":[ \t]*[^,}]*") {
      value = substr($0, RSTART, RLENGTH)
      sub(".*" key ":[ \t]*", "", value)
      gsub(/^["'\''[:space:]]+|["'\''[:space:]]+$/, "", value)
      print value
      exit
    }' "$recipe"
}

# The folder of a run: run.output, else runs/<run.name>. run_folder RECIPE [WORD ...].
run_folder() {
  local output name
  output="$(recipe_text run output "$@")"
  name="$(recipe_text run name "$@")"
  echo "${output:-runs/${name:-run}}"
}

# The newest committed step of a run folder, 0 when there is none.
newest_step() {
  local name newest=0
  for name in "$1"/checkpoints/step-????????; do
    if [[ "$name" =~ step-([0-9]{8})$ ]] && [ -f "$name/manifest.json" ]; then
      newest=$((10#${BASH_REMATCH[1]}))
    fi
  done
  echo "$newest"
}

# The word that tells graft how long before the end the stop signal comes, unless the recipe does: lead_word RECIPE [WORD ...].
# sbatch hands SBATCH_SIGNAL on to the job; what --signal was on its command line it tells nobody.
lead_word() {
  [ -z "$(recipe_text checkpoint lead_seconds "$@")" ] || return 0
  local asked="${SBATCH_SIGNAL:-$(sed -n 's/^#SBATCH --signal=//p' "$0")}" lead=60 # SLURM's own
  [[ "$asked" != *@* ]] || lead="${asked##*@}"
  echo "checkpoint.lead_seconds=$lead"
}

ranks_per_node() { echo $((SLURM_NTASKS / SLURM_JOB_NUM_NODES)); }

check_allocation() {
  [ "$((SLURM_NTASKS % SLURM_JOB_NUM_NODES))" -eq 0 ] ||
    fail usage 64 "$SLURM_NTASKS tasks on $SLURM_JOB_NUM_NODES nodes: must be the same number on each (--ntasks-per-node)"
  if [ "${GRAFT_LAUNCHER:-mpirun}" = srun ] && ! srun --mpi=list 2>&1 | grep -qw pmix; then
    fail peer "$PEER_LOST" "this SLURM has no PMIx (srun --mpi=list): every task would be a job of its own; use mpirun (leave GRAFT_LAUNCHER away)"
  fi
  [ "${SLURM_RESTART_COUNT:-0}" -eq 0 ] || wait_for_nodes
}

# SLURM gives a job nodes that have just come back, and refuses steps on them for some seconds more. At most a minute: what is
# wrong after that, the launcher says.
wait_for_nodes() {
  local try
  for try in {1..12}; do
    srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 true 2>/dev/null && return
    say "not all nodes start a step yet ($try)"
    sleep 5
  done
}

# Copies GRAFT_MODEL to every node and prints the words for graft that make it read the copy. A copy that is there is kept: the
# name holds a hash of names, sizes and times. It appears complete or not at all.
stage_weights() {
  [ -n "${GRAFT_STAGE:-}" ] || return 0
  [ -d "${GRAFT_MODEL:-}" ] || fail usage 64 "GRAFT_STAGE needs GRAFT_MODEL, found '${GRAFT_MODEL:-}', must be a model folder"
  local stamp target
  stamp="$(cd "$GRAFT_MODEL" && find . -type f -printf '%p %s %T@\n' | sort | sha256sum | cut -c 1-16)"
  target="$GRAFT_STAGE/graft-$stamp"
  # shellcheck disable=SC2016  # expanded on the nodes
  srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 bash -c '
    [ -d "$2" ] && exit 0
    mkdir -p "$(dirname "$2")" && temp="$(mktemp -d "$2.XXXXXX")" && cp -rL "$1/." "$temp" &&
      { mv -T "$temp" "$2" 2>/dev/null || rm -rf "$temp"; } && [ -d "$2" ]' stage "$GRAFT_MODEL" "$target" >&2 ||
    fail io 74 "GRAFT_STAGE=$GRAFT_STAGE: the model could not be copied there on every node"
  echo "model.path=$target"
}

launch_ranks() {
  local graft flags
  graft="$(find_graft)" || return $?
  if [ "${GRAFT_LAUNCHER:-mpirun}" = srun ]; then
    run_forwarding srun --mpi=pmix --kill-on-bad-exit=1 "$graft" "$@"
  else
    # Not quiet: its banner is what names the node of a rank that was killed.
    mapfile -t flags < <(mpirun_flags "$(ranks_per_node)" | grep -vx -e -q)
    run_forwarding mpirun "${flags[@]}" -np "$SLURM_NTASKS" "$graft" "$@"
  fi
}

# True for an end after which a new start in the same allocation may help.
is_lost() {
  local lost
  for lost in "$PEER_LOST" "$NO_START" "$KILLED" "$CRASHED" "$DAEMON_LOST"; do
    [ "$1" -ne "$lost" ] || return 0
  done
  return 1
}

# True for an end that another start in a new allocation goes on from.
can_go_on() { [ "$1" -eq "$STOPPED" ] || [ "$1" -eq "$NOT_STARTED" ] || is_lost "$1"; }

# launch_ranks, and again when ranks were lost: unless a stop was asked for, since SLURM is about to take the nodes away, or all
# would be lost on the same node once more.
launch_with_relaunches() {
  local code before left="${GRAFT_RELAUNCHES:-2}"
  while true; do
    before="$(log_size)"
    launch_ranks "$@"
    code=$?
    is_lost "$code" || return "$code"
    note_lost_node "$before"
    [ "$left" -gt 0 ] && [ -z "$stop_asked$bad_node" ] || return "$code"
    left=$((left - 1))
    say "ranks were lost (exit code $code): new start in $ORPHAN_SECONDS s, $left more after it"
    sleep "$ORPHAN_SECONDS"
    [ -z "$stop_asked" ] || return "$code"
  done
}

# Stops with 76 when this is the third start in a row without progress: something is broken that no restart heals.
# check_progress OUTPUT DONE WHAT [LEAST]: what was done so far, as a number that grows by LEAST (1) or more when a start got on.
check_progress() {
  local output="$1" done="$2" what="$3" least="${4:-1}" log lines
  log="$output/slurm-$SLURM_JOB_ID.starts"
  mkdir -p "$output"
  echo "$done" >>"$log"
  mapfile -t lines < <(tail -n 3 "$log")
  [ "${#lines[@]}" -eq 3 ] && [ $((done - lines[0])) -lt "$least" ] || return 0
  fail peer "$PEER_LOST" "two restarts in a row committed no $what after $done in $output: not started again; see $output/flight and the log, then sbatch anew"
}

# A job that SLURM has put back by itself, as it does after a node failed, is refused as pending: that is as good.
put_back() {
  local answer
  answer="$(scontrol requeue "$SLURM_JOB_ID" 2>&1)" && return
  [[ "$answer" == *"pending execution"* ]] && return
  echo "$answer" >&2
  return 1
}

# Puts the job back into the queue and ends with `code`, or says why not.
requeue() {
  local code="$1" restarts="${SLURM_RESTART_COUNT:-0}" most="${GRAFT_MAX_RESTARTS:-20}"
  [ "$restarts" -lt "$most" ] ||
    fail peer "$PEER_LOST" "job $SLURM_JOB_ID was restarted $restarts times, allowed $most (GRAFT_MAX_RESTARTS): not requeued; sbatch goes on from the last checkpoint"
  say "exit code $code: back into the queue (restart $((restarts + 1)) of at most $most)"
  # SLURM ends this script. One that ends by itself meanwhile can be taken for the end of the next start. Its TERM comes before
  # the node can be left out, which only a job in the queue can be told: then the KILL after KillWait is the end.
  if [ -n "$bad_node" ]; then trap '' USR1 TERM INT; else trap - USR1 TERM INT; fi
  put_back || fail io 74 "scontrol requeue $SLURM_JOB_ID failed; sbatch goes on from the last checkpoint"
  [ -z "$bad_node" ] || leave_bad_node_out
  sleep 60
  exit "$code"
}
