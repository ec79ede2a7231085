"""Runs the graft program for one recipe, alone or under mpirun, and passes stop signals on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from graft_prepare.errors import EXIT_CODES, GraftError

STOPPED = 75  # state saved, run again to go on
LAST_LINE = re.compile(r"^graft: error: \w+: (.*)$", re.MULTILINE)


class Stopped(Exception):
    """A stop was asked for; what is done stays."""


class Failed(Exception):
    """A run of the program failed: its exit code and its last line."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def mpirun(ranks: int) -> list[str]:
    """As local_ranks of common.sh: ranks may outnumber cores, and root may run them in a container."""
    if ranks == 1:
        return []
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    flags = ["--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"]
    return ["mpirun", "-q", *root, *flags, "-np", str(ranks)]


def write_whole(path: Path, text: str) -> None:
    """The file is there with all of its text or as it was before."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


@dataclass
class Program:
    """build/graft; `ranks` of a training run. One child at a time."""

    path: Path
    ranks: int
    child: subprocess.Popen[str] | None = None
    stopping: bool = False
    signals: tuple[int, ...] = field(default=(signal.SIGINT, signal.SIGTERM, signal.SIGUSR1))

    def catch_signals(self) -> None:
        for number in self.signals:
            signal.signal(number, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """The first asks the run to save and end, as USR1 does alone and under mpirun; the next ends it."""
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM if self.stopping else signal.SIGUSR1)
        self.stopping = True

    def run(self, command: str, recipe: dict[str, Any], base: Path) -> str:
        """graft COMMAND with this recipe, kept as BASE.yaml, its stderr as BASE.COMMAND.log; returns its stdout."""
        if self.stopping:
            raise Stopped
        config = base.with_name(base.name + ".yaml")
        log = base.with_name(f"{base.name}.{command}.log")
        config.parent.mkdir(parents=True, exist_ok=True)
        write_whole(config, yaml.safe_dump(recipe, sort_keys=False))
        ranks = self.ranks if command == "train" else 1
        arguments = [*mpirun(ranks), str(self.path), command, "--config", str(config)]
        environment = dict(os.environ)
        if ranks > 1:
            environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        with log.open("w", encoding="utf-8") as stderr:
            # A session of its own: the terminal's Ctrl-C reaches the run through _stop alone.
            self.child = subprocess.Popen(
                arguments,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=environment,
                start_new_session=True,
            )
            output, _ = self.child.communicate()
        code, self.child = self.child.returncode, None
        if code == 0:
            return output
        if self.stopping or code == STOPPED:
            raise Stopped
        lines = LAST_LINE.findall(log.read_text(encoding="utf-8", errors="replace"))
        raise Failed(
            code if code > 0 else 128 - code,
            lines[-1] if lines else f"exit code {code}, see {log}",
        )


def error_of(failures: list[tuple[str, Failed]]) -> GraftError:
    """The one error for everything that failed, of the first one's kind."""
    where, first = failures[0]
    kinds = {code: kind for kind, code in EXIT_CODES.items()}
    also = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    return GraftError(kinds.get(first.code, "bug"), f"{where}: {first}{also}")
