"""F6: a bit that flips in the memory of one rank, in a trained or a frozen weight, ends the job with 70 before anything is saved.

The bit is flipped from outside, through /proc/PID/mem of the stopped rank: the program under test has no hook for it.
"""

import os
import re
import signal
from pathlib import Path

import pytest
from graft_program import Golden, metrics, recipe
from job import graft_job, steps_done, until
from safetensors.numpy import load_file

CHECK_STEPS = 100  # the replicas compare their adapters every so many steps
ALIVE = 3  # steps after which everything is loaded and used


def writable(process):
    """Address ranges of the process's own memory, and of what it maps from model files for itself alone."""
    for line in Path(f"/proc/{process}/maps").read_text().splitlines():
        begin, end, access, path = re.match(r"(\w+)-(\w+) (\S+) \S+ \S+ \S+ *(.*)", line).groups()
        if access.startswith("rw-p") or (access.startswith("r") and access.endswith("p") and path.endswith(".safetensors")):
            yield int(begin, 16), int(end, 16)


def flip(process, pattern):
    """Flips the lowest bit of the first number of every copy of `pattern`; returns how many there are."""
    os.kill(process, signal.SIGSTOP)
    copies = 0
    memory = os.open(f"/proc/{process}/mem", os.O_RDWR)
    try:
        for begin, end in writable(process):
            try:
                content = os.pread(memory, end - begin, begin)
            except OSError:  # [vvar] and the like
                continue
            for found in re.finditer(re.escape(pattern), content):
                os.pwrite(memory, bytes([pattern[0] ^ 1]), begin + found.start())
                copies += 1
    finally:
        os.close(memory)
        os.kill(process, signal.SIGCONT)
    return copies


def trained(golden):
    """Part of a LoRA matrix: random numbers, which the tiny learning rate of the test leaves as they are."""
    tensors = load_file(golden.folder / "initial" / "adapter_model.safetensors")
    return next(tensors[name] for name in sorted(tensors) if "lora_A" in name).ravel()[:16].tobytes()


def frozen(golden, name):
    shards = map(load_file, sorted(golden.model.glob("*.safetensors")))
    return next(shard[name] for shard in shards if name in shard)


def encoder(golden):
    return load_file(golden.model.parent / "roberta" / "model.safetensors")[ENCODER_WORDS][5, :16].tobytes()


def changed(weight):
    return f"frozen weight `{weight}` has changed in memory"


Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
NORM = "model.layers.1.input_layernorm.weight"
ENCODER_WORDS = "roberta.embeddings.word_embeddings.weight"
# golden case; what to look for; its name in the message; layout; steps of the run
CASES = {
    "adapter": ("gqa_lora", trained, "the replicas of stage 0 hold different adapters: hash64 from", (2, 1), 1_000_000),
    "frozen": ("gqa_lora", lambda g: frozen(g, NORM)[:16].tobytes(), changed(NORM), (2, 1), 600),
    "matrix": ("gqa_lora", lambda g: frozen(g, Q_PROJ)[3, :16].tobytes(), changed(Q_PROJ), (2, 1), 600),
    "matrix-pipeline": ("gqa_lora", lambda g: frozen(g, Q_PROJ)[3, :16].tobytes(), changed(Q_PROJ), (1, 2), 600),
    "encoder": ("gqa_lopa_encoder", encoder, changed(f"encoder: {ENCODER_WORDS}"), (1, 2), 600),
}


@pytest.mark.parametrize("name", CASES)
def test_flipped_bits_end_the_job(name, tmp_path, rounds):
    case, look_for, message, (data, pipeline), steps = CASES[name]
    golden = Golden(case)
    for number in range(rounds(1, 10)):
        output = tmp_path / f"run-{number}"
        keys = recipe(
            golden,
            output,
            optim=dict(steps=steps, lr=1e-30, schedule="constant", warmup_steps=0),
            parallel=dict(device="cpu", data=data, pipeline=pipeline),
        )
        job = graft_job(keys, tmp_path / f"job-{number}")
        until(lambda: steps_done(output) >= ALIVE, 60, "the first steps")  # noqa: B023
        # The layer lies on the first of two stages.
        flipped = flip(job.rank(1 if data == 2 else 0), look_for(golden))
        done = steps_done(output)
        assert flipped > 0, "not found in memory"
        code, seconds = job.wait(100)
        print(f"{name}: {flipped} copies flipped after step {done}, job ended in {seconds:.1f} s after step {steps_done(output)}")
        assert code == 70, job.err
        assert job.last_line.startswith("graft: error: bug: "), job.err
        assert message in job.last_line, job.err
        assert steps_done(output) <= (done + CHECK_STEPS + 1 if name == "adapter" else steps)
        assert not metrics(output, "checkpoint")
        assert not (output / "adapter").exists()
        assert len(list((output / "flight").glob("rank-*.json"))) == 2
