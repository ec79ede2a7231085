"""quickstart.sh from end to end with a stand-in for the graft program and a tiny model: what it asks for, in which
order, on how many ranks, and that a second run keeps what is there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_model_folder
from setup_test import run_shell

STAND_IN = """#!{python}
import json, os, pathlib, sys
import yaml
from safetensors.numpy import load_file

def merge(tree, text):
    dotted, _, value = text.partition("=")
    section, _, key = dotted.partition(".")
    tree.setdefault(section, {{}})[key] = yaml.safe_load(value)

command, config, overrides = sys.argv[1], sys.argv[3], sys.argv[4:]
assert sys.argv[2] == "--config", sys.argv
recipe = yaml.safe_load(open(config))
for text in overrides:
    merge(recipe, text)
rank = int(os.environ.get("OMPI_COMM_WORLD_RANK", 0))
size = int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1))
layout = recipe.get("parallel", {{}})
assert layout.get("data", 1) * layout.get("pipeline", 1) == size, (layout, size)
assert (pathlib.Path(recipe["model"]["path"]) / "config.json").is_file()
if rank:
    sys.exit(0)
adapter = recipe.get("adapter") or {{}}
with open({log!r}, "a") as stream:
    stream.write(" ".join([command, adapter.get("method", "none"), str(size)]) + "\\n")
out = pathlib.Path(recipe["run"]["output"])
out.mkdir(parents=True, exist_ok=True)
if command == "eval":
    if adapter:
        assert (pathlib.Path(adapter["init_from"]) / "adapter_config.json").is_file()
    print(json.dumps({{"loss": 2.0 if adapter else 3.5, "tokens": 10, "samples": 2}}))
elif command == "train":
    assert (pathlib.Path(recipe["data"]["train"]) / "dataset.json").is_file()
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (out / "adapter").mkdir(exist_ok=True)
    (out / "adapter" / "adapter_config.json").write_text("{{}}")
    with open(out / "metrics.jsonl", "w") as stream:
        records = [{{"kind": "run", "layout": layout, "stages": []}}]
        records += [{{"kind": "train", "step": i + 1, "loss": 3.0}} for i in range(recipe["optim"]["steps"])]
        stream.writelines(json.dumps(record) + "\\n" for record in records)
else:
    data = pathlib.Path(recipe["data"]["eval"])
    shard = load_file(data / json.loads((data / "dataset.json").read_text())["shards"][0]["file"])
    with open(out / "generations.jsonl", "w") as stream:
        for sample in shard["sample_ids"]:
            stream.write(json.dumps({{"sample_id": int(sample), "tokens": [70, 71]}}) + "\\n")
"""


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory) -> tuple[Path, Path, subprocess.CompletedProcess[str]]:
    """The work folder, the stand-in's log of calls, and the first run."""
    folder = tmp_path_factory.mktemp("quickstart")
    program, log = folder / "graft", folder / "calls.log"
    program.write_text(STAND_IN.format(python=sys.executable, log=str(log)))
    program.chmod(0o755)
    write_model_folder(folder / "work" / "model")
    result = run_shell(
        "quickstart.sh", str(folder / "work"), GRAFT_BINARY=str(program), GRAFT_STEPS="3"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder, log, result


CALLS = [
    "eval none 1",
    "train lora 2",
    "eval lora 1",
    "train red 2",
    "eval red 1",
    "generate none 1",
    "generate lora 1",
    "generate red 1",
    "generate lora 1",
]


def test_it_evaluates_trains_and_asks_in_order_on_two_ranks(quickstart):
    assert quickstart[1].read_text().splitlines()[: len(CALLS)] == CALLS


def test_it_ends_with_a_table_and_the_picture(quickstart):
    folder, _, result = quickstart
    assert re.search(r"^lora +lora +1 x 2 ", result.stdout, re.MULTILINE)
    assert re.search(r"^red +red +2 x 1 ", result.stdout, re.MULTILINE)
    assert re.search(r"^before +3\.5 ", result.stdout, re.MULTILINE)
    assert (folder / "work" / "report.png").stat().st_size > 10_000
    last = result.stdout.rstrip().splitlines()[-1]
    assert re.fullmatch(r"== done in \d+ min \d+ s", last)


def test_held_out_words_are_never_trained_on(quickstart):
    data = quickstart[0] / "work" / "data"
    train = (data / "train.jsonl").read_text().splitlines()
    held_out = (data / "eval.jsonl").read_text().splitlines()
    assert (len(train), len(held_out)) == (1000, 64)

    def words(lines: list[str]) -> set[str]:
        return {
            re.search(r"'(.+?)'(?=[ .?])", json.loads(line)["instruction"])[1] for line in lines
        }

    assert not words(train) & words(held_out)


def test_a_second_run_keeps_model_and_data(quickstart):
    folder, _, _ = quickstart
    dataset = folder / "work" / "data" / "train" / "dataset.json"
    before = dataset.stat().st_mtime_ns
    again = run_shell(
        "quickstart.sh", str(folder / "work"), GRAFT_BINARY=str(folder / "graft"), GRAFT_STEPS="3"
    )
    assert again.returncode == 0, again.stderr
    assert dataset.stat().st_mtime_ns == before


def test_a_failed_part_stops_it_with_the_programs_code(quickstart, tmp_path):
    program = tmp_path / "graft"
    program.write_text('#!/bin/bash\necho "graft: error: io: disk full" >&2\nexit 74\n')
    program.chmod(0o755)
    result = run_shell("quickstart.sh", str(quickstart[0] / "work"), GRAFT_BINARY=str(program))
    assert result.returncode == 74
    assert "done in" not in result.stdout
