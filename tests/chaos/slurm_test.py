"""K7: a training job in a real SLURM that is stopped, requeued and goes on: the loss curve is that of a run without a stop. K4: its
batch shell is killed. What train.sbatch does about errors, launchers that do not start, and weights on a node's own disk."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import yaml
from graft_program import metrics
from job import outcome, processes, steps_done, until
from lab.slurm import Slurm
from slurm_job import (
    ENVIRONMENT,
    GRAFT,
    end_soon,
    job_recipe,
    state,
    submit,
    undisturbed,
    wait_end,
    wait_requeued,
    wait_running_again,
)

ORPHAN_SECONDS = 5


@pytest.fixture(scope="module")
def cluster():
    with Slurm() as slurm:
        yield slurm


@pytest.fixture
def slurm(cluster):
    before = dict(cluster.environment)
    cluster.environment |= ENVIRONMENT
    yield cluster
    cluster.environment = before


@pytest.mark.parametrize("launcher", ["mpirun", "srun"])
def test_requeues_do_not_change_the_loss_curve(launcher, slurm, tmp_path, rounds):
    slurm.environment["GRAFT_LAUNCHER"] = launcher
    requeues = rounds(1, 10)
    output, folder = tmp_path / "run", tmp_path / "job"
    keys = job_recipe(output)
    job = submit(slurm, keys, folder)
    log = folder / "job.log"
    for number in range(1, requeues + 1):
        before = steps_done(output)
        until(lambda: steps_done(output) >= before + 50, 60, "fifty more steps")  # noqa: B023
        # What SLURM does two minutes before the time limit (--signal=B:USR1@120).
        slurm.run("scancel", "--batch", "--signal=USR1", job)
        wait_requeued(slurm, job)
        assert f"restart {number} of at most 20" in log.read_text(), log.read_text()
        if number == requeues:
            end_soon(keys, folder)
        wait_running_again(slurm, job, number)
    wait_end(slurm, job, log)
    assert len(metrics(output, "resume")) == requeues
    assert told_lead(output) == 120
    assert outcome(output) == undisturbed(keys, tmp_path / "whole")
    print(f"\nK7 {launcher}: {requeues} requeues, {steps_done(output)} steps, curve and adapter equal bit for bit")


def batch_shell(slurm, job):
    """Process id of the bash that runs the batch script."""
    found = []
    for process in processes(SLURM_CONF=slurm.environment["SLURM_CONF"], SLURM_JOB_ID=job):
        command = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        if b"bash" in command[0] and any(part.endswith(b"/slurm_script") for part in command):
            found.append(process)
    return min(found)  # its subshells have the same command line and come later


def test_killing_the_batch_shell_leaves_no_orphan(slurm, tmp_path, rounds):
    """K4: the next job is there at once, waits for the lock of what is left of the one before, and goes on."""
    output, folder = tmp_path / "run", tmp_path / "job"
    keys = job_recipe(output, checkpoint=dict(every=10))
    job = submit(slurm, keys, folder, "--no-requeue")
    kills = rounds(1, 20)
    for number in range(kills):
        before = steps_done(output)
        until(lambda: steps_done(output) >= before + 25, 60, "steps and a checkpoint")  # noqa: B023
        os.kill(batch_shell(slurm, job), signal.SIGKILL)
        mark = dict(SLURM_CONF=slurm.environment["SLURM_CONF"], SLURM_JOB_ID=job)
        if number == kills - 1:
            end_soon(keys, folder)
        job = submit(slurm, keys, folder, "--no-requeue")
        for rank in (0, 1):
            gone = lambda: not processes(OMPI_COMM_WORLD_RANK=rank, **mark)  # noqa: B023, E731
            until(gone, ORPHAN_SECONDS, f"rank {rank} gone")
    wait_end(slurm, job, folder / "job.log")
    assert len(metrics(output, "resume")) == kills
    assert outcome(output) == undisturbed(keys, tmp_path / "whole")
    print(f"\nK4: batch shell killed {kills} times, no rank left after {ORPHAN_SECONDS} s")


def test_a_launcher_that_cannot_start_the_ranks_is_tried_again(slurm, tmp_path):
    """mpirun ends with 1 when a node that has just come back refuses its daemon."""
    output, folder, programs = tmp_path / "run", tmp_path / "job", tmp_path / "bin"
    programs.mkdir()
    launcher = programs / "mpirun"
    launcher.write_text(f"#!/bin/sh\nmkdir {tmp_path}/tried 2>/dev/null && exit 1\nexec {shutil.which('mpirun')} \"$@\"\n")
    launcher.chmod(0o755)
    slurm.environment["PATH"] = f"{programs}:{slurm.environment['PATH']}"
    job = submit(slurm, job_recipe(output, 5), folder)
    log = folder / "job.log"
    wait_end(slurm, job, log)
    text = log.read_text()
    assert text.count("ranks were lost") == 1, text
    assert "ranks were lost (exit code 1): new start in 5 s, 1 more after it" in text, text
    assert slurm.show(job)["Restarts"] == "0" and steps_done(output) == 5


def told_lead(output):
    return yaml.safe_load((output / "recipe.yaml").read_text())["checkpoint"]["lead_seconds"]


def test_graft_is_told_when_the_stop_signal_comes_earlier(slurm, tmp_path):
    output, folder = tmp_path / "run", tmp_path / "job"
    slurm.environment["SBATCH_SIGNAL"] = "B:USR1@600"
    job = submit(slurm, job_recipe(output, 5), folder)
    wait_end(slurm, job, folder / "job.log")
    assert told_lead(output) == 600


def test_a_job_that_makes_no_progress_is_not_restarted_for_ever(slurm, tmp_path):
    output, folder = tmp_path / "run", tmp_path / "job"
    keys = job_recipe(output)
    folder.mkdir()
    # As two starts that committed nothing leave it.
    job = submit(slurm, keys, folder, "--hold")
    output.mkdir()
    (output / f"slurm-{job}.starts").write_text("0\n0\n")
    slurm.run("scontrol", "release", job)
    until(lambda: state(slurm, job) == "FAILED", 60, "the end")
    assert slurm.show(job)["ExitCode"] == "76:0"
    assert "two restarts in a row committed no step after 0" in (folder / "job.log").read_text()


def test_a_recipe_error_is_not_requeued(slurm, tmp_path):
    keys = job_recipe(tmp_path / "run", 10)
    keys["optim"]["lr"] = -1
    job = submit(slurm, keys, tmp_path / "job")
    until(lambda: state(slurm, job) == "FAILED", 60, "the end")
    assert slurm.show(job)["ExitCode"] == "78:0"


def test_weights_are_staged_once_per_node(slurm, tmp_path):
    output, folder, stage = tmp_path / "run", tmp_path / "job", tmp_path / "stage"
    keys = job_recipe(output, 5)
    slurm.environment |= dict(GRAFT_STAGE=str(stage), GRAFT_MODEL=keys["model"]["path"])
    keys["model"]["path"] = str(tmp_path / "nowhere")
    job = submit(slurm, keys, folder)
    wait_end(slurm, job, folder / "job.log")
    copies = list(stage.iterdir())
    assert len(copies) == 1 and (copies[0] / "config.json").exists()


def test_tasks_without_pmix_are_told_apart(slurm, tmp_path):
    """Two tasks that MPI did not connect would be two jobs in one output folder."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(job_recipe(tmp_path / "run", 5)))
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/sh\nsrun --mpi=none {GRAFT} train --config recipe.yaml\n")
    job = slurm.sbatch(script, "--ntasks=2", "--output=job.log", cwd=tmp_path)
    until(lambda: state(slurm, job) == "FAILED", 60, "the end")
    log = (tmp_path / "job.log").read_text()
    assert slurm.show(job)["ExitCode"] == "76:0", log
    assert "the SLURM step has 2 tasks but MPI sees 1 rank" in log
    assert not (tmp_path / "run").exists()
