"""What faults and checkpoints of a training job cost on a real model folder: how long a save stops the training and takes to be
committed, a rank's death until the job ends, a restart until its first step is done, a stopped rank until it is found.

  bench/recovery_times.py --model runs/quickstart/model [--repeat 3] [--check]

One job after the other in the same output folder: the first has its rank 1 killed, the next, which goes on from the checkpoint,
its rank 1 stopped, and so on. --check: exit 1 when the largest value of a row is above its limit.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import compare_peft
import measure

ROWS = {  # what: limit in seconds
    "a save stops the training": 0.05,
    "a save is committed": 2,
    "restart to the end of the first step": 10,
    "a rank is killed: the job has ended": 5,
    "a rank is stopped: found, the job has ended": 30,
}
STALL, COMMIT, RESTART, KILLED, STOPPED = ROWS
ENDS = {signal.SIGKILL: (KILLED, 137), signal.SIGSTOP: (STOPPED, 76)}  # row, exit code
WAIT_SECONDS = 300


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--graft", type=Path, default=measure.ROOT / "build" / "graft")
    parser.add_argument("--threads", type=int, default=2, help="of the whole job")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--every", type=int, default=5, help="steps between checkpoints")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--check", action="store_true", help="exit 1 when a limit is not met")
    a = parser.parse_args()
    vars(a).update(ranks=2, rank=8, supervised=1.0, synthetic=True)
    return a


def write_recipe(a, folder):
    recipe = dict(
        run=dict(name="recovery", output=str(a.work / "run")),
        model=dict(path=str(a.model)),
        data=dict(train=str(folder / "data")),
        adapter=dict(method="lora", sites="all", rank=a.rank, alpha=2 * a.rank),
        parallel=dict(data=a.ranks, device="cpu", threads=a.threads // a.ranks),
        optim=dict(steps=1_000_000, global_batch=a.batch),
        checkpoint=dict(every=a.every),
    )
    path = a.work / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=1))  # JSON is YAML
    return path


def records(a, kind):
    found = measure.read_records(a.work / "run" / "metrics.jsonl")
    return [record for record in found if record["kind"] == kind]


def steps_done(a):
    return max((record["step"] for record in records(a, "train")), default=0)


def until(condition, what):
    """Waits until condition() is true; returns the seconds."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > WAIT_SECONDS:
            raise RuntimeError(f"{what}: not within {WAIT_SECONDS} s")
        time.sleep(measure.POLL_SECONDS)
    return time.monotonic() - began


def rank_process(launcher, rank):
    """Process id of a rank under this mpirun."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    wanted = f"OMPI_COMM_WORLD_RANK={rank}".encode()
    return next(int(p) for p in children if wanted in Path(f"/proc/{p}/environ").read_bytes().split(b"\0"))


def run_until_hurt(a, recipe, fault, seconds):
    """One start of the job, up to the end that `fault` brings."""
    row, code = ENDS[fault]
    saved_steps = [int(path.name[5:]) for path in (a.work / "run").glob("checkpoints/step-????????")]
    with open(a.work / "log", "w") as log:
        environment = os.environ | measure.passive(a.ranks)
        command = [*map(str, measure.graft_command(a.graft, recipe, a.ranks))]
        began = time.monotonic()
        job = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        if saved_steps:
            newest = max(saved_steps)
            # The start cuts what lies after the checkpoint off the metrics, then adds to them.
            until(lambda: records(a, "resume") and records(a, "resume")[-1]["step"] == newest, "the resume")
            until(lambda: steps_done(a) > newest, "the first step")
            seconds[RESTART].append(time.monotonic() - began)
        saved = len(records(a, "checkpoint"))
        until(lambda: len(records(a, "checkpoint")) >= saved + 2, "two checkpoints")
        os.kill(rank_process(job.pid, 1), fault)
        seconds[row].append(until(lambda: job.poll() is not None, "the end"))
    finally:
        job.kill()
        job.wait()
    if job.returncode != code:
        raise RuntimeError(f"exit {job.returncode}, expected {code}\n{(a.work / 'log').read_text()[-3000:]}")


def main():
    a = arguments()
    seconds = {row: [] for row in ROWS}
    made = measure.begin(a)
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as work:
        a.work = Path(work)
        recipe = write_recipe(a, compare_peft.workload(a, a.batch, a.length, 16))
        for _ in range(a.repeat):
            for fault in ENDS:
                run_until_hurt(a, recipe, fault, seconds)
        for record in records(a, "checkpoint"):
            seconds[STALL].append(record["stall_seconds"])
            seconds[COMMIT].append(record["seconds"])
    print("| seconds | median | largest | of | limit |\n|---|---|---|---|---|")
    for row, values in seconds.items():
        numbers = f"{statistics.median(values):.3f} | {max(values):.3f} | {len(values)}"
        print(f"| {row} | {numbers} | {ROWS[row]} |")
    measure.write_result("recovery-times", made, seconds=seconds, limits=ROWS)
    measure.check(a.check, [row for row, values in seconds.items() if max(values) > ROWS[row]])


if __name__ == "__main__":
    main()
