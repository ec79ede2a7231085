#!/usr/bin/env python3
"""Draws what one or more runs did: loss curves, throughput, stage split; as a PNG and as one HTML page.

  report.py runs/quickstart/lora runs/quickstart/red --out runs/quickstart

Reads metrics.jsonl and recipe.yaml of each run folder, finished or still running.
"""

from project_python import use_project_venv

use_project_venv()

import argparse
from pathlib import Path
from typing import Any

from graft_prepare.errors import input_error, run_guarded, usage_error
from graft_prepare.files import read_json_file
from graft_runs.metrics import Run, read_run, smoothed
from graft_runs.page import print_table, write_page


def _draw_loss(axes: Any, runs: list[Run]) -> None:
    for run in runs:
        losses = run.column("loss")
        (line,) = axes.plot(run.column("step"), losses, alpha=0.3)
        window = max(1, len(losses) // 10)
        axes.plot(
            run.column("step"), smoothed(losses, window), color=line.get_color(), label=run.name
        )
        if run.evals:
            axes.plot(
                [record["step"] for record in run.evals],
                [record["loss"] for record in run.evals],
                "o--",
                color=line.get_color(),
                label=f"{run.name}, held out",
            )
    axes.set(xlabel="step", ylabel="loss per trained token", title="Loss")
    axes.legend()


def _draw_throughput(axes: Any, runs: list[Run]) -> None:
    for run in runs:
        axes.plot(run.column("step"), run.column("tokens_per_second"), label=run.name)
    axes.set(xlabel="step", ylabel="tokens / s, whole job", title="Throughput")
    axes.set_ylim(bottom=0)
    axes.legend()


def _draw_stages(axes: Any, runs: list[Run]) -> None:
    """One bar for each run; its parts are the pipeline stages' frozen weights."""
    for row, run in enumerate(runs):
        left = 0.0
        for index, stage in enumerate(run.stages):
            size = stage.get("bytes", 0) / 1e6
            axes.barh(row, size, left=left, color=f"C{index % 10}", edgecolor="white")
            layers = f"{stage.get('first_layer', '?')}..{stage.get('end_layer', 0) - 1}"
            axes.text(left + size / 2, row, f"layers {layers}", ha="center", va="center", size=8)
            left += size
    axes.set_yticks(range(len(runs)), [run.name for run in runs])
    axes.set(xlabel="MB of frozen weights", title="Stages")
    axes.invert_yaxis()


def _draw_time(axes: Any, runs: list[Run]) -> None:
    """Where a step's time goes: work, waiting for a neighbour stage, talking."""
    shares = {"compute": [], "communication": [], "idle": []}
    for run in runs:
        seconds = max(sum(run.column("step_seconds")), 1e-9)
        talk = sum(run.column("communication_seconds")) / seconds
        idle = sum(run.column("bubble_fraction")) / max(len(run.train), 1)
        shares["communication"].append(talk)
        shares["idle"].append(idle)
        shares["compute"].append(max(0.0, 1 - talk - idle))
    left = [0.0] * len(runs)
    for name, values in shares.items():
        axes.barh(range(len(runs)), values, left=left, label=name)
        left = [start + value for start, value in zip(left, values, strict=True)]
    axes.set_yticks(range(len(runs)), [run.name for run in runs])
    axes.set(xlabel="share of step time", title="Time")
    axes.invert_yaxis()
    axes.legend(loc="lower left", fontsize=8, framealpha=1)


def draw(runs: list[Run], title: str, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 2, figsize=(12, 7.5), layout="constrained")
    figure.suptitle(title)
    _draw_loss(panels[0, 0], runs)
    _draw_throughput(panels[0, 1], runs)
    _draw_stages(panels[1, 0], runs)
    _draw_time(panels[1, 1], runs)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, (int, float)) else "-"


def summary_row(run: Run) -> dict[str, str]:
    """The figures of one run as the tables show them."""
    layout = run.header.get("layout", {})
    losses = run.column("loss")
    speeds = run.column("tokens_per_second")[1:] or run.column("tokens_per_second")
    return {
        "run": run.name,
        "method": str(run.recipe.get("adapter", {}).get("method", "-")),
        "data x pipeline": f"{layout.get('data', '-')} x {layout.get('pipeline', '-')}",
        "trained parameters": _number(run.header.get("trainable_parameters"), ",d"),
        "steps": str(len(run.train)),
        "first loss": _number(losses[0] if losses else None, ".4f"),
        "last loss": _number(losses[-1] if losses else None, ".4f"),
        "held-out loss": _number(run.evals[-1]["loss"] if run.evals else None, ".4f"),
        "tokens/s": _number(sum(speeds) / len(speeds) if speeds else None, ".0f"),
        "peak memory MB": _number(max(run.column("peak_memory_bytes"), default=0) / 1e6, ".0f"),
    }


def read_held_out(pairs: list[str]) -> list[dict[str, str]]:
    """NAME=FILE of what `graft eval` wrote, as table rows with every number it holds."""
    rows = []
    for pair in pairs:
        name, equals, file = pair.partition("=")
        if not equals:
            raise usage_error(f"--held-out {pair}: NAME=FILE is needed")
        result = read_json_file(Path(file))
        if not isinstance(result, dict) or not isinstance(result.get("loss"), (int, float)):
            raise input_error(f"{file}: an object with a loss is needed, as graft eval writes it")
        numbers = {key: value for key, value in result.items() if isinstance(value, (int, float))}
        rows.append({"held out": name} | {key: _number(numbers[key], ".6g") for key in numbers})
    columns = {key: None for row in rows for key in row}
    return [{key: row.get(key, "-") for key in columns} for row in rows]


def main() -> int:
    from graft_prepare.cli import Parser

    parser = Parser(prog="report.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's output folder")
    parser.add_argument("--out", type=Path, help="where to write (the first run's folder)")
    parser.add_argument(
        "--held-out",
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help="what `graft eval` printed, to compare in a table",
    )
    parser.add_argument("--title", default="graft", help="above the picture (%(default)s)")
    args: argparse.Namespace = parser.parse_args()
    runs = [read_run(folder) for folder in args.runs]
    out: Path = args.out or args.runs[0]
    out.mkdir(parents=True, exist_ok=True)
    tables = [[summary_row(run) for run in runs]]
    if args.held_out:
        tables.append(read_held_out(args.held_out))
    draw(runs, args.title, out / "report.png")
    recipes = {f"{run.name}: recipe": run.recipe_text for run in runs}
    alt = "Loss, throughput and stages of the runs"
    write_page(out / "report.html", args.title, out / "report.png", alt, tables, recipes)
    for rows in tables:
        print_table(rows)
        print()
    print(f"picture {out / 'report.png'}\npage    {out / 'report.html'}")
    return 0


if __name__ == "__main__":
    run_guarded(main)
