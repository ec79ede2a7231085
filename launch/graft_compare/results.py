"""What a comparison writes: compare.json, the table as Markdown, and the convergence picture."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from graft_runs.metrics import smoothed

from .program import write_whole
from .study import Study

Row = dict[str, Any]
COLUMNS = (
    "method",
    "trained parameters",
    "lr",
    "seeds",
    "{metric}",
    "held-out loss",
    "tokens/s",
    "peak memory MB",
    "adapter kB",
)


def spread(values: list[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (null for one value) and the values themselves."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": deviation, "values": values}


def row(name: str, adapter: dict[str, Any], runs: list[dict], metric: str) -> Row:
    """One method's entry of compare.json."""
    speeds = [run["tokens_per_second"] for run in runs if "tokens_per_second" in run]
    peaks = [run["peak_memory_bytes"] for run in runs if "peak_memory_bytes" in run]
    return {
        "name": name,
        "adapter": adapter,
        "lr": runs[0].get("lr"),
        "trainable_parameters": runs[0]["trainable_parameters"],
        "adapter_bytes": runs[0]["adapter_bytes"],
        "metric": spread([run["eval"][metric] for run in runs]),
        "loss": spread([run["eval"]["loss"] for run in runs]),
        "tokens_per_second": statistics.median(speeds) if speeds else None,
        "peak_memory_bytes": max(peaks, default=None),
        "runs": runs,
    }


def _with_spread(numbers: dict[str, Any]) -> str:
    text = f"{numbers['mean']:.4f}"
    return text if numbers["std"] is None else f"{text} ± {numbers['std']:.4f}"


def _cells(entry: Row) -> list[str]:
    speed, peak, rate = (entry[key] for key in ("tokens_per_second", "peak_memory_bytes", "lr"))
    return [
        entry["name"],
        f"{entry['trainable_parameters']:,}",
        "-" if rate is None else f"{rate:g}",
        str(len(entry["runs"])),
        _with_spread(entry["metric"]),
        _with_spread(entry["loss"]),
        "-" if speed is None else f"{speed:.0f}",
        "-" if peak is None else f"{peak / 1e6:.0f}",
        f"{entry['adapter_bytes'] / 1e3:,.0f}" if entry["adapter_bytes"] else "-",
    ]


def table(study: Study, rows: list[Row]) -> str:
    """Markdown, one line a method."""
    names = [column.format(metric=study.metric) for column in COLUMNS]
    lines = [names, ["---"] * len(names), *map(_cells, rows)]
    if study.metric == "loss":  # has its column anyway
        lines = [[*cells[:4], *cells[5:]] for cells in lines]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _footnote(study: Study) -> str:
    budget = f"budget {study.budget:,} trained parameters; " if study.budget else ""
    return (
        f"{budget}mean ± sample standard deviation over seeds; "
        "tokens/s: median over steps, then seeds; peak memory: largest process of a run.\n"
    )


def draw(study: Study, rows: list[Row], path: Path) -> None:
    """Loss against steps: a line a method (mean over seeds, smoothed) in the band of its seeds."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    trained = [entry for entry in rows if "losses" in entry["runs"][0]]
    for number, entry in enumerate(trained):
        curves = [run["losses"] for run in entry["runs"]]
        window = max(1, len(curves[0]) // 10)
        # A run whose method ended early is as long as its shortest seed here.
        columns = list(zip(*(smoothed(curve, window) for curve in curves), strict=False))
        steps = range(1, len(columns) + 1)
        style = "-" if number < 10 else "--"
        (line,) = axes.plot(steps, [sum(c) / len(c) for c in columns], style, label=entry["name"])
        if len(curves) > 1:
            low, high = [min(c) for c in columns], [max(c) for c in columns]
            axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    values = [loss for entry in trained for run in entry["runs"] for loss in run["losses"]]
    if values and max(values) > 10 * min(values) > 0:
        axes.set_yscale("log")
    axes.set(xlabel="step", ylabel="training loss per trained token (mean of the last tenth)")
    axes.set_title(study.title)
    axes.grid(alpha=0.3)
    if trained:
        axes.legend()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def write(study: Study, rows: list[Row], failures: list[dict[str, Any]], out: Path) -> str:
    """compare.json, compare.md, compare.png in `out`; returns the Markdown."""
    tree = {
        "format": "graft-compare",
        "version": 1,
        "title": study.title,
        "metric": study.metric,
        "budget": study.budget,
        "seeds": study.seeds,
        "recipe": study.recipe,
        "methods": rows,
        "failed": failures,
    }
    write_whole(out / "compare.json", json.dumps(tree, indent=1) + "\n")
    text = f"{table(study, rows)}\n{_footnote(study)}"
    for failure in failures:
        text += f"\nFailed: {failure['run']}: {failure['error']}\n"
    write_whole(out / "compare.md", f"# {study.title}\n\n{text}")
    draw(study, rows, out / "compare.png")
    return text
