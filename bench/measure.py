"""Runs one program under measurement and summarizes its metrics.jsonl.

Used by every script of bench/. Imports nothing large: a child's peak memory as the kernel counts it begins with
the size of the process that started it.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MPIRUN = (
    "mpirun --allow-run-as-root --oversubscribe -q --bind-to none --mca mpi_yield_when_idle 1 -np"
)
POLL_SECONDS = 0.01


@dataclass
class Run:
    """What one process (tree) did. Memory is the largest process of the tree, by wait4."""

    command: list
    records: list = field(default_factory=list)
    wall_seconds: float = 0.0
    start_seconds: float = 0.0  # process start to the begin of step 1
    peak_bytes: int = 0

    def train(self):
        return [r for r in self.records if r["kind"] == "train"]


def read_records(path):
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def run(command, metrics, threads, log, environment=None, limit_seconds=float("inf")):
    """Runs `command`, which writes `metrics` (a metrics.jsonl); stdout and stderr go to `log`. Raises with the end of the
    log when it fails or takes longer than the limit, past which it is asked to end."""
    command = [str(part) for part in command]
    env = os.environ | dict(OMP_NUM_THREADS=str(threads), HF_HUB_OFFLINE="1") | (environment or {})
    result = Run(command)
    with open(log, "w") as output:
        began = time.time()
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=env)
        first_line_at = None
        while True:
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if first_line_at is None:
                first = next((r for r in read_records(metrics) if r["kind"] == "train"), None)
                if first is not None:
                    first_line_at = time.time()
                    result.start_seconds = first_line_at - first["step_seconds"] - began
            if pid:
                break
            if time.time() - began > limit_seconds:
                child.terminate()
                limit_seconds = float("inf")
            time.sleep(POLL_SECONDS if first_line_at is None else 0.2)
        result.wall_seconds = time.time() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        tail = "".join(Path(log).read_text().splitlines(True)[-25:])
        raise RuntimeError(f"exit {child.returncode}: {' '.join(command)}\n{tail}")
    result.records = read_records(metrics)
    result.peak_bytes = usage.ru_maxrss * 1024
    return result


def graft_command(binary, recipe_path, ranks, command="train"):
    launcher = [*MPIRUN.split(), str(ranks)] if ranks > 1 else []
    return [*launcher, binary, command, "--config", recipe_path]


def passive(ranks):
    """Ranks that share cores must not spin while they wait."""
    return dict(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="0") if ranks > 1 else {}


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def summary(result, warmup):
    """Numbers of the timed steps of a run."""
    timed = result.train()[warmup:]
    seconds = [r["step_seconds"] for r in timed]
    return dict(
        tokens_per_second=sum(r["tokens"] for r in timed) / sum(seconds),
        trained_tokens_per_second=sum(r["trained_tokens"] for r in timed) / sum(seconds),
        step_seconds_p50=percentile(seconds, 0.5),
        step_seconds_p95=percentile(seconds, 0.95),
        timed_steps=len(timed),
        peak_bytes=result.peak_bytes,
        start_seconds=result.start_seconds,
        wall_seconds=result.wall_seconds,
    )


def spread(values):
    return (max(values) - min(values)) / statistics.median(values)


def flop_per_token(model_folder, length, rank, supervised=1.0):
    """Forward and backward of LoRA on all linears, frozen weights without weight gradients: 4 P + 3.5 a + 6 P_adapter
    (docs: cost model), the head on the supervised share of positions."""
    c = json.loads((Path(model_folder) / "config.json").read_text())
    d, f, layers = c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"]
    head = c.get("head_dim") or d // c["num_attention_heads"]
    q, kv = head * c["num_attention_heads"], head * c["num_key_value_heads"]
    per_layer = 2 * d * q + 2 * d * kv + 3 * d * f
    adapter = rank * (2 * (d + q) + 2 * (d + kv) + 3 * (d + f))
    attention = 2 * length * q
    body = layers * (4 * per_layer + 3.5 * attention + 6 * adapter)
    return body + supervised * 4 * d * c["vocab_size"]


def _first_line(command):
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return (done.stdout or done.stderr).strip().splitlines()[0] if done.returncode == 0 else ""


def _environment_record(binary):
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    packages = "import importlib.metadata as m, json; print(json.dumps({p: m.version(p) for p in ('torch','transformers','peft')}))"
    version = subprocess.run([binary, "--version"], capture_output=True, text=True).stdout
    return dict(
        date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        commit=_first_line(["git", "describe", "--always", "--dirty"]),
        graft=version.strip().splitlines(),
        peer=json.loads(_first_line([sys.executable, "-c", packages])),
        cpu=cpu,
        cores=len(os.sched_getaffinity(0)),
        load_before=os.getloadavg()[0],
    )


def begin(a):
    """What a result says of its making. Before the first run: `load_before` is the machine's without it."""
    settings = {k: v for k, v in vars(a).items() if not isinstance(v, Path)}
    return dict(environment=_environment_record(a.graft), command=sys.argv, settings=settings)


def write_result(name, made, **numbers):
    """bench/results/NAME.json, of what begin() gave and the numbers."""
    folder = ROOT / "bench" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    result = dict(name=name) | made | numbers
    # Paths inside the project, as anyone may type them.
    path.write_text(json.dumps(result, indent=1, default=str).replace(f"{ROOT}/", "") + "\n")
    print(f"written: {path}")
    return result


def check(wanted, missed):
    """Exits 1 when limits were to be kept (--check) and `missed`, a list or a sentence, is not empty."""
    if wanted and missed:
        sys.exit(f"limit not met: {missed if isinstance(missed, str) else ', '.join(missed)}")
