"""Runs the program on a damaged input and judges how it refuses it.

Used by malformed_inputs.py and malformed_methods.py. Only the standard library is needed.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from malformed_folders import Folders

KINDS = {65: "input", 78: "recipe"}
SECONDS_ABOVE_VERSION = 2.0
TRIES_AGAIN = 2
KIB_ABOVE_VERSION = 200 * 1024
HANG_SECONDS = 60
MPIRUN = ["mpirun", "-q", "--oversubscribe", "--allow-run-as-root", "--bind-to", "none"]
MPIRUN += ["--mca", "mpi_yield_when_idle", "1", "-np"]


@dataclass
class Row:
    number: str
    what: str
    part: str  # which folder `inspect` gets: model, data, adapter
    damage: Callable[[Folders], None]
    needles: tuple[str, ...]  # each must stand in the message: file, field
    needs_weights: bool = True  # `plan` reads config.json only
    code: int = 65  # 78: the recipe, not a file, is wrong
    # Of the recipe, in place of the usual ones; ROOT stands for the folder of the inputs.
    sections: dict = field(default_factory=dict)


@dataclass
class Outcome:
    code: int
    stdout: str
    stderr: str
    seconds: float
    peak_kib: int  # of the largest process


def run(command: list[str], folder: Path) -> Outcome:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with (folder / "stdout").open("w+b") as out, (folder / "stderr").open("w+b") as err:
        begin = time.monotonic()
        process = subprocess.Popen(
            command, stdout=out, stderr=err, env=environment, start_new_session=True
        )
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid != 0:
                break
            if time.monotonic() - begin > HANG_SECONDS:
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.01)
        seconds = time.monotonic() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode("utf-8", "replace"))
    return Outcome(process.returncode, texts[0], texts[1], seconds, usage.ru_maxrss)


def recipe(folders: Folders, ranks: int, row: Row) -> str:
    content = {
        "run": {"name": "malformed", "output": str(folders.root / "output"), "seed": 0},
        "model": {"path": str(folders.model), "dtype": "float32"},
        "data": {"train": str(folders.data), "shuffle": False},
        "adapter": {"method": "lora", "sites": ["attn.q"], "rank": 2, "alpha": 4},
        "parallel": {"data": ranks, "device": "cpu", "threads": 1},
        "optim": {"steps": 1, "global_batch": 2, "micro_batch": 1},
    }
    content.update(row.sections)
    if row.part == "adapter":
        content["adapter"] = {**content["adapter"], "init_from": str(folders.adapter)}
    path = folders.root / "recipe.yaml"
    path.write_text(json.dumps(content).replace("ROOT", str(folders.root)))  # JSON is YAML
    return str(path)


def command_line(graft: str, command: str, row: Row, folders: Folders, ranks: int) -> list[str]:
    if command == "inspect":
        return [graft, "inspect", str(folders.root / row.part)]
    line = [graft, command, "--config", recipe(folders, ranks, row)]
    return line if ranks == 1 else [*MPIRUN, str(ranks), *line]


def faults(row: Row, outcome: Outcome, version: Outcome, ranks: int, output: Path) -> list[str]:
    found = []
    if outcome.code != row.code:
        found.append(f"exit code {outcome.code}, must be {row.code}")
    lines = [line for line in outcome.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("graft: error: ")]
    if len(errors) != 1:
        found.append(f"{len(errors)} error lines, must be 1")
    for line in errors[:1]:
        if not line.startswith(f"graft: error: {KINDS[row.code]}: "):
            found.append(f"not of kind {KINDS[row.code]}")
        found += [f"does not name {needle}" for needle in row.needles if needle not in line]
        if ranks == 1 and line != lines[-1]:  # mpirun writes text of its own behind it
            found.append("text behind the error line")
    if outcome.seconds > version.seconds + SECONDS_ABOVE_VERSION:
        found.append(f"{outcome.seconds:.1f} s, --version takes {version.seconds:.1f} s")
    if outcome.peak_kib > version.peak_kib + KIB_ABOVE_VERSION:
        found.append(f"{outcome.peak_kib >> 10} MiB, --version {version.peak_kib >> 10} MiB")
    if outcome.stdout.strip():
        found.append("text on stdout")
    # The lock stays as an empty file; what counts is whether a job holds it.
    left = sorted(p.name for p in output.iterdir() if p.name != "lock") if output.exists() else []
    if left:
        found.append(f"output left: {left}")
    if found:
        found.append("stderr ends: " + " | ".join(lines[-3:]))
    return found


class Check:
    def __init__(self, graft: str, scratch: Path) -> None:
        self.graft = graft
        self.scratch = scratch
        self.versions = {1: self._version(1)}
        self.failures = 0
        self.runs = 0

    def _version(self, ranks: int) -> Outcome:
        line = [self.graft, "--version"]
        outcomes = [
            run(line if ranks == 1 else [*MPIRUN, str(ranks), *line], self.scratch)
            for _ in range(2)  # the first one fills the page cache
        ]
        if outcomes[1].code != 0:
            sys.exit(f"{self.graft} --version: exit code {outcomes[1].code}: {outcomes[1].stderr}")
        return outcomes[1]

    def summary(self) -> int:
        """Says how it went; the exit code of the script."""
        print(f"{self.runs} runs, {self.failures} failed")
        return 1 if self.failures else 0

    def _report(self, title: str, found: list[str]) -> None:
        self.runs += 1
        self.failures += bool(found)
        print(f"{'FAIL' if found else 'ok  '} {title}", flush=True)
        for fault in found:
            print(f"       {fault}")

    def valid(self, command: str, part: str, ranks: int) -> None:
        """The undamaged folders must pass, or a row would prove nothing."""
        with tempfile.TemporaryDirectory(dir=self.scratch) as name:
            folders = Folders(Path(name))
            folders.write_valid()
            row = Row("-", "valid", part, lambda _: None, ())
            outcome = run(command_line(self.graft, command, row, folders, ranks), folders.root)
            found = (
                [] if outcome.code == 0 else [f"exit code {outcome.code}", outcome.stderr[-500:]]
            )
            self._report(f"{command} on {ranks}: a valid {part}", found)

    def damaged(self, command: str, row: Row, ranks: int) -> None:
        if ranks not in self.versions:
            self.versions[ranks] = self._version(ranks)
        with tempfile.TemporaryDirectory(dir=self.scratch) as name:
            folders = Folders(Path(name))
            folders.write_valid()
            row.damage(folders)
            line = command_line(self.graft, command, row, folders, ranks)
            outcome, version = run(line, folders.root), self.versions[ranks]
            for _ in range(TRIES_AGAIN):  # something else may have the processor, for this row
                if outcome.seconds <= version.seconds + SECONDS_ABOVE_VERSION:
                    break
                version = self._version(ranks)
                outcome = run(line, folders.root)
            found = faults(row, outcome, version, ranks, folders.root / "output")
            self._report(f"{command} on {ranks}: {row.number} {row.what}", found)
