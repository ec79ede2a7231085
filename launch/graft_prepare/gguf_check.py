"""Checks the header of an untrusted GGUF file before a library opens it: every length against the file size.

Used by model.py. It reads no weights and converts nothing.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from .errors import GraftError, input_error, printable

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMS = 4
MAX_TENSORS = 1_000_000
MAX_KEYS = 100_000
MAX_NAME = 1024
MAX_ALIGNMENT = 1 << 16
SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
STRING, ARRAY = 8, 9
TOKENS_KEY = "tokenizer.ggml.tokens"


@dataclass
class TensorEntry:
    """One line of the tensor table; offset counts from the start of the data section."""

    name: str
    dims: tuple[int, ...]
    type_id: int
    offset: int


class _Cursor:
    """Reads little-endian values and never past the end of the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.at = 0

    def fail(self, what: str) -> GraftError:
        return input_error(f"{self.path}: at byte {self.at}: {what}")

    def take(self, count: int, what: str) -> bytes:
        left = len(self.data) - self.at
        if count > left:
            raise self.fail(f"{what} needs {count} bytes, {left} are left in the file")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str, what: str) -> int | float:
        return struct.unpack(code, self.take(struct.calcsize(code), what))[0]

    def text(self, what: str, limit: int | None = None) -> str:
        length = self.number("<Q", what)
        if limit is not None and length > limit:
            raise self.fail(f"{what} has length {length}, at most {limit} is allowed")
        start = self.at
        raw = self.take(length, what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.at = start
            raise self.fail(f"{what} is not valid UTF-8") from None


def _skip_array(cursor: _Cursor, key: str) -> int:
    """Steps over an array value and returns its length."""
    item = cursor.number("<I", f"type of {key}")
    count = cursor.number("<Q", f"length of {key}")
    if item == STRING:
        if count * 8 > len(cursor.data) - cursor.at:
            raise cursor.fail(f"{key} claims {count} strings, more than the file can hold")
        for index in range(count):
            cursor.text(f"{key}[{index}]")
    elif item in SCALARS:
        size = struct.calcsize(SCALARS[item])
        if count * size > len(cursor.data) - cursor.at:
            raise cursor.fail(f"{key} claims {count} values, more than the file can hold")
        cursor.at += count * size
    else:
        raise cursor.fail(f"{key} is an array of type {item}, known are strings and numbers")
    return count


def _read_keys(cursor: _Cursor, count: int) -> dict[str, object]:
    """The key-value section; arrays are kept as their length."""
    keys: dict[str, object] = {}
    for _ in range(count):
        key = printable(cursor.text("key", MAX_NAME))
        if key in keys:
            raise cursor.fail(f"key '{key}' occurs twice")
        kind = cursor.number("<I", f"type of {key}")
        if kind == STRING:
            keys[key] = cursor.text(key)
        elif kind == ARRAY:
            keys[key] = _skip_array(cursor, key)
        elif kind in SCALARS:
            keys[key] = cursor.number(SCALARS[kind], key)
        else:
            raise cursor.fail(f"{key} has type {kind}, known are 0..12")
    return keys


def _read_tensors(cursor: _Cursor, count: int) -> list[TensorEntry]:
    tensors = []
    names: set[str] = set()
    for _ in range(count):
        name = printable(cursor.text("tensor name", MAX_NAME))
        if name in names:
            raise cursor.fail(f"tensor '{name}' occurs twice")
        names.add(name)
        num_dims = cursor.number("<I", f"n_dims of {name}")
        if not 1 <= num_dims <= MAX_DIMS:
            raise cursor.fail(f"tensor '{name}' has n_dims {num_dims}, allowed are 1..{MAX_DIMS}")
        dims = tuple(cursor.number("<Q", f"dimensions of {name}") for _ in range(num_dims))
        if 0 in dims:
            raise cursor.fail(f"tensor '{name}' has a dimension 0 in {list(dims)}")
        type_id = cursor.number("<I", f"type of {name}")
        tensors.append(TensorEntry(name, dims, type_id, cursor.number("<Q", f"offset of {name}")))
    return tensors


def _tensor_bytes(path: Path, tensor: TensorEntry) -> int:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.type_id)]
    except (ValueError, KeyError):
        raise input_error(
            f"{path}: tensor '{tensor.name}' has the unknown type {tensor.type_id}"
        ) from None
    elements = 1
    for dim in tensor.dims:
        elements *= dim
    if tensor.dims[0] % block:
        raise input_error(
            f"{path}: tensor '{tensor.name}' has rows of {tensor.dims[0]}, not a multiple of {block}"
        )
    return elements // block * size


def _check_alignment(path: Path, keys: dict[str, object]) -> int:
    alignment = keys.get("general.alignment", 32)
    power_of_two = isinstance(alignment, int) and alignment > 0 and alignment & (alignment - 1) == 0
    if not power_of_two or not 8 <= alignment <= MAX_ALIGNMENT:
        raise input_error(
            f"{path}: general.alignment is {printable(alignment)}, allowed are powers of two 8..{MAX_ALIGNMENT}"
        )
    return alignment


def _check_data(
    path: Path, tensors: list[TensorEntry], alignment: int, header: int, size: int
) -> None:
    start = -(-header // alignment) * alignment
    end_of_last = 0
    for tensor in sorted(tensors, key=lambda entry: entry.offset):
        if tensor.offset % alignment:
            raise input_error(
                f"{path}: tensor '{tensor.name}' has offset {tensor.offset}, not a multiple of {alignment}"
            )
        end = tensor.offset + _tensor_bytes(path, tensor)
        if start + end > size:
            raise input_error(
                f"{path}: tensor '{tensor.name}' ends at byte {start + end}, the file has {size}"
            )
        if tensor.offset < end_of_last:
            raise input_error(f"{path}: tensor '{tensor.name}' overlaps the one before it")
        end_of_last = end


def check_gguf(path: Path) -> dict[str, object]:
    """Checks the whole header and the extent of every tensor. Returns the keys (arrays as their length)."""
    size = path.stat().st_size
    if size < 24:
        raise input_error(f"{path}: {size} bytes, a GGUF header needs 24")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(path, data)
        magic = cursor.take(4, "magic")
        if magic != MAGIC:
            raise input_error(f"{path}: starts with {magic!r}, a GGUF file starts with {MAGIC!r}")
        version = cursor.number("<I", "version")
        if version not in VERSIONS:
            raise input_error(f"{path}: GGUF version {version}, known are {VERSIONS}")
        num_tensors = cursor.number("<Q", "tensor count")
        num_keys = cursor.number("<Q", "key count")
        if not 1 <= num_tensors <= MAX_TENSORS or num_keys > MAX_KEYS:
            raise input_error(
                f"{path}: {num_tensors} tensors and {num_keys} keys, "
                f"allowed are 1..{MAX_TENSORS} and 0..{MAX_KEYS}"
            )
        keys = _read_keys(cursor, num_keys)
        tensors = _read_tensors(cursor, num_tensors)
        header = cursor.at
    _check_data(path, tensors, _check_alignment(path, keys), header, size)
    if keys.get(TOKENS_KEY) == 0:
        raise input_error(f"{path}: {TOKENS_KEY} is empty")
    return keys
