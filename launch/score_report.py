#!/usr/bin/env python3
"""Shows what `graft score` found: importance by layer and role, the modules that are kept, and how far scores agree.

  score_report.py ab=runs/score/importance.json --setting runs/score/setting.json --out runs/score
  score_report.py ab=A/importance.json taylor_sq=B/importance.json ab-other-half=C/importance.json --out DIR

Any two files over the same modules are compared: two scores, or one score on two disjoint halves of the data. Writes
scores.png and scores.html into --out.
"""

from project_python import use_project_venv

use_project_venv()

import argparse
from pathlib import Path
from typing import Any

from graft_prepare.errors import run_guarded, usage_error
from graft_runs.page import Row, print_table, write_page
from graft_scores.agreement import overlap, spearman, top
from graft_scores.files import Importance, Setting, read_importance, read_setting


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def summary_rows(files: dict[str, Importance]) -> list[Row]:
    return [
        {
            "name": name,
            "score": file.score,
            "modules": str(len(file.scores)),
            "samples": str(file.num_samples),
            "loss": _number(file.base_loss, ".4f"),
            "largest": "{}:{}".format(*max(file.scores, key=file.scores.get)),
            # Of the modules that have one: how the scores' differences stand to their error.
            "median stderr": _number(file.median_error, ".2e"),
        }
        for name, file in files.items()
    ]


def kept_rows(setting: Setting, roles: list[str]) -> list[Row]:
    """One line a layer: its rank and the roles that are kept."""
    return [
        {
            "layer": str(layer),
            "rank": str(entry.rank),
            "alpha": f"{entry.alpha:g}",
            **{role: "x" if role in entry.roles else "" for role in roles},
        }
        for layer, entry in sorted(setting.keep.items())
    ]


def agreement_rows(files: dict[str, Importance], k: int) -> list[Row]:
    """Every pair: Spearman's correlation over all modules, and the shared share of each layer's k highest."""
    names, rows = list(files), []
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            a, b = files[first], files[second]
            shares = overlap(a, b, k)
            rows.append(
                {
                    "pair": f"{first} / {second}",
                    "Spearman": _number(spearman(a, b), ".3f"),
                    f"overlap of the {k} highest of a layer": f"{sum(shares.values()) / len(shares):.3f}",
                    "lowest layer": f"{min(shares.values()):.2f} (layer {min(shares, key=shares.get)})",
                    "same choice": f"{sum(share == 1 for share in shares.values())} of {len(shares)} layers",
                }
            )
    return rows


def overlap_rows(files: dict[str, Importance], k: int) -> list[Row]:
    """One line a layer, one column a pair."""
    names = list(files)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    columns = {f"{a} / {b}": overlap(files[a], files[b], k) for a, b in pairs}
    layers = files[names[0]].layers
    return [
        {"layer": str(layer), **{name: f"{shares[layer]:.2f}" for name, shares in columns.items()}}
        for layer in layers
    ]


def _draw_map(axes: Any, name: str, file: Importance, kept: set[tuple[int, str]]) -> Any:
    import numpy as np
    from matplotlib.patches import Rectangle

    layers, roles = file.layers, file.roles
    grid = np.full((len(layers), len(roles)), np.nan)
    for (layer, role), score in file.scores.items():
        grid[layers.index(layer), roles.index(role)] = score
    # A few large scores would leave one colour for all others.
    low, high = np.nanpercentile(grid, [2, 98])
    image = axes.imshow(grid, aspect="auto", cmap="viridis", vmin=low, vmax=high)
    for layer, role in kept:
        corner = (roles.index(role) - 0.46, layers.index(layer) - 0.46)
        axes.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor="red", linewidth=1.3))
    axes.set_xticks(range(len(roles)), roles, rotation=60, ha="right")
    step = max(1, len(layers) // 16)
    axes.set_yticks(range(0, len(layers), step), layers[::step])
    axes.set(title=name, ylabel="layer")
    return image


def draw(
    files: dict[str, Importance], kept: dict[str, set[tuple[int, str]]], title: str, path: Path
) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    height = 2.2 + 0.16 * max(len(file.layers) for file in files.values())
    figure, panels = pyplot.subplots(
        1, len(files), figsize=(3.4 * len(files) + 0.6, height), layout="constrained", squeeze=False
    )
    figure.suptitle(f"{title}\nred frame = kept; colour = score, clipped to the middle 96 %")
    for axes, (name, file) in zip(panels[0], files.items(), strict=True):
        figure.colorbar(_draw_map(axes, name, file, kept[name]), ax=axes)
    figure.savefig(path, dpi=100, bbox_inches="tight")  # one map is narrower than the title
    pyplot.close(figure)


def _named_files(pairs: list[str]) -> dict[str, Importance]:
    files: dict[str, Importance] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not (equals and name and path):
            raise usage_error(f"{pair}: NAME=FILE is needed")
        if name in files:
            raise usage_error(f"{pair}: the name '{name}' occurs twice")
        files[name] = read_importance(Path(path))
    first = next(iter(files))
    for name, file in files.items():
        if file.scores.keys() != files[first].scores.keys():
            raise usage_error(
                f"{name}: scores other modules than {first}; compare one model's files"
            )
    return files


def _arguments() -> argparse.Namespace:
    from graft_prepare.cli import Parser

    parser = Parser(
        prog="score_report.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("files", nargs="+", metavar="NAME=FILE", help="importance.json files, each with a name")
    add(
        "--setting",
        type=Path,
        help="setting.json made from the first file: what it keeps is framed",
    )
    add(
        "--k",
        type=int,
        default=3,
        help="modules of a layer that are kept, without --setting and for overlaps (%(default)s)",
    )
    add("--out", type=Path, required=True, help="folder for scores.png and scores.html")
    add("--title", default="FanLoRA: importance of each module", help="(%(default)s)")
    return parser.parse_args()


def main() -> int:
    args = _arguments()
    if args.k < 1:
        raise usage_error(f"--k {args.k}: at least 1 is needed")
    files = _named_files(args.files)
    kept = {name: top(file, args.k) for name, file in files.items()}
    tables = [summary_rows(files)]
    first = next(iter(files))
    if args.setting is not None:
        setting = read_setting(args.setting)
        setting.check_fits(files[first], args.setting)
        kept[first] = setting.modules
        tables.append(kept_rows(setting, files[first].roles))
    if len(files) > 1:
        tables += [agreement_rows(files, args.k), overlap_rows(files, args.k)]
    args.out.mkdir(parents=True, exist_ok=True)
    picture = args.out / "scores.png"
    draw(files, kept, args.title, picture)
    alt = "Scores by layer and role, the kept modules framed"
    write_page(args.out / "scores.html", args.title, picture, alt, tables, {})
    for rows in tables:
        print_table(rows)
        print()
    print(f"picture {picture}\npage    {args.out / 'scores.html'}")
    return 0


if __name__ == "__main__":
    run_guarded(main)
