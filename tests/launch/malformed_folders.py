"""A tiny valid model, data set and adapter, and the means to damage them.

Used by malformed_inputs.py and malformed_methods.py. Only the standard library is needed.
"""

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path

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


def weights(width: int = 16) -> dict[str, tuple[str, list[int], list]]:
    """Of CONFIG, or of the same model with another hidden_size."""
    shapes = {
        "model.embed_tokens.weight": [32, width],
        "lm_head.weight": [32, width],
        "model.norm.weight": [width],
    }
    linears = {
        "self_attn.q_proj": [width, width],
        "self_attn.k_proj": [width // 2, width],
        "self_attn.v_proj": [width // 2, width],
        "self_attn.o_proj": [width, width],
        "mlp.gate_proj": [24, width],
        "mlp.up_proj": [24, width],
        "mlp.down_proj": [width, 24],
        "input_layernorm": [width],
        "post_attention_layernorm": [width],
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


def write_data(
    folder: Path, header: dict | None = None, prompts: int = 2, **changes: tuple
) -> None:
    """Four samples of 4 tokens; `changes` are ((index, value), ...) of a tensor."""
    ids = [(3 * i) % 16 for i in range(16)]
    tables = {
        "offsets": ["I64", [0, 4, 8, 12, 16]],
        "sample_ids": ["I64", [10, 11, 12, 13]],
        "input_ids": ["I32", ids],
        "prompt_lengths": ["I32", [prompts] * 4],
        "loss_mask": ["U8", [0, 0, 1, 1] * 4],
    }
    if (header or {}).get("kind") == "classification":  # the whole text is the prompt
        del tables["loss_mask"]
        tables["labels"] = ["I64", [0, 1, 1, 0]]
        tables["prompt_lengths"] = ["I32", [4, 4, 4, 4]]
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
