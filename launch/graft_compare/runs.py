"""One run of a comparison: trains, evaluates on the held-out data, and is not repeated once it is done."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from graft_prepare.errors import usage_error
from graft_prepare.files import read_json_file
from graft_runs.metrics import read_run

from .program import Failed, Program, write_whole
from .study import Tree

ALONE = {"data": 1, "pipeline": 1}  # evaluation needs no more than one rank
MAX_RESULT_BYTES = 1 << 20


@dataclass(frozen=True)
class Job:
    """What one run is: its row, seed and recipe, and where it lies (BASE/, BASE.yaml, BASE.json)."""

    name: str
    seed: int
    recipe: Tree
    base: Path

    @property
    def trains(self) -> bool:
        return bool(self.recipe.get("adapter"))

    @property
    def steps(self) -> int:
        return int(self.recipe["optim"]["steps"]) if self.trains else 0


def run_recipe(
    shared: Tree, name: str, adapter: Tree, seed: int, output: Path, **optim: Any
) -> Tree:
    """The shared recipe for one run; `optim` are keys of that section that are this run's own."""
    recipe = {section: dict(keys or {}) for section, keys in shared.items()}
    recipe["run"] = {**recipe.get("run", {}), "name": name, "output": str(output), "seed": seed}
    if adapter:
        recipe["adapter"] = adapter
    recipe["optim"] = {**recipe.get("optim", {}), **optim}
    return recipe


def begin(job: Job) -> None:
    """Keeps the recipe beside the run; one that was begun with another recipe is neither taken for this one nor written
    over. Where the folders lie may change."""
    path = job.base.with_name(job.base.name + ".yaml")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, yaml.safe_dump(job.recipe, sort_keys=False))
        return
    before = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    for section in {**before, **job.recipe}:
        old, new = before.get(section) or {}, job.recipe.get(section) or {}
        for key in {**old, **new}:
            if old.get(key) != new.get(key) and (section, key) != ("run", "output"):
                raise usage_error(
                    f"{path}: was begun with {section}.{key} {old.get(key)}, the study now says "
                    f"{new.get(key)}; give another --out"
                )


def _evaluation_recipe(job: Job) -> Tree:
    """Of what the run left: an adapter folder, or with `full` a model folder."""
    recipe = {**job.recipe, "parallel": {**(job.recipe.get("parallel") or {}), **ALONE}}
    recipe["run"] = {**job.recipe["run"], "output": f"{job.base}.eval"}
    if not job.trains:
        return recipe
    if (job.base / "model" / "config.json").is_file():
        recipe["model"] = {**recipe["model"], "path": str(job.base / "model")}
        recipe.pop("adapter")
    else:
        recipe["adapter"] = {**recipe["adapter"], "init_from": str(job.base / "adapter")}
    return recipe


def train(program: Program, job: Job) -> None:
    program.run("train", job.recipe, job.base)


def _result(base: Path) -> Path:
    """What `graft eval` said of a run; once it is there the run is done."""
    return base.with_name(base.name + ".json")


def finish(program: Program, job: Job, metric: str) -> dict[str, Any]:
    """Trains and evaluates, or reads the result of a run that is done. Raises Failed, Stopped."""
    done = _result(job.base)
    if not done.exists():
        if job.trains:
            train(program, job)
        evaluation = job.base.with_name(job.base.name + ".eval")
        text = program.run("eval", _evaluation_recipe(job), evaluation)
        result = json.loads(text)
        if not isinstance(result.get(metric), (int, float)):
            numbers = [key for key, value in result.items() if isinstance(value, (int, float))]
            raise Failed(
                78,
                f"metric '{metric}' is not among those of graft eval: {', '.join(numbers)}",
            )
        write_whole(done, json.dumps(result, indent=1) + "\n")
    return read_json_file(done, MAX_RESULT_BYTES)


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def done_job(name: str, seed: int, folder: Path) -> Job | None:
    """The run of a method's folder with this seed as it was begun, if it is done."""
    base = folder / f"seed-{seed}"
    if not _result(base).exists():
        return None
    recipe = base.with_name(base.name + ".yaml").read_text(encoding="utf-8")
    return Job(name, seed, yaml.safe_load(recipe), base)


def summary(job: Job) -> dict[str, Any]:
    """The figures of a finished run, from what it left in its folder."""
    evaluation = read_json_file(_result(job.base), MAX_RESULT_BYTES)
    figures: dict[str, Any] = {"seed": job.seed, "eval": evaluation}
    if not job.trains:
        return {**figures, "trainable_parameters": 0, "adapter_bytes": 0}
    run = read_run(job.base)
    model = job.base / "model"
    return {
        **figures,
        "lr": float(
            run.recipe["optim"]["lr"]
        ),  # as the program resolved it; YAML 1.1 takes 1e-05 for a word
        "trainable_parameters": run.header.get("trainable_parameters", 0),
        "tokens_per_second": statistics.median(run.column("tokens_per_second")),
        "peak_memory_bytes": max(run.column("peak_memory_bytes")),
        "adapter_bytes": _folder_bytes(model if model.is_dir() else job.base / "adapter"),
        "train_seconds": sum(run.column("step_seconds")),
        "losses": [round(loss, 5) for loss in run.column("loss")],
    }


def late_loss(job: Job) -> float:
    """Mean loss of the last quarter of a run's steps, infinite for one that left the finite numbers. With every sample
    seen at most once it is a loss on unseen samples, so nothing needs to be held out for it."""
    losses = [record["loss"] for record in read_run(job.base).train]
    last = losses[-max(1, len(losses) // 4) :]
    return float("inf") if any(loss is None for loss in last) else sum(last) / len(last)
