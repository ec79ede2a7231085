"""K4: ranks do not outlive the launcher that was killed, and the next start waits for their lock and goes on."""

import os
import signal

from graft_program import Golden, metrics, recipe
from job import graft_job, steps_done, until

ORPHAN_SECONDS = 5


def test_killing_mpirun_leaves_no_orphan(tmp_path, rounds):
    output = tmp_path / "run"
    keys = recipe(
        Golden("gqa_lora"),
        output,
        optim=dict(steps=1_000_000, schedule="constant", warmup_steps=0),
        parallel=dict(device="cpu", data=2),
        checkpoint=dict(every=2),
    )
    for number in range(rounds(2, 20)):
        before = steps_done(output)
        job = graft_job(keys, tmp_path / f"job-{number}")
        until(lambda: steps_done(output) >= before + 5, 60, "five steps")  # noqa: B023
        os.kill(job.process.pid, signal.SIGKILL)
        job.process.wait()
        until(lambda: not job.left_over(), ORPHAN_SECONDS, "no orphan")  # noqa: B023
    resumes = metrics(output, "resume")
    assert len(resumes) == rounds(2, 20) - 1
    steps = [record["step"] for record in metrics(output, "train")]
    assert steps == list(range(1, len(steps) + 1)), "steps never repeat"
