#!/usr/bin/env python3
"""RUNS GENERATED PROGRAMS: pass@1 of what `graft generate` wrote, by the tests of the tasks. Off unless you say the flag.

  run_code.py --i-accept-running-generated-code --tasks mbpp.jsonl --generations runs/mbpp/generations.jsonl \\
      --model models/deepseek-coder-1.3b

--tasks is the file that the data set was prepared from: JSONL with `tests` or `test_list` (statements that raise when
they fail), optionally `setup`, `test_imports`, `test_setup_code`, and `entry_point` (a function that the program must
define); HumanEval's `prompt`, `test` and `entry_point` work with --completion. One JSON object goes to stdout.

Each program runs in a process of its own, with an empty environment, as nobody when you are root, without rights, in an
empty folder, under limits of time, processor time, memory, file size and open files, and can start neither processes
nor threads. Where the kernel allows it, it has no network, sees and signals no other process, and finds everything but
its folder read-only; where not, a warning and `restrictions` in the result name what is off. It can still read what
everybody (without root: you) can read. This is no defence against a program written to break out: use a machine or a
container that you can throw away.
"""

from project_python import use_project_venv

use_project_venv()

import argparse
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft_code.sandbox import Job, Limits, Outcome, run
from graft_code.tasks import Task, program_of, read_tasks
from graft_prepare.cli import Parser
from graft_prepare.errors import input_error, run_guarded, usage_error
from graft_prepare.tokenizer import load_tokenizer
from graft_runs.generations import decode, read_generations

FLAG = "--i-accept-running-generated-code"


@dataclass(frozen=True)
class Attempt:
    """One program for one task."""

    task: Task
    job: Job


def attempts(args: argparse.Namespace) -> Iterator[Attempt]:
    tasks = read_tasks(args.tasks)
    tokenizer = load_tokenizer(args.model)
    for path in args.generations:
        for generation in read_generations(path):
            task = tasks.get(generation.sample_id)
            if task is None:
                raise input_error(
                    f"{generation.where}: sample {generation.sample_id}: {args.tasks} has "
                    f"{len(tasks)} tasks; it must be the file that the data set was prepared from"
                )
            prompt = task.prompt if args.completion else None
            program = program_of(decode(tokenizer, generation), prompt, args.stop)
            yield Attempt(task, Job(program, task.tests, task.setup, task.entry_point))


def summary(tried: list[Attempt], outcomes: list[Outcome]) -> dict[str, Any]:
    """pass@1 = mean over the tasks of the share of their programs that passed."""
    by_task: dict[int, list[bool]] = {}
    for attempt, outcome in zip(tried, outcomes, strict=True):
        by_task.setdefault(attempt.task.number, []).append(outcome.problem is None)
    shares = [sum(passed) / len(passed) for passed in by_task.values()]
    return {
        "tasks": len(by_task),
        "programs": len(tried),
        "passed": sum(outcome.problem is None for outcome in outcomes),
        "pass@1": sum(shares) / len(shares),
        "restrictions": outcomes[0].restrictions,
    }


def write_details(path: Path, tried: list[Attempt], outcomes: list[Outcome]) -> None:
    lines = [
        json.dumps({"sample_id": attempt.task.number, "problem": outcome.problem})
        for attempt, outcome in zip(tried, outcomes, strict=True)
    ]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _parser() -> Parser:
    parser = Parser(
        prog="run_code.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    limits = Limits()
    add = parser.add_argument
    add(FLAG, action="store_true", dest="accepted", help="needed: nothing runs without it")
    add("--tasks", type=Path, required=True, help="the tasks with their tests")
    add(
        "--generations",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="generations.jsonl; several files are several programs for each task",
    )
    add("--model", type=Path, required=True, help="the model folder whose tokenizer decodes them")
    add("--completion", action="store_true", help="the answer goes on with the task's prompt")
    add("--stop", action="append", default=[], metavar="TEXT", help="the program ends before TEXT")
    add("--seconds", type=float, default=limits.seconds, help="for each program (%(default)s)")
    add("--memory-mb", type=int, default=limits.memory_mb, help="for each program (%(default)s)")
    jobs = len(os.sched_getaffinity(0))
    add("--jobs", type=int, default=jobs, help="programs at a time (%(default)s)")
    add("--details", type=Path, metavar="FILE", help="also write each program's outcome as JSONL")
    return parser


def main() -> int:
    args = _parser().parse_args()
    if not args.accepted:
        raise usage_error(
            f"run_code.py: it runs programs that a model wrote; say {FLAG} if you want that"
        )
    if not 0 < args.seconds <= 3600 or args.memory_mb < 64 or args.jobs < 1:
        raise usage_error(
            "run_code.py: allowed are --seconds above 0 up to 3600, --memory-mb from 64, --jobs from 1"
        )
    tried = list(attempts(args))
    limits = Limits(seconds=args.seconds, memory_mb=args.memory_mb)
    with ThreadPoolExecutor(args.jobs) as pool:
        outcomes = list(pool.map(lambda attempt: run(attempt.job, limits), tried))
    for name, state in outcomes[0].restrictions.items():
        if state != "on":
            print(f"warning: the programs ran with restriction '{name}' {state}", file=sys.stderr)
    if args.details is not None:
        write_details(args.details, tried, outcomes)
    print(json.dumps(summary(tried, outcomes)))
    return 0


if __name__ == "__main__":
    run_guarded(main)
