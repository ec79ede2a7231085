"""The study file (YAML). An unknown key or a wrong value is a recipe error.

    title: SST-2 as text           # above the picture
    metric: exact_match            # as `graft eval` names it; the table's column (loss)
    budget: 1000000                # trainable parameters; 0 = sizes as the methods give them (0)
    seeds: [0, 1, 2]               # one run each ([0])
    grid: {seed: 100, steps: 40}   # tries a method's learning rates where it lists several
    recipe: {model: {...}, ...}    # what all runs share, as `graft train` reads it
    methods:
      - {name: backbone}                                             # no adapter: evaluated as it is
      - {name: lora, adapter: {method: lora, sites: all}, lr: [1.0e-3, 3.0e-3]}

With a budget lora and para get the largest rank, lopa and idpg the largest hidden, prompt_tuning the largest
prompt_length that stays within it by `graft plan`'s count, unless the study gives that key; LoRA's alpha is then twice
the rank, unless given. Other methods are as they are. Of several learning rates the one with the lowest mean training
loss over the last quarter of the grid's steps is taken: the held-out data has no part in the choice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from graft_prepare.errors import GraftError, printable

Tree = dict[str, Any]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
# Sections of a recipe that the comparison writes itself.
OWN_KEYS = {"run": {"output", "seed", "name"}, "adapter": None}
# The key of a method that the budget decides, where the study does not give it.
SIZE_KEYS = {
    "lora": "rank",
    "para": "rank",
    "lopa": "hidden",
    "idpg": "hidden",
    "prompt_tuning": "prompt_length",
}


def study_error(message: str) -> GraftError:
    return GraftError("recipe", message)


@dataclass
class Method:
    """One row of the table. An empty `adapter` is the bare backbone."""

    name: str
    adapter: Tree = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)  # empty = the recipe's own

    @property
    def size_key(self) -> str | None:
        """The key that the budget decides; None where the method has none or the study fixes it."""
        key = SIZE_KEYS.get(self.adapter.get("method", ""))
        return None if key in self.adapter else key


@dataclass
class Study:
    title: str
    metric: str
    budget: int
    seeds: list[int]
    grid_seed: int
    grid_steps: int
    recipe: Tree
    methods: list[Method]

    @property
    def ranks(self) -> int:
        parallel = self.recipe.get("parallel") or {}
        return int(parallel.get("data", 1)) * int(parallel.get("pipeline", 1))


class _Reader:
    """Takes keys out of a mapping with their types; what is left over is unknown."""

    def __init__(self, tree: Any, where: str, allowed: list[str]) -> None:
        if not isinstance(tree, dict):
            raise study_error(f"{where}: found {printable(tree)}, a mapping is needed")
        for key in tree:
            if key not in allowed:
                raise study_error(
                    f"{where}: unknown key '{printable(key)}', allowed are {', '.join(allowed)}"
                )
        self.tree, self.where = tree, where

    def get(self, key: str, kind: type, default: Any = None, at_least: float | None = None) -> Any:
        value = self.tree.get(key, default)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise study_error(
                f"{self.where}.{key}: found {printable(value)}, needed is a {kind.__name__}"
            )
        if at_least is not None and value < at_least:
            raise study_error(f"{self.where}.{key}: found {value}, at least {at_least} is needed")
        return value


def _read_method(tree: Any, where: str) -> Method:
    reader = _Reader(tree, where, ["name", "adapter", "lr"])
    name = reader.get("name", str)
    if not NAME.fullmatch(name):
        raise study_error(
            f"{where}.name: found '{printable(name)}', allowed are letters, digits and _ . -"
        )
    adapter = reader.get("adapter", dict, {})
    if adapter and not isinstance(adapter.get("method"), str):
        raise study_error(f"{where}.adapter.method: is missing; the method's name is needed")
    rates = tree.get("lr", [])
    rates = rates if isinstance(rates, list) else [rates]
    for rate in rates:
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or rate <= 0:
            raise study_error(
                f"{where}.lr: found {printable(rate)}, a number above 0 is needed (YAML needs the "
                "point in 1.0e-3), or a list of them"
            )
    return Method(name, adapter, [float(rate) for rate in rates])


def _check_recipe(recipe: Tree, where: str) -> None:
    for section, keys in OWN_KEYS.items():
        for key in recipe.get(section) or {}:
            if keys is None or key in keys:
                raise study_error(
                    f"{where}.{section}.{key}: the comparison sets this itself for every run"
                )
    steps = (recipe.get("optim") or {}).get("steps")
    if type(steps) is not int or steps < 1:
        raise study_error(f"{where}.optim.steps: found {printable(steps)}, at least 1 is needed")
    data = recipe.get("data")
    for key in ("train", "eval"):
        if not isinstance(data, dict) or not isinstance(data.get(key), str):
            raise study_error(f"{where}.data.{key}: is missing; a prepared data set is needed")


def _check_methods(methods: list[Method], grid_steps: int, where: str) -> None:
    if not methods:
        raise study_error(f"{where}.methods: is empty, at least one method is needed")
    names = [method.name for method in methods]
    for name in names:
        if names.count(name) > 1:
            raise study_error(f"{where}.methods: the name '{name}' occurs twice")
    if grid_steps < 1 and any(len(method.rates) > 1 for method in methods):
        raise study_error(f"{where}.grid.steps: is needed where a method lists learning rates")


def _apply(recipe: Tree, override: str) -> None:
    """section.key=value, as graft's own command line has it."""
    dotted, equals, text = override.partition("=")
    section, dot, key = dotted.partition(".")
    if not (equals and dot and section and key):
        raise GraftError("usage", f"{printable(override)}: section.key=value is needed")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise GraftError("usage", f"{printable(override)}: the value is not YAML") from None
    recipe[section] = {**(recipe.get(section) or {}), key: value}


def read_study(path: Path, overrides: list[str]) -> Study:
    """The study of a file with keys of its recipe replaced. Raises kinds recipe, usage, io."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise study_error(f"{path}: not YAML ({printable(error)})") from None
    where = path.name
    allowed = ["title", "metric", "budget", "seeds", "grid", "recipe", "methods"]
    reader = _Reader(tree, where, allowed)
    grid = _Reader(reader.get("grid", dict, {}), f"{where}.grid", ["seed", "steps"])
    seeds = reader.get("seeds", list, [0])
    if not seeds or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise study_error(
            f"{where}.seeds: found {printable(seeds)}, numbers of at least 0 are needed"
        )
    if len(set(seeds)) != len(seeds):
        raise study_error(f"{where}.seeds: found {printable(seeds)}, one occurs twice")
    recipe = reader.get("recipe", dict)
    for override in overrides:
        _apply(recipe, override)
    _check_recipe(recipe, f"{where}.recipe")
    entries = reader.get("methods", list)
    methods = [_read_method(entry, f"{where}.methods[{i}]") for i, entry in enumerate(entries)]
    grid_steps = grid.get("steps", int, 0, at_least=0)
    _check_methods(methods, grid_steps, where)
    return Study(
        title=reader.get("title", str, path.stem),
        metric=reader.get("metric", str, "loss"),
        budget=reader.get("budget", int, 0, at_least=0),
        seeds=seeds,
        grid_seed=grid.get("seed", int, seeds[0], at_least=0),
        grid_steps=grid_steps,
        recipe=recipe,
        methods=methods,
    )
