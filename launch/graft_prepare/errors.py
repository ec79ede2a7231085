"""The error rule of graft for its Python scripts: kinds, exit codes, and the one last line on stderr."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Callable
from typing import NoReturn

EXIT_CODES = {
    "usage": 64,
    "input": 65,
    "bug": 70,
    "io": 74,
    "peer": 76,
    "numeric": 77,
    "recipe": 78,
}
MAX_SHOWN_BYTES = 200


class GraftError(Exception):
    """An error with one of graft's kinds; its message is one line: what, where, found, allowed."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


def input_error(message: str) -> GraftError:
    return GraftError("input", message)


def usage_error(message: str) -> GraftError:
    return GraftError("usage", message)


def io_error(message: str) -> GraftError:
    return GraftError("io", message)


def printable(value: object) -> str:
    """A value from a file as log text: no control characters, at most 200 bytes."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    text = text[: 4 * MAX_SHOWN_BYTES]
    clean = "".join("?" if unicodedata.category(c)[0] == "C" else c for c in text)
    data = clean.encode("utf-8", "replace")
    if len(data) <= MAX_SHOWN_BYTES:
        return clean
    return data[: MAX_SHOWN_BYTES - 3].decode("utf-8", "ignore") + "..."


def _finish(kind: str, message: str) -> NoReturn:
    sys.stdout.flush()
    one_line = " ".join(message.splitlines())
    print(f"graft: error: {kind}: {one_line}", file=sys.stderr, flush=True)
    sys.exit(EXIT_CODES[kind])


def run_guarded(main: Callable[[], int | None]) -> NoReturn:
    """Runs a script's main and turns every failure into graft's exit code and last line."""
    try:
        code = main() or 0
        sys.stdout.flush()
    except GraftError as error:
        _finish(error.kind, error.message)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_CODES["io"])
    except OSError as error:
        _finish("io", f"{printable(error.filename or 'file')}: {error.strerror or error}")
    except MemoryError:
        _finish("bug", "out of memory")
    except Exception as error:  # the one place that catches: an unforeseen failure is our bug
        _finish("bug", f"{type(error).__name__}: {printable(error)}")
    sys.exit(code)
