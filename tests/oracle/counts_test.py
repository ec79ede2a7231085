"""Trained parameters of every method on the configs of known models, without weights: the numbers of the methods' tables."""

import re

import pytest
import transformers

import prepared_data
from graft_program import run

RED_PLUS_PLUS = ["attn.q", "attn.k", "attn.v", "attn.out", "ffn.out"]


def roberta(layers, width, heads):
    keys = dict(num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads)
    keys |= dict(intermediate_size=4 * width, vocab_size=50265, max_position_embeddings=514)
    return transformers.RobertaConfig(**keys)


def gpt2(layers, width, heads):
    return transformers.GPT2Config(n_layer=layers, n_embd=width, n_head=heads)


CONFIGS = {
    "roberta-base": roberta(12, 768, 12),
    "roberta-large": roberta(24, 1024, 16),
    "gpt2": gpt2(12, 768, 12),
    "gpt2-medium": gpt2(24, 1024, 16),
    "gpt2-large": gpt2(36, 1280, 20),
}
SAME_WIDTHS = [  # GPT-2 and RoBERTa-base
    ({"method": "lora"}, 294_912),
    ({"method": "lora", "sites": "all", "rank": 8}, 1_327_104),
    ({"method": "ia3"}, 55_296),
    ({"method": "red"}, 18_432),
    ({"method": "para"}, 774_144),
    ({"method": "prompt_tuning"}, 7_680),
    ({"method": "idpg"}, 2_170_624),
    ({"method": "lopa"}, 1_201_192),
]
LARGE = [
    ({"method": "lora", "sites": ["attn.q", "attn.k", "attn.v"], "rank": 16}, 2_359_296),
    ({"method": "lora"}, 786_432),
    ({"method": "lora", "sites": "all", "rank": 8}, 3_538_944),
    ({"method": "ia3"}, 147_456),
    ({"method": "red"}, 49_152),
    ({"method": "red", "sites": RED_PLUS_PLUS}, 245_760),
    ({"method": "para"}, 2_064_384),
    ({"method": "prompt_tuning"}, 10_240),
    ({"method": "idpg"}, 2_894_080),
    ({"method": "lopa"}, 1_597_992),
]
ROWS = [(model, *row) for model in ("gpt2", "roberta-base") for row in SAME_WIDTHS]
ROWS += [("roberta-large", *row) for row in LARGE]
ROWS += [
    ("roberta-base", {"method": "red", "sites": RED_PLUS_PLUS}, 92_160),
    ("gpt2-medium", {"method": "red"}, 49_152),
    ("gpt2-large", {"method": "red"}, 92_160),
]


def trained_parameters(model, adapter, folder, data=None):
    CONFIGS[model].save_pretrained(folder / "model")
    keys = dict(
        model=dict(path=str(folder / "model")),
        task=dict(type="classification" if model.startswith("roberta") else "causal_lm"),
        adapter=adapter,
        parallel=dict(device="cpu", threads=1),
    )
    if data:
        keys["data"] = dict(train=str(data))
    text = run("plan", keys, folder)
    return int(re.search(r"parameters +(\d+) trainable of", text)[1])


@pytest.mark.parametrize("model, adapter, expected", ROWS)
def test_adapter(model, adapter, expected, tmp_path):
    assert trained_parameters(model, adapter, tmp_path) == expected


@pytest.mark.parametrize("model, head", [("roberta-base", 592_130), ("roberta-large", 1_051_650)])
def test_head_of_two_labels(model, head, tmp_path):
    samples = prepared_data.labelled_samples(3, 100, 8, seed=1, num_labels=2)
    prepared_data.write(tmp_path / "data", samples, 50265, num_labels=2)
    red = 18_432 if model == "roberta-base" else 49_152
    found = trained_parameters(model, {"method": "red"}, tmp_path, tmp_path / "data")
    assert found == red + head
