"""Rows 37 to 54 of the malformed inputs: exit 65, one last line that names the file, in time, nothing left behind."""

from __future__ import annotations

import json
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import last_line, run_script

MAX_SECONDS = 10 * 5  # the promise, on a machine that does other work too
GOOD = json.dumps({"prompt": "a", "completion": "b"}).encode()


def gguf_string(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


def gguf(
    magic: bytes = b"GGUF",
    dims: tuple[int, ...] = (32, 2),
    num_dims: int | None = None,
    alignment: int = 32,
    offset: int = 0,
    key_length: int | None = None,
) -> bytes:
    """A small well-formed file with one float32 tensor, or one with the given fault."""
    keys = (
        gguf_string(b"general.architecture", key_length)
        + struct.pack("<I", 8)
        + gguf_string(b"llama")
    )
    keys += gguf_string(b"general.alignment") + struct.pack("<II", 4, alignment)
    tensor = gguf_string(b"output.weight") + struct.pack(
        "<I", len(dims) if num_dims is None else num_dims
    )
    tensor += struct.pack(f"<{len(dims)}QIQ", *dims, 0, offset)
    header = magic + struct.pack("<IQQ", 3, 1, 2) + keys + tensor
    return header + bytes(-len(header) % 32) + bytes(32 * 2 * 4)


GGUF_ROWS = {
    "37 bad magic": (gguf(magic=b"GGML"), "starts with"),
    "38 n_dims 1,000,000": (gguf(num_dims=1_000_000), "n_dims 1000000"),
    "39 dimension 0": (gguf(dims=(32, 0)), "a dimension 0"),
    "40 string length 2^40": (gguf(key_length=1 << 40), "length 1099511627776"),
    "41 alignment 2^30": (gguf(alignment=1 << 30), "general.alignment is 1073741824"),
    "42 tensor offset past the end": (gguf(offset=1 << 20), "the file has"),
    "short file": (b"GGUF", "header needs 24"),
    "cut inside the header": (gguf()[:70], "are left in the file"),
    "product over 64 bits": (gguf(dims=(1 << 40, 1 << 40)), "the file has"),
}


def check_refused(result, seconds: float, named: str, says: str) -> None:
    assert result.returncode == 65, result.stderr
    assert last_line(result).startswith("graft: error: input: ")
    assert named in last_line(result)
    assert says in last_line(result)
    assert seconds < MAX_SECONDS
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("row", GGUF_ROWS)
def test_gguf(row, tmp_path):
    data, says = GGUF_ROWS[row]
    source = tmp_path / "model.gguf"
    source.write_bytes(data)
    start = time.monotonic()
    result = run_script("prepare.py", "model", "--source", source, "--out", tmp_path / "out")
    check_refused(result, time.monotonic() - start, "model.gguf", says)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf"]


def test_the_gguf_writer_of_these_tests_makes_a_file_that_passes(tmp_path):
    from graft_prepare.gguf_check import check_gguf

    source = tmp_path / "model.gguf"
    source.write_bytes(gguf())
    assert check_gguf(source)["general.architecture"] == "llama"


def edit_tokenizer(change: Callable[[dict], object]) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        tree = json.loads(data)
        change(tree)
        return json.dumps(tree).encode()

    return edit


TOKENIZER_ROWS = {
    "43 empty vocabulary": (
        edit_tokenizer(lambda tree: tree["model"].update(vocab={}, merges=[])),
        "model.vocab is empty",
    ),
    "44 merge with unknown token": (
        edit_tokenizer(lambda tree: tree["model"]["merges"].append(["zq", "qz"])),
        "uses 'zq'",
    ),
    "45 duplicate ids": (
        edit_tokenizer(lambda tree: tree["model"]["vocab"].update(twin=5)),
        "gives id 5 to both",
    ),
    "46 special id >= vocab_size": (
        edit_tokenizer(
            lambda tree: tree["added_tokens"].append(
                {**tree["added_tokens"][0], "id": 512, "content": "<x>"}
            )
        ),
        "vocab_size is 512",
    ),
    "47 entry with invalid UTF-8": (
        lambda data: data.replace(b"capital", b"cap\xfftal", 1),
        "not valid UTF-8",
    ),
    "lone surrogate": (
        lambda data: data.replace(b'"\\u0120', b'"\\ud800', 1).replace("Ġthe".encode(), b"\\ud800"),
        "surrogate",
    ),
    "not JSON": (lambda data: data[:-40], "not JSON"),
    "a key twice": (
        lambda data: data.replace(b'"vocab"', b'"vocab": {}, "vocab"', 1),
        "occurs twice",
    ),
}


@pytest.mark.parametrize("row", TOKENIZER_ROWS)
def test_tokenizer(row, model_folder, tmp_path):
    edit, says = TOKENIZER_ROWS[row]
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    path = folder / "tokenizer.json"
    before = path.read_bytes()
    path.write_bytes(edit(before))
    assert path.read_bytes() != before
    source = tmp_path / "in.jsonl"
    source.write_bytes(GOOD + b"\n")
    start = time.monotonic()
    result = run_script(
        "prepare.py", "data", "--model", folder, "--input", source, "--out", tmp_path / "out"
    )
    check_refused(result, time.monotonic() - start, "tokenizer.json", says)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "model"]


