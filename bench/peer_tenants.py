"""The peer of compare_tenants.py: HF PEFT's mixed batch (`adapter_names`), as its users run it. Reads a job file, prints one JSON object.

  peer_tenants.py JOB.json

The job: `model`, `dtype`, `threads`, `adapters` {name: folder}, `rows` [{`adapter`: name or null, `prompt`: ids}], `new_tokens`, `rounds`.
Prints for each round the seconds of one new token (prefill) and of all of them, and once the tokens of each row.
"""

import json
import sys
import time
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

BASE = "__base__"  # PEFT's name of a row without adapter


def load(job):
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
    names = list(job["adapters"])
    peft = PeftModel.from_pretrained(model, job["adapters"][names[0]], adapter_name=names[0])
    for name in names[1:]:
        peft.load_adapter(job["adapters"][name], adapter_name=name)
    return peft.eval()


def batch_of(rows):
    """Prompts side by side, padded in front."""
    length = max(len(row["prompt"]) for row in rows)
    ids = torch.tensor([[0] * (length - len(row["prompt"])) + row["prompt"] for row in rows])
    mask = torch.tensor([[0] * (length - len(row["prompt"])) + [1] * len(row["prompt"]) for row in rows])
    return ids, mask


@torch.no_grad()
def generate(model, rows, new_tokens):
    """Seconds, and the new tokens of each row; nothing ends early."""
    ids, mask = batch_of(rows)
    names = [row["adapter"] or BASE for row in rows]
    began = time.perf_counter()
    found = model.generate(
        input_ids=ids,
        attention_mask=mask,
        adapter_names=names,
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return time.perf_counter() - began, found[:, ids.shape[1] :].tolist()


def main():
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    model = load(job)
    model.generation_config.eos_token_id = None
    generate(model, job["rows"], 2)  # warm-up
    rounds = []
    for _ in range(job["rounds"]):
        first, _ = generate(model, job["rows"], 1)
        whole, tokens = generate(model, job["rows"], job["new_tokens"])
        rounds.append(dict(first_seconds=first, seconds=whole))
    print(json.dumps(dict(rounds=rounds, tokens=tokens)))


if __name__ == "__main__":
    main()
