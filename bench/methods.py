"""Time of a training step of each method on the same batches, in alternating runs of one program.

  bench/methods.py --model runs/quickstart/model
  bench/methods.py --ci          one step of each method on a tiny model; no limit is judged

Every round runs each method once. A method is judged by the median over the rounds of (its median step / the median step of
its reference in the same round): RED and PARA against LoRA on all linears, LoPA and IDPG against prompt tuning. Writes
bench/results/<name>.json and prints the table.
"""

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import compare_peft
import measure


@dataclass
class Method:
    keys: dict
    reference: str = ""  # "" = is one
    limit: float = 0.0  # of the ratio; 0 = none
    steps: list = field(default_factory=list)  # median step seconds of each round
    parameters: int = 0


def methods():
    return {
        "lora": Method(dict(method="lora", sites="all", rank=8, alpha=16)),
        "red": Method(dict(method="red"), "lora", 1.0),
        "para": Method(dict(method="para"), "lora", 1.0),
        "prompt_tuning": Method(dict(method="prompt_tuning", prompt_length=10)),
        "lopa": Method(dict(method="lopa", prompt_length=10), "prompt_tuning", 1.15),
        "idpg": Method(dict(method="idpg", prompt_length=10), "prompt_tuning"),
    }


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, help="prepared model folder")
    add("--graft", type=Path, default=measure.ROOT / "build" / "graft", help="the program")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--threads", type=int, default=2)
    add("--batch", type=int, default=4)
    add("--length", type=int, default=128)
    add("--prompt-length", type=int, default=32, help="leading tokens that are the prompt")
    add("--rounds", type=int, default=3)
    add("--warmup", type=int, default=1, help="steps of each run that are not timed")
    add("--steps", type=int, default=4, help="timed steps of each run")
    add("--name", default="", help="of the result file")
    add("--check", action="store_true", help="exit 1 when a ratio is above its limit")
    add("--ci", action="store_true")
    a = parser.parse_args()
    if a.ci:
        a.rounds, a.warmup, a.steps, a.length, a.prompt_length = 1, 0, 1, 32, 8
    elif a.model is None:
        parser.error("--model is needed")
    return a


def recipe(a, method, data, output):
    steps = a.warmup + a.steps
    return dict(
        run=dict(name="bench", output=str(output)),
        model=dict(path=str(a.model), dtype=a.dtype),
        data=dict(train=str(data), shuffle=False),
        adapter=method.keys,
        parallel=dict(device="cpu", threads=a.threads),
        optim=dict(lr=1e-3, steps=steps, global_batch=a.batch, micro_batch=a.batch),
        checkpoint=dict(every=0),
    )


def run(a, name, method, data, folder):
    folder.mkdir(parents=True)
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe(a, method, data, folder / "run"), indent=1))  # JSON is YAML
    result = measure.run(
        measure.graft_command(a.graft, path, 1),
        folder / "run" / "metrics.jsonl",
        a.threads,
        folder / "log",
    )
    if len(result.train()) != a.warmup + a.steps:
        sys.exit(f"{name}: {len(result.train())} steps of {a.warmup + a.steps}")
    start = next(r for r in result.records if r["kind"] == "run")
    method.parameters = start["trainable_parameters"]
    method.steps.append(measure.summary(result, a.warmup)["step_seconds_p50"])
    print(f"{name}: {method.steps[-1]:.3f} s", flush=True)


def summary(chosen):
    rows = {}
    for name, method in chosen.items():
        row = dict(
            recipe=method.keys,
            trainable_parameters=method.parameters,
            step_seconds=statistics.median(method.steps),
            step_seconds_of_rounds=method.steps,
        )
        if method.reference:
            pairs = zip(method.steps, chosen[method.reference].steps)
            ratios = [own / other for own, other in pairs]
            row |= dict(reference=method.reference, ratio=statistics.median(ratios))
            row |= dict(ratio_of_rounds=ratios, limit=method.limit)
        rows[name] = row
    return rows


def print_table(rows):
    print(
        "\n| method | trained parameters | step, s | against | ratio (lowest .. highest) | limit |"
    )
    print("|---|---|---|---|---|---|")
    for name, row in rows.items():
        against, ratio, limit = "-", "-", "-"
        if "reference" in row:
            of_rounds = row["ratio_of_rounds"]
            against = row["reference"]
            ratio = f"{row['ratio']:.2f} ({min(of_rounds):.2f} .. {max(of_rounds):.2f})"
            limit = f"{row['limit']:.2f}" if row["limit"] else "-"
        print(
            f"| {name} | {row['trainable_parameters']:,} | {row['step_seconds']:.3f} "
            f"| {against} | {ratio} | {limit} |"
        )


def main():
    a = arguments()
    chosen = methods()
    made = measure.begin(a)
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as temporary:
        work = Path(temporary)
        if a.ci:
            a.model = work / "tiny"
            compare_peft.python("workload.py", "--tiny", a.model)
        compare_peft.python(
            "workload.py",
            *("--model", a.model, "--out", work / "load", "--length", a.length),
            *("--samples", a.batch * (a.warmup + a.steps), "--prompt-length", a.prompt_length),
            *(["--synthetic"] if a.ci else []),
        )
        for number in range(a.rounds):
            for name, method in chosen.items():
                run(a, name, method, work / "load" / "data", work / f"{number}-{name}")
    rows = summary(chosen)
    if not a.ci:
        name = a.name or f"methods-{a.model.resolve().name}-{a.dtype}"
        measure.write_result(name, made, methods=rows)
    print_table(rows)
    measure.check(
        a.check, [n for n, row in rows.items() if row.get("limit") and row["ratio"] > row["limit"]]
    )


if __name__ == "__main__":
    main()
