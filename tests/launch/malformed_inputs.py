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
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from malformed_check import Check, Row
from malformed_folders import (
    CONFIG,
    FIRST,
    SECOND,
    SHARDS,
    Folders,
    packed,
    safetensors,
    shard_model,
    weights,
    write_adapter,
    write_data,
)


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
    return check.summary()


if __name__ == "__main__":
    sys.exit(main())
