"""What `log.trace` costs: step times of one run with it over those without, in alternating runs.

  bench/trace_cost.py --model MODEL [--ranks 2] [--pairs 5] [--check 1.01]

With two ranks they are the stages of a pipeline, so that transfers are traced too. The shorter a step, the more its spans
weigh: the default is one sample of 64 tokens.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import compare_peft
import measure


def median_step(a, folder, output, traced):
    """Seconds of the median timed step; all of them are recorded in a traced run."""
    output.mkdir(parents=True)
    recipe = dict(
        run=dict(name="trace", output=str(output / "run")),
        model=dict(path=str(a.model), dtype=a.dtype),
        data=dict(train=str(folder / "data"), shuffle=False),
        adapter=dict(method="lora", sites="all", rank=a.rank, alpha=16),
        parallel=dict(pipeline=a.ranks, device="cpu", threads=max(1, a.threads // a.ranks)),
        optim=dict(steps=a.warmup + a.steps, global_batch=a.ranks, micro_batch=1),
        checkpoint=dict(every=0),
        log=dict(trace=a.warmup + a.steps if traced else 0),
    )
    path = output / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=1))
    result = measure.run(
        measure.graft_command(a.graft, path, a.ranks),
        output / "run" / "metrics.jsonl",
        max(1, a.threads // a.ranks),
        output / "log",
        measure.passive(a.ranks),
    )
    return statistics.median(r["step_seconds"] for r in result.train()[a.warmup :])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True)
    add("--graft", type=Path, default=measure.ROOT / "build" / "graft")
    add("--dtype", default="bfloat16")
    add("--ranks", type=int, default=1)
    add("--threads", type=int, default=2)
    add("--length", type=int, default=64)
    add("--pairs", type=int, default=5)
    add("--warmup", type=int, default=3)
    add("--steps", type=int, default=40)
    add("--check", type=float, default=0, help="exit 1 when the median ratio is above")
    a = parser.parse_args()
    made = measure.begin(a)
    pairs = []
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as work:
        vars(a).update(work=Path(work), rank=8, supervised=1.0, synthetic=True)
        folder = compare_peft.workload(a, a.ranks, a.length, a.warmup + a.steps)
        for number in range(a.pairs):
            plain, traced = (
                median_step(a, folder, a.work / f"{number}-{name}", name == "traced")
                for name in ("plain", "traced")
            )
            pairs.append(dict(plain=plain, traced=traced))
            print(f"step {plain * 1e3:.1f} ms, traced {traced * 1e3:.1f} ms", flush=True)
    ratio = statistics.median(p["traced"] / p["plain"] for p in pairs)
    spread = {name: measure.spread([p[name] for p in pairs]) for name in ("plain", "traced")}
    measure.write_result(f"trace-cost-{a.ranks}rank", made, ratio=ratio, spread=spread, pairs=pairs)
    print(f"{ratio:.4f}x, spread {spread}")
    measure.check(a.check, f"{ratio:.4f}x" if ratio > a.check else "")


if __name__ == "__main__":
    main()