JSONL_ROWS = {
    "48 empty file": (b"", "in.jsonl: the file is empty"),
    "49 one line of 100 MB": (
        b'{"prompt": "' + b"a" * 100_000_000 + b'"}\n',
        "in.jsonl:1:1: longer than",
    ),
    "50 invalid UTF-8 in line 17": (
        (GOOD + b"\n") * 16 + b'{"prompt": "\xff"}\n',
        "in.jsonl:17:13: invalid UTF-8",
    ),
    "51 truncated last line": ((GOOD + b"\n") * 3 + GOOD[:-9], "in.jsonl:4:"),
    "52 missing key": (GOOD + b'\n{"prompt": "a"}\n', "in.jsonl:2: key 'completion' is missing"),
    "53 no trained token": (
        b'{"prompt": "a", "completion": ""}\n' * 3,
        "no sample with a trained token",
    ),
    "54 NUL bytes": (GOOD + b"\n" + b'{"prompt"\0: "a"}\n', "in.jsonl:2:10: a NUL byte"),
    "54 mixed CRLF": (GOOD + b"\r\n" + GOOD + b"\n", "CRLF and LF are mixed"),
    "54 both": (GOOD + b"\r\n" + GOOD[:3] + b"\0" + GOOD[3:] + b"\n", "in.jsonl:2:"),
    "depth 100,000": (
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
        "nested deeper than 64",
    ),
    "depth 65": (b'{"prompt": ' + b"[" * 65 + b"]" * 65 + b"}\n", "nested deeper than 64"),
    "key twice": (
        b'{"prompt": "a", "prompt": "b", "completion": "c"}\n',
        "key 'prompt' occurs twice",
    ),
    "NaN": (b'{"prompt": "a", "completion": NaN}\n', "NaN is not a JSON number"),
    "wrong type": (
        b'{"prompt": "a", "completion": 7}\n',
        "'completion' is a int, a string is needed",
    ),
    "unknown shape": (b'{"foo": "a", "bar": "b"}\n', "keys foo, bar fit no known shape"),
    "only blank lines": (b"\n\n\n", "no usable record"),
    "huge integer": (b'{"prompt": "a", "completion": ' + b"9" * 5000 + b"}\n", "in.jsonl:1:"),
}


@pytest.mark.parametrize("row", JSONL_ROWS)
def test_jsonl(row, model_folder, tmp_path):
    data, says = JSONL_ROWS[row]
    source = tmp_path / "in.jsonl"
    source.write_bytes(data)
    start = time.monotonic()
    result = run_script(
        "prepare.py", "data", "--model", model_folder, "--input", source, "--out", tmp_path / "out"
    )
    check_refused(result, time.monotonic() - start, "in.jsonl", says)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_link_out_of_the_model_folder_is_refused(model_folder, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer_config.json"):
        shutil.copy(model_folder / name, folder / name)
    (folder / "tokenizer.json").symlink_to(model_folder / "tokenizer.json")
    (tmp_path / "in.jsonl").write_bytes(GOOD + b"\n")
    result = run_script(
        "prepare.py",
        "data",
        "--model",
        folder,
        "--input",
        tmp_path / "in.jsonl",
        "--out",
        tmp_path / "o",
    )
    check_refused(result, 0, "tokenizer.json", "leaves the model folder")


def test_template_cannot_reach_python(model_folder, tmp_path):
    from conftest import write_model_folder

    evil = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    folder = write_model_folder(tmp_path / "model", evil)
    (tmp_path / "in.jsonl").write_bytes(GOOD + b"\n")
    result = run_script(
        "prepare.py",
        "data",
        "--model",
        folder,
        "--input",
        tmp_path / "in.jsonl",
        "--out",
        tmp_path / "o",
    )
    check_refused(result, 0, "in.jsonl", "template: access to attribute '__class__'")
