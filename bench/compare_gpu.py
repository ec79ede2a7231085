"""graft against HF transformers + PEFT (SDPA) on one GPU: random weights of a Llama shape, LoRA on all linears, bfloat16,
samples of one length, in alternating runs. Speed and memory only: bench/gpu.sh compares the numbers before.

  bench/compare_gpu.py --graft build/graft --shape llama-8b --length 4096 --out DIR

Prints one JSON line: tokens/s, peak bytes that each program's allocator held, those that `graft plan` predicts, the measured
rate of large matrix products and the share of it that each program used by the 4P rule (docs/gpu.md), and the ratios.
"""

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path

import measure
from workload import write_data

BENCH = Path(__file__).resolve().parent
CONFIGS = {  # as models/named_shapes.cc has them
    "llama-1b": dict(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        head_dim=64,
        tie_word_embeddings=True,
    ),
    "llama-8b": dict(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        head_dim=128,
        tie_word_embeddings=False,
    ),
}


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--graft", nargs="+", default=[str(measure.ROOT / "build" / "graft")], help="the program")
    add("--shape", choices=CONFIGS, default="llama-8b")
    add("--length", type=int, default=4096)
    add("--batch", type=int, default=1, help="samples of a micro-batch")
    add("--micro-batches", type=int, default=1, help="graft's in a step, over all replicas")
    add("--rank", type=int, default=16)
    add("--pairs", type=int, default=2)
    add("--warmup", type=int, default=3)
    add("--steps", type=int, default=10)
    add("--out", type=Path, required=True)
    add("--skip-peer", action="store_true")
    add("--quantize", default="none", help="graft's frozen matrices: none, int8, nf4")
    add("--trace", type=int, default=0, help="graft's log.trace: steps whose trace is kept in OUT/graft-N/run/trace")
    add("--recompute", default="none", help="graft's model.recompute: none, layer")
    add("--parallel", type=json.loads, default={}, help='more of graft\'s parallel: section, as JSON: {"pipeline": 2}')
    add("--ranks", default="", help="mpirun and its options, where --parallel needs more than one rank")
    return parser.parse_args()


def write_config(a):
    config = dict(
        model_type="llama",
        architectures=["LlamaForCausalLM"],
        vocab_size=128256,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        hidden_act="silu",
        **CONFIGS[a.shape],
    )
    folder = a.out / a.shape
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def run_graft(a, data, folder):
    recipe = dict(
        run=dict(name="bench", output=str(folder / "run")),
        model=dict(shape=a.shape, dtype="bfloat16", quantize=a.quantize, recompute=a.recompute),
        data=dict(train=str(data), shuffle=False),
        adapter=dict(method="lora", sites="all", rank=a.rank, alpha=2 * a.rank),
        parallel=dict(device="cuda") | a.parallel,
        optim=dict(
            lr=1e-4,
            steps=a.warmup + a.steps,
            global_batch=a.batch * a.micro_batches,
            micro_batch=a.batch,
        ),
        checkpoint=dict(every=0),
        log=dict(trace=a.trace),
    )
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    command = [*a.ranks.split(), *a.graft, "train", "--config", path]
    return measure.run(command, folder / "run" / "metrics.jsonl", 8, folder / "log")


def run_peer(a, data, folder):
    job = dict(
        config=str(a.out / a.shape),
        data=str(data),
        metrics=str(folder / "metrics.jsonl"),
        dtype="bfloat16",
        rank=a.rank,
        batch=a.batch,
        steps=a.warmup + a.steps,
        lr=1e-4,
        clip_norm=1.0,
    )
    (folder / "job.json").write_text(json.dumps(job))
    command = [sys.executable, BENCH / "peer_gpu.py", folder / "job.json"]
    return measure.run(command, folder / "metrics.jsonl", 8, folder / "log")


def summary(run, warmup):
    timed = run.train()[warmup:]
    seconds = sum(r["step_seconds"] for r in timed)
    return dict(
        tokens_per_second=sum(r["tokens"] for r in timed) / seconds,
        slowest_step=max(r["step_seconds"] for r in timed),
        fastest_step=min(r["step_seconds"] for r in timed),
        peak_bytes=max(r["peak_memory_bytes"] for r in run.train()),
        last_loss=run.train()[-1]["loss"],
        wall_seconds=run.wall_seconds,
    )


def product_rate(size=8192, seconds=1.0):
    """FLOP/s of a large bfloat16 matrix product on this card."""
    import time

    import torch

    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        torch.mm(a, b)
    torch.cuda.synchronize()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        for _ in range(10):
            torch.mm(a, b)
        torch.cuda.synchronize()
        count += 10
    rate = 2 * size**3 * count / (time.perf_counter() - began)
    del a, b
    torch.cuda.empty_cache()
    return rate


def main():
    a = arguments()
    config = write_config(a)
    data = a.out / "data"
    shutil.rmtree(data, ignore_errors=True)
    write_data(config, data, (a.warmup + a.steps) * a.batch * a.micro_batches, a.length, 1.0, 1, synthetic=True)
    programs = {"graft": run_graft}
    if not a.skip_peer:
        programs["peer"] = run_peer
    runs = {name: [] for name in programs}
    for pair in range(a.pairs):
        for name, program in programs.items():
            folder = a.out / f"{name}-{pair}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            run = program(a, data, folder)
            runs[name].append(summary(run, a.warmup))
            predicted = next((r for r in run.records if r["kind"] == "run"), {}).get("predicted_memory_bytes")
            if predicted:
                runs[name][-1]["predicted_bytes"] = predicted
            print(f"{a.shape} {name}: {json.dumps(runs[name][-1])}", file=sys.stderr, flush=True)
    rate = product_rate()
    flop = measure.flop_per_token(config, a.length, a.rank)
    result = dict(
        shape=a.shape,
        length=a.length,
        batch=a.batch,
        quantize=a.quantize,
        recompute=a.recompute,
        parallel=a.parallel,
        micro_batches=a.micro_batches,
        pairs=a.pairs,
        product_rate=rate,
        flop_per_token=flop,
    )
    for name, rows in runs.items():
        speed = statistics.median(row["tokens_per_second"] for row in rows)
        result[name] = dict(rows[0], tokens_per_second=speed, share_of_product_rate=speed * flop / rate)
    if "peer" in result:
        for key in ("tokens_per_second", "peak_bytes"):
            result[f"{key}_ratio"] = result["graft"][key] / result["peer"][key]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
