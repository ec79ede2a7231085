"""Opening untrusted files of a model folder, and writing a result folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import input_error, io_error, printable, usage_error

MAX_JSON_DEPTH = 64
MAX_CONFIG_BYTES = 1 << 20


class JsonProblem(ValueError):
    """A JSON text that is refused; `column` counts from 1 where it is known."""

    def __init__(self, reason: str, line: int = 1, column: int = 1) -> None:
        super().__init__(reason)
        self.line = line
        self.column = column


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise JsonProblem(f"key '{printable(twice)}' occurs twice")
    return value


def _refuse_constant(name: str) -> None:
    raise JsonProblem(f"{name} is not a JSON number")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [
            child
            for node in level
            if isinstance(node, (dict, list))
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return
    if any(isinstance(node, (dict, list)) for node in level):
        raise JsonProblem(f"nested deeper than {MAX_JSON_DEPTH}")


def parse_json(text: str) -> Any:
    """Strict JSON: unique keys, finite numbers, depth at most 64, no lone surrogates. Raises JsonProblem."""
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise JsonProblem(f"not JSON ({error.msg})", error.lineno, error.colno) from None
    except UnicodeEncodeError:
        raise JsonProblem("a \\u escape is half of a surrogate pair") from None
    except JsonProblem:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise JsonProblem(f"not JSON ({str(error).partition(':')[0]})") from None
    except RecursionError:
        raise JsonProblem(f"nested deeper than {MAX_JSON_DEPTH}") from None
    _check_depth(value)
    return value


def decode_utf8(data: bytes, where: str) -> str:
    """The text of `data`; an error names the first bad byte."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise input_error(f"{where}: byte {error.start} is not valid UTF-8") from None


def read_json_file(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> Any:
    """A whole JSON file under a size limit; a violation is an input error that names file, line and column."""
    size = path.stat().st_size
    if size > max_bytes:
        raise input_error(f"{path}: {size} bytes, at most {max_bytes} are allowed")
    text = decode_utf8(path.read_bytes(), str(path))
    try:
        return parse_json(text)
    except JsonProblem as problem:
        raise input_error(f"{path}:{problem.line}:{problem.column}: {problem}") from None


def member(folder: Path, name: str) -> Path | None:
    """The file `name` of a model folder, or None; a link may not lead out of the folder (or its hub cache)."""
    path = folder / name
    if not path.exists():
        return None
    base = folder.resolve()
    root = base.parent.parent if base.parent.name == "snapshots" else base
    if not path.resolve().is_relative_to(root):
        raise input_error(f"{path}: a link that leaves the model folder")
    if not path.is_file():
        raise input_error(f"{path}: not a regular file")
    return path


def sha256_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def apply_umask(path: Path) -> None:
    """Gives a file the usual mode: the safetensors library makes files that only their owner can read."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


@contextlib.contextmanager
def whole_folder(out: Path, marker: str, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that becomes `out` when the block ends well, and vanishes when it does not.

    `marker` is a file (anywhere below) that an existing `out` must hold to be replaced with overwrite=True.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        if not overwrite:
            raise io_error(f"{out}: exists already; give --overwrite to replace it")
        if not out.is_dir() or not any(out.rglob(marker)):
            raise usage_error(f"{out}: --overwrite replaces only folders with a {marker}")
    out.parent.mkdir(parents=True, exist_ok=True)
    temp = out.parent / f".{out.name}.tmp-{os.getpid()}"
    temp.mkdir()
    try:
        yield temp
        if out.exists():
            shutil.rmtree(out)
        temp.rename(out)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
