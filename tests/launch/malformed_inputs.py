#!/usr/bin/env python3
"""Gives damaged model folders, data sets and adapters to the program and checks how it refuses them.

    tests/launch/malformed_inputs.py [--graft PATH] [--commands inspect plan train] [--rows 12 A3]

Rows 1 to 36 and A1 to A9 of the malformed inputs (docs: reliability). Each must end with exit code 65
and one line `graft: error: input: ...` that names the file and the field, within 2 s of what
`graft --version` takes and 200 MB above its memory, without leaving output. Every tenth row also runs
on two ranks under mpirun (`train` only). The same rows as unit tests: tests/models/malformed_model_test.cc,
tests/trainer/data/. Only the standard library is needed.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

INPUT_ERROR = 65
SECONDS_ABOVE_VERSION = 2.0
KIB_ABOVE_VERSION = 200 * 1024
HANG_SECONDS = 60
MPIRUN = ["mpirun", "-q", "--oversubscribe", "--allow-run-as-root", "--bind-to", "none"]
MPIRUN += ["--mca", "mpi_yield_when_idle", "1", "-np"]

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
FORMATS = {"F32": "f", "I32": "i", "I64": "q", "U8": "B"}
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
FIRST = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
SECOND = {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}


# Writing files, right or wrong.


def safetensors(header: bytes | dict, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def packed(tensors: dict[str, tuple[str, list[int], list]]) -> bytes:
    """A valid file of {name: (dtype, shape, values)}."""
    header, data = {}, b""
    for name, (dtype, shape, values) in tensors.items():
        begin = len(data)
        data += struct.pack(f"<{len(values)}{FORMATS[dtype]}", *values)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, len(data)]}
    return safetensors(header, data)


def weights() -> dict[str, tuple[str, list[int], list]]:
    shapes = {
        "model.embed_tokens.weight": [32, 16],
        "lm_head.weight": [32, 16],
        "model.norm.weight": [16],
    }
    linears = {
        "self_attn.q_proj": [16, 16],
        "self_attn.k_proj": [8, 16],
        "self_attn.v_proj": [8, 16],
        "self_attn.o_proj": [16, 16],
        "mlp.gate_proj": [24, 16],
        "mlp.up_proj": [24, 16],
        "mlp.down_proj": [16, 24],
        "input_layernorm": [16],
        "post_attention_layernorm": [16],
    }
    for layer in range(2):
        for name, shape in linears.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    result = {}
    for number, (name, shape) in enumerate(shapes.items()):
        count = shape[0] * (shape[1] if len(shape) == 2 else 1)
        values = [0.05 * ((7 * i + number) % 11 - 5) for i in range(count)]
        result[name] = ("F32", shape, values)
    return result


@dataclass
class Folders:
    """The inputs of one run; a row damages one of them."""

    root: Path

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    def write_valid(self) -> None:
        for folder in (self.model, self.data, self.adapter):
            folder.mkdir(parents=True)
        (self.model / "config.json").write_text(json.dumps(CONFIG))
        (self.model / "model.safetensors").write_bytes(packed(weights()))
        write_data(self.data)
        write_adapter(self.adapter)


def write_data(folder: Path, header: dict | None = None, **changes: tuple) -> None:
    """Four samples of 4 tokens; `changes` are ((index, value), ...) of a tensor."""
    ids = [(3 * i) % 16 for i in range(16)]
    tables = {
        "offsets": ["I64", [0, 4, 8, 12, 16]],
        "sample_ids": ["I64", [10, 11, 12, 13]],
        "input_ids": ["I32", ids],
        "prompt_lengths": ["I32", [2, 2, 2, 2]],
        "loss_mask": ["U8", [0, 0, 1, 1] * 4],
    }
    for name, (index, value) in changes.items():
        tables[name][1][index] = value
    shard = packed({name: (dtype, [len(v)], v) for name, (dtype, v) in tables.items()})
    (folder / "shard-00000.safetensors").write_bytes(shard)
    entry = {
        "file": "shard-00000.safetensors",
        "samples": 4,
        "sha256": hashlib.sha256(shard).hexdigest(),
    }
    content = {
        "format": "graft-dataset",
        "version": 1,
        "kind": "causal_lm",
        "vocab_size": 32,
        "tokenizer_sha256": None,
        "num_samples": 4,
        "num_tokens": 16,
        "num_trained_tokens": 8,
        "max_length": 4,
        "template": "plain",
        "loss_on": "completion",
        "labels": [],
        "shards": [entry],
    }
    content.update(header or {})
    (folder / "dataset.json").write_text(json.dumps(content))


def write_adapter(folder: Path, rank: int = 2, module: str = "q_proj", first: float = 0.5) -> None:
    """LoRA of rank 2 on q_proj of both layers, as huggingface/peft writes it."""
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "model",
        "r": rank,
        "lora_alpha": 4,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["q_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for layer in range(2):
        prefix = f"base_model.model.model.layers.{layer}.self_attn.{module}"
        tensors[f"{prefix}.lora_A.weight"] = ("F32", [2, 16], [first] + [0.25] * 31)
        tensors[f"{prefix}.lora_B.weight"] = ("F32", [16, 2], [0.0] * 32)
    (folder / "adapter_model.safetensors").write_bytes(packed(tensors))


def shard_model(model: Path) -> dict:
    """Cuts the model into two shards and returns their index."""
    (model / "model.safetensors").unlink()
    all_weights = weights()
    index: dict = {"metadata": {}, "weight_map": {}}
    for number, shard in enumerate(SHARDS):
        part = {k: v for k, v in all_weights.items() if ("layers.1." in k) == bool(number)}
        (model / shard).write_bytes(packed(part))
        index["weight_map"].update({name: shard for name in part})
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


# The rows.


@dataclass
class Row:
    number: str
    what: str
    part: str  # which folder `inspect` gets: model, data, adapter
    damage: Callable[[Folders], None]
    needles: tuple[str, ...]  # each must stand in the message: file, field
    needs_weights: bool = True  # `plan` reads config.json only


def config_text(number: str, what: str, text: str, field: str) -> Row:
    def damage(folders: Folders) -> None:
        (folders.model / "config.json").write_text(text)

    return Row(number, what, "model", damage, ("config.json", field), needs_weights=False)


def config_key(number: str, key: str, value: object) -> Row:
    text = json.dumps({**CONFIG, key: value})
    return config_text(number, f"{key} = {value}", text, key)


def weights_file(number: str, what: str, content: bytes, field: str, size: int = 0) -> Row:
    def damage(folders: Folders) -> None:
        path = folders.model / "model.safetensors"
        path.write_bytes(content)
        if size:
            os.truncate(path, size)

    return Row(number, what, "model", damage, ("model.safetensors", field))


def entries(number: str, what: str, a: dict, b: dict, field: str) -> Row:
    return weights_file(number, what, safetensors({"a": a, "b": b}, b"01234567"), field)


def index_entry(number: str, what: str, file: str, field: str) -> Row:
    def damage(folders: Folders) -> None:
        index = shard_model(folders.model)
        index["weight_map"]["model.norm.weight"] = file
        (folders.model / "model.safetensors.index.json").write_text(json.dumps(index))

    needles = ("model.safetensors.index.json", "weight_map", field)
    return Row(number, what, "model", damage, needles)


def config_rows() -> list[Row]:
    text = json.dumps(CONFIG)
    missing = Row(
        "1",
        "config.json missing",
        "model",
        lambda folders: (folders.model / "config.json").unlink(),
        ("model",),
        needs_weights=False,
    )
    twice = text.replace('"vocab_size"', '"hidden_size": 8, "vocab_size"')
    return [
        missing,
        config_text("2", "empty", "", "empty"),
        config_text("3", "not JSON", "hidden_size = 16", "line 1"),
        config_text("4", "array on top", "[1, 2]", "object"),
        config_key("5", "hidden_size", 0),
        config_key("6", "hidden_size", -1),
        config_key("7", "hidden_size", 10**18),
        config_key("8", "hidden_size", "16"),
        config_key("9", "num_attention_heads", 6),
        config_key("10", "num_key_value_heads", 8),
        config_key("11", "num_hidden_layers", 0),
        Row(
            "12",
            "vocabulary smaller than the embedding",
            "model",
            lambda folders: (folders.model / "config.json").write_text(
                json.dumps({**CONFIG, "vocab_size": 31})
            ),
            ("model", "31"),
        ),
        config_key("13", "model_type", "rwkv"),
        config_key("14", "rope_theta", 0),
        config_text("14", "rope_theta NaN", text.replace("10000.0", "NaN"), "line 1"),
        config_text("15", "nesting", '{"a":' + "[" * 100000 + "]" * 100000 + "}", "deeper"),
        config_text("16", "duplicate key", twice, "hidden_size"),
    ]


def safetensors_rows() -> list[Row]:
    one = {"a": FIRST}
    f32 = {"dtype": "F32", "shape": [1]}

    def drop_a_tensor(folders: Folders) -> None:
        tensors = weights()
        del tensors["model.layers.1.mlp.up_proj.weight"]
        (folders.model / "model.safetensors").write_bytes(packed(tensors))

    repeated = b'{"a":' + json.dumps(FIRST).encode() + b',"a":' + json.dumps(SECOND).encode() + b"}"
    return [
        weights_file("17", "7 bytes", b"1234567", "header length"),
        weights_file("18", "length 2^63", safetensors(b"{}", length=2**63), "header length"),
        weights_file("19", "past the end", safetensors(b"{}", length=3), "header length"),
        weights_file(
            "20", "101 MB", safetensors(b"{}", length=101_000_000), "header length", 102_000_000
        ),
        weights_file("21", "invalid UTF-8", safetensors(b'{"a\xff":1}'), "header"),
        weights_file("22", "leading space", safetensors(b" {}"), "header"),
        weights_file("22", "byte-order mark", safetensors(b"\xef\xbb\xbf{}"), "header"),
        entries("23", "unknown dtype", {**FIRST, "dtype": "Q4"}, SECOND, "dtype"),
        entries("24", "product", {**FIRST, "shape": [2**32, 2**32]}, SECOND, "shape"),
        entries("25", "negative", {**f32, "data_offsets": [-4, 0]}, SECOND, "data_offsets"),
        entries("26", "end < begin", FIRST, {**f32, "data_offsets": [8, 4]}, "data_offsets"),
        entries("27", "overlap", FIRST, {**f32, "data_offsets": [2, 6]}, "data_offsets"),
        entries(
            "28",
            "hole",
            {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
            SECOND,
            "data_offsets",
        ),
        weights_file("29", "trailing bytes", safetensors(one, b"01234567"), "data_offsets"),
        entries("30", "size", FIRST, {**SECOND, "shape": [2]}, "data_offsets"),
        weights_file("31", "duplicate name", safetensors(repeated, b"01234567"), "`a`"),
        Row(
            "32",
            "missing tensor",
            "model",
            drop_a_tensor,
            ("model", "model.layers.1.mlp.up_proj.weight"),
        ),
    ]


def index_rows() -> list[Row]:
    def link_out(folders: Folders) -> None:
        shard_model(folders.model)
        path = folders.model / SHARDS[1]
        path.unlink()
        path.symlink_to("/etc/passwd")

    absent = "model-00009-of-00009.safetensors"
    return [
        index_entry("33", "parent folder", "../../x", "model.norm.weight"),
        index_entry("34", "absolute path", "/etc/x.safetensors", "model.norm.weight"),
        Row("35", "link out of the root", "model", link_out, (SHARDS[1], "link")),
        index_entry("36", "absent shard", absent, absent),
    ]


def data_rows() -> list[Row]:
    def row(number: str, what: str, field: str, header: dict | None = None, **changes) -> Row:
        def damage(folders: Folders) -> None:
            write_data(folders.data, header, **changes)

        file = "dataset.json" if header else "shard-00000.safetensors"
        return Row(number, what, "data", damage, (file, field))

    return [
        row("A1", "another version", "version", {"version": 2}),
        row("A2", "offsets fall", "offsets[2]", offsets=(2, 3)),
        row("A3", "offsets end elsewhere", "offsets[4]", offsets=(4, 17)),
        row("A4", "id outside the vocabulary", "input_ids[5]", input_ids=(5, 32)),
        row("A5", "mask value 2", "loss_mask[3]", loss_mask=(3, 2)),
        Row(
            "A6",
            "shard hash",
            "data",
            lambda folders: (folders.data / "shard-00000.safetensors").write_bytes(
                packed({"x": ("U8", [1], [0])})
            ),
            ("shard-00000.safetensors", "sha256"),
        ),
        row("data", "prompt too long", "prompt_lengths[1]", prompt_lengths=(1, 5)),
        row("data", "negative id", "input_ids[0]", input_ids=(0, -1)),
        row("data", "unknown kind", "kind", {"kind": "dpo"}),
        row("data", "wrong count", "num_tokens", {"num_tokens": 17}),
    ]


def adapter_rows() -> list[Row]:
    def row(number: str, what: str, file: str, field: str, **options) -> Row:
        def damage(folders: Folders) -> None:
            write_adapter(folders.adapter, **options)

        return Row(number, what, "adapter", damage, (file, field))

    tensors = "adapter_model.safetensors"
    attention = "base_model.model.model.layers.0.self_attn."
    return [
        row("A7", "rank differs from the config", "adapter_config.json", "4", rank=4),
        row("A8", "NaN", tensors, "q_proj.lora_A", first=float("nan")),
        row("A9", "another module", tensors, attention, module="x_proj"),
    ]


# Running the program.


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


def recipe(folders: Folders, ranks: int, adapter: bool) -> str:
    content = {
        "run": {"name": "malformed", "output": str(folders.root / "output"), "seed": 0},
        "model": {"path": str(folders.model), "dtype": "float32"},
        "data": {"train": str(folders.data), "shuffle": False},
        "adapter": {"method": "lora", "sites": ["attn.q"], "rank": 2, "alpha": 4},
        "parallel": {"data": ranks, "device": "cpu", "threads": 1},
        "optim": {"steps": 1, "global_batch": 2, "micro_batch": 1},
    }
    if adapter:
        content["adapter"]["init_from"] = str(folders.adapter)
    path = folders.root / "recipe.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    return str(path)


def command_line(graft: str, command: str, row: Row, folders: Folders, ranks: int) -> list[str]:
    if command == "inspect":
        return [graft, "inspect", str(folders.root / row.part)]
    line = [graft, command, "--config", recipe(folders, ranks, row.part == "adapter")]
    return line if ranks == 1 else [*MPIRUN, str(ranks), *line]


def faults(row: Row, outcome: Outcome, version: Outcome, ranks: int, output: Path) -> list[str]:
    found = []
    if outcome.code != INPUT_ERROR:
        found.append(f"exit code {outcome.code}, must be {INPUT_ERROR}")
    lines = [line for line in outcome.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("graft: error: ")]
    if len(errors) != 1:
        found.append(f"{len(errors)} error lines, must be 1")
    for line in errors[:1]:
        if not line.startswith("graft: error: input: "):
            found.append("not of kind input")
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
            outcome = run(line, folders.root)
            if outcome.seconds > self.versions[ranks].seconds + SECONDS_ABOVE_VERSION:
                outcome = run(line, folders.root)  # something else had the processor
            found = faults(row, outcome, self.versions[ranks], ranks, folders.root / "output")
            self._report(f"{command} on {ranks}: {row.number} {row.what}", found)


def all_rows() -> list[Row]:
    return config_rows() + safetensors_rows() + index_rows() + data_rows() + adapter_rows()


def main() -> int:
    built = Path(os.environ.get("GRAFT_BINARY_DIR", "build")) / "graft"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graft", default=str(built), help="the program (%(default)s)")
    parser.add_argument(
        "--commands", nargs="+", default=["inspect", "train"], choices=["inspect", "plan", "train"]
    )
    parser.add_argument("--rows", nargs="+", default=[], help="only these, e.g. 12 A3")
    options = parser.parse_args()
    rows = [row for row in all_rows() if not options.rows or row.number in options.rows]
    # Below a parent of its own: a link may lead to what lies beside the model folder.
    scratch = Path(tempfile.mkdtemp(prefix="graft-malformed-"))
    try:
        check = Check(options.graft, scratch)
        for command in options.commands:
            for part in ("model",) if command == "plan" else ("model", "data", "adapter"):
                check.valid(command, part, 1)
            for number, row in enumerate(rows):
                if command == "plan" and row.needs_weights:
                    continue
                check.damaged(command, row, 1)
                if command == "train" and number % 10 == 0:
                    check.damaged(command, row, 2)
    finally:
        shutil.rmtree(scratch)
    print(f"{check.runs} runs, {check.failures} failed")
    return 1 if check.failures else 0


if __name__ == "__main__":
    sys.exit(main())
