"""What the tests of training jobs in SLURM share: a job that is submitted, watched, and compared with a run nobody touched."""

import contextlib
import os
import time
from pathlib import Path

import yaml
from graft_program import BINARY_DIR, Golden, recipe, run
from job import outcome, steps_done, until

SOURCE = Path(os.environ["GRAFT_SOURCE_DIR"])
TRAIN = SOURCE / "launch" / "slurm" / "train.sbatch"
GRAFT = BINARY_DIR / "graft"
# Of every job of the cluster.
ENVIRONMENT = dict(GRAFT=str(GRAFT), GRAFT_HOME=str(SOURCE), OMP_NUM_THREADS="1")
# Where each node is a machine with a network of its own.
HOSTS_ENVIRONMENT = ENVIRONMENT | dict(GRAFT_MPIRUN_FLAGS="--mca pml ob1 --mca btl self,vader,tcp")
# A requeued job waits two minutes by itself, in which SLURM clears away what the last start left. Called back within the second
# it can lose its script to that.
SETTLE_SECONDS = 3


# A job that never ends by itself. How many steps it has done when something happens to it depends on the machine: end_soon.
ENDLESS = 1_000_000


def job_recipe(output, steps=ENDLESS, **sections):
    """The recipe of a job of two ranks."""
    keys = dict(
        optim=dict(steps=steps, schedule="constant", warmup_steps=0),
        parallel=dict(device="cpu", data=2, threads=1),
    )
    return recipe(Golden("gqa_lora"), output, **(keys | sections))


def end_soon(keys, folder, more=50):
    """The job in `folder`, which does not run now, ends this many steps after what is done. A constant learning rate allows it."""
    keys["optim"]["steps"] = steps_done(keys["run"]["output"]) + more
    (folder / "recipe.yaml").write_text(yaml.safe_dump(keys))


def undisturbed(keys, folder):
    """The outcome of a run of the same recipe that nobody touches, outside SLURM."""
    keys = keys | dict(run=dict(output=str(folder / "run")))
    run("train", keys, folder / "job")
    return outcome(folder / "run")


def submit(slurm, keys, folder, *options, tasks=("--ntasks=2",)):
    """sbatch of train.sbatch with this recipe; the job's log is folder/job.log."""
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(keys))
    options = [*tasks, "--time=10", "--output=job.log", *options]
    return slurm.sbatch(TRAIN, *options, arguments=["recipe.yaml"], cwd=folder)


def state(slurm, job):
    return slurm.show(job).get("JobState")


def wait_requeued(slurm, job, seconds=60):
    until(lambda: state(slurm, job) == "PENDING", seconds, "requeued")
    time.sleep(SETTLE_SECONDS)


def wait_running_again(slurm, job, restarts, seconds=60):
    """Tells a requeued job not to wait until it heeds."""

    def runs_again():
        facts = slurm.show(job)
        if facts["JobState"] == "PENDING":
            with contextlib.suppress(RuntimeError):  # it has started meanwhile
                slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")
            time.sleep(0.5)
        return facts["JobState"] not in ("PENDING", "CONFIGURING") and facts["Restarts"] == str(restarts)

    until(runs_again, seconds, "running again")


def wait_end(slurm, job, log, seconds=120):
    """The job completes, or what its log says."""
    until(lambda: state(slurm, job) not in ("PENDING", "RUNNING", "COMPLETING"), seconds, "the end")
    facts = slurm.show(job)
    assert facts["JobState"] == "COMPLETED", f"exit {facts['ExitCode']}\n{log.read_text()[-3000:]}"
