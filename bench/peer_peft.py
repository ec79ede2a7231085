"""The peer: HF transformers + HF PEFT on one process, as their users run it. Reads a job file, writes a metrics.jsonl like graft's.

  peer_peft.py JOB.json
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

IGNORED = -100


def load_samples(folder):
    """(ids, labels) of the fixed-length samples of a prepared data set, (S, T) each."""
    folder = Path(folder)
    ids, masks = [], []
    for shard in json.loads((folder / "dataset.json").read_text())["shards"]:
        tensors = load_file(folder / shard["file"])
        ids.append(tensors["input_ids"].reshape(shard["samples"], -1))
        masks.append(tensors["loss_mask"].reshape(shard["samples"], -1))
    ids = torch.from_numpy(np.concatenate(ids).astype(np.int64))
    masks = torch.from_numpy(np.concatenate(masks).astype(bool))
    return ids, ids.masked_fill(~masks, IGNORED)


def load_model(job):
    torch.set_num_threads(job["threads"])
    model = AutoModelForCausalLM.from_pretrained(
        job["model"], dtype=getattr(torch, job["dtype"]), attn_implementation="sdpa"
    )
    model.config.use_cache = False
    model = PeftModel.from_pretrained(model, job["adapter"], is_trainable=True)
    return model.train()


def train(model, job, rank=0, world=1, average=lambda value: value):
    """The steps of `job`. `average`: mean of a tensor over the ranks; DDP averages gradients, so losses are times `world`."""
    ids, labels = load_samples(job["data"])
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=job["lr"], weight_decay=0.0, fused=True)
    metrics = open(job["metrics"], "w", buffering=1) if rank == 0 else open(os.devnull, "w")
    share = job["batch"] // world
    for step in range(1, job["steps"] + 1):
        began = time.perf_counter()
        rows = torch.tensor([((step - 1) * job["batch"] + i) % len(ids) for i in range(job["batch"])])
        trained = int((labels[rows][:, 1:] != IGNORED).sum())
        mine = rows[rank * share : (rank + 1) * share]
        optimizer.zero_grad(set_to_none=True)
        out = model(input_ids=ids[mine], labels=labels[mine], num_items_in_batch=trained)
        loss = out.loss * world
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, job["clip_norm"])
        optimizer.step()
        value = average(loss.detach().double()).item()
        record = dict(
            kind="train",
            step=step,
            loss=value,
            grad_norm=norm.item(),
            tokens=ids[rows].numel(),
            trained_tokens=trained,
            step_seconds=time.perf_counter() - began,
            peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        )
        metrics.write(json.dumps(record) + "\n")
    metrics.close()


def main():
    job = json.loads(Path(sys.argv[1]).read_text())
    train(load_model(job), job)


if __name__ == "__main__":
    main()
