"""launch/fanlora_select.py: screening ablates only what is in dispute; rounds prune, recover and score again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from graft_program import BINARY_DIR, Golden, recipe, run
from safetensors.torch import load_file
from score_test import LLAMA, SCORE, sites_of

SCRIPT = Path(os.environ["GRAFT_SOURCE_DIR"]) / "launch" / "fanlora_select.py"


def select(arguments, keys, folder):
    """launch/fanlora_select.py on this recipe: what it keeps, and its end on stderr when it fails."""
    config = folder / "recipe.yaml"
    config.write_text(yaml.safe_dump(keys))
    command = [sys.executable, SCRIPT, *arguments, "--config", config, "--output", folder / "out"]
    environment = os.environ | dict(GRAFT=str(BINARY_DIR / "graft"))
    done = subprocess.run(
        [str(part) for part in command], env=environment, capture_output=True, text=True
    )
    if done.returncode != 0:
        return done.returncode, done.stderr.strip().splitlines()[-1]
    return json.loads((folder / "out" / "setting.json").read_text())["keep"]


def kept_sites(keep):
    return {(entry["layer"], role) for entry in keep for role in entry["roles"]}


def test_screening_ablates_only_what_is_in_dispute(tmp_path):
    golden = Golden(LLAMA)
    keys = recipe(golden, tmp_path, score=SCORE | dict(method="loo", per_sample=False))
    keep = select(["screen", "--screen", "magnitude", "--margin", "1"], keys, tmp_path)
    out = tmp_path / "out"
    magnitude = json.loads((out / "screen" / "importance.json").read_text())
    verified = json.loads((out / "verify" / "importance.json").read_text())
    assert len(verified["modules"]) == 2 * 4  # the third and the fourth of each of 4 layers
    exact = {(m["layer"], m["role"]): m["score"] for m in verified["modules"]}
    for layer in range(4):
        order = sorted(
            (m for m in magnitude["modules"] if m["layer"] == layer), key=lambda m: -m["score"]
        )
        disputed = [(layer, m["role"]) for m in order[2:4]]
        expected = {(layer, m["role"]) for m in order[:2]} | {max(disputed, key=exact.get)}
        assert {s for s in kept_sites(keep) if s[0] == layer} == expected
    assert keep[0]["rank"] > 4, "ranks grow, so that the number of parameters stays"


def test_greedy_rounds_prune_recover_and_score_again(tmp_path):
    golden = Golden(LLAMA)
    keys = recipe(golden, tmp_path, score=SCORE | dict(method="taylor_sq", per_sample=False))
    keys["optim"] |= dict(schedule="constant", warmup_steps=0, steps=1)
    run("train", keys, tmp_path / "start")
    adapter = tmp_path / "adapter"  # as graft writes it: every module by its name
    keys["score"]["adapter"] = str(adapter)
    arguments = ["rounds", "--keep", "4", "2", "--steps", "2"]
    keep = select(arguments, keys, tmp_path)
    assert isinstance(keep, list), keep
    scores = [
        json.loads((tmp_path / "out" / f"round-{n}" / "score" / "importance.json").read_text())
        for n in (1, 2)
    ]
    assert [len(s["modules"]) for s in scores] == [28, 16]
    assert kept_sites(keep) < set(sites_of(scores[1])) < set(sites_of(scores[0]))
    assert len(kept_sites(keep)) == 8
    pruned = load_file(tmp_path / "out" / "round-1" / "pruned" / "adapter_model.safetensors")
    first = load_file(adapter / "adapter_model.safetensors")
    assert len(pruned) == 32 and all(
        torch.equal(first[name], value) for name, value in pruned.items()
    )
    written = (tmp_path / "out" / "round-2" / "score" / "importance.json").stat().st_mtime_ns
    assert select(arguments, keys, tmp_path) == keep
    assert (
        tmp_path / "out" / "round-2" / "score" / "importance.json"
    ).stat().st_mtime_ns == written, "not run again"
    code, last = select(["rounds", "--keep", "2", "4", "--steps", "2"], keys, tmp_path)
    assert code == 64 and "--keep" in last
