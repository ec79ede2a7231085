"""Writes a prepared data set: dataset.json and its safetensors shards (format "graft-dataset" version 1)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from .encode import Encoded
from .errors import input_error
from .files import apply_umask, sha256_file

FORMAT, VERSION = "graft-dataset", 1


@dataclass(frozen=True)
class DatasetInfo:
    """What dataset.json says beyond what is counted while writing."""

    kind: str
    vocab_size: int
    tokenizer_sha256: str | None
    max_length: int
    template: str
    loss_on: str
    labels: list[str] = field(default_factory=list)


def _offsets(rows: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)]).astype(
        np.int64
    )


class DatasetWriter:
    """Collects samples and writes a shard whenever `shard_tokens` are full; close() writes dataset.json."""

    def __init__(self, folder: Path, info: DatasetInfo, shard_tokens: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.info = info
        self.shard_tokens = shard_tokens
        self.pending: list[Encoded] = []
        self.pending_tokens = 0
        self.shards: list[dict[str, Any]] = []
        self.lengths: list[int] = []
        self.num_trained = 0

    def add(self, sample: Encoded) -> None:
        top = int(sample.input_ids.max())
        if top >= self.info.vocab_size:
            raise input_error(
                f"sample {sample.number}: token id {top}, the model's vocab_size is {self.info.vocab_size}"
            )
        self.pending.append(sample)
        self.pending_tokens += len(sample.input_ids)
        self.lengths.append(len(sample.input_ids))
        self.num_trained += sample.trained
        if self.pending_tokens >= self.shard_tokens:
            self._write_shard()

    def _labels(self) -> np.ndarray:
        if self.info.kind == "regression":
            return np.array(
                [float(sample.label or "nan") for sample in self.pending], dtype=np.float32
            )
        index = {name: position for position, name in enumerate(self.info.labels)}
        return np.array([index[sample.label or ""] for sample in self.pending], dtype=np.int64)

    def _tensors(self) -> dict[str, np.ndarray]:
        rows = [sample.input_ids for sample in self.pending]
        tensors = {
            "input_ids": np.concatenate(rows).astype(np.int32),
            "offsets": _offsets(rows),
            "prompt_lengths": np.array(
                [sample.prompt_length for sample in self.pending], dtype=np.int32
            ),
            "sample_ids": np.array([sample.number for sample in self.pending], dtype=np.int64),
        }
        if self.pending[0].encoder_ids is not None:
            prompts = [sample.encoder_ids for sample in self.pending]
            tensors["encoder_ids"] = np.concatenate(prompts).astype(np.int32)
            tensors["encoder_offsets"] = _offsets(prompts)
        if self.info.kind == "causal_lm":
            tensors["loss_mask"] = np.concatenate(
                [sample.loss_mask for sample in self.pending]
            ).astype(np.uint8)
        elif self.info.kind == "seq2seq":
            targets = [sample.target_ids for sample in self.pending]
            tensors["target_ids"] = np.concatenate(targets).astype(np.int32)
            tensors["target_offsets"] = _offsets(targets)
        else:
            tensors["labels"] = self._labels()
        return tensors

    def _write_shard(self) -> None:
        name = f"shard-{len(self.shards):05d}.safetensors"
        save_file(self._tensors(), self.folder / name)
        apply_umask(self.folder / name)
        self.shards.append(
            {"file": name, "samples": len(self.pending), "sha256": sha256_file(self.folder / name)}
        )
        self.pending, self.pending_tokens = [], 0

    def close(self) -> dict[str, Any]:
        """Writes what is left and dataset.json; refuses a data set that trains nothing. Returns dataset.json."""
        if self.pending:
            self._write_shard()
        if not self.lengths or not self.num_trained:
            raise input_error(
                f"{self.folder.name}: {len(self.lengths)} samples with {self.num_trained} trained tokens, "
                "at least 1 of each is needed"
            )
        header = {
            "format": FORMAT,
            "version": VERSION,
            "kind": self.info.kind,
            "vocab_size": self.info.vocab_size,
            "tokenizer_sha256": self.info.tokenizer_sha256,
            "num_samples": len(self.lengths),
            "num_tokens": sum(self.lengths),
            "num_trained_tokens": self.num_trained,
            "max_length": self.info.max_length,
            "template": self.info.template,
            "loss_on": self.info.loss_on,
            "labels": self.info.labels,
            "shards": self.shards,
        }
        (self.folder / "dataset.json").write_text(
            json.dumps(header, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        return header
