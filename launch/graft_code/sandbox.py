"""Runs one generated program against its tests in restricted processes (child.py) and says how it went."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from graft_prepare.errors import GraftError, printable

CHILD = Path(__file__).with_name("child.py")
GRACE_SECONDS = 10  # beyond the program's own time, for the supervisor to start and to end


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    seconds: float = 10.0  # wall clock; processor time is bounded a second later
    memory_mb: int = 1024  # address space
    file_mb: int = 16  # all its files together


@dataclass(frozen=True)
class Job:
    """A program and what it must stand."""

    program: str
    tests: tuple[str, ...]
    setup: str = ""
    entry_point: str | None = None


@dataclass(frozen=True)
class Outcome:
    """`problem` is None when all tests passed. `restrictions`: name -> "on" or why not."""

    problem: str | None
    restrictions: dict[str, str]


def _supervise(job: bytes, folder: str, seconds: float) -> bytes:
    """What the supervisor writes; empty when it had to be killed. Nothing of its process group is left."""
    # The Python below the project's environment: the environment's packages are no business of the program.
    python = os.path.realpath(sys.executable)
    process = subprocess.Popen(
        [python, "-I", "-S", "-B", str(CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        cwd=folder,
        start_new_session=True,
    )
    try:
        return process.communicate(job, timeout=seconds + GRACE_SECONDS)[0]
    except subprocess.TimeoutExpired:
        return b""
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run(job: Job, limits: Limits) -> Outcome:
    """Runs the job. Raises only when the restricted processes could not do their part."""
    with tempfile.TemporaryDirectory(prefix="graft-code-") as folder:
        payload = {
            "folder": folder,
            "seconds": limits.seconds,
            "memory_bytes": limits.memory_mb << 20,
            "file_bytes": limits.file_mb << 20,
            "setup": job.setup,
            "program": job.program,
            "tests": job.tests,
            "entry_point": job.entry_point,
        }
        written = _supervise(json.dumps(payload).encode(), folder, limits.seconds)
    try:
        outcome = json.loads(written)
    except ValueError:
        raise GraftError(
            "io", "the supervisor of a generated program ended without a word"
        ) from None
    problem = outcome["problem"]
    return Outcome(None if problem is None else printable(problem), outcome["restrictions"])
