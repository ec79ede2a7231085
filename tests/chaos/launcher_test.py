"""K4: ranks do not outlive the launcher that was killed, and the next start waits for their lock and goes on."""

import os
import signal
from pathlib import Path

import pytest
import yaml
from graft_program import Golden, metrics, recipe
from job import BINARY_DIR, Job, graft_job, steps_done, until

ORPHAN_SECONDS = 5
SINGLE_NODE = Path(os.environ["GRAFT_SOURCE_DIR"]) / "launch" / "mpirun" / "single_node.sh"


@pytest.mark.parametrize("name", ["USR1", "TERM", "INT"])
def test_a_signal_to_the_launch_script_saves_and_stops(name, tmp_path):
    output = tmp_path / "run"
    keys = recipe(
        Golden("gqa_lora"),
        output,
        optim=dict(steps=1_000_000),
        parallel=dict(device="cpu", data=2),
    )
    config = tmp_path / "recipe.yaml"
    config.write_text(yaml.safe_dump(keys))
    graft = f"GRAFT={BINARY_DIR / 'graft'}"
    command = ["env", graft, SINGLE_NODE, 2, "train", "--config", config]
    job = Job(command, tmp_path / "job", new_group=True)
    until(lambda: steps_done(output) >= 5, 60, "five steps")
    # The whole group, as a terminal does.
    os.killpg(job.process.pid, getattr(signal, f"SIG{name}"))
    code, _ = job.wait(30)
    assert code == 75, job.err
    assert job.last_line.startswith("graft: stopped: on request after step ")
    assert len(metrics(output, "checkpoint")) == 1
    assert not job.left_over()


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
