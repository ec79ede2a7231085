"""Runs the real program, alone or under mpirun, and reads what it leaves."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import yaml

BINARY_DIR = Path(os.environ["GRAFT_BINARY_DIR"])
GOLDENS = Path(os.environ.get("GRAFT_GOLDENS", BINARY_DIR / "goldens"))
LIMIT_SECONDS = 120
MPIRUN = (
    "mpirun --allow-run-as-root --oversubscribe -q --bind-to none --mca mpi_yield_when_idle 1 -np"
)


@dataclass
class Golden:
    """One folder of make_goldens.py."""

    name: str

    @property
    def folder(self):
        return GOLDENS / "cases" / self.name

    @property
    def numbers(self):
        return json.loads((self.folder / "golden.json").read_text())

    @property
    def model(self):
        return Path(self.numbers["model_folder"])


def data_folder(task, part):
    return GOLDENS / "data" / (part if task == "causal_lm" else f"{task}-{part}")


def recipe(golden, output, **sections):
    """The recipe of a golden case; `sections` are merged into it, e.g. parallel=dict(data=2)."""
    case = golden.numbers["case"]
    is_full = case["adapter"]["method"] == "full"
    start = {} if is_full else dict(init_from=str(golden.folder / "initial"))
    result = dict(
        run=dict(name=golden.name, output=str(output)),
        model=dict(path=str(golden.model), dtype="float32"),
        task=dict(type=case["task"]),
        data=dict(
            train=str(data_folder(case["task"], "train")),
            eval=str(data_folder(case["task"], "eval")),
            shuffle=False,
        ),
        adapter=case["adapter"] | start,
        optim=case["optim"] | dict(steps=case["steps"], micro_batch=2),
        parallel=dict(device="cpu"),
        checkpoint=dict(every=0),
    )
    for name, keys in sections.items():
        result[name] = result.get(name, {}) | keys
    return result


def run(command, keys, folder, overrides=()):
    """graft <command> with this recipe on as many ranks as it asks for; returns its stdout. A failure shows its stderr."""
    done = _start(command, keys, folder, overrides)
    assert done.returncode == 0, f"exit {done.returncode}: {done.args}\n{done.stderr[-4000:]}"
    return done.stdout


def attempt(command, keys, folder):
    """(exit code, stderr) of graft <command> with this recipe."""
    done = _start(command, keys, folder)
    return done.returncode, done.stderr


def _start(command, keys, folder, overrides=()):
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / f"{command}.yaml"
    config.write_text(yaml.safe_dump(keys))
    parallel = keys["parallel"]
    ranks = parallel.get("data", 1) * parallel.get("pipeline", 1)
    launcher = f"{MPIRUN} {ranks}".split() if ranks > 1 else []
    arguments = [*launcher, BINARY_DIR / "graft", command, "--config", config, *overrides]
    environment = os.environ | dict(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
    return subprocess.run(
        [str(a) for a in arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )


def metrics(output, kind):
    lines = (Path(output) / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]
