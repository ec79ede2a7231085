"""What tests that run the real program train on: a random two-layer Llama (width 64, q 64, k and v 32, FFN 128) and data sets."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from conftest import ROOT
from graft_prepare.encode import Encoded
from graft_prepare.writer import DatasetInfo, DatasetWriter

GRAFT = Path(os.environ.get("GRAFT_BINARY") or ROOT / "build" / "graft")
VOCABULARY = 257
PROMPT, LENGTH = 6, 12  # tokens of each sample
SIZES = {"train": 64, "eval": 8, "scoring": 24, "second": 24}


def write_weights(folder: Path, vocabulary: int = VOCABULARY, positions: int = 64) -> None:
    """config.json and weights of the random model."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        initializer_range=0.1,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def _write_samples(folder: Path, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    info = DatasetInfo("causal_lm", VOCABULARY, None, LENGTH, "plain", "completion")
    writer = DatasetWriter(folder, info, shard_tokens=1 << 20)
    mask = (np.arange(LENGTH) >= PROMPT).astype(np.uint8)
    for number in range(count):
        ids = rng.integers(3, VOCABULARY, LENGTH, dtype=np.int32)
        writer.add(Encoded(number, ids, PROMPT, loss_mask=mask))
    writer.close()


def write_inputs(folder: Path) -> Path:
    """model/ and one data set for each of SIZES in `folder`."""
    assert GRAFT.is_file(), f"{GRAFT}: build it first (launch/setup.sh --build-tests)"
    write_weights(folder / "model")
    for seed, (name, count) in enumerate(SIZES.items(), 1):
        _write_samples(folder / name, count, seed)
    return folder
