"""K8: a run that was saved under one layout goes on under any other: the same batches, and losses within 1e-6."""

import math
import shutil

import pytest
from graft_program import Golden, metrics, recipe, run

LAYOUTS = {"1x1": (1, 1), "2x1": (2, 1), "1x2": (1, 2), "2x2": (2, 2), "4x1": (4, 1), "1x4": (1, 4), "3x1": (3, 1)}
# Every layout once on each side.
SHORT = [("1x1", "2x2"), ("2x2", "3x1"), ("3x1", "1x4"), ("1x4", "4x1"), ("4x1", "1x2"), ("1x2", "2x1"), ("2x1", "1x1")]
SAVED, STEPS = 6, 16
TOLERANCE = 1e-6


def layout_recipe(output, layout, steps):
    data, pipeline = LAYOUTS[layout]
    return recipe(
        Golden("gqa_lora"),
        output,
        data=dict(shuffle=True),
        optim=dict(steps=steps, schedule="constant", warmup_steps=0, global_batch=12, micro_batch=1),
        parallel=dict(device="cpu", data=data, pipeline=pipeline, threads=1),
    )


def test_every_layout_resumes_into_every_other(tmp_path, rounds):
    whole = tmp_path / "whole"
    run("train", layout_recipe(whole, "1x1", STEPS), tmp_path / "job-whole")
    expected = metrics(whole, "train")
    saved = {}
    for name in LAYOUTS:
        saved[name] = tmp_path / f"saved-{name}"
        run("train", layout_recipe(saved[name], name, SAVED), tmp_path / f"job-{name}")
    pairs = rounds(SHORT, [(a, b) for a in LAYOUTS for b in LAYOUTS])
    largest = 0.0
    for before, after in pairs:
        output = tmp_path / f"{before}-{after}"
        shutil.copytree(saved[before], output)
        run("train", layout_recipe(output, after, STEPS), tmp_path / f"job-{before}-{after}")
        assert [record["step"] for record in metrics(output, "resume")] == [SAVED]
        records = metrics(output, "train")
        assert len(records) == len(expected) == STEPS
        for record, reference in zip(records, expected, strict=True):
            for field in ("step", "samples", "tokens", "trained_tokens", "lr"):
                assert record[field] == reference[field], (before, after, field)
            difference = abs(record["loss"] - reference["loss"]) / abs(reference["loss"])
            largest = max(largest, difference)
            assert math.isfinite(record["loss"]) and difference <= TOLERANCE, (before, after, record, reference)
    print(f"\nK8: {len(pairs)} pairs of layouts, largest relative difference of a loss {largest:.1e}")
