"""The largest size of a method whose trainable parameters stay within a budget, from `graft plan`'s own counts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from graft_prepare.files import read_json_file

from .program import Failed, Program, write_whole
from .study import Method, Study

TRAINABLE = re.compile(r"^trainable ([\d,]+) of ", re.MULTILINE)


def largest_within(count: Callable[[int], int | None], budget: int) -> int:
    """The largest size >= 1 with count(size) <= budget, or 0; count grows with the size and is None above what the
    method allows. Counts are mostly straight lines in the size, so a secant step lands on the answer; where one does
    not, the interval is halved."""
    low, high = 0, 1
    low_count = 0
    while (found := count(high)) is not None and found <= budget:
        slope = (found - low_count) / (high - low) if low else 0
        low, low_count = high, found
        high += max(1, int((budget - found) / slope)) if slope > 0 else 1
    while high - low > 1:
        middle = (low + high) // 2
        found = count(middle)
        if found is not None and found <= budget:
            low = middle
        else:
            high = middle
    return low


def sized_adapter(method: Method, size: int) -> dict[str, Any]:
    """The adapter section with its size; LoRA's alpha, unless given, is twice the rank, the ratio of the defaults."""
    adapter = {**method.adapter, method.size_key: size}
    if method.adapter["method"] == "lora":
        adapter.setdefault("alpha", 2 * size)
    return adapter


def planned_parameters(program: Program, study: Study, adapter: dict[str, Any], base: Path) -> int:
    """What `graft plan` counts; no weights are read."""
    recipe = {key: value for key, value in study.recipe.items() if key != "parallel"}
    text = program.run("plan", {**recipe, "adapter": adapter}, base)
    match = TRAINABLE.search(text)
    if match is None:
        raise Failed(70, "graft plan printed no line 'trainable N of M'")
    return int(match[1].replace(",", ""))


def choose_adapter(program: Program, study: Study, method: Method, base: Path) -> dict[str, Any]:
    """The method's adapter section for the study's budget. Raises Failed when not even size 1 fits."""
    if method.size_key is None or study.budget == 0:
        return method.adapter
    # Counting starts the program several times: a comparison that goes on need not do it again.
    known = base.with_name(base.name + ".json")
    question = {
        "adapter": method.adapter,
        "budget": study.budget,
        "model": study.recipe.get("model"),
    }
    if known.exists():
        answer = read_json_file(known)
        if answer["question"] == question:
            return answer["adapter"]
    seen: dict[int, int | None] = {}

    def count(size: int) -> int | None:
        if size not in seen:
            try:
                seen[size] = planned_parameters(program, study, sized_adapter(method, size), base)
            except Failed:
                if size == 1:
                    raise
                # Above the key's range, or a prompt that no longer fits the model.
                seen[size] = None
        return seen[size]

    size = largest_within(count, study.budget)
    if size == 0:
        raise Failed(
            78,
            f"{method.size_key} 1 has {seen[1]:,} trainable parameters, "
            f"the budget is {study.budget:,}",
        )
    chosen = sized_adapter(method, size)
    write_whole(known, json.dumps({"question": question, "adapter": chosen}, indent=1) + "\n")
    return chosen
