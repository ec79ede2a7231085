"""Peak memory of training runs against what `graft plan` predicts, by stage: both numbers stand in the run's own metrics.jsonl.

  bench/plan_memory.py --model MODEL [--cases llama,gpt2,...] [--check 0.10]     MODEL: a prepared folder of SmolLM2-135M

A case is one run of two steps: a model, its number type, a method, samples of one length. Families without a folder are
made by shape name (`model.shape`), with the sizes of the published models.
"""

import argparse
import json
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import measure
import numpy as np

sys.path.insert(0, str(measure.ROOT / "launch"))
from graft_prepare.encode import Encoded  # noqa: E402
from graft_prepare.writer import DatasetInfo, DatasetWriter  # noqa: E402

STEPS = 2
LORA = dict(method="lora", sites="all", rank=8, alpha=16)
VOCABULARY = dict(gpt2=50257, roberta=50265, t5=32128, llama=49152)


@dataclass
class Case:
    family: str  # what --cases chooses by
    shape: str = ""  # "" = the folder of --model
    dtype: str = "float32"
    samples: int = 4  # of a micro-batch
    length: int = 256
    adapter: dict = field(default_factory=lambda: dict(LORA))
    recompute: str = "none"
    quantize: str = "none"
    pipeline: int = 1
    data: int = 1
    shard_weights: bool = False
    schedule: str = "1f1b"
    micro_batches: int = 1  # of a rank and step
    task: str = "causal_lm"

    def ranks(self):
        return self.pipeline * self.data

    def name(self):
        method = self.adapter["method"]
        if self.adapter.get("rank", LORA["rank"]) != LORA["rank"]:
            method += f" r {self.adapter['rank']}"
        extra = [self.quantize] if self.quantize != "none" else []
        extra += [f"pipeline {self.pipeline} {self.schedule}"] if self.pipeline > 1 else []
        extra += [f"data {self.data}"] if self.data > 1 else []
        extra += ["shard_weights"] if self.shard_weights else []
        extra += ["recompute"] if self.recompute == "layer" else []
        extra += [self.task] if self.task != "causal_lm" else []
        model = self.shape or "smollm2-135m (folder)"
        return ", ".join([model, self.dtype, method, f"{self.samples} x {self.length}", *extra])


FULL = dict(method="full")
CASES = [
    Case("llama"),
    Case("llama", samples=1),
    Case("llama", dtype="bfloat16"),
    Case("llama", dtype="bfloat16", samples=1, length=1024),
    Case("llama", dtype="bfloat16", adapter=LORA | dict(rank=64)),
    Case("recompute", recompute="layer"),
    Case("recompute", dtype="bfloat16", length=512, recompute="layer"),
    Case("recompute", "gpt2", recompute="layer"),
    Case("recompute", "t5-base", task="seq2seq", recompute="layer"),
    Case("stages", dtype="bfloat16", samples=2, pipeline=2, micro_batches=4),
    Case("stages", samples=2, pipeline=2, micro_batches=4),
    Case("stages", dtype="bfloat16", samples=2, pipeline=2, micro_batches=4, schedule="gpipe"),
    Case("stages", dtype="bfloat16", samples=2, pipeline=2, micro_batches=4, schedule="interleaved"),
    Case("stages", dtype="bfloat16", samples=2, pipeline=2, micro_batches=4, recompute="layer"),
    Case("stages", "t5-base", samples=2, pipeline=2, micro_batches=4, task="seq2seq"),
    Case("quantized", dtype="bfloat16", quantize="int8"),
    Case("quantized", dtype="bfloat16", quantize="nf4"),
    Case("quantized", quantize="nf4"),
    Case("replicas", dtype="bfloat16", samples=2, data=2),
    Case("replicas", dtype="bfloat16", samples=2, data=2, shard_weights=True),
    Case("replicas", samples=2, data=2, shard_weights=True),
    Case("replicas", dtype="bfloat16", samples=2, data=2, shard_weights=True, quantize="nf4"),
    Case("methods", adapter=dict(method="red")),
    Case("methods", dtype="bfloat16", adapter=dict(method="red")),
    Case("methods", adapter=dict(method="para")),
    Case("methods", dtype="bfloat16", adapter=dict(method="para")),
    Case("methods", adapter=dict(method="ia3")),
    Case("methods", dtype="bfloat16", adapter=dict(method="prompt_tuning", prompt_length=16)),
    Case("methods", dtype="bfloat16", adapter=dict(method="lopa", prompt_length=16)),
    Case("methods", adapter=dict(method="idpg", prompt_length=16)),
    Case("full", samples=2, adapter=FULL),
    Case("full", dtype="bfloat16", samples=1, adapter=FULL),
    Case("full", dtype="bfloat16", samples=2, adapter=FULL),
    Case("full", dtype="bfloat16", samples=2, adapter=FULL, recompute="layer"),
    Case("full", dtype="bfloat16", samples=2, adapter=FULL, pipeline=2, micro_batches=2),
    Case("full", dtype="bfloat16", samples=2, adapter=FULL, data=2),
    Case("gpt2", "gpt2"),
    Case("gpt2", "gpt2", dtype="bfloat16", adapter=dict(method="red")),
    Case("gpt2", "gpt2-medium", dtype="bfloat16"),
    Case("roberta", "roberta-base", task="classification"),
    Case("roberta", "roberta-base", dtype="bfloat16", task="classification"),
    Case("roberta", "roberta-large", dtype="bfloat16", adapter=dict(method="red"), task="classification"),
    Case("t5", "t5-base", task="seq2seq"),
    Case("t5", "t5-base", dtype="bfloat16", task="seq2seq"),
    Case("t5", "t5-v1_1-base", dtype="bfloat16", adapter=dict(method="ia3"), task="seq2seq"),
]


