#!/usr/bin/env python3
"""Trains a list of methods on one task, at one budget of trainable parameters, with several seeds; writes a table and the convergence picture.

  compare.py --study launch/studies/sst2.yaml --out runs/compare-sst2 model.path=DIR data.train=DIR data.eval=DIR

Writes compare.md, compare.json (every seed's figures and losses) and compare.png into --out, and nothing elsewhere.
Run again, it goes on where it stopped: a finished run is not repeated, a stopped one resumes from its checkpoint.
A run that fails is named in the table while the others go on; the exit code is then the failed run's.
"""

from project_python import ROOT, use_project_venv

use_project_venv()

import argparse
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graft_compare import results, runs
from graft_compare.program import STOPPED, Failed, Program, Stopped, error_of
from graft_compare.sizes import choose_adapter
from graft_compare.study import Method, Study, read_study
from graft_compare.study import __doc__ as study_help
from graft_prepare.errors import io_error, run_guarded, usage_error


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass
class Progress:
    """One line a run, with the time left judged by the steps that are done."""

    runs: int
    steps: int
    began: float = field(default_factory=time.monotonic)
    done_runs: int = 0
    done_steps: int = 0
    worked_seconds: float = 0.0
    worked_steps: int = 0

    def note(self, what: str, result: str, steps: int, seconds: float, repeated: bool) -> None:
        self.done_runs += 1
        self.done_steps += steps
        if steps and not repeated:
            self.worked_seconds += seconds
            self.worked_steps += steps
        left = "time left not known yet"
        if self.worked_steps:
            pace = self.worked_seconds / self.worked_steps
            left = f"{pace * max(0, self.steps - self.done_steps) / 60:.1f} min left"
        took = "was done before" if repeated else f"{seconds:.0f} s"
        say(f"[{self.done_runs}/{self.runs}] {what}: {result}, {took}; {left}")


class Comparison:
    """The runs of a study, in order; keeps what failed."""

    def __init__(self, study: Study, program: Program, out: Path) -> None:
        self.study, self.program, self.out = study, program, out
        self.failures: list[tuple[str, Failed]] = []
        trained = [method for method in study.methods if method.adapter]
        tried = sum(len(method.rates) for method in trained if len(method.rates) > 1)
        count = len(trained) * len(study.seeds) + len(study.methods) - len(trained)
        steps = len(trained) * len(study.seeds) * self._steps + tried * study.grid_steps
        self.progress = Progress(runs=count + tried, steps=steps)

    @property
    def _steps(self) -> int:
        return int((self.study.recipe.get("optim") or {})["steps"])

    def _seeds(self, method: Method) -> list[int]:
        """Of a method's runs; nothing in the bare backbone depends on a seed."""
        return self.study.seeds if method.adapter else self.study.seeds[:1]

    def _job(
        self, method: Method, adapter: dict[str, Any], seed: int, base: Path, **optim: Any
    ) -> runs.Job:
        recipe = runs.run_recipe(self.study.recipe, method.name, adapter, seed, base, **optim)
        job = runs.Job(method.name, seed, recipe, base)
        runs.begin(job)
        return job

    def _choose_rate(self, method: Method, adapter: dict[str, Any]) -> dict[str, float]:
        """The optimiser keys of a method: of several learning rates the one with the lowest loss in the grid."""
        if len(method.rates) < 2:
            return {"lr": method.rates[0]} if method.rates else {}
        losses = {}
        for rate in method.rates:
            base = self.out / "grid" / method.name / f"lr-{rate:g}"
            optim = {"lr": rate, "steps": self.study.grid_steps}
            job = self._job(method, adapter, self.study.grid_seed, base, **optim)
            began, marker = time.monotonic(), base / "adapter" / "adapter_config.json"
            repeated = marker.exists() or (base / "model" / "config.json").exists()
            try:
                if not repeated:
                    runs.train(self.program, job)
                losses[rate] = runs.late_loss(job)
            except Failed as failure:
                if failure.code != 77:  # a rate at which the numbers explode is an answer
                    raise
                losses[rate] = float("inf")
            what, result = f"{method.name} lr {rate:g}", f"late loss {losses[rate]:.4f}"
            self.progress.note(what, result, job.steps, time.monotonic() - began, repeated)
        return {"lr": min(losses, key=losses.get)}

    def _method(self, method: Method) -> results.Row | None:
        """All seeds of a method; None when every one of them failed."""
        adapter = choose_adapter(self.program, self.study, method, self.out / "plan" / method.name)
        optim = self._choose_rate(method, adapter)
        finished = []
        for seed in self._seeds(method):
            base = self.out / "runs" / method.name / f"seed-{seed}"
            job = self._job(method, adapter, seed, base, **optim)
            what = f"{method.name} seed {seed}" if method.adapter else method.name
            began, repeated = time.monotonic(), Path(f"{base}.json").exists()
            try:
                evaluation = runs.finish(self.program, job, self.study.metric)
            except Failed as failure:
                self._failed(what, failure)
                self.progress.done_steps += job.steps
                continue
            finished.append(runs.summary(job))
            metric = self.study.metric
            result = f"{metric} {evaluation[metric]:.4f}"
            self.progress.note(what, result, job.steps, time.monotonic() - began, repeated)
        if not finished:
            return None
        return results.row(method.name, adapter, finished, self.study.metric)

    def report(self) -> str:
        """Writes the results of the runs that are done and starts none; returns the table."""
        rows = []
        for method in self.study.methods:
            folder = self.out / "runs" / method.name
            jobs = [runs.done_job(method.name, seed, folder) for seed in self._seeds(method)]
            done = [runs.summary(job) for job in jobs if job is not None]
            if done:
                adapter = next(job for job in jobs if job is not None).recipe.get("adapter", {})
                rows.append(results.row(method.name, adapter, done, self.study.metric))
        return results.write(self.study, rows, [], self.out)

    def _failed(self, what: str, failure: Failed) -> None:
        self.failures.append((what, failure))
        say(f"FAILED {what}: {failure}")

    def go(self) -> str:
        """Runs everything and writes the results, after each method anew; returns the table. Raises Stopped."""
        rows, text = [], ""
        for method in self.study.methods:
            try:
                entry = self._method(method)
                rows += [entry] if entry is not None else []
            except Failed as failure:
                self._failed(method.name, failure)
            failed = [{"run": what, "error": str(failure)} for what, failure in self.failures]
            text = results.write(self.study, rows, failed, self.out)
        return text


