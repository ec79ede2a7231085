"""A run folder as its readers see it: metrics.jsonl by kind of record, and the resolved recipe."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from graft_prepare.errors import input_error, io_error


def parse_line(line: str, where: str) -> dict[str, Any]:
    """One record of metrics.jsonl."""
    try:
        record = json.loads(line)
    except ValueError as error:
        raise input_error(f"{where}: not JSON ({error})") from None
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        raise input_error(f"{where}: an object with a kind is needed")
    return record


def read_records(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a last line without its end is still being written and is left out."""
    text = path.read_text(encoding="utf-8")
    lines = text.split("\n")[:-1]
    return [parse_line(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line]


@dataclass
class Run:
    """One run: `header` is its last run record, `train` and `evals` the records of those kinds."""

    name: str
    folder: Path
    header: dict[str, Any] = field(default_factory=dict)
    train: list[dict[str, Any]] = field(default_factory=list)
    evals: list[dict[str, Any]] = field(default_factory=list)
    recipe: dict[str, Any] = field(default_factory=dict)
    recipe_text: str = ""

    @property
    def stages(self) -> list[dict[str, Any]]:
        return self.header.get("stages", [])

    def column(self, key: str) -> list[float]:
        """The value of `key` in every train record; a missing or null one counts as 0."""
        return [record.get(key) or 0 for record in self.train]


def smoothed(values: list[float], window: int) -> list[float]:
    """Mean of the last `window` values at each point."""
    means = []
    for index in range(len(values)):
        part = values[max(0, index + 1 - window) : index + 1]
        means.append(sum(part) / len(part))
    return means


def read_recipe(folder: Path) -> tuple[dict[str, Any], str]:
    """The resolved recipe of a run as a tree and as text; empty where there is none."""
    path = folder / "recipe.yaml"
    if not path.is_file():
        return {}, ""
    text = path.read_text(encoding="utf-8")
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise input_error(f"{path}: not YAML ({error})") from None
    if not isinstance(tree, dict):
        raise input_error(f"{path}: a mapping is needed at the top")
    return tree, text


def read_run(folder: Path) -> Run:
    """Reads a run folder; one without any train record is an input error."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise io_error(f"{path}: no such file; give the output folder of a run")
    records = read_records(path)
    recipe, text = read_recipe(folder)
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_kind.setdefault(record["kind"], []).append(record)
    if "train" not in by_kind:
        raise input_error(f"{path}: holds no train record yet")
    return Run(
        name=folder.resolve().name,
        folder=folder,
        header=by_kind.get("run", [{}])[-1],
        train=by_kind["train"],
        evals=by_kind.get("eval", []),
        recipe=recipe,
        recipe_text=text,
    )
