"""A training job on two machines of a SLURM, one of which crashes, or ends ranks again and again: the job goes on without it, and
the outcome is that of a run without trouble."""

import time

import pytest
from graft_program import metrics
from job import outcome, steps_done, until
from lab.hosts import Hosts
from lab.slurm import Slurm
from slurm_job import (
    GRAFT,
    HOSTS_ENVIRONMENT,
    end_soon,
    job_recipe,
    state,
    submit,
    undisturbed,
    wait_end,
    wait_requeued,
    wait_running_again,
)

TWO_NODES = dict(tasks=["--nodes=2", "--ntasks-per-node=1"])


@pytest.fixture
def slurm(request):
    """A cluster of as many machines as the test asks for, of its own: a crash leaves traces."""
    with Hosts(request.param) as hosts, Slurm(hosts=hosts) as cluster:
        cluster.environment |= HOSTS_ENVIRONMENT
        yield cluster


@pytest.mark.parametrize("slurm", [2], indirect=True)
def test_a_node_crashes_and_the_job_comes_back(slurm, tmp_path):
    """Two machines are all there is: the job waits until the crashed one is there again."""
    output, folder = tmp_path / "run", tmp_path / "job"
    keys = job_recipe(output, checkpoint=dict(every=20))
    job = submit(slurm, keys, folder, **TWO_NODES)
    log = folder / "job.log"
    until(lambda: steps_done(output) >= 50, 60, "fifty steps")
    slurm.crash("host2")
    crashed = time.monotonic()
    until(lambda: state(slurm, job) == "PENDING", 120, "requeued")
    print(f"\njob requeued {time.monotonic() - crashed:.1f} s after the crash of a node")
    wait_requeued(slurm, job)
    end_soon(keys, folder)
    slurm.return_to_service("host2")
    wait_running_again(slurm, job, 1)
    wait_end(slurm, job, log)
    assert len(metrics(output, "resume")) == 1, log.read_text()[-3000:]
    assert outcome(output) == undisturbed(keys, tmp_path / "whole")


@pytest.mark.parametrize("slurm", [3], indirect=True)
def test_a_node_that_lost_ranks_twice_is_left_out(slurm, tmp_path, rounds):
    for launcher in rounds(["mpirun"], ["mpirun", "srun"]):
        leave_out(slurm, launcher, tmp_path / launcher)


def leave_out(slurm, launcher, tmp_path):
    """Ranks on host2 are killed: twice, then the job goes on without it."""
    tmp_path.mkdir()
    program = tmp_path / "graft"
    program.write_text(
        "#!/bin/sh\n"
        f'[ "$(hostname)" = host2 ] && {{ sleep 1; echo >>{tmp_path}/losses; kill -9 $$; }}\n'
        f'exec {GRAFT} "$@"\n'
    )
    program.chmod(0o755)
    slurm.environment |= dict(GRAFT=str(program), GRAFT_LAUNCHER=launcher)
    output, folder = tmp_path / "run", tmp_path / "job"
    keys = job_recipe(output, 20)
    job = submit(slurm, keys, folder, **TWO_NODES)
    log = folder / "job.log"
    losses = tmp_path / "losses"
    until(lambda: losses.exists() and losses.stat().st_size == 2, 60, "two losses")
    wait_requeued(slurm, job)
    text = log.read_text()
    assert "host2 lost ranks twice: left out from now on (ExcNodeList=host2)" in text, text[-3000:]
    assert slurm.show(job)["ExcNodeList"] == "host2"
    wait_running_again(slurm, job, 1)
    wait_end(slurm, job, log)
    assert losses.stat().st_size == 2, "the job was on host2 again"
    assert outcome(output) == undisturbed(keys, tmp_path / "whole")
