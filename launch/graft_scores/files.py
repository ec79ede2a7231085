"""importance.json and setting.json as the reports read them. A violation is an input error that names file and key."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft_prepare.errors import input_error, printable
from graft_prepare.files import read_json_file

Module = tuple[int, str]  # layer, role
MAX_BYTES = 64 << 20
# The fixed order of methods.md's ties and files.
ROLES = (
    *("attn.q", "attn.k", "attn.v", "attn.o", "ffn.gate", "ffn.up", "ffn.down"),
    *("cross.q", "cross.k", "cross.v", "cross.o"),
)


@dataclass(frozen=True)
class Importance:
    """`scores` in (layer, role) order; a higher score is more important."""

    score: str
    num_samples: int
    base_loss: float | None
    scores: dict[Module, float]
    median_error: float | None

    @property
    def layers(self) -> list[int]:
        return sorted({layer for layer, _ in self.scores})

    @property
    def roles(self) -> list[str]:
        return sorted({role for _, role in self.scores}, key=ROLES.index)


@dataclass(frozen=True)
class KeptLayer:
    roles: list[str]
    rank: int
    alpha: float


@dataclass(frozen=True)
class Setting:
    keep: dict[int, KeptLayer]

    @property
    def modules(self) -> set[Module]:
        return {(layer, role) for layer, entry in self.keep.items() for role in entry.roles}

    def check_fits(self, importance: Importance, path: Path) -> None:
        for layer, role in sorted(self.modules):
            if (layer, role) not in importance.scores:
                raise input_error(
                    f"{path}: keeps layer {layer} {role}, which the scores do not have"
                )


def _take(tree: Any, key: str, kinds: tuple[type, ...], where: str) -> Any:
    if not isinstance(tree, dict) or key not in tree:
        raise input_error(f"{where}: {key} is missing")
    value = tree[key]
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise input_error(f"{where}: {key}: found {printable(value)}")
    return value


def _read(path: Path, name: str) -> dict[str, Any]:
    tree = read_json_file(path, MAX_BYTES)
    if _take(tree, "format", (str,), str(path)) != name:
        raise input_error(f"{path}: format is '{printable(tree['format'])}', '{name}' is needed")
    if _take(tree, "version", (int,), str(path)) != 1:
        raise input_error(f"{path}: version is {tree['version']}, this program reads 1")
    return tree


def _module(entry: Any, where: str) -> Module:
    layer, role = _take(entry, "layer", (int,), where), _take(entry, "role", (str,), where)
    if layer < 0 or role not in ROLES:
        raise input_error(f"{where}: found layer {layer}, role '{printable(role)}'")
    return layer, role


def read_importance(path: Path) -> Importance:
    tree = _read(path, "graft-importance")
    number, optional = (int, float), (int, float, type(None))
    scores: dict[Module, float] = {}
    errors = []
    for i, entry in enumerate(_take(tree, "modules", (list,), str(path))):
        where = f"{path}: modules[{i}]"
        module = _module(entry, where)
        if module in scores:
            raise input_error(f"{where}: layer {module[0]} {module[1]} occurs twice")
        scores[module] = float(_take(entry, "score", number, where))
        errors.append(_take(entry, "stderr", optional, where))
    if not scores:
        raise input_error(f"{path}: modules is empty")
    known = [error for error in errors if error is not None]
    return Importance(
        score=_take(tree, "score", (str,), str(path)),
        num_samples=_take(tree, "num_samples", (int,), str(path)),
        base_loss=_take(tree, "base_loss", optional, str(path)),
        scores=dict(sorted(scores.items(), key=lambda item: (item[0][0], ROLES.index(item[0][1])))),
        median_error=statistics.median(known) if known else None,
    )


def read_setting(path: Path) -> Setting:
    tree = _read(path, "graft-setting")
    keep: dict[int, KeptLayer] = {}
    for i, entry in enumerate(_take(tree, "keep", (list,), str(path))):
        where = f"{path}: keep[{i}]"
        layer = _take(entry, "layer", (int,), where)
        roles = _take(entry, "roles", (list,), where)
        if layer in keep or any(role not in ROLES for role in roles):
            raise input_error(f"{where}: found layer {layer}, roles {printable(roles)}")
        rank = _take(entry, "rank", (int,), where)
        keep[layer] = KeptLayer(roles, rank, float(_take(entry, "alpha", (int, float), where)))
    return Setting(keep)
