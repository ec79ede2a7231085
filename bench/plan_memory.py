"""Peak memory of training runs against what `graft plan` predicts: both numbers stand in the run's own metrics.jsonl.

  bench/plan_memory.py --model MODEL [--cases llama,gpt2,...] [--check 0.10]     MODEL: a prepared folder of SmolLM2-135M

A case is one run of two steps: a model, its number type, a method, samples of one length. Families without a folder are
made by shape name (`model.shape`), with the sizes of the published models.
"""

import argparse
import json
import sys
import tempfile
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
    shape: str  # "" = the folder of --model
    dtype: str = "float32"
    samples: int = 4  # of a micro-batch
    length: int = 256
    adapter: dict = field(default_factory=lambda: dict(LORA))
    recompute: str = "none"
    pipeline: int = 1
    micro_batches: int = 1
    task: str = "causal_lm"

    def name(self):
        extra = [f"pipeline {self.pipeline}"] if self.pipeline > 1 else []
        extra += ["recompute"] if self.recompute == "layer" else []
        model = self.shape or "smollm2-135m (folder)"
        return ", ".join(
            [model, self.dtype, self.adapter["method"], f"{self.samples} x {self.length}", *extra]
        )


CASES = [
    Case("llama", ""),
    Case("llama", "", samples=1),
    Case("llama", "", "bfloat16"),
    Case("llama", "", "bfloat16", samples=1, length=1024),
    Case("llama", "", "bfloat16", samples=4, length=512, recompute="layer"),
    Case("llama", "", "bfloat16", samples=2, pipeline=2, micro_batches=4),
    Case("llama", "", samples=2, pipeline=2, micro_batches=4),
    Case("methods", "", adapter=dict(method="red")),
    Case("methods", "", adapter=dict(method="para")),
    Case("methods", "", "bfloat16", adapter=dict(method="prompt_tuning", prompt_length=16)),
    Case("methods", "", samples=2, adapter=dict(method="full")),
    Case("methods", "", "bfloat16", samples=2, adapter=dict(method="full")),
    Case("gpt2", "gpt2"),
    Case("roberta", "roberta-base", task="classification"),
    Case("t5", "t5-base", task="seq2seq"),
]


def write_data(folder, case):
    """Random samples of one length; of seq2seq the last quarter is the target."""
    vocabulary = VOCABULARY[next((f for f in VOCABULARY if case.shape.startswith(f)), "llama")]
    rng = np.random.default_rng(0)
    labels = ["a", "b"] if case.task == "classification" else []
    target = case.length // 4 if case.task == "seq2seq" else 0
    info = DatasetInfo(case.task, vocabulary, None, case.length, "plain", "all", labels)
    writer = DatasetWriter(folder, info, shard_tokens=1 << 30)
    for i in range(case.samples * case.micro_batches):
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


def run(a, case, folder):
    folder.mkdir(parents=True)
    write_data(folder / "data", case)
    recipe = dict(
        run=dict(name="memory", output=str(folder / "run")),
        model=dict(dtype=case.dtype, recompute=case.recompute)
        | (dict(shape=case.shape) if case.shape else dict(path=str(a.model))),
        task=dict(type=case.task),
        data=dict(train=str(folder / "data"), shuffle=False),
        adapter=case.adapter,
        parallel=dict(pipeline=case.pipeline, device="cpu", threads=max(1, a.threads // case.pipeline)),
        optim=dict(
            steps=STEPS, global_batch=case.samples * case.micro_batches, micro_batch=case.samples
        ),
        checkpoint=dict(every=0),
    )
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=1))
    result = measure.run(
        measure.graft_command(a.graft, path, case.pipeline),
        folder / "run" / "metrics.jsonl",
        max(1, a.threads // case.pipeline),
        folder / "log",
        measure.passive(case.pipeline),
    )
    predicted = next(r for r in result.records if r["kind"] == "run")["predicted_memory_bytes"]
    measured = result.train()[-1]["peak_memory_bytes"]
    return dict(
        case=case.name(),
        predicted_bytes=predicted,
        measured_bytes=measured,
        error=predicted / measured - 1,
        seconds=round(result.wall_seconds, 1),
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True)
    add("--graft", type=Path, default=measure.ROOT / "build" / "graft")
    add("--cases", default="", help="families, comma-separated: " + ", ".join(dict.fromkeys(c.family for c in CASES)))
    add("--threads", type=int, default=2)
    add("--check", type=float, default=0, help="exit 1 when a case is further off than this share")
    a = parser.parse_args()
    chosen = [c for c in CASES if not a.cases or c.family in a.cases.split(",")]
    results = []
    print("| case | predicted MiB | measured MiB | off by |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as work:
        for i, case in enumerate(chosen):
            r = run(a, case, Path(work) / str(i))
            results.append(r)
            print(
                f"| {r['case']} | {r['predicted_bytes'] / 2**20:.0f} | {r['measured_bytes'] / 2**20:.0f} "
                f"| {r['error']:+.1%} |",
                flush=True,
            )
    record = dict(environment=measure.environment_record(a.graft), command=sys.argv, cases=results)
    print(f"written: {measure.write_result('plan-memory', record)}")
    if a.check and any(abs(r["error"]) > a.check for r in results):
        sys.exit("limit not met")


if __name__ == "__main__":
    main()
