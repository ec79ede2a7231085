"""C2 on a SLURM of two machines, one of which crashes: score.sbatch brings the job back and the results have the same bytes. The
items are those of items_test.py: what is tried here is the way from the batch script to the journal and back."""

import pytest
from job import BINARY_DIR, Job, until
from lab.hosts import Hosts
from lab.slurm import Slurm
from slurm_job import HOSTS_ENVIRONMENT, SOURCE, wait_end, wait_requeued, wait_running_again

ITEMS = 150


@pytest.fixture(scope="module")
def slurm():
    with Hosts(2) as hosts, Slurm(hosts=hosts) as cluster:
        cluster.environment |= HOSTS_ENVIRONMENT
        yield cluster


def journal_size(output):
    path = output / "journal.bin"
    return path.stat().st_size if path.exists() else 0


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
    wait_requeued(slurm, job, 120)
    slurm.return_to_service("host2")
    wait_running_again(slurm, job, 1, 120)
    wait_end(slurm, job, log)
    text = log.read_text()
    assert "restart 1" in text, text[-3000:]
    assert f"journal of {kept}" in text or journal_size(output) > kept, text[-3000:]
    assert (output / "results.bin").read_bytes() == (whole / "results.bin").read_bytes()
    last = [line for line in text.splitlines() if line.startswith("computed ")][-1]
    assert int(last.split()[1]) < ITEMS, last  # what the journal held was not computed again
