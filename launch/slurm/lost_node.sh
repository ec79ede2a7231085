# Which node a job loses ranks on, and how it leaves one out: sourced by job.sh.
# shellcheck shell=bash

lost_nodes=() # one entry for each loss of this start
bad_node=     # the one that ranks were lost on twice

# Bytes of this job's log so far. All that launcher and ranks say is there, unless somebody made it something else than a file.
log_size() { stat --dereference --format=%s "/proc/$$/fd/2"; }

# The first node that mpirun, srun or graft names as the place of a loss, in the log from byte $1 on. What is killed after a step
# was cancelled is no loss.
named_node() {
  [ -f "/proc/$$/fd/2" ] || return 0
  tail -c "+$(($1 + 1))" "/proc/$$/fd/2" | sed -n -E \
    -e '/^(slurmstepd-[^ ]+: error: \*\*\* STEP|srun: error: tasks? [0-9,-]+ launch failed|srun: Job step aborted)/q' \
    -e 's/^mpirun noticed that process rank [0-9]+ with PID [0-9]+ on node ([^ ]+) exited on signal.*/\1/p' \
    -e 's/^ *Remote daemon: .* on node ([^ ]+)$/\1/p' \
    -e 's/^srun: error: ([^ ]+): tasks? [0-9,-]+: (Killed|Segmentation fault|Bus error|Aborted).*/\1/p' \
    -e 's/^srun: error: Node failure on ([^ ]+).*/\1/p' \
    -e 's/^graft: error: peer: rank [0-9]+ \(process [0-9]+ on ([^ ]+)\) has not run.*/\1/p' | head -n 1
}

# Counts a loss against the node that the log names from byte $1 on. A name that is none of this job's nodes is nobody's.
note_lost_node() {
  local node
  node="$(named_node "$1")"
  node="${node%%.*}"
  [ -n "$node" ] && scontrol show hostnames "$SLURM_JOB_NODELIST" | grep -qxF -e "$node" || return 0
  [[ " ${lost_nodes[*]} " != *" $node "* ]] || bad_node="$node"
  lost_nodes+=("$node")
}

# Makes the bad node one that this job, which has just been put back into the queue, does not get again. Not where the rest of the
# partition is too small: the job would wait for ever.
leave_bad_node_out() {
  local excluded nodes
  excluded="$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/.*ExcNodeList=\([^ ]*\).*/\1/p')"
  [ "$excluded" != '(null)' ] || excluded=
  excluded="${excluded:+$excluded,}$bad_node"
  nodes="$(sinfo --noheader --Node --partition="$SLURM_JOB_PARTITION" --states=idle,alloc,mix,comp --format=%N | sort -u |
    grep -vcxF -f <(scontrol show hostnames "$excluded"))"
  if [ "$nodes" -lt "$SLURM_JOB_NUM_NODES" ]; then
    say "$bad_node lost ranks twice; not left out: partition $SLURM_JOB_PARTITION has $nodes other nodes, the job needs $SLURM_JOB_NUM_NODES"
  elif scontrol update "JobId=$SLURM_JOB_ID" "ExcNodeList=$excluded"; then
    say "$bad_node lost ranks twice: left out from now on (ExcNodeList=$excluded)"
  fi
}
