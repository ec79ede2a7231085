"""quickstart.sh from end to end with the real program and a tiny random model: what it asks for, in which order, on how many
ranks, what it ends with, and that a second run keeps what is there."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from conftest import write_model_folder
from setup_test import run_shell
from tiny_llama import GRAFT, write_weights

# Books each start on rank 0 and goes on as the real program.
BOOKKEEPER = """#!/bin/bash
recipe="$(basename "$3" .yaml)"
[ "${{OMPI_COMM_WORLD_RANK:-0}}" != 0 ] || echo "$1 ${{recipe%_smollm2}} ${{OMPI_COMM_WORLD_SIZE:-1}}" >>{log}
exec {graft} "$@"
"""


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory) -> tuple[Path, Path, subprocess.CompletedProcess[str]]:
    """The work folder, the stand-in's log of calls, and the first run."""
    folder = tmp_path_factory.mktemp("quickstart")
    program, log = folder / "graft", folder / "calls.log"
    program.write_text(BOOKKEEPER.format(graft=GRAFT, log=log))
    program.chmod(0o755)
    write_model_folder(folder / "work" / "model")
    write_weights(folder / "work" / "model", vocabulary=512, positions=2048)
    result = run_shell(
        "quickstart.sh", str(folder / "work"), GRAFT_BINARY=str(program), GRAFT_STEPS="3"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder, log, result


CALLS = [
    "eval base 1",
    "train lora 2",
    "eval lora 1",
    "train red 2",
    "eval red 1",
    *["generate recipe 1"] * 4,
    "train lora 2",
    "score lora 2",
]


def test_it_evaluates_trains_and_asks_in_order_on_two_ranks(quickstart):
    assert quickstart[1].read_text().splitlines()[: len(CALLS)] == CALLS


def test_it_ends_with_a_table_and_the_picture(quickstart):
    folder, _, result = quickstart
    assert re.search(r"^lora +lora +1 x 2 ", result.stdout, re.MULTILINE)
    assert re.search(r"^red +red +2 x 1 ", result.stdout, re.MULTILINE)
    assert re.search(r"^before +\d\.\d+ ", result.stdout, re.MULTILINE)
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
