"""A training job that SLURM preempts for one of a partition with more priority: saved, requeued, gone on with, and the outcome is
that of a run without a stop."""

from graft_program import metrics
from job import outcome, steps_done, until
from lab.slurm import Slurm
from slurm_job import (
    ENVIRONMENT,
    end_soon,
    job_recipe,
    state,
    submit,
    undisturbed,
    wait_end,
    wait_requeued,
    wait_running_again,
)


def preempt(slurm, launcher, tmp_path):
    slurm.environment["GRAFT_LAUNCHER"] = launcher
    tmp_path.mkdir()
    output, folder = tmp_path / "run", tmp_path / "job"
    keys = job_recipe(output, checkpoint=dict(every=20))
    job = submit(slurm, keys, folder)
    log = folder / "job.log"
    until(lambda: steps_done(output) >= 50, 60, "fifty steps")

    (tmp_path / "urgent.sh").write_text("#!/bin/sh\nsleep 1\n")
    options = ["--partition=urgent", "--exclusive", "--output=/dev/null"]
    urgent = slurm.sbatch(tmp_path / "urgent.sh", *options, cwd=tmp_path)
    wait_requeued(slurm, job)
    done = steps_done(output)
    end_soon(keys, folder)
    until(lambda: state(slurm, urgent) == "COMPLETED", 60, "the urgent job")
    wait_running_again(slurm, job, 1)
    wait_end(slurm, job, log)
    text = log.read_text()
    resumed = [record["step"] for record in metrics(output, "resume")]
    if launcher == "mpirun" and not slurm.preempt_signal:
        # The TERM ends mpirun's daemons: what is after the last checkpoint may be lost, and is done again.
        assert len(resumed) == 1 and resumed[0] <= done, text[-3000:]
    else:
        assert resumed == [done], f"a step was lost\n{text[-3000:]}"
    print(f"\npreempted with {launcher}, preempt_signal {slurm.preempt_signal}: {done} steps, resumed after {resumed[0]}")
    assert outcome(output) == undisturbed(keys, tmp_path / "whole")


def test_a_preempted_job_goes_on_as_if_nothing_had_happened(tmp_path, rounds):
    """Told by TERM, as SLURM does by itself, and by the job's own signal."""
    launchers = rounds({False: ["mpirun"]}, {False: ["mpirun", "srun"], True: ["mpirun", "srun"]})
    for preempt_signal in launchers:
        with Slurm(preempt_signal=preempt_signal) as slurm:
            slurm.environment |= ENVIRONMENT
            for launcher in launchers[preempt_signal]:
                preempt(slurm, launcher, tmp_path / f"{launcher}-{preempt_signal}")
