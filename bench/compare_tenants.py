"""Many tenants on one backbone: `graft bench tenants` beside HF PEFT's mixed batch (`adapter_names`), on the same weights,
LoRA adapters and prompts, in alternating runs.

  bench/compare_tenants.py --model MODEL [--batch 16] [--rank 8]

Every row of the batch has an adapter of its own. The gate comes first: the same tokens in every row. tokens/s are those of
decoding: rows / time per output token, prompts left out on both sides. Writes bench/results/tenants-peer-<dtype>.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import measure

REQUIRED = 3.0  # times the peer's tokens per second


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="prepared model folder")
    add("--graft", type=Path, default=measure.ROOT / "build" / "graft", help="the program")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--threads", type=int, default=2)
    add("--batch", type=int, default=16, help="rows, each with an adapter of its own")
    add("--rank", type=int, default=8)
    add("--prompt", type=int, default=64)
    add("--new-tokens", type=int, default=32)
    add("--pairs", type=int, default=3)
    add("--check", action="store_true", help=f"fail below {REQUIRED} times the peer's tokens per second")
    return parser.parse_args()


def run_graft(a, work):
    """The results file, and of the batch its decoding speed by variant."""
    recipe = dict(
        run=dict(name="tenants", output=str(work / "run"), seed=0),
        model=dict(path=str(a.model), dtype=a.dtype),
        parallel=dict(device="cpu", threads=a.threads),
        tenants=dict(
            methods=["lora"],
            kernels=["grouped", "loop"],
            batches=[a.batch],
            mixes=["distinct"],
            prompts=[a.prompt],
            new_tokens=[a.new_tokens],
            rank=a.rank,
            repeats=1,
            merged=False,
            keep_adapters=True,
        ),
    )
    path = work / "recipe.yaml"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    subprocess.run([a.graft, "bench", "tenants", "--config", path], check=True, stdout=subprocess.DEVNULL)
    cell = json.loads((work / "run" / "tenants.json").read_text())["cells"][0]
    return cell, {row["variant"]: row["decode_tokens_per_second"] for row in cell["results"]}


def run_peer(a, work, cell):
    """Decoding speed, and the tokens of each row."""
    names = sorted({request["adapter"] for request in cell["requests"]})
    job = dict(
        model=str(a.model),
        dtype=a.dtype,
        threads=a.threads,
        adapters={name: str(work / "run" / "adapters" / name) for name in names},
        rows=cell["requests"],
        new_tokens=a.new_tokens,
        rounds=1,
    )
    (work / "job.json").write_text(json.dumps(job))
    script = Path(__file__).with_name("peer_tenants.py")
    done = subprocess.run([sys.executable, script, work / "job.json"], check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    one = found["rounds"][0]
    seconds = (one["seconds"] - one["first_seconds"]) / (a.new_tokens - 1)
    return a.batch / seconds, found["tokens"]


def main():
    a = arguments()
    os.environ |= dict(OMP_NUM_THREADS=str(a.threads), HF_HUB_OFFLINE="1")
    made = measure.begin(a)
    pairs = []
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as folder:
        for _ in range(a.pairs):
            cell, ours = run_graft(a, Path(folder))
            theirs, tokens = run_peer(a, Path(folder), cell)
            differ = [i for i, row in enumerate(cell["requests"]) if row["answer"] != tokens[i]]
            if differ:
                sys.exit(f"gate: rows {differ} were answered with other tokens: nothing counts")
            pairs.append(ours | dict(peer=theirs))
            print(", ".join(f"{name} {speed:.1f} tok/s" for name, speed in pairs[-1].items()), flush=True)
    result = measure.write_result(
        f"tenants-peer-{a.dtype}",
        made,
        pairs=pairs,
        speed={name: statistics.median(row[name] / row["peer"] for row in pairs) for name in pairs[0]},
        spread={name: measure.spread([row[name] for row in pairs]) for name in pairs[0]},
    )
    print(", ".join(f"{name} {ratio:.2f}x" for name, ratio in result["speed"].items()))
    measure.check(a.check, f"lora {REQUIRED}x" if result["speed"]["lora"] < REQUIRED else "")


if __name__ == "__main__":
    main()
