"""Makes what both programs of a comparison start from: a data set of fixed-length samples and a LoRA adapter folder.

  workload.py --model DIR --out DIR [--samples 64] [--length 256] [--supervised 1.0] [--prompt-length 1]
    [--synthetic] [--rank 8]
  workload.py --tiny DIR        a small random Llama folder instead, for runs that measure nothing
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "launch"))
from graft_prepare.encode import Encoded  # noqa: E402
from graft_prepare.tokenizer import load_tokenizer  # noqa: E402
from graft_prepare.writer import DatasetInfo, DatasetWriter  # noqa: E402

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def wordnet_ids(model_folder, count):
    """Token ids of WordNet's glosses, one after the other."""
    tokenizer = load_tokenizer(model_folder).backend
    ids = []
    with open("/usr/share/wordnet/data.noun", encoding="utf-8") as lines:
        for line in lines:
            if " | " in line:
                ids += tokenizer.encode(line.partition(" | ")[2].strip() + "\n").ids
            if len(ids) >= count:
                return np.array(ids[:count], np.int32)
    raise SystemExit(f"workload.py: WordNet has {len(ids)} tokens, {count} were asked for")


def write_data(model_folder, folder, samples, length, supervised, prompt_length, synthetic):
    vocab = json.loads((model_folder / "config.json").read_text())["vocab_size"]
    rng = np.random.default_rng(0)
    count = samples * length
    ids = rng.integers(0, vocab, count, dtype=np.int32) if synthetic else wordnet_ids(model_folder, count)
    info = DatasetInfo("causal_lm", vocab, None, length, "plain", "all")
    writer = DatasetWriter(folder, info, shard_tokens=1 << 30)
    for i in range(samples):
        mask = (rng.random(length) < supervised).astype(np.uint8)
        mask[:prompt_length] = 0
        row = ids[i * length : (i + 1) * length]
        writer.add(Encoded(number=i, input_ids=row, prompt_length=prompt_length, loss_mask=mask))
    writer.close()


def write_adapter(model_folder, folder, rank):
    """Both matrices random: with B = 0 the gate could not tell a wrong A."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_folder))
        names = [n for n, _ in model.named_modules() if n.rsplit(".", 1)[-1] in LINEARS]
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names, task_type="CAUSAL_LM")
        model = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, value in model.named_parameters():
        if value.requires_grad:
            noise = torch.randn(value.shape, generator=generator)
            scale = 0.02 if "lora_B" in name else value.shape[1] ** -0.5
            tensors[name.replace(".default", "")] = noise * scale
    folder.mkdir(parents=True, exist_ok=True)
    model.peft_config["default"].inference_mode = True
    model.peft_config["default"].save_pretrained(folder)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def write_tiny(folder):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.1,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--supervised", type=float, default=1.0)
    parser.add_argument("--prompt-length", type=int, default=1, help="leading tokens, not trained")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--synthetic", action="store_true")
    a = parser.parse_args()
    if a.tiny:
        return write_tiny(a.tiny)
    shape = (a.samples, a.length, a.supervised, a.prompt_length)
    write_data(a.model, a.out / "data", *shape, a.synthetic)
    write_adapter(a.model, a.out / "adapter", a.rank)


if __name__ == "__main__":
    main()
