"""The same recipes on the CPU and on a GPU: the losses of all steps must agree, for each method and both types of numbers.

  bench/gpu_curves.py --graft build/graft --out DIR [--ranks "mpirun ..."]

A small random Llama with a data set of samples of mixed length; exits 1 when a loss differs by more than --limit (float32,
relative) or --limit-bfloat16.
"""

import argparse
import json
import sys
from dataclasses import dataclass, field
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
LAYOUTS = {  # of two ranks
    "data": dict(data=2),
    "pipeline": dict(pipeline=2),
    "shards": dict(data=2, shard_weights=True),
}


@dataclass(frozen=True)
class Case:
    """A method on one GPU, or on two ranks."""

    method: str
    dtype: str
    quantize: str = "none"
    layout: str = ""
    backend: str = "auto"

    def on_cpu(self):
        return f"{self.method}-{self.dtype}-{self.quantize}-cpu"

    def name(self):
        parts = [self.method, self.dtype, self.quantize if self.quantize != "none" else ""]
        return " ".join(p for p in [*parts, self.layout, self.backend if self.layout else ""] if p)


@dataclass
class Runner:
    options: argparse.Namespace
    references: dict = field(default_factory=dict)  # losses on the CPU

    def losses(self, name, case, parallel, launcher=()):
        a = self.options
        folder = a.out / name.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        recipe = a.recipe | dict(
            run=dict(name="curve", output=str(folder / "run")),
            model=dict(path=str(a.out / "tiny"), dtype=case.dtype, quantize=case.quantize),
            data=dict(train=str(a.out / "data"), shuffle=True),
            adapter=METHODS[case.method],
            parallel=parallel,
            optim=dict(lr=5e-3, steps=a.steps, global_batch=8, micro_batch=2),
            checkpoint=dict(every=0),
        )
        path = folder / "recipe.yaml"
        path.write_text(json.dumps(recipe))
        command = [*launcher, *a.graft, "train", "--config", path]
        run = measure.run(
            command, folder / "run" / "metrics.jsonl", 2, folder / "log", limit_seconds=a.run_seconds
        )
        return [r["loss"] for r in run.train()]

    def difference(self, case):
        """The largest relative difference of a loss."""
        a = self.options
        if case.on_cpu() not in self.references:
            self.references[case.on_cpu()] = self.losses(case.on_cpu(), case, dict(device="cpu"))
        want = self.references[case.on_cpu()]
        parallel = dict(device=a.device, backend=case.backend, **LAYOUTS.get(case.layout, {}))
        launcher = a.ranks.split() if case.layout else ()
        got = self.losses(case.name(), case, parallel, launcher)
        if len(got) != len(want):
            return float("inf")
        worst = max(abs(g - w) / abs(w) for g, w in zip(got, want))
        print(
            f"{case.name():32} {worst:.2e}  first {want[0]:.5f} {got[0]:.5f}  last {want[-1]:.5f} {got[-1]:.5f}",
            flush=True,
        )
        return worst


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


def cases(a):
    chosen = [Case(method, dtype) for method in a.methods for dtype in ("float32", "bfloat16")]
    chosen += [Case("lora", dtype, kind) for kind in a.quantize for dtype in ("float32", "bfloat16")]
    if a.ranks:
        chosen += [
            Case("lora", "float32", "none", layout, backend) for layout in a.layouts for backend in a.backends
        ]
        if "shards" in a.layouts:
            chosen += [Case("lora", "float32", kind, "shards", a.backends[0]) for kind in a.quantize]
    return chosen


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
    add("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    add("--quantize", nargs="*", choices=["int8", "nf4"], default=["int8", "nf4"])
    add("--ranks", default="", help="mpirun and its options: also two ranks, in each layout and over each backend")
    add("--layouts", nargs="*", choices=LAYOUTS, default=list(LAYOUTS), help="of two ranks")
    add("--run-seconds", type=float, default=float("inf"), help="limit of each run")
    add("--recipe", type=json.loads, default={}, help='more sections for the recipes, as JSON: {"log": {"trace": 5}}')
    add("--backends", nargs="+", default=["nccl", "mpi"], help="of two ranks")
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    write_tiny(a.out / "tiny")
    write_data(a.out / "data")
    runner, failed = Runner(a), []
    for case in cases(a):
        try:
            worst = runner.difference(case)
        except RuntimeError as error:
            print(error, flush=True)
            worst = float("inf")
        if worst > (a.limit if case.dtype == "float32" else a.limit_bfloat16):
            failed.append(case.name())
    print(f"failed: {failed}" if failed else "all curves agree")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
