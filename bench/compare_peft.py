"""graft against HF transformers + PEFT (or torch DDP with --ranks 2) on the same weights and batches, in alternating runs.

  bench/compare_peft.py --model runs/quickstart/model --dtype float32
  bench/compare_peft.py --ci           gate and two steps of each program on a tiny model; no speed limit

First the gate: both programs train --gate-steps steps from the same start; loss and gradient norm must agree. Then --pairs
pairs of timed runs, graft and peer by turns. Writes bench/results/<name>.json and prints one table row.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import measure
import table

BENCH = Path(__file__).resolve().parent
GATE = {  # relative: loss, gradient norm
    "float32": (2e-5, 1e-3),
    "bfloat16": (1e-2, 5e-2),
}
SPREAD_LIMIT = 0.05


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, help="prepared model folder")
    add("--graft", type=Path, default=measure.ROOT / "build" / "graft", help="the program")
    add("--dtype", choices=GATE, default="float32")
    add("--ranks", type=int, default=1, help="2: data-parallel ranks against torch DDP over gloo")
    add("--threads", type=int, default=2, help="of the whole job")
    add("--batch", type=int, default=4)
    add("--length", type=int, default=256)
    add("--micro-batch", type=int, default=0, help="graft's; 0 = the rank's whole batch")
    add("--supervised", type=float, default=1.0, help="share of trained positions")
    add("--rank", type=int, default=8, help="of LoRA, on all linears")
    add("--pairs", type=int, default=3)
    add("--warmup", type=int, default=3, help="steps of each run that are not timed")
    add("--steps", type=int, default=10, help="timed steps of each run")
    add("--gate-steps", type=int, default=10)
    add("--gate-batch", type=int, default=0, help="0 = --batch; less where the peer is very slow")
    add("--gate-length", type=int, default=0, help="0 = --length")
    add("--synthetic", action="store_true", help="random ids instead of WordNet's text")
    add("--name", default="", help="of the result file")
    add("--work", type=Path, help="folder for data and runs (default: a temporary one)")
    add("--min-speed", type=float, default=0, help="exit 1 when the median ratio is below")
    add("--max-memory", type=float, default=0, help="exit 1 when the memory ratio is above")
    add("--ci", action="store_true")
    a = parser.parse_args()
    if a.ci:
        a.pairs, a.warmup, a.steps, a.gate_steps = 1, 0, 2, 5
        a.batch, a.length, a.synthetic = 4, 32, True
    elif a.model is None:
        parser.error("--model is needed")
    a.gate_batch = a.gate_batch or a.batch
    a.gate_length = a.gate_length or a.length
    return a


def python(script, *args):
    subprocess.run([sys.executable, BENCH / script, *map(str, args)], check=True)


def workload(a, batch, length, steps):
    """Data and start adapter for this shape; made once."""
    folder = a.work / f"length-{length}-{batch * steps}"
    if not folder.exists():
        flags = ["--synthetic"] if a.synthetic else []
        python(
            "workload.py",
            *("--model", a.model, "--out", folder, "--samples", batch * steps, "--length", length),
            *("--supervised", a.supervised, "--rank", a.rank, *flags),
        )
    return folder


def run_graft(a, folder, output, batch, steps):
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    recipe = dict(
        run=dict(name="bench", output=str(output / "run")),
        model=dict(path=str(a.model), dtype=a.dtype),
        data=dict(train=str(folder / "data"), shuffle=False),
        adapter=dict(
            method="lora", sites="all", rank=a.rank, alpha=2 * a.rank, init_from=str(folder / "adapter")
        ),
        parallel=dict(data=a.ranks, device="cpu", threads=a.threads // a.ranks),
        optim=dict(
            lr=1e-3,
            clip_norm=1.0,
            steps=steps,
            global_batch=batch,
            micro_batch=a.micro_batch or batch // a.ranks,
        ),
        checkpoint=dict(every=0),
    )
    path = output / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=1))  # JSON is YAML
    return measure.run(
        measure.graft_command(a.graft, path, a.ranks),
        output / "run" / "metrics.jsonl",
        a.threads // a.ranks,
        output / "log",
        measure.passive(a.ranks),
    )


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_peer(a, folder, output, batch, steps):
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    job = dict(
        model=str(a.model),
        data=str(folder / "data"),
        adapter=str(folder / "adapter"),
        metrics=str(output / "metrics.jsonl"),
        dtype=a.dtype,
        threads=a.threads // a.ranks,
        ranks=a.ranks,
        port=free_port(),
        batch=batch,
        steps=steps,
        lr=1e-3,
        clip_norm=1.0,
    )
    (output / "job.json").write_text(json.dumps(job, indent=1))
    script = BENCH / ("peer_ddp.py" if a.ranks > 1 else "peer_peft.py")
    return measure.run(
        [sys.executable, script, output / "job.json"],
        output / "metrics.jsonl",
        a.threads // a.ranks,
        output / "log",
        measure.passive(a.ranks),
    )


def gate(a):
    """Trains the same steps with both; the record of the comparison. Exits when they disagree."""
    folder = workload(a, a.gate_batch, a.gate_length, a.gate_steps)
    shape = (a.gate_batch, a.gate_steps)
    ours = run_graft(a, folder, a.work / "gate-graft", *shape).train()
    peer = run_peer(a, folder, a.work / "gate-peer", *shape).train()
    if len(ours) != a.gate_steps or len(peer) != a.gate_steps:
        sys.exit(f"gate: {len(ours)} and {len(peer)} steps of {a.gate_steps}")
    for mine, his in zip(ours, peer):
        if (mine["tokens"], mine["trained_tokens"]) != (his["tokens"], his["trained_tokens"]):
            sys.exit(f"gate: step {mine['step']}: the batches differ: {mine} {his}")
    worst = {
        key: max(abs(o[key] - p[key]) / abs(p[key]) for o, p in zip(ours, peer))
        for key in ("loss", "grad_norm")
    }
    limits = dict(zip(("loss", "grad_norm"), GATE[a.dtype]))
    record = dict(
        steps=a.gate_steps,
        batch=a.gate_batch,
        length=a.gate_length,
        loss_first=[ours[0]["loss"], peer[0]["loss"]],
        loss_last=[ours[-1]["loss"], peer[-1]["loss"]],
        worst_relative=worst,
        limits=limits,
        passed=all(worst[key] <= limits[key] for key in limits),
    )
    print(f"gate: {json.dumps(record)}", flush=True)
    if not record["passed"]:
        sys.exit("gate: the programs do not compute the same: no speed is measured")
    return record


def timed_pairs(a):
    steps = a.warmup + a.steps
    folder = workload(a, a.batch, a.length, steps)
    pairs, commands = [], {}
    for pair in range(1, a.pairs + 1):
        row = {}
        for name, program in (("graft", run_graft), ("peer", run_peer)):
            result = program(a, folder, a.work / f"{name}-{pair}", a.batch, steps)
            if len(result.train()) != steps:
                sys.exit(f"{name}: {len(result.train())} steps of {steps}")
            row[name] = measure.summary(result, a.warmup)
            commands[name] = result.command
            print(f"pair {pair} {name}: {row[name]['tokens_per_second']:.1f} tok/s", flush=True)
        pairs.append(row)
    return pairs, commands


def ratios(pairs):
    def of(key):
        return [row["graft"][key] / row["peer"][key] for row in pairs]

    speed = of("tokens_per_second")
    return dict(
        speed=statistics.median(speed),
        speed_of_pairs=speed,
        memory=statistics.median(of("peak_bytes")),
        start=statistics.median(of("start_seconds")),
        spread={
            name: measure.spread([row[name]["tokens_per_second"] for row in pairs])
            for name in ("graft", "peer")
        },
    )


def side(pairs, name):
    return {
        key: statistics.median(row[name][key] for row in pairs)
        for key in pairs[0][name]
    }


def report(a, result):
    print(f"{table.header()}\n{table.row(result)}")
    noisy = {k: v for k, v in result["ratio"]["spread"].items() if v > SPREAD_LIMIT}
    if noisy and not a.ci:
        print(f"spread above {SPREAD_LIMIT:.0%}: {noisy}: measure again on an idle machine")


def compare(a):
    if a.ci:
        a.model = a.work / "tiny"
        python("workload.py", "--tiny", a.model)
    name = a.name or f"{a.model.resolve().name}-{a.dtype}-{a.ranks}rank"
    if a.supervised < 1:
        name += f"-supervised{a.supervised}"
    made = measure.begin(a)
    gate_record = gate(a)
    pairs, commands = timed_pairs(a)
    flop = measure.flop_per_token(a.model, a.length, a.rank, a.supervised)
    numbers = dict(
        commands=commands,
        gate=gate_record,
        ratio=ratios(pairs),
        graft=side(pairs, "graft"),
        peer=side(pairs, "peer"),
        flop_per_token=flop,
        pairs=pairs,
    )
    for program in ("graft", "peer"):
        numbers[program]["gflop_per_second"] = numbers[program]["tokens_per_second"] * flop / 1e9
    if not a.ci:
        measure.write_result(name, made, **numbers)
    report(a, dict(name=name) | made | numbers)
    return numbers["ratio"]


def main():
    a = arguments()
    own = None if a.work else tempfile.TemporaryDirectory(prefix="graft-bench-")
    a.work = (a.work or Path(own.name)).resolve()
    a.work.mkdir(parents=True, exist_ok=True)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    ratio = compare(a)
    if ratio["speed"] < a.min_speed or (a.max_memory and ratio["memory"] > a.max_memory):
        sys.exit(f"limits not met: {ratio}")


if __name__ == "__main__":
    main()
