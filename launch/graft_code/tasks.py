"""Programming tasks with their tests, as JSONL, and the program in a model's answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft_prepare.errors import input_error
from graft_prepare.reader import BadLines, RawRecord, Source, read_records
from graft_runs.generations import existing_file

FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Task:
    """One record; `number` is the sample id that prepare.py gave it."""

    number: int
    prompt: str
    tests: tuple[str, ...]
    setup: str
    entry_point: str | None


def _strings(record: RawRecord, key: str, value: Any) -> list[str]:
    """A string, or a list of them, as a list; absent = empty."""
    values = [value] if isinstance(value, str) else value or []
    if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
        raise input_error(f"{record.where}: key '{key}' must be a string or a list of strings")
    return values


def _first_of(record: RawRecord, *keys: str) -> list[str]:
    for key in keys:
        if record.value.get(key) is not None:
            return _strings(record, key, record.value[key])
    return []


def _task(record: RawRecord) -> Task:
    entry_point = record.value.get("entry_point")
    if entry_point is not None and not isinstance(entry_point, str):
        raise input_error(f"{record.where}: key 'entry_point' must be a string")
    tests = _first_of(record, "tests", "test_list")
    if not tests and entry_point:  # HumanEval: one text that defines check(candidate)
        tests = [f"{text}\ncheck({entry_point})" for text in _first_of(record, "test")]
    if not tests:
        raise input_error(
            f"{record.where}: no tests; a task has 'tests' or 'test_list' (statements), or 'test' "
            "and 'entry_point'"
        )
    setup = _first_of(record, "test_imports") + _first_of(record, "setup", "test_setup_code")
    prompt = "".join(_first_of(record, "prompt", "text")[:1])
    return Task(record.number, prompt, tuple(tests), "\n".join(setup), entry_point)


def read_tasks(path: Path) -> dict[int, Task]:
    """All tasks by their sample id."""
    records = read_records([existing_file(path)], "auto", Source(BadLines(0)))
    return {record.number: _task(record) for record in records}


def program_of(answer: str, prompt: str | None, stop: list[str]) -> str:
    """The program in an answer: its first fenced block, else all of it up to the first stop text, behind `prompt`."""
    for text in stop:
        answer = answer.split(text, 1)[0]
    fenced = FENCE.search(answer)
    if fenced:
        return fenced.group(1)
    return answer if prompt is None else prompt + answer
