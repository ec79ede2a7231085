"""K6: a rank that stops running or never returns is found in time, named, and ends the whole job with 76."""

import os
import signal
import subprocess

import pytest
import yaml
from graft_program import Golden, recipe
from job import BINARY_DIR, graft_job, mpirun, steps_done, until

# (short form on a machine that others use too, long form)
STOP_SECONDS = (60, 30)  # a stopped process is found within it
LATE_SECONDS = (25, 5)  # any other hang: its limit and this


def inspect(output):
    done = subprocess.run(
        [BINARY_DIR / "graft", "inspect", output / "flight"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("layout", [dict(data=2), dict(data=2, pipeline=2)], ids=["2x1", "2x2"])
def test_a_stopped_rank_ends_the_job(layout, tmp_path, rounds):
    for number in range(rounds(1, 10)):
        output = tmp_path / f"run-{number}"
        keys = recipe(
            Golden("gqa_lora"),
            output,
            optim=dict(steps=1_000_000),
            parallel=dict(device="cpu") | layout,
        )
        job = graft_job(keys, tmp_path / f"job-{number}")
        until(lambda: steps_done(output) >= 3, 60, "three steps")  # noqa: B023
        os.kill(job.rank(1), signal.SIGSTOP)
        code, seconds = job.wait(90)
        print(f"stopped rank found and job ended in {seconds:.1f} s")
        assert code == 76, job.err
        assert seconds < rounds(*STOP_SECONDS)
        assert job.last_line.startswith("graft: error: peer: rank 1 (process "), job.err
        assert "stopped or dead" in job.last_line
        report = inspect(output)
        # The launcher wakes the stopped rank to end it: it may still write its own dump.
        assert "written because   rank 1 (process" in report, report
        assert "rank 0 (" in report and " waits " in report, report
        assert until(lambda: not job.left_over(), 5, "no process left")  # noqa: B023


@pytest.mark.parametrize("mode", ["loop", "sleep"])
def test_a_rank_that_never_returns_is_named(mode, tmp_path, rounds):
    limit = rounds(3, 10)
    for number in range(rounds(1, 5)):
        output = tmp_path / f"run-{number}"
        command = [BINARY_DIR / "chaos_ranks", output, 1000, limit, mode, 1, 20]
        job = mpirun(3, command, output)
        until(lambda: "step 19 " in job.out, 60, "the step before")  # noqa: B023
        code, seconds = job.wait(limit + 60)
        print(f"{mode}: job ended after {seconds:.1f} s, limit {limit} s")
        assert code == 76, job.err
        assert seconds < limit + rounds(*LATE_SECONDS)
        assert job.last_line.startswith("graft: error: peer: no end after "), job.err
        assert "rank 1 waits for nobody" in job.last_line
        assert "step 20" in job.last_line
        report = inspect(output)
        assert "3 of 3 left a dump" in report, report
        assert "rank 1 has begun" in report and "AllReduce" in report, report


# What the ranks say of each other; the first one to notice has the word.
PARTED = {
    "order": ("AllReduce on rank 0: rank 1 is in Barrier", "Barrier on rank 1: rank 0 is in AllReduce"),
    "size": ("rank 1 sent 64 bytes, expected 32768", "rank 0 sent 32768 bytes, expected 64", "rank 0: MPI_ERR_TRUNCATE"),
}


@pytest.mark.parametrize("mode", PARTED)
def test_a_collective_unlike_the_others_ends_the_job_at_once(mode, tmp_path, rounds):
    """F6: one rank calls another collective than the rest, or the same one with another size. Nobody waits for a limit."""
    for number in range(rounds(1, 10)):
        output = tmp_path / f"run-{number}"
        job = mpirun(2, [BINARY_DIR / "chaos_ranks", output, 1000, 60, mode, 1, 20], output / "job")
        code, seconds = job.wait(50)
        print(f"{mode}: job ended after {seconds:.1f} s")
        assert code == 70, job.err
        assert any(text in job.last_line for text in PARTED[mode]), job.err
        report = inspect(output)
        if mode == "order":
            assert "rank 0 AllReduce of 32768 bytes float64, rank 1 Barrier" in report, report


def test_flight_recorders_on_request(tmp_path):
    """USR2 to the launcher: every rank writes its recorder and works on."""
    job = mpirun(2, [BINARY_DIR / "chaos_ranks", tmp_path, 100_000_000, 60], tmp_path / "job")
    try:
        for number in (1, 2):
            steps = job.out.count("step")
            until(lambda: job.out.count("step") > steps + 100, 60, "steps")  # noqa: B023
            job.process.send_signal(signal.SIGUSR2)
            dumps = [tmp_path / "flight" / f"rank-{rank:05}.json" for rank in (0, 1)]
            until(lambda: all(dump.exists() for dump in dumps), 30, f"dumps of request {number}")  # noqa: B023
            report = inspect(tmp_path)
            assert "2 of 2 left a dump" in report, report
            assert "on request (USR2)" in report, report
            for dump in dumps:
                dump.unlink()
        assert job.process.poll() is None
    finally:
        job.end()


def test_an_error_of_one_rank_leaves_the_dumps_of_all(tmp_path):
    job = mpirun(3, [BINARY_DIR / "chaos_ranks", tmp_path, 1000, 30, "throw", 1, 20], tmp_path / "job")
    code, seconds = job.wait(60)
    assert code == 77, job.err
    assert seconds < 10
    assert job.last_line == "graft: error: numeric: a number that is none"
    report = inspect(tmp_path)
    assert "3 of 3 left a dump" in report, report
    assert "rank 1 has begun" in report, report


def test_ranks_that_mean_different_runs_stop_before_the_first_step(tmp_path):
    """Two nodes with different copies of a recipe: found before anything is trained."""
    files = []
    for steps in (10, 11):
        keys = recipe(
            Golden("gqa_lora"),
            tmp_path / "run",
            optim=dict(steps=steps),
            parallel=dict(device="cpu", data=2),
        )
        files.append(tmp_path / f"{steps}.yaml")
        files[-1].write_text(yaml.safe_dump(keys))
    graft = [BINARY_DIR / "graft", "train", "--config"]
    job = mpirun(1, [*graft, files[0], ":", "-np", "1", *graft, files[1]], tmp_path / "job")
    code, _ = job.wait(60)
    assert code == 70, job.err
    assert "rank 1: the plan of a step differs from rank 0's: line 1: `steps 11," in job.last_line
    assert steps_done(tmp_path / "run") == 0
