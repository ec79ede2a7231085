"""Draws tenants.json of `graft bench tenants`: for each combination what a token and what a prompt cost, over the bare backbone.

  bench/tenants_picture.py runs/tenants/tenants.json --out runs/tenants/tenants.png
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

COSTS = (("tpot_over_bare", "time per output token"), ("prompt_over_bare", "time of a prompt"))


def title(cell):
    return f"batch {cell['batch']}, {cell['mix']}, prompt {cell['prompt']}, {cell['new_tokens']} new tokens"


def name(row):
    return f"{row['variant']}, graphs" if row.get("cuda_graphs") else row["variant"]


def draw(results, path):
    cells = results["cells"]
    rows = len(cells[0]["results"])
    figure, grid = pyplot.subplots(
        len(cells), len(COSTS), figsize=(11, (1 + 0.28 * rows) * len(cells)), squeeze=False, layout="constrained"
    )
    for cell, axes in zip(cells, grid, strict=True):
        names = [name(row) for row in cell["results"]]
        baselines = [row["variant"] in ("bare", "merged") for row in cell["results"]]
        for axis, (key, label) in zip(axes, COSTS, strict=True):
            values = [row[key] for row in cell["results"]]
            bars = axis.barh(names, values, color=["0.6" if b else "tab:blue" for b in baselines])
            axis.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
            axis.axvline(1, color="black", linewidth=0.8)
            axis.set_xlim(0, 1.15 * max(values))
            axis.invert_yaxis()
            axis.set_xlabel(f"{label} / bare", fontsize=9)
            axis.tick_params(labelsize=8)
        axes[0].set_title(title(cell), fontsize=9, loc="left")
    figure.suptitle(f"{Path(results['model']).name}, {results['dtype']}, rank {results['rank']}", fontsize=10)
    figure.savefig(path, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="tenants.json")
    parser.add_argument("--out", type=Path, help="PNG file; beside the results when not given")
    a = parser.parse_args()
    results = json.loads(a.results.read_text())
    if results.get("format") != "graft-tenants" or not results.get("cells"):
        parser.error(f"{a.results}: not a results file of `graft bench tenants`")
    out = a.out or a.results.with_suffix(".png")
    draw(results, out)
    print(out)


if __name__ == "__main__":
    main()
