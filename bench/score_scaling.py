"""What a second replica brings to `graft score`, and what the coordinator costs: one replica on one core and two on two cores
score the same modules, by turns.

  bench/score_scaling.py --model runs/quickstart/model [--rounds 1] [--check]

Speed is that of the work items alone, as the program's last line says it: without the start, which every replica does for
itself. No figure without the same importance.json, byte for byte, from both.
"""

import argparse
import json
import re
import statistics
import sys
import tempfile
from pathlib import Path

import compare_peft
import measure

LEAST_SPEEDUP = 1.8
MOST_COORDINATOR_PERCENT = 2.0
COSTS = re.compile(
    r"(\d+) items computed in ([\d.]+) s, .* rank 0: coordinator, messages and journal ([\d.]+) % of the time, "
    r"without an item ([\d.]+) %"
)


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="prepared model folder")
    add("--graft", type=Path, default=measure.ROOT / "build" / "graft", help="the program")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--method", default="ab", help="score.method")
    add("--samples", type=int, default=2)
    add("--length", type=int, default=128)
    add("--rounds", type=int, default=1)
    add("--check", action="store_true", help="exit 1 when a limit is not met")
    return parser.parse_args()


def score(a, folder, output, replicas):
    output.mkdir(parents=True)
    recipe = dict(
        run=dict(name="score", output=str(output / "run")),
        model=dict(path=str(a.model), dtype=a.dtype),
        data=dict(eval=str(folder / "data")),
        adapter=dict(method="lora", sites="all", rank=8, alpha=16),
        parallel=dict(data=replicas, device="cpu", threads=1),
        score=dict(
            method=a.method,
            adapter=str(folder / "adapter"),
            output=str(output / "score"),
            max_samples=a.samples,
            shard_samples=1,
            micro_batch=1,
        ),
    )
    path = output / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=1))
    command = measure.graft_command(a.graft, path, replicas, "score")
    measure.run(command, output / "none", 1, output / "log", measure.passive(replicas))
    items, seconds, coordinator, waiting = COSTS.search((output / "log").read_text()).groups()
    return dict(
        replicas=replicas,
        items=int(items),
        seconds=float(seconds),
        coordinator_percent=float(coordinator),
        without_item_percent=float(waiting),
        importance=(output / "score" / "importance.json").read_text(),
        command=command,
    )


def main():
    a = arguments()
    made = measure.begin(a)
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as work:
        vars(a).update(work=Path(work), rank=8, supervised=1.0, synthetic=True)
        folder = compare_peft.workload(a, a.samples, a.length, 1)
        runs = [
            score(a, folder, a.work / f"{number}-{replicas}", replicas)
            for number in range(a.rounds)
            for replicas in (1, 2)
        ]
    if len({r.pop("importance") for r in runs}) != 1:
        sys.exit("importance.json differs between runs")
    one, two = ([r["seconds"] for r in runs if r["replicas"] == n] for n in (1, 2))
    speedup = statistics.median(x / y for x, y in zip(one, two))
    coordinator = max(r["coordinator_percent"] for r in runs)
    print("| replicas | items | seconds | rank 0: coordinator | without an item |\n|---|---|---|---|---|")
    for r in runs:
        print(
            f"| {r['replicas']} | {r['items']} | {r['seconds']:.1f} | {r['coordinator_percent']:.2f} % "
            f"| {r['without_item_percent']:.2f} % |"
        )
    print(f"two replicas on two cores: {speedup:.2f}x one on one (median of {a.rounds}); coordinator at most {coordinator:.2f} %")
    measure.write_result(f"score-scaling-{a.dtype}", made, speedup=speedup, runs=runs)
    missed = [f"at least {LEAST_SPEEDUP}x"] if speedup < LEAST_SPEEDUP else []
    if coordinator > MOST_COORDINATOR_PERCENT:
        missed.append(f"coordinator at most {MOST_COORDINATOR_PERCENT} %")
    measure.check(a.check, missed)


if __name__ == "__main__":
    main()