def global_batch(case):
    return case.samples * case.micro_batches * case.data


def write_data(folder, case):
    """Random samples of one length; of seq2seq the last quarter is the target."""
    vocabulary = VOCABULARY[next((f for f in VOCABULARY if case.shape.startswith(f)), "llama")]
    rng = np.random.default_rng(0)
    labels = ["a", "b"] if case.task == "classification" else []
    target = case.length // 4 if case.task == "seq2seq" else 0
    info = DatasetInfo(case.task, vocabulary, None, case.length, "plain", "all", labels)
    writer = DatasetWriter(folder, info, shard_tokens=1 << 30)
    for i in range(global_batch(case)):
        ids = rng.integers(5, vocabulary, case.length, dtype=np.int32)
        what = dict(prompt_length=case.length - target)
        if case.task == "causal_lm":
            what = dict(prompt_length=8, loss_mask=np.r_[np.zeros(8), np.ones(case.length - 8)].astype(np.uint8))
        elif labels:
            what["label"] = labels[i % 2]
        else:
            what["target_ids"] = ids[case.length - target :]
        writer.add(Encoded(number=i, input_ids=ids[: case.length - target], **what))
    writer.close()


def run(a, case, work):
    """What was predicted and measured, by stage."""
    folder = Path(tempfile.mkdtemp(dir=work))
    write_data(folder / "data", case)
    threads = max(1, a.threads // case.ranks())
    recipe = dict(
        run=dict(name="memory", output=str(folder / "run")),
        model=dict(dtype=case.dtype, recompute=case.recompute, quantize=case.quantize)
        | (dict(shape=case.shape) if case.shape else dict(path=str(a.model))),
        task=dict(type=case.task),
        data=dict(train=str(folder / "data"), shuffle=False),
        adapter=case.adapter,
        parallel=dict(
            pipeline=case.pipeline,
            data=case.data,
            shard_weights=case.shard_weights,
            schedule=case.schedule,
            device="cpu",
            threads=threads,
        ),
        optim=dict(steps=STEPS, global_batch=global_batch(case), micro_batch=case.samples),
        checkpoint=dict(every=0),
    )
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=1))
    result = measure.run(
        measure.graft_command(a.graft, path, case.ranks()),
        folder / "run" / "metrics.jsonl",
        threads,
        folder / "log",
        measure.passive(2),  # whatever else runs: no speed is measured
    )
    shutil.rmtree(folder)
    stages = next(r for r in result.records if r["kind"] == "run")["stages"]
    predicted = {s["stage"]: s["predicted_memory_bytes"] for s in stages}
    last = result.train()[-1]
    measured = last.get("stage_peak_memory_bytes", [last["peak_memory_bytes"]])
    return [
        dict(
            case=case.name(),
            stage=stage,
            predicted_bytes=predicted[stage],
            measured_bytes=peak,
            error=predicted[stage] / peak - 1,
        )
        for stage, peak in enumerate(measured)
    ]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True)
    add("--graft", type=Path, default=measure.ROOT / "build" / "graft")
    add("--cases", default="", help="families, comma-separated: " + ", ".join(dict.fromkeys(c.family for c in CASES)))
    add("--threads", type=int, default=2)
    add("--jobs", type=int, default=1, help="runs at a time; they do not change each other's memory")
    add("--check", type=float, default=0, help="exit 1 when a stage is further off than this share")
    a = parser.parse_args()
    made = measure.begin(a)
    chosen = [c for c in CASES if not a.cases or c.family in a.cases.split(",")]
    rows = []
    print("| case | stage | predicted MiB | measured MiB | off by |\n|---|---|---|---|---|")
    with (
        tempfile.TemporaryDirectory(prefix="graft-bench-") as work,
        ThreadPoolExecutor(a.jobs) as pool,
    ):
        for found in pool.map(lambda case: run(a, case, Path(work)), chosen):
            for row in found:
                rows.append(row)
                predicted, measured = (row[f"{k}_bytes"] / 2**20 for k in ("predicted", "measured"))
                print(
                    f"| {row['case']} | {row['stage']} | {predicted:.0f} | {measured:.0f} | {row['error']:+.1%} |",
                    flush=True,
                )
    measure.write_result("plan-memory", made, cases=rows)
    missed = [row for row in rows if abs(row["error"]) > a.check]
    measure.check(a.check, [f"{row['case']}, stage {row['stage']}" for row in missed])


if __name__ == "__main__":
    main()
