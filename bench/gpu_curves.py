"""The same recipes on the CPU and on a GPU: the losses of all steps must agree, for each method and both types of numbers.

  bench/gpu_curves.py --graft build/graft --out DIR [--ranks "mpirun ..."]

A small random Llama with a data set of samples of mixed length; exits 1 when a loss differs by more than --limit (float32,
relative) or --limit-bfloat16.
"""

import argparse
import json
import sys
from pathlib import Path

import measure
import numpy as np
from workload import DatasetInfo, DatasetWriter, Encoded, write_tiny

METHODS = {
    "lora": dict(method="lora", sites="all", rank=4, alpha=8),
    "lora-dropout": dict(method="lora", sites="all", rank=4, alpha=8, dropout=0.2),
    "red": dict(method="red"),
    "ia3": dict(method="ia3"),
    "para": dict(method="para", rank=4),
    "prompt_tuning": dict(method="prompt_tuning", prompt_length=4),
    "idpg": dict(method="idpg", prompt_length=4, hidden=16),
    "lopa": dict(method="lopa", prompt_length=4, rank=2),
    "full": dict(method="full"),
}


def write_data(folder, samples=64):
    rng = np.random.default_rng(1)
    writer = DatasetWriter(folder, DatasetInfo("causal_lm", 257, None, 48, "plain", "all"), shard_tokens=1 << 30)
    for number in range(samples):
        length = int(rng.integers(12, 49))
        ids = np.cumsum(rng.integers(0, 3, length)).astype(np.int32) % 257
        mask = np.ones(length, np.uint8)
        mask[:5] = 0
        writer.add(Encoded(number=number, input_ids=ids, prompt_length=5, loss_mask=mask))
    writer.close()


def losses(a, name, adapter, dtype, extra, launcher=()):
    folder = a.out / name
    folder.mkdir(parents=True, exist_ok=True)
    recipe = dict(
        run=dict(name="curve", output=str(folder / "run")),
        model=dict(path=str(a.out / "tiny"), dtype=dtype),
        data=dict(train=str(a.out / "data"), shuffle=True),
        adapter=adapter,
        parallel=extra,
        optim=dict(lr=5e-3, steps=a.steps, global_batch=8, micro_batch=2),
        checkpoint=dict(every=0),
    )
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    command = [*launcher, *a.graft, "train", "--config", path]
    run = measure.run(command, folder / "run" / "metrics.jsonl", 2, folder / "log")
    return [(r["loss"], r["grad_norm"]) for r in run.train()]


def compare(a, name, adapter, dtype, extra, launcher=()):
    """The largest relative difference of a loss, in steps of both."""
    reference = losses(a, f"{name}-{dtype}-cpu", adapter, dtype, dict(device="cpu"))
    ours = losses(a, f"{name}-{dtype}-gpu", adapter, dtype, extra, launcher)
    if len(ours) != len(reference):
        return float("inf")
    worst = max(abs(o[0] - r[0]) / abs(r[0]) for o, r in zip(ours, reference))
    print(
        f"{name:24} {dtype:8} {worst:.2e}  first {reference[0][0]:.5f} {ours[0][0]:.5f}"
        f"  last {reference[-1][0]:.5f} {ours[-1][0]:.5f}",
        flush=True,
    )
    return worst


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--graft", nargs="+", default=[str(measure.ROOT / "build" / "graft")], help="the program")
    add("--out", type=Path, required=True)
    add("--device", default="cuda", help="cpu: tries this script where there is no GPU")
    add("--steps", type=int, default=10)
    add("--limit", type=float, default=1e-4)
    add("--limit-bfloat16", type=float, default=2e-2)
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add("--ranks", default="", help="mpirun and its options: also two ranks, as data and as pipeline, over nccl and mpi")
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    write_tiny(a.out / "tiny")
    write_data(a.out / "data")
    failed = []
    for name in a.methods:
        for dtype, limit in (("float32", a.limit), ("bfloat16", a.limit_bfloat16)):
            if compare(a, name, METHODS[name], dtype, dict(device=a.device)) > limit:
                failed.append(f"{name} {dtype}")
    for layout in ("data", "pipeline") if a.ranks else ():
        for backend in ("nccl", "mpi"):
            extra = dict(device=a.device, backend=backend, **{layout: 2})
            name = f"lora-{layout}2-{backend}"
            if compare(a, name, METHODS["lora"], "float32", extra, a.ranks.split()) > a.limit:
                failed.append(name)
    print(f"failed: {failed}" if failed else "all curves agree")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
