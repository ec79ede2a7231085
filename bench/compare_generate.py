"""Greedy decoding beside HF transformers' generate, on the same weights and prompts, in alternating runs.

  bench/compare_generate.py --model runs/quickstart/model --dtype float32

The gate comes first and holds for every run: the same tokens for every prompt. Both decode --batch prompts beside each
other with a key-value cache; the clock runs from the first prompt to the last token, models loaded. Writes
bench/results/generate-<dtype>.json and prints one line.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure
import numpy as np
import torch
import workload
from transformers import AutoModelForCausalLM

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WIDTH = 16  # requests that graft runs beside each other


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="prepared model folder")
    add("--graft", type=Path, default=measure.ROOT / "build" / "graft", help="the program")
    add("--dtype", choices=DTYPES, default="float32")
    add("--threads", type=int, default=2)
    add("--prompts", type=int, default=32)
    add("--new-tokens", type=int, default=64)
    add("--pairs", type=int, default=3)
    return parser.parse_args()


def make_prompts(model, count):
    """Beginnings of WordNet's text, 16 to 47 tokens long."""
    lengths = [16 + 7 * i % 32 for i in range(count)]
    ids = workload.wordnet_ids(model, sum(lengths))
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]


def write_prompts(model, prompts, folder):
    vocab = json.loads((model / "config.json").read_text())["vocab_size"]
    info = workload.DatasetInfo("causal_lm", vocab, None, 64, "plain", "all")
    writer = workload.DatasetWriter(folder, info, shard_tokens=1 << 30)
    for number, prompt in enumerate(prompts):
        ids = np.array([*prompt, 0], np.int32)  # a sample has one trained token at least
        mask = np.zeros(len(ids), np.uint8)
        mask[-1] = 1
        writer.add(
            workload.Encoded(
                number=number, input_ids=ids, prompt_length=len(prompt), loss_mask=mask
            )
        )
    writer.close()


def run_graft(a, work):
    """Tokens of each prompt, and tokens per second."""
    recipe = dict(
        run=dict(output=str(work / "run")),
        model=dict(path=str(a.model), dtype=a.dtype),
        data=dict(eval=str(work / "data")),
        parallel=dict(device="cpu", threads=a.threads),
        generate=dict(max_new_tokens=a.new_tokens),
    )
    path = work / "recipe.yaml"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    command = measure.graft_command(a.graft, path, 1, "generate")
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    records = measure.read_records(work / "run" / "generations.jsonl")
    return [r["tokens"] for r in records], json.loads(done.stdout)["tokens_per_second"]


@torch.no_grad()
def run_peer(a, model, prompts):
    pad, end = model.config.pad_token_id or 0, model.config.eos_token_id
    answers, began = [], time.perf_counter()
    for begin in range(0, len(prompts), WIDTH):
        group = prompts[begin : begin + WIDTH]
        length = max(map(len, group))
        ids = torch.tensor([[pad] * (length - len(p)) + p for p in group])
        mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in group])
        found = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=a.new_tokens,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=pad,
        )
        answers += found[:, length:].tolist()
    seconds = time.perf_counter() - began
    answers = [r[: r.index(end) + 1] if end in r else r for r in answers]
    return answers, sum(map(len, answers)) / seconds


def main():
    a = arguments()
    torch.set_num_threads(a.threads)
    os.environ["OMP_NUM_THREADS"] = str(a.threads)
    made = measure.begin(a)
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=DTYPES[a.dtype]).eval()
    prompts = make_prompts(a.model, a.prompts)
    pairs = []
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as folder:
        work = Path(folder)
        write_prompts(a.model, prompts, work / "data")
        for _ in range(a.pairs):
            ours, our_speed = run_graft(a, work)
            theirs, their_speed = run_peer(a, model, prompts)
            differ = [i for i, (x, y) in enumerate(zip(ours, theirs, strict=True)) if x != y]
            if differ:
                sys.exit(f"gate: prompts {differ} were answered with other tokens: nothing counts")
            pairs.append(dict(graft=our_speed, peer=their_speed))
            print(f"graft {our_speed:.1f} tok/s, peer {their_speed:.1f} tok/s", flush=True)
    result = measure.write_result(
        f"generate-{a.dtype}",
        made,
        tokens=sum(map(len, ours)),
        pairs=pairs,
        speed=statistics.median(row["graft"] / row["peer"] for row in pairs),
        spread={name: measure.spread([row[name] for row in pairs]) for name in ("graft", "peer")},
    )
    print(f"{result['speed']:.2f}x, spread {result['spread']}")


if __name__ == "__main__":
    main()
