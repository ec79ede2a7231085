"""F5: two hosts that lose each other. Needs root (network namespaces); ctest has it where cmake ran as root."""

import os
import time
from pathlib import Path

import pytest
from job import BINARY_DIR, Job, until
from lab.hosts import Hosts

MULTI_NODE = Path(os.environ["GRAFT_SOURCE_DIR"]) / "launch" / "mpirun" / "multi_node.sh"


@pytest.fixture
def hosts():
    with Hosts(2) as lab:
        yield lab


def start(hosts, folder, steps, limit):
    """One rank of chaos_ranks on each host, by launch/mpirun/multi_node.sh."""
    folder.mkdir(exist_ok=True)
    (folder / "hostfile").write_text("# the test's hosts\nhost1\nhost2\n")
    environment = [
        f"GRAFT={BINARY_DIR / 'chaos_ranks'}",
        "GRAFT_INTERFACE=eth0",
        "GRAFT_BIND=none",
        f"GRAFT_MPIRUN_FLAGS={hosts.mpirun_flags} --mca mpi_yield_when_idle 1",
    ]
    command = ["env", *environment, MULTI_NODE, folder / "hostfile", 1, folder, steps, limit]
    return Job(hosts.command("host1", command), folder)


def steps(job):
    return job.out.count("step ")


@pytest.mark.parametrize("seconds", [10])
def test_a_partition_that_heals_is_only_a_pause(seconds, hosts, tmp_path, rounds):
    for number in range(rounds(1, 10)):
        job = start(hosts, tmp_path / f"job-{number}", 200_000, 60)
        until(lambda: steps(job) >= 100, 30, "a hundred steps")  # noqa: B023
        hosts.cut("host2")
        time.sleep(1)
        before = steps(job)
        time.sleep(seconds - 1)
        assert steps(job) <= before + 1, "nothing passes through a cut"
        hosts.join("host2")
        until(lambda: steps(job) >= before + 1000, 60, "going on")  # noqa: B023
        assert job.process.poll() is None
        job.end()


def test_a_host_that_stays_away_ends_the_job(hosts, tmp_path):
    limit = 5
    job = start(hosts, tmp_path / "job", 1_000_000, limit)
    until(lambda: steps(job) >= 100, 30, "a hundred steps")
    hosts.cut("host2")
    # graft ends within its limit; mpirun would wait for the other host for a quarter of an hour.
    code, seconds = job.wait(60)
    print(f"job ended {seconds:.1f} s after the cut, code {code}")
    assert code in (76, 137, 205), job.err
    assert job.last_line.startswith("graft: error: peer: no end after "), job.err
    assert until(lambda: not [p for p in hosts.processes("host1")], 5, "no process left on host1")
