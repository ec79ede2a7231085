#!/usr/bin/env python3
"""Gives wrong keys, settings and adapters of every method to the program and checks how it refuses them.

    tests/launch/malformed_methods.py [--graft PATH] [--rows lora.rank encoder]

Each row ends as in malformed_inputs.py: the exit code (78 for a recipe, 65 for a file), one error line
that names the recipe key or the sample, no output. Rows marked for it also run on two ranks. Every
key that `graft train --help` lists under a method must have a row. Only the standard library is needed.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from malformed_check import Check, Row, recipe
from malformed_folders import CONFIG, Folders, packed, weights, write_data

CLASSES = {"kind": "classification", "num_trained_tokens": 4, "labels": ["no", "yes"]}
CLASS_TASK = {"task": {"type": "classification"}}
SETTING = {
    "format": "graft-setting",
    "version": 1,
    "model_type": "llama",
    "num_layers": 2,
    "selection": {},
    "keep": [{"layer": 0, "roles": ["attn.q"], "rank": 2, "alpha": 4.0}],
}
# One adapter of each method that the two-layer model takes.
ADAPTERS = {
    "fanlora": {"setting": "ROOT/setting.json"},
    "ia3": {},
    "idpg": {"prompt_length": 2, "hidden": 4},
    "lopa": {"prompt_length": 2, "hidden": 4, "rank": 2},
    "lora": {"rank": 2},
    "para": {"rank": 2},
    "prompt_tuning": {"prompt_length": 2},
    "red": {},
}


@dataclass
class MethodRow(Row):
    two_ranks: bool = False


def keep_all(_: Folders) -> None:
    pass


def write_setting(folders: Folders, **changes: object) -> None:
    (folders.root / "setting.json").write_text(json.dumps({**SETTING, **changes}))


def key_row(method: str, key: str, value: object, *needles: str, two_ranks=False, needle="", **more) -> Row:
    """A recipe whose key of this method is wrong; `more` are other keys of the adapter."""
    adapter: dict = {"method": method, **ADAPTERS[method], **more}
    outer, _, inner = key.partition(".")
    adapter[outer] = {inner: value} if inner else value
    return MethodRow(
        f"{method}.{key}",
        f"= {value}",
        "model",
        write_setting,
        (needle or f"adapter.{key}", *needles),
        code=78,
        sections={"adapter": adapter},
        two_ranks=two_ranks,
    )


def both_ends(method: str, key: str, least: float, most: float) -> list[Row]:
    return [key_row(method, key, value, str(value)) for value in (least, most)]


def key_rows() -> list[Row]:
    rows = [
        key_row("fanlora", "rslora", "maybe", "maybe"),
        key_row("fanlora", "setting", "", "missing", two_ranks=True),
        key_row("ia3", "sites", ["attn.w"], "attn.w", "attn.q", two_ranks=True),
        key_row("ia3", "sites", ["layer.out"], "layer.out"),
        key_row("lopa", "fusion", "mul", "mul", "gated, concat, add, max", two_ranks=True),
        key_row("lopa", "init", "zero", "zero", "random, vocab"),
        key_row("lora", "sites", [], "empty list"),
        key_row("lora", "sites", ["attn.w"], "attn.w", "did you mean"),
        key_row("lora", "sites", ["cross.q"], "cross.q", "attn.q"),
        key_row("lora", "rank", 17, "17", "16", "q_proj", two_ranks=True),
        key_row("lora", "rslora", 2, "2"),
        key_row("lora", "fused", "apart", "apart", "split, joint"),
        key_row("lora", "layers", [2], "`2`", "0 to 1", two_ranks=True),
        key_row("lora", "layers", ["1-0"], "1-0"),
        key_row("lora", "compute_dtype", "float16", "float16", "model, float32"),
        key_row("lora", "backbone_dropout", "all", "all", "none, model"),
        key_row("lora", "head.train", "maybe", "maybe"),
        key_row("lora", "head.dropout", 1.0, "1.0"),
        key_row("lora", "track_sensitivity", "maybe", "maybe"),
        key_row("red", "track_sensitivity", True, "red", "lora, fanlora"),
        key_row("lora", "ranks", 2, "unknown key", "rank"),
        key_row("para", "sites", ["attn.k"], "attn.k", "attn.q", two_ranks=True),
        key_row("para", "pooling", "sum", "sum", "mean, last, max, attention"),
        key_row("para", "activation", "tanh", "tanh", "gelu, relu, rational"),
        key_row("para", "input", "embed", "embed", "layer_in, normed"),
        key_row("para", "bias", 3, "3"),
        key_row("prompt_tuning", "init", "zero", "zero", "random, vocab", two_ranks=True),
        key_row("red", "what", "none", "none", "scale_and_bias, scale, bias", two_ranks=True),
        key_row("red", "sites", ["embed"], "embed", "ffn.out"),
        key_row("red", "sites", ["cross.q"], "cross.q"),
    ]
    for method in ("idpg", "lopa", "prompt_tuning"):
        rows += both_ends(method, "prompt_length", 0, 65537)
        rows.append(key_row(method, "read_at", "last", "last", "text, first"))
    for method in ("idpg", "lopa"):
        rows += both_ends(method, "hidden", -1, 1000001)
        rows += encoder_rows(method)
    for method in ("lopa", "lora", "para"):
        rows += both_ends(method, "rank", 0, 65537)
    for method in ("fanlora", "idpg", "lopa", "lora", "para"):
        rows += both_ends(method, "dropout", -0.1, 1.0)
    return [*rows, *both_ends("lora", "alpha", 0.0, 2000000.0)]


def encoder_rows(method: str) -> list[Row]:
    """Of a prompt encoder; what it asks of a data set: tests/oracle/tasks_test.py."""

    def folder_row(path: str, *needles: str) -> Row:
        adapter = {"method": method, "encoder": {"type": "model", "path": path}}
        where = "adapter.encoder.path", *needles
        return MethodRow(
            f"{method}.encoder", path, "model", write_setting, where, sections={"adapter": adapter}
        )

    return [
        key_row(method, "encoder.type", "mean", "mean", "embedding_mean, model"),
        key_row(method, "encoder.pool", "max", "max", "first, mean, last"),
        key_row(method, "encoder.train", "maybe", "maybe"),
        key_row(method, "encoder.path", "somewhere", "embedding_mean", needle="adapter.encoder"),
        key_row(method, "encoder", {"type": "model"}, "path: absent", two_ranks=True),
        folder_row("ROOT/nowhere", "nowhere"),
        folder_row("ROOT/model", "model_type", "llama", "roberta"),
    ]


def setting_rows() -> list[Row]:
    def row(what: str, *needles: str, two_ranks: bool = False, **changes: object) -> Row:
        return MethodRow(
            "setting",
            what,
            "model",
            lambda folders: write_setting(folders, **changes),
            ("setting.json", *needles),
            sections={"adapter": {"method": "fanlora", "setting": "ROOT/setting.json"}},
            two_ranks=two_ranks,
        )

    def keep(**changes: object) -> list[dict]:
        return [{**SETTING["keep"][0], **changes}]

    return [
        row("of another family", "model_type", "gpt2", "llama", model_type="gpt2", two_ranks=True),
        row("of a deeper model", "num_layers", "24", "2", num_layers=24),
        row("unknown role", "roles", "attn.w", keep=keep(roles=["attn.w"])),
        row("absent role", "cross.q", "attn.q", keep=keep(roles=["cross.q"])),
        row("layer outside", "layer", "2", keep=keep(layer=2)),
        row("rank 0", "rank", "0", keep=keep(rank=0)),
        row("rank too large", "rank", "17", "16", keep=keep(rank=17)),
        row("alpha 0", "alpha", keep=keep(alpha=0)),
    ]


def data_row(
    number: str,
    what: str,
    needles: tuple[str, ...],
    damage: Callable[[Folders], None],
    adapter: dict,
    two_ranks: bool = False,
    **sections: dict,
) -> Row:
    return MethodRow(
        number,
        what,
        "model",
        damage,
        needles,
        sections={"adapter": adapter, **sections},
        two_ranks=two_ranks,
    )


def data_rows() -> list[Row]:
    def without_prompts(folders: Folders) -> None:
        write_data(folders.data, {}, prompts=0)

    def wrong_label(folders: Folders) -> None:
        write_data(folders.data, CLASSES, labels=(1, 2))

    def short_model(folders: Folders) -> None:
        config = {**CONFIG, "max_position_embeddings": 3}
        (folders.model / "config.json").write_text(json.dumps(config))

    rows = [
        data_row(
            "labels",
            "outside",
            ("sample 11", "labels[1]", "2"),
            wrong_label,
            {"method": "lora"},
            two_ranks=True,
            **CLASS_TASK,
        ),
        data_row(
            "limit",
            "of the text",
            ("data.train", "sample 10", "4", "3"),
            short_model,
            {"method": "lora"},
            two_ranks=True,
        ),
    ]
    for method in ("idpg", "lopa", "para"):
        adapter = {"method": method, **ADAPTERS[method]}
        needles = ("data.train", "prompt_lengths", "sample 10", method)
        rows.append(
            data_row("empty", method, needles, without_prompts, adapter, two_ranks=method == "para")
        )
    for method, rows_each in (("idpg", 1), ("lopa", 1), ("lopa", 2), ("prompt_tuning", 1)):
        adapter: dict = {"method": method, "prompt_length": 61}
        if rows_each == 2:
            adapter.update(prompt_length=31, fusion="concat")
        needles = ("data.train", "sample 10", method, "positions")
        rows.append(data_row("limit", f"of {adapter}", needles, keep_all, adapter))
    return rows


def adapter_rows(graft: str) -> list[Row]:
    """An adapter of each method, trained here, on a model of half the width."""

    def row(method: str) -> Row:
        adapter = {"method": method, **ADAPTERS[method]}

        def damage(folders: Folders) -> None:
            write_setting(folders)
            config = recipe(
                folders, 1, Row("", "", "model", keep_all, (), sections={"adapter": adapter})
            )
            subprocess.run([graft, "train", "--config", config], check=True, capture_output=True)
            shutil.rmtree(folders.adapter)
            shutil.move(folders.root / "output/adapter", folders.adapter)
            shutil.rmtree(folders.root / "output")
            config = {**CONFIG, "hidden_size": 8}
            (folders.model / "config.json").write_text(json.dumps(config))
            (folders.model / "model.safetensors").write_bytes(packed(weights(8)))

        needles = ("adapter_model.safetensors", "shape")
        return MethodRow(
            "adapter",
            f"{method} of another model",
            "adapter",
            damage,
            needles,
            sections={"adapter": adapter},
            two_ranks=method == "red",
        )

    return [row(method) for method in ADAPTERS]


def other_rows() -> list[Row]:
    def row(what: str, needle: str, sections: dict, damage=keep_all) -> Row:
        return MethodRow("method", what, "model", damage, (needle,), code=78, sections=sections)

    none = {"adapter": {"method": "none"}}
    fixed = {"adapter": {"method": "none", "head": {"train": False}}, **CLASS_TASK}
    return [
        row("unknown", "adapter.method: found `lroa`", {"adapter": {"method": "lroa"}}),
        row("none without a head", "adapter.method: found none", none),
        row(
            "none, head fixed",
            "adapter.head.train",
            fixed,
            lambda folders: write_data(folders.data, CLASSES),
        ),
    ]


def untested_keys(graft: str, rows: list[Row]) -> list[str]:
    """What the program's help lists under a method and no row names."""
    text = subprocess.run([graft, "train", "--help"], check=True, capture_output=True, text=True)
    keys, method = [], ""
    for line in text.stdout.splitlines():
        if match := re.match(r"adapter, method: (\w+):", line):
            method = match[1]
        elif method and (match := re.match(r"  adapter\.([\w.]+) = ", line)):
            keys.append(f"{method}.{match[1]}")
    if len(keys) < len(ADAPTERS):
        sys.exit(f"{graft} train --help lists the keys of the methods in another form")
    return sorted(set(keys) - {row.number for row in rows})


def main() -> int:
    built = Path(os.environ.get("GRAFT_BINARY_DIR", "build")) / "graft"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graft", default=str(built), help="the program (%(default)s)")
    parser.add_argument("--rows", nargs="+", default=[], help="only these, e.g. lora.rank limit")
    options = parser.parse_args()
    rows = key_rows() + setting_rows() + data_rows() + other_rows() + adapter_rows(options.graft)
    if missing := untested_keys(options.graft, rows):
        sys.exit(f"keys without a row: {', '.join(missing)}")
    scratch = Path(tempfile.mkdtemp(prefix="graft-malformed-"))
    try:
        check = Check(options.graft, scratch)
        check.valid("train", "model", 1)
        for row in rows:
            if options.rows and row.number not in options.rows:
                continue
            for ranks in (1, 2) if row.two_ranks else (1,):
                check.damaged("train", row, ranks)
    finally:
        shutil.rmtree(scratch)
    return check.summary()


if __name__ == "__main__":
    sys.exit(main())
