"""K9: something happens to a job all the time, and no result is wrong. Not part of the short test run: launch/test.sh --long."""

import json
import random
import signal
import time

from graft_program import Golden, recipe
from job import graft_job, outcome, until
from resume_test import finish

RUN_STEPS = 4000  # half a minute or so
LAYOUT = dict(device="cpu", data=2, pipeline=2)
EFFECTIVE = 0.8  # of the time goes into steps that are kept
END_SECONDS = 60
# A stopped rank is found after 20 s, which is what the faults are apart: it has its tests in hang_test.py.
FAULTS = ["kill a rank", "kill mpirun", "ask for a stop"]


def hurt(job, fault, chance):
    if fault == "kill a rank":
        job.kill_rank(chance.randrange(LAYOUT["data"] * LAYOUT["pipeline"]))
    else:
        job.process.send_signal(signal.SIGKILL if fault == "kill mpirun" else signal.SIGUSR1)


def kept_seconds(output):
    """What the steps of a finished run took, each counted once."""
    records = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return sum(record["step_seconds"] for record in records if record["kind"] == "train")


def test_faults_all_the_time(tmp_path, rounds):
    seconds, apart = rounds((10, 5), (30 * 60, 20))
    chance = random.Random("soak")

    def keys(output):
        optim = dict(steps=RUN_STEPS, schedule="constant", warmup_steps=0)
        return recipe(Golden("gqa_lora"), output, optim=optim, parallel=LAYOUT, checkpoint=dict(every=100))

    finish(keys(tmp_path / "whole"), tmp_path / "whole-job", 10 * END_SECONDS)
    expected, run_seconds = outcome(tmp_path / "whole"), kept_seconds(tmp_path / "whole")

    kept = 0.0
    begin = next_fault = time.monotonic()
    next_fault += apart
    runs = starts = faults = 0
    while time.monotonic() < begin + seconds:
        output = tmp_path / f"run-{runs}"
        code = None
        while code != 0:
            starts += 1
            job = graft_job(keys(output), tmp_path / f"job-{starts}")
            until(lambda: job.process.poll() is not None or time.monotonic() > next_fault, 2 * apart + END_SECONDS, "a fault's turn")  # noqa: B023
            if job.process.poll() is None:
                hurt(job, FAULTS[faults % len(FAULTS)], chance)
                faults += 1
                next_fault += apart
            code, _ = job.wait(END_SECONDS)
            until(lambda: not job.left_over(), END_SECONDS, "no orphan")  # noqa: B023
        assert outcome(output) == expected, f"run {runs} after {faults} faults"
        runs += 1
        kept += kept_seconds(output)
    effective = kept / (time.monotonic() - begin)
    print(f"\nK9: {faults} faults, {starts} starts, {runs} runs equal to the whole one, {effective:.2f} of the time in steps that are kept")
    assert faults >= seconds // apart - 1
    if seconds > run_seconds:
        assert effective >= EFFECTIVE