def open_output(out: Path) -> None:
    """A new or empty folder, or one that a comparison has begun."""
    marker = out / "compare.log"
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not marker.exists())):
        raise usage_error(
            f"{out}: is neither empty nor the folder of a comparison; give another --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    with marker.open("a", encoding="utf-8") as log:
        log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {' '.join(sys.argv)}\n")


def _arguments() -> argparse.Namespace:
    from graft_prepare.cli import Parser

    parser = Parser(
        prog="compare.py",
        description=__doc__,
        epilog=study_help,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--study",
        type=Path,
        required=True,
        help="what is compared (YAML; launch/studies/*.yaml)",
    )
    add(
        "--out",
        type=Path,
        required=True,
        help="folder for runs and results; the same again goes on",
    )
    add(
        "--budget",
        type=int,
        help="trainable parameters, instead of the study's (0 = sizes as they are)",
    )
    add("--seeds", type=int, nargs="+", help="seeds, instead of the study's")
    add("--only", nargs="+", metavar="NAME", help="these methods of the study only")
    add(
        "--report",
        action="store_true",
        help="write the results of the runs that are done, start none",
    )
    graft = Path(os.environ.get("GRAFT_BINARY") or ROOT / "build" / "graft")
    add("--graft", type=Path, default=graft, help="the program (%(default)s)")
    add(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="keys of the recipe that all runs share",
    )
    return parser.parse_args()


def chosen_study(args: argparse.Namespace) -> Study:
    study = read_study(args.study, args.overrides)
    if args.budget is not None:
        study.budget = args.budget
    if args.seeds:
        study.seeds = args.seeds
    if study.budget < 0 or min(study.seeds) < 0 or len(set(study.seeds)) != len(study.seeds):
        raise usage_error("--budget and --seeds: at least 0 is needed, and no seed twice")
    if args.only:
        names = [method.name for method in study.methods]
        for name in args.only:
            if name not in names:
                raise usage_error(f"--only {name}: the study has {', '.join(names)}")
        study.methods = [method for method in study.methods if method.name in args.only]
    return study


def main() -> int:
    args = _arguments()
    study = chosen_study(args)
    if not args.graft.is_file():
        raise io_error(f"{args.graft}: no such program; build it first (launch/setup.sh --build)")
    open_output(args.out)
    program = Program(args.graft, study.ranks)
    program.catch_signals()
    comparison = Comparison(study, program, args.out)
    try:
        text = comparison.report() if args.report else comparison.go()
    except Stopped:
        say(f"stopped on request; run again with --out {args.out} to go on")
        return STOPPED
    print(text)
    print(f"table   {args.out / 'compare.md'}\npicture {args.out / 'compare.png'}")
    if comparison.failures:
        raise error_of(comparison.failures)
    return 0


if __name__ == "__main__":
    run_guarded(main)
