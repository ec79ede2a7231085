"""C2 on a SLURM of two machines, one of which crashes: score.sbatch brings the job back and the results have the same bytes. The
items are those of items_test.py: what is tried here is the way from the batch script to the journal and back."""

import os
import time
from pathlib import Path

import pytest
from job import BINARY_DIR, Job, until
from lab.hosts import Hosts
from lab.slurm import Slurm

SOURCE = Path(os.environ["GRAFT_SOURCE_DIR"])
ITEMS = 150


@pytest.fixture(scope="module")
def slurm():
    with Hosts(2) as hosts, Slurm(hosts=hosts) as cluster:
        cluster.environment |= dict(
            GRAFT_HOME=str(SOURCE),
            OMP_NUM_THREADS="1",
            GRAFT_MPIRUN_FLAGS="--mca pml ob1 --mca btl self,vader,tcp",
        )
        yield cluster


def journal_size(output):
    path = output / "journal.bin"
    return path.stat().st_size if path.exists() else 0


def state(slurm, job):
    return slurm.show(job).get("JobState")


def test_a_node_crashes_and_the_requeued_job_ends_with_the_same_bytes(slurm, tmp_path):
    whole, output, folder = tmp_path / "whole", tmp_path / "run", tmp_path / "job"
    reference = Job([BINARY_DIR / "chaos_items", whole, ITEMS, 0, 1], tmp_path / "reference")
    assert reference.wait(60)[0] == 0, reference.err

    folder.mkdir()
    (folder / "recipe.yaml").write_text(f"score: {{output: {output}}}\n")
    program = folder / "graft"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = score ] && exec {BINARY_DIR}/chaos_items {output} {ITEMS} 200 1\n'
    )
    program.chmod(0o755)
    slurm.environment["GRAFT"] = str(program)
    options = ["--nodes=2", "--ntasks-per-node=1", "--time=10", "--output=job.log"]
    script = SOURCE / "launch" / "slurm" / "score.sbatch"
    job = slurm.sbatch(script, *options, arguments=["recipe.yaml"], cwd=folder)
    log = folder / "job.log"
    until(lambda: journal_size(output) > 3000, 60, "results of two nodes")
    slurm.crash("host2")
    kept = journal_size(output)
    assert not (output / "results.bin").exists(), "the job ended before the crash"

    # SLURM gives the node up after 10 s and puts the job back into the queue, where it waits for two nodes.
    until(lambda: state(slurm, job) == "PENDING", 120, "requeued")
    time.sleep(3)  # SLURM clears away what the last start left
    slurm.return_to_service("host2")

    def runs_again():
        if state(slurm, job) == "PENDING":
            slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")
            time.sleep(1)
        return state(slurm, job) not in ("PENDING", "CONFIGURING", "COMPLETING")

    until(runs_again, 120, "running again")
    until(lambda: state(slurm, job) not in ("RUNNING", "COMPLETING"), 120, "the end")
    text = log.read_text()
    facts = slurm.show(job)
    assert facts["JobState"] == "COMPLETED", f"exit {facts['ExitCode']}\n{text[-3000:]}"
    assert "restart 1" in text, text[-3000:]
    assert f"journal of {kept}" in text or journal_size(output) > kept, text[-3000:]
    assert (output / "results.bin").read_bytes() == (whole / "results.bin").read_bytes()
    last = [line for line in text.splitlines() if line.startswith("computed ")][-1]
    assert int(last.split()[1]) < ITEMS, last  # what the journal held was not computed again
