#!/usr/bin/env python3
"""Mirrors a run's metrics.jsonl into TensorBoard, W&B or MLflow while the job runs (on any node that sees the folder).

  track.py runs/demo                      then: tensorboard --logdir runs/demo/tensorboard
  track.py runs/demo --to wandb           W&B and MLflow must be installed and set up by you

The job itself knows nothing of it, so a tracker that fails costs no training step.
"""

from project_python import use_project_venv

use_project_venv()

import fcntl
import importlib.util
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from graft_prepare.errors import io_error, run_guarded, usage_error
from graft_runs.metrics import read_recipe, read_records

NOT_SERIES = ("kind", "step", "seconds")


class Tracker(Protocol):
    """Where numbers go."""

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoardTracker:
    def __init__(self, folder: Path, recipe_text: str) -> None:
        from tensorboard.summary import Writer

        self.writer = Writer(str(folder / "tensorboard"))
        (folder / "tensorboard" / "recipe.yaml").write_text(recipe_text, encoding="utf-8")

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.flush()
        self.writer.close()


class WandbTracker:
    def __init__(self, folder: Path, recipe: dict[str, Any]) -> None:
        import wandb

        self.run = wandb.init(project="graft", name=folder.name, dir=folder, config=recipe)

    def log(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


class MlflowTracker:
    def __init__(self, folder: Path, recipe: dict[str, Any]) -> None:
        import mlflow

        self.mlflow = mlflow
        mlflow.set_experiment("graft")
        mlflow.start_run(run_name=folder.name)
        flat = {
            f"{s}.{k}": v
            for s, keys in recipe.items()
            if isinstance(keys, dict)
            for k, v in keys.items()
        }
        mlflow.log_params(flat)

    def log(self, step: int, values: dict[str, float]) -> None:
        self.mlflow.log_metrics(values, step=step)

    def close(self) -> None:
        self.mlflow.end_run()


def make_tracker(name: str, folder: Path) -> Tracker:
    if importlib.util.find_spec(name) is None:
        raise usage_error(f"--to {name}: the Python package {name} is not installed here")
    recipe, text = read_recipe(folder)
    if name == "tensorboard":
        return TensorBoardTracker(folder, text)
    return WandbTracker(folder, recipe) if name == "wandb" else MlflowTracker(folder, recipe)


def series(record: dict[str, Any]) -> dict[str, float]:
    """The numbers of a train or eval record under names like train/loss."""
    if record["kind"] not in ("train", "eval"):
        return {}
    return {
        f"{record['kind']}/{key}": float(value)
        for key, value in record.items()
        if key not in NOT_SERIES and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


class Follower:
    """Finds the records that were added since the last look.

    A resumed run cuts the file and writes steps again, so each look reads it from the start; what
    was sent before is not sent twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sent: dict[str, int] = {}

    def new_records(self) -> Iterator[dict[str, Any]]:
        for record in read_records(self.path):
            kind, step = record["kind"], record.get("step", 0)
            if kind in ("train", "eval") and step > self.sent.get(kind, 0):
                self.sent[kind] = step
                yield record


def is_running(folder: Path) -> bool:
    """Whether a job holds the write lock on <folder>/lock; asking takes no lock."""
    try:
        with (folder / "lock").open("rb") as stream:
            question = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            answer = fcntl.fcntl(stream, fcntl.F_GETLK, question)
    except FileNotFoundError:
        return False
    return struct.unpack("hhqqi", answer)[0] != fcntl.F_UNLCK


def follow(folder: Path, tracker: Tracker, once: bool, seconds: float) -> int:
    """Mirrors until no job holds the run (or once); returns the number of records sent."""
    follower = Follower(folder / "metrics.jsonl")
    sent = 0
    while True:
        running = is_running(folder)
        for record in follower.new_records():
            tracker.log(record["step"], series(record))
            sent += 1
        if once or not running:
            return sent
        time.sleep(seconds)


def main() -> int:
    from graft_prepare.cli import Parser

    parser = Parser(prog="track.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("run", type=Path, help="a run's output folder")
    parser.add_argument("--to", choices=("tensorboard", "wandb", "mlflow"), default="tensorboard")
    parser.add_argument("--once", action="store_true", help="mirror what is there and stop")
    parser.add_argument("--seconds", type=float, default=5.0, help="between looks (%(default)s)")
    args = parser.parse_args()
    if not (args.run / "metrics.jsonl").is_file():
        raise io_error(
            f"{args.run / 'metrics.jsonl'}: no such file; give the output folder of a run"
        )
    tracker = make_tracker(args.to, args.run)
    try:
        sent = follow(args.run, tracker, args.once, args.seconds)
    except KeyboardInterrupt:
        sent = 0
    finally:
        tracker.close()
    print(f"{args.run}: sent {sent} records to {args.to}")
    return 0


if __name__ == "__main__":
    run_guarded(main)
