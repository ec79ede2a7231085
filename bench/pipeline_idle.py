"""Idle share of a two-stage pipeline, measured, against (p-1)/(v m + p-1): GPipe, 1F1B and interleaved.

  bench/pipeline_idle.py --model runs/quickstart/model [--micro-batches 8] [--split 17,13] [--max-difference 0.05]

The formula holds for equal stages; --split gives the layers of the stages by hand (of the parts, for interleaved).
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import compare_peft
import measure

SCHEDULES = {"gpipe": 1, "1f1b": 1, "interleaved": 2}  # schedule -> parts of a stage


def ideal(stages, micro_batches, chunks):
    return (stages - 1) / (chunks * micro_batches + stages - 1)


def run(a, schedule, folder, output):
    output.mkdir(parents=True)
    split = [int(n) for n in a.split.split(",")] if a.split and SCHEDULES[schedule] == 1 else "auto"
    recipe = dict(
        run=dict(name="idle", output=str(output / "run")),
        model=dict(path=str(a.model), dtype=a.dtype),
        data=dict(train=str(folder / "data"), shuffle=False),
        adapter=dict(method="lora", sites="all", rank=8, alpha=16),
        parallel=dict(
            pipeline=a.ranks, schedule=schedule, split=split, device="cpu", threads=a.threads // a.ranks
        ),
        optim=dict(
            steps=a.warmup + a.steps, global_batch=a.micro_batches * a.micro_batch, micro_batch=a.micro_batch
        ),
        checkpoint=dict(every=0),
    )
    path = output / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=1))
    result = measure.run(
        measure.graft_command(a.graft, path, a.ranks),
        output / "run" / "metrics.jsonl",
        a.threads // a.ranks,
        output / "log",
        measure.passive(a.ranks),
    )
    timed = result.train()[a.warmup :]
    shares = [r["bubble_fraction"] for r in timed]
    expected = ideal(a.ranks, a.micro_batches, SCHEDULES[schedule])
    return dict(
        schedule=schedule,
        idle=statistics.median(shares),
        ideal=expected,
        difference=statistics.median(shares) - expected,
        steps=shares,
        stages=[r for r in result.records if r["kind"] == "run"][0]["stages"],
        tokens_per_second=statistics.median(r["tokens_per_second"] for r in timed),
        communication_seconds=statistics.median(r["communication_seconds"] for r in timed),
        command=result.command,
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True)
    add("--graft", type=Path, default=measure.ROOT / "build" / "graft")
    add("--dtype", default="float32")
    add("--schedules", default=",".join(SCHEDULES))
    add("--ranks", type=int, default=2)
    add("--threads", type=int, default=2)
    add("--micro-batches", type=int, default=8)
    add("--micro-batch", type=int, default=1, help="samples of a micro-batch")
    add("--length", type=int, default=256)
    add("--split", default="")
    add("--warmup", type=int, default=2)
    add("--steps", type=int, default=6)
    add("--max-difference", type=float, default=0, help="exit 1 when a schedule is further away")
    a = parser.parse_args()
    made = measure.begin(a)
    vars(a).update(rank=8, supervised=1.0, synthetic=True)
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as work:
        a.work = Path(work)
        folder = compare_peft.workload(a, a.micro_batches * a.micro_batch, a.length, a.warmup + a.steps)
        results = [run(a, s, folder, a.work / s) for s in a.schedules.split(",")]
    print("| schedule | idle share | (p-1)/(v m + p-1) | difference | tok/s |\n|---|---|---|---|---|")
    for r in results:
        print(
            f"| {r['schedule']} | {r['idle']:.1%} | {r['ideal']:.1%} | {r['difference']:+.1%} "
            f"| {r['tokens_per_second']:.0f} |"
        )
    measure.write_result(f"pipeline-idle-{a.ranks}rank", made, schedules=results)
    measure.check(
        a.max_difference, [r["schedule"] for r in results if abs(r["difference"]) > a.max_difference]
    )


if __name__ == "__main__":
    main()
