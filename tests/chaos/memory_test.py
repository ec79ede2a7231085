"""F4: a rank that gets no memory ends the job with 70 and says for which tensor."""

import re
import resource

from graft_program import Golden, recipe
from job import graft_job, until

LIMIT = 120


def peak_address_space(job):
    """Bytes, of a process that is still there."""
    path = f"/proc/{job.rank(0)}/status"
    with open(path) as status:
        return int(re.search(r"VmPeak:\s+(\d+) kB", status.read())[1]) * 1024


def test_no_memory_for_a_weight(tmp_path):
    small = recipe(
        Golden("gqa_lora"),
        tmp_path / "small",
        optim=dict(steps=1_000_000, schedule="constant", warmup_steps=0),
        parallel=dict(device="cpu", data=2),
    )
    job = graft_job(small, tmp_path / "job-small")
    until(lambda: (tmp_path / "small" / "metrics.jsonl").exists(), LIMIT, "a run")
    room = peak_address_space(job)
    job.end()

    # The first tensor of this shape has 1 GB.
    large = small | dict(
        model=dict(shape="llama-1b", dtype="float32"),
        adapter=dict(method="lora", sites=["attn.q"]),
        run=dict(name="large", output=str(tmp_path / "large")),
    )
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (room + (300 << 20), before[1]))
    try:
        job = graft_job(large, tmp_path / "job-large")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    code, _ = job.wait(LIMIT)
    assert code == 70, f"{code}: {job.err[-3000:]}"
    assert re.match(r"graft: error: bug: rank \d: loading tensor `\S+`", job.last_line), job.last_line
