"""K1 and K5: a job that is killed or stopped at any time ends, after enough starts, as if nothing had happened."""

import os
import random
import signal
import subprocess
import time

import pytest
import yaml
from graft_program import Golden, metrics, recipe
from job import BINARY_DIR, SOON, Job, graft_job, outcome, steps_done, until

LAYOUTS = {"2x1": (2, 1), "1x2": (1, 2), "2x2": (2, 2)}
STEPS = 60


def job_recipe(output, layout, **sections):
    data, pipeline = layout
    keys = dict(
        optim=dict(steps=STEPS, schedule="constant", warmup_steps=0, micro_batch=2),
        parallel=dict(device="cpu", data=data, pipeline=pipeline),
        checkpoint=dict(every=7),
    )
    return recipe(Golden("gqa_lora"), output, **(keys | sections))


def finish(keys, folder, seconds=SOON):
    job = graft_job(keys, folder)
    code, _ = job.wait(seconds)
    assert code == 0, job.err[-3000:]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """whole(layout) = outcome and seconds of a run that nobody touches, made once."""
    known = {}

    def run(layout):
        if layout not in known:
            folder = tmp_path_factory.mktemp("whole")
            begin = time.monotonic()
            finish(job_recipe(folder / "run", layout), folder / "job")
            known[layout] = outcome(folder / "run"), time.monotonic() - begin
        return known[layout]

    return run


@pytest.mark.parametrize("name", LAYOUTS)
def test_killed_ranks(name, tmp_path, rounds, whole):
    """K1. The layouts share the kills: 6 in the short form, 200 in the long one."""
    layout = LAYOUTS[name]
    chance = random.Random(f"kill {name}")
    expected, seconds = whole(layout)
    wanted = rounds(2, dict(zip(LAYOUTS, (66, 67, 67), strict=True))[name])
    kills = starts = 0
    for number in range(10 * wanted):
        output = tmp_path / f"run-{number}"
        keys = job_recipe(output, layout)
        while True:
            starts += 1
            job = graft_job(keys, tmp_path / f"job-{number}-{starts}")
            if kills < wanted:
                try:
                    job.process.wait(chance.uniform(0.0, seconds))
                except subprocess.TimeoutExpired:
                    kills += job.kill_rank(chance.randrange(layout[0] * layout[1]))
            code, ended = job.wait(SOON)
            if code == 0:
                break
            assert ended < 5 * 5, f"the job outlived its rank by {ended} s"
        assert outcome(output) == expected, f"{name}, run {number} after {kills} kills"
        if kills >= wanted:
            break
    print(f"\nK1 {name}: {kills} kills, {starts} starts, {number + 1} runs equal to the whole one")
    assert kills == wanted


def catches(job, number):
    """Whether the process has a handler for this signal yet."""
    try:
        with open(f"/proc/{job.process.pid}/status") as status:
            mask = next(line.split()[1] for line in status if line.startswith("SigCgt"))
    except (OSError, StopIteration):
        return False
    return int(mask, 16) >> (number - 1) & 1


def one_rank(keys, folder):
    """`graft train` without mpirun, which would turn TERM and INT into others."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.yaml").write_text(yaml.safe_dump(keys))
    return Job([BINARY_DIR / "graft", "train", "--config", folder / "train.yaml"], folder)


USR1, TERM, INT = signal.SIGUSR1, signal.SIGTERM, signal.SIGINT
STOPS = {
    "usr1": ([USR1], "training"),
    "term": ([TERM], "training"),
    "int": ([INT], "training"),
    "usr1-twice-term": ([USR1, USR1, TERM], "training"),
    "usr1-in-save": ([USR1], "save"),
    "term-in-load": ([TERM], "load"),
    "int-before-step-1": ([INT], "set up"),
}


def wait_for(moment, job, output):
    conditions = {
        "load": lambda: catches(job, USR1),
        "set up": lambda: (output / "lock").exists(),
        "training": lambda: steps_done(output) >= 10,
        "save": lambda: list((output / "checkpoints").glob("*.tmp-*")),
    }
    until(lambda: catches(job, USR1), SOON, "the handlers")
    until(conditions[moment], SOON, moment)


@pytest.mark.parametrize("name", STOPS)
def test_stopped(name, tmp_path, rounds, whole):
    """K5 on one rank: one save, 75, and the next start loses no step."""
    signals, moment = STOPS[name]
    for number in range(rounds(1, 10)):
        output = tmp_path / f"run-{number}"
        keys = job_recipe(output, (1, 1))
        job = one_rank(keys, tmp_path / f"job-{number}")
        wait_for(moment, job, output)
        for each in signals:
            job.process.send_signal(each)
        code, _ = job.wait(SOON)
        assert code == 75, f"{code}: {job.err[-3000:]}"
        assert job.last_line.startswith("graft: stopped: on request"), job.last_line
        done = steps_done(output)
        saves = [r["step"] for r in metrics(output, "checkpoint")] if done else []
        assert saves.count(done) == (1 if done else 0), f"{done} steps, saved at {saves}"
        finish(keys, tmp_path / f"again-{number}")
        resumed = [record["step"] for record in metrics(output, "resume")]
        assert resumed == ([done] if done else []), f"{done} steps were done, resumed at {resumed}"
        assert outcome(output) == whole((1, 1))[0]


def test_second_int_kills_and_the_last_checkpoint_is_good(tmp_path, rounds, whole):
    for number in range(rounds(1, 10)):
        output = tmp_path / f"run-{number}"
        keys = job_recipe(output, (1, 1))
        job = one_rank(keys, tmp_path / f"job-{number}")
        wait_for("training", job, output)
        os.kill(job.process.pid, signal.SIGSTOP)  # so that no step ends between the two
        job.process.send_signal(INT)
        job.process.send_signal(signal.SIGCONT)
        until(lambda: not catches(job, INT), SOON, "the first INT")  # noqa: B023
        job.process.send_signal(INT)
        code, _ = job.wait(SOON)
        assert code in (-INT, 75), code  # 75: the step and its save were done before the second came
        finish(keys, tmp_path / f"again-{number}")
        assert outcome(output) == whole((1, 1))[0]


@pytest.mark.parametrize("name", ["2x1", "1x2"])
def test_stopped_under_mpirun(name, tmp_path, rounds, whole):
    """K5: USR1 to mpirun reaches all ranks; one save, 75; the next start goes on where it was."""
    for number in range(rounds(1, 10)):
        output = tmp_path / f"run-{number}"
        keys = job_recipe(output, LAYOUTS[name])
        job = graft_job(keys, tmp_path / f"job-{number}")
        until(lambda: steps_done(output) >= 10, SOON, "training")  # noqa: B023
        job.process.send_signal(USR1)
        code, _ = job.wait(SOON)
        assert code == 75, f"{code}: {job.err[-3000:]}"
        done = steps_done(output)
        finish(keys, tmp_path / f"again-{number}")
        assert [record["step"] for record in metrics(output, "resume")] == [done]
        assert outcome(output) == whole(LAYOUTS[name])[0]
