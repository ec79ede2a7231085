"""Reads records from JSONL, JSON, TSV and text files that nobody has checked.

A bad line is reported with file, line and column; up to a cap bad lines are skipped, one more is fatal. Every line
that is not blank takes one number, so that a record keeps its id whatever else is skipped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import input_error, printable
from .files import JsonProblem, decode_utf8, parse_json

MAX_LINE_BYTES = 16 << 20
MAX_JSON_BYTES = 1 << 30
MAX_SHOWN = 10
FORMATS = ("auto", "jsonl", "json", "tsv", "text")
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class RawRecord:
    """One record as the file has it; `where` is file:line, `number` counts over all input files."""

    where: str
    number: int
    value: dict[str, Any]


@dataclass
class BadLines:
    """Counts malformed lines and stops at one more than the cap."""

    cap: int
    count: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    def report(self, where: str, reason: str) -> None:
        self.count += 1
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        if self.count > self.cap:
            cap = (
                f" ({self.count} malformed lines, --max-bad allows {self.cap})" if self.cap else ""
            )
            raise input_error(f"{where}: {reason}{cap}")
        if self.count <= MAX_SHOWN:
            print(f"skipped {where}: {reason}", file=sys.stderr)


@dataclass
class Source:
    """The state that the readers of one run share: bad lines, record numbers, bytes done for the progress bar."""

    bad: BadLines
    advance: Callable[[int], object] = lambda _: None
    next_number: int = 0

    def take_number(self) -> int:
        self.next_number += 1
        return self.next_number - 1


def _raw_lines(path: Path, source: Source) -> Iterator[tuple[int, bytes | None]]:
    """Line number and bytes; None for a line over the limit, which is never held in memory."""
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            source.advance(len(line))
            if number == 1:
                line = line.removeprefix(BOM)
            if len(line) > MAX_LINE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = stream.readline(1 << 20)
                    source.advance(len(line))
                yield number, None
            else:
                yield number, line


def _text_of(line: bytes) -> str:
    """The line as text; raises JsonProblem with the column of what is wrong."""
    nul = line.find(b"\0")
    if nul >= 0:
        raise JsonProblem("a NUL byte", column=nul + 1)
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise JsonProblem("invalid UTF-8", column=error.start + 1) from None


def text_lines(path: Path, source: Source) -> Iterator[tuple[int, str]]:
    """The good lines of a file without their line ends; bad ones go to source.bad and take a record number."""
    first_ending: bytes | None = None
    for number, line in _raw_lines(path, source):
        problem = None
        if line is None:
            problem = JsonProblem(f"longer than {MAX_LINE_BYTES} bytes")
        else:
            ending = b"\r\n" if line.endswith(b"\r\n") else b"\n" if line.endswith(b"\n") else None
            first_ending = first_ending or ending
            if ending is not None and ending != first_ending:
                problem = JsonProblem(
                    "ends with another line end than the lines before it (CRLF and LF are mixed)",
                    column=len(line) - len(ending) + 1,
                )
            try:
                text = _text_of(line)
            except JsonProblem as error:
                problem = error
        if problem is None:
            yield number, text.rstrip("\r\n")
        else:
            source.take_number()
            source.bad.report(f"{path}:{number}:{problem.column}", str(problem))


def read_jsonl(path: Path, source: Source) -> Iterator[RawRecord]:
    for number, text in text_lines(path, source):
        if not text.strip():
            continue
        record = source.take_number()
        try:
            value = parse_json(text)
            if not isinstance(value, dict):
                raise JsonProblem(f"a {type(value).__name__}, an object is needed")
        except JsonProblem as problem:
            source.bad.report(f"{path}:{number}:{problem.column}", str(problem))
            continue
        yield RawRecord(f"{path}:{number}", record, value)


def read_json(path: Path, source: Source) -> Iterator[RawRecord]:
    """A JSON array of objects."""
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise input_error(
            f"{path}: {size} bytes, a JSON array may have {MAX_JSON_BYTES}; write JSONL instead"
        )
    text = decode_utf8(path.read_bytes().removeprefix(BOM), str(path))
    try:
        values = parse_json(text)
    except JsonProblem as problem:
        raise input_error(f"{path}:{problem.line}:{problem.column}: {problem}") from None
    if not isinstance(values, list):
        raise input_error(
            f"{path}: a {type(values).__name__} at the top, an array of objects is needed"
        )
    source.advance(size)
    for index, value in enumerate(values):
        record = source.take_number()
        if isinstance(value, dict):
            yield RawRecord(f"{path}: record {index}", record, value)
        else:
            source.bad.report(
                f"{path}: record {index}", f"a {type(value).__name__}, an object is needed"
            )


def read_tsv(path: Path, source: Source) -> Iterator[RawRecord]:
    """Tab-separated fields under a header line; nothing is quoted or escaped."""
    header: list[str] | None = None
    for number, text in text_lines(path, source):
        if header is None:
            header = text.split("\t")
            if len(set(header)) != len(header):
                raise input_error(f"{path}:1: the header names a column twice: {printable(text)}")
            continue
        if not text:
            continue
        record = source.take_number()
        fields = text.split("\t")
        if len(fields) == len(header):
            yield RawRecord(f"{path}:{number}", record, dict(zip(header, fields)))
        else:
            source.bad.report(
                f"{path}:{number}:1", f"{len(fields)} fields, the header has {len(header)}"
            )


def read_text(path: Path, source: Source) -> Iterator[RawRecord]:
    """One document a line."""
    for number, text in text_lines(path, source):
        if text.strip():
            yield RawRecord(f"{path}:{number}", source.take_number(), {"text": text})


READERS = {"jsonl": read_jsonl, "json": read_json, "tsv": read_tsv, "text": read_text}


def detect_format(path: Path) -> str:
    """By suffix; a .json file whose first character is not [ is read as JSONL."""
    suffix = path.suffix.lower()
    if suffix == ".tsv":
        return "tsv"
    if suffix == ".txt":
        return "text"
    with path.open("rb") as stream:
        start = stream.read(4096).removeprefix(BOM).lstrip()
    return "json" if start.startswith(b"[") else "jsonl"


def read_records(paths: list[Path], file_format: str, source: Source) -> Iterator[RawRecord]:
    """All records of all files in order. A file without content is an input error."""
    for path in paths:
        if path.stat().st_size == 0:
            raise input_error(f"{path}: the file is empty")
        reader = READERS[detect_format(path) if file_format == "auto" else file_format]
        yield from reader(path, source)
