"""How far two importance files agree: rank correlation over all modules, and the shared share of each layer's best."""

from __future__ import annotations

import numpy as np

from .files import ROLES, Importance, Module


def ranks(values: list[float]) -> np.ndarray:
    """1 for the smallest; equal values share the mean of their ranks."""
    array = np.asarray(values)
    smaller = (array[:, None] > array[None, :]).sum(1)
    equal = (array[:, None] == array[None, :]).sum(1)
    return smaller + (equal + 1) / 2


def spearman(a: Importance, b: Importance) -> float | None:
    """Pearson's correlation of the ranks; None where one file gives every module the same score."""
    first, second = ranks(list(a.scores.values())), ranks([b.scores[m] for m in a.scores])
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def best_of_layer(file: Importance, layer: int, k: int) -> set[str]:
    """The k highest roles of a layer; a tie goes to the earlier role, as in the selection."""
    scored = [(role, score) for (at, role), score in file.scores.items() if at == layer]
    scored.sort(key=lambda item: (-item[1], ROLES.index(item[0])))
    return {role for role, _ in scored[:k]}


def top(file: Importance, k: int) -> set[Module]:
    """The rule top_k_per_layer."""
    return {(layer, role) for layer in file.layers for role in best_of_layer(file, layer, k)}


def overlap(a: Importance, b: Importance, k: int) -> dict[int, float]:
    """By layer: |A and B| / |A| of the two sets of its k highest roles."""
    shares = {}
    for layer in a.layers:
        first, second = best_of_layer(a, layer, k), best_of_layer(b, layer, k)
        shares[layer] = len(first & second) / len(first)
    return shares
