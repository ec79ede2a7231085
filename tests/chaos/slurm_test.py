"""K7: a training job in a real SLURM that is stopped, requeued and goes on: the loss curve is that of a run without a stop."""

import os
import time
from pathlib import Path

import pytest
import yaml
from graft_program import BINARY_DIR, Golden, metrics, recipe, run
from job import steps_done, until
from lab.slurm import Slurm

SOURCE = Path(os.environ["GRAFT_SOURCE_DIR"])
# What may differ between a run and the same run with stops.
TIMES = {"step_seconds", "tokens_per_second", "peak_memory_bytes", "bubble_fraction", "communication_seconds"}


@pytest.fixture(scope="module")
def cluster():
    with Slurm() as slurm:
        yield slurm


@pytest.fixture
def slurm(cluster):
    before = dict(cluster.environment)
    cluster.environment |= dict(
        GRAFT=str(BINARY_DIR / "graft"), GRAFT_HOME=str(SOURCE), OMP_NUM_THREADS="1"
    )
    yield cluster
    cluster.environment = before


def long_recipe(output, steps):
    return recipe(
        Golden("gqa_lora"),
        output,
        optim=dict(steps=steps),
        parallel=dict(device="cpu", data=2, threads=1),
    )


def curve(output):
    return [{k: v for k, v in r.items() if k not in TIMES} for r in metrics(output, "train")]


def submit(slurm, keys, folder, *options):
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(keys))
    return slurm.sbatch(
        SOURCE / "launch" / "slurm" / "train.sbatch",
        "--ntasks=2",
        "--time=10",
        "--output=job.log",
        *options,
        arguments=["recipe.yaml"],
        cwd=folder,
    )


def state(slurm, job):
    return slurm.show(job).get("JobState")


# A requeued job waits two minutes by itself, in which SLURM clears away what the last start left. Called back within the second
# it can lose its script to that.
SETTLE_SECONDS = 3


def runs_again(slurm, job, restarts):
    """Tells the job not to wait until it heeds."""
    facts = slurm.show(job)
    if facts["JobState"] == "PENDING":
        slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")
        time.sleep(0.5)
    return facts["JobState"] != "PENDING" and facts["Restarts"] == str(restarts)


@pytest.mark.parametrize("launcher", ["mpirun", "srun"])
def test_requeues_do_not_change_the_loss_curve(launcher, slurm, tmp_path, rounds):
    slurm.environment["GRAFT_LAUNCHER"] = launcher
    requeues = rounds(1, 10)
    steps = 600 * (requeues + 1)
    whole, stopped, folder = tmp_path / "whole", tmp_path / "stopped", tmp_path / "job"
    run("train", long_recipe(whole, steps), tmp_path / "reference")

    job = submit(slurm, long_recipe(stopped, steps), folder)
    log = folder / "job.log"
    for number in range(1, requeues + 1):
        before = steps_done(stopped)
        until(lambda: steps_done(stopped) >= before + 50, 60, "fifty more steps")  # noqa: B023
        # What SLURM does two minutes before the time limit (--signal=B:USR1@120).
        slurm.run("scancel", "--batch", "--signal=USR1", job)
        until(lambda: state(slurm, job) == "PENDING", 60, "requeued")
        assert f"restart {number} of at most 20" in log.read_text(), log.read_text()
        time.sleep(SETTLE_SECONDS)
        until(lambda: runs_again(slurm, job, number), 60, "running again")
    until(lambda: state(slurm, job) not in ("RUNNING", "COMPLETING"), 120, "the end")
    assert state(slurm, job) == "COMPLETED", log.read_text()[-3000:]
    assert len(metrics(stopped, "resume")) == requeues
    assert curve(stopped) == curve(whole)
    adapter = "adapter/adapter_model.safetensors"
    assert (stopped / adapter).read_bytes() == (whole / adapter).read_bytes()


def test_a_job_that_makes_no_progress_is_not_restarted_for_ever(slurm, tmp_path):
    output, folder = tmp_path / "run", tmp_path / "job"
    keys = long_recipe(output, 1_000_000)
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
    keys = long_recipe(tmp_path / "run", 10)
    keys["optim"]["lr"] = -1
    job = submit(slurm, keys, tmp_path / "job")
    until(lambda: state(slurm, job) == "FAILED", 60, "the end")
    assert slurm.show(job)["ExitCode"] == "78:0"


def test_weights_are_staged_once_per_node(slurm, tmp_path):
    output, folder, stage = tmp_path / "run", tmp_path / "job", tmp_path / "stage"
    keys = long_recipe(output, 5)
    slurm.environment |= dict(GRAFT_STAGE=str(stage), GRAFT_MODEL=keys["model"]["path"])
    keys["model"]["path"] = str(tmp_path / "nowhere")
    job = submit(slurm, keys, folder)
    until(lambda: state(slurm, job) not in ("PENDING", "RUNNING", "COMPLETING"), 60, "the end")
    assert state(slurm, job) == "COMPLETED", (folder / "job.log").read_text()
    copies = list(stage.iterdir())
    assert len(copies) == 1 and (copies[0] / "config.json").exists()


def test_tasks_without_pmix_are_told_apart(slurm, tmp_path):
    """Two tasks that MPI did not connect would be two jobs in one output folder."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(long_recipe(tmp_path / "run", 5)))
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/sh\nsrun --mpi=none {BINARY_DIR}/graft train --config recipe.yaml\n")
    job = slurm.sbatch(script, "--ntasks=2", "--output=job.log", cwd=tmp_path)
    until(lambda: state(slurm, job) == "FAILED", 60, "the end")
    log = (tmp_path / "job.log").read_text()
    assert slurm.show(job)["ExitCode"] == "76:0", log
    assert "the SLURM step has 2 tasks but MPI sees 1 rank" in log
    assert not (tmp_path / "run").exists()
