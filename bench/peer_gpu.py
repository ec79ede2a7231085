"""The peer on a GPU: HF transformers + HF PEFT with SDPA, random weights of a shape. Reads a job file, writes a metrics.jsonl.

  peer_gpu.py JOB.json
"""

import json
import sys
import time
from pathlib import Path

import torch
from peer_peft import load_samples
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def random_model(job):
    config = AutoConfig.from_pretrained(job["config"])
    with torch.device("cuda"):
        torch.set_default_dtype(getattr(torch, job["dtype"]))
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        torch.set_default_dtype(torch.float32)
    model.config.use_cache = False
    lora = LoraConfig(r=job["rank"], lora_alpha=2 * job["rank"], target_modules=LINEARS, task_type="CAUSAL_LM")
    return get_peft_model(model, lora).to("cuda").train()


def train(model, job):
    ids, labels = load_samples(job["data"])
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=job["lr"], weight_decay=0.0, fused=True)
    with open(job["metrics"], "w", buffering=1) as metrics:
        for step in range(1, job["steps"] + 1):
            began = time.perf_counter()
            rows = torch.tensor([((step - 1) * job["batch"] + i) % len(ids) for i in range(job["batch"])])
            batch, targets = ids[rows].cuda(non_blocking=True), labels[rows].cuda(non_blocking=True)
            optimizer.zero_grad(set_to_none=True)
            loss = model(input_ids=batch, labels=targets).loss
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, job["clip_norm"])
            optimizer.step()
            record = dict(
                kind="train",
                step=step,
                loss=loss.item(),
                grad_norm=norm.item(),
                tokens=batch.numel(),
                step_seconds=time.perf_counter() - began,
                peak_memory_bytes=torch.cuda.max_memory_reserved(),
            )
            metrics.write(json.dumps(record) + "\n")


def main():
    job = json.loads(Path(sys.argv[1]).read_text())
    train(random_model(job), job)


if __name__ == "__main__":
    main()
