"""Calls prepare.py data inside the test's process and reads back what it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from graft_prepare.cli import main
from safetensors.numpy import load_file
from tokenizers import Tokenizer


def prepare(model: Path, out: Path, *inputs: Path, **options: Any) -> Path:
    """`prepare.py data`; an option like loss_on="all" becomes --loss-on all, True a bare flag."""
    arguments = ["data", "--model", str(model), "--out", str(out), "--input", *map(str, inputs)]
    for name, value in options.items():
        arguments.append(f"--{name.replace('_', '-')}")
        if value is not True:
            arguments.append(str(value))
    assert main(arguments) == 0
    return out


def read_dataset(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """dataset.json and the tensors of its only shard."""
    header = json.loads((folder / "dataset.json").read_text())
    assert len(header["shards"]) == 1
    return header, load_file(folder / header["shards"][0]["file"])


def rows(tensors: dict[str, np.ndarray], name: str, offsets: str = "offsets") -> list[np.ndarray]:
    bounds = tensors[offsets]
    return [tensors[name][bounds[i] : bounds[i + 1]] for i in range(len(bounds) - 1)]


class Decoded:
    """Text views of a prepared causal_lm data set."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.header, self.tensors = read_dataset(folder)
        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self._decode = lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False)
        self.ids = rows(self.tensors, "input_ids")
        self.masks = rows(self.tensors, "loss_mask")

    def text(self, index: int = 0) -> str:
        return self._decode(self.ids[index])

    def trained(self, index: int = 0) -> str:
        return self._decode(self.ids[index][self.masks[index] == 1])

    def prompt(self, index: int = 0) -> str:
        return self._decode(self.ids[index][: self.tensors["prompt_lengths"][index]])
