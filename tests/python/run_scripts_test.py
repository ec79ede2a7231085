"""report.py, track.py and ask.py on small run folders; ask.py against a stand-in for the graft program."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import last_line, run_script, write_jsonl

STEPS = 12


def train_record(step: int) -> dict:
    return {
        "kind": "train",
        "step": step,
        "loss": 4.0 - 0.1 * step,
        "grad_norm": 1.0,
        "lr": 0.001,
        "samples": 16,
        "tokens": 640,
        "trained_tokens": 100,
        "step_seconds": 2.0,
        "tokens_per_second": 320.0 + step,
        "peak_memory_bytes": 900_000_000,
        "bubble_fraction": 0.1,
        "communication_seconds": 0.2,
    }


@pytest.fixture
def run_folder(tmp_path: Path, model_folder: Path) -> Path:
    """A finished run: pipeline of two stages, an evaluation, and a hostile name in the recipe."""
    folder = tmp_path / "lora"
    folder.mkdir()
    records = [
        {
            "kind": "run",
            "schema": 1,
            "layout": {"data": 1, "pipeline": 2},
            "trainable_parameters": 921600,
            "total_parameters": 135000000,
            "stages": [
                {"first_layer": 0, "end_layer": 16, "bytes": 150_000_000},
                {"first_layer": 16, "end_layer": 30, "bytes": 120_000_000},
            ],
        },
        *map(train_record, range(1, STEPS + 1)),
        {"kind": "eval", "step": STEPS, "loss": 2.5},
        {"kind": "checkpoint", "step": STEPS, "seconds": 0.5, "bytes": 1000},
    ]
    write_jsonl(folder / "metrics.jsonl", records)
    recipe = {
        "run": {"name": "<script>alert(1)</script>"},
        "model": {"path": str(model_folder), "dtype": "float32"},
        "adapter": {"method": "lora", "rank": 8, "init_from": ""},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def test_report_draws_and_tabulates(run_folder, tmp_path):
    result = run_script("report.py", run_folder, run_folder, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    picture = (tmp_path / "out" / "report.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", picture[16:24])
    assert width > 1000
    assert height > 600
    rows = [re.split(r"  +", line) for line in result.stdout.splitlines()[:2]]
    shown = dict(zip(*rows, strict=True))
    assert shown["data x pipeline"] == "1 x 2"
    assert (shown["first loss"], shown["last loss"], shown["held-out loss"]) == (
        "3.9000",
        "2.8000",
        "2.5000",
    )
    assert shown["tokens/s"] == "327"  # mean of steps 2..12: the first step warms up


def test_report_compares_held_out_losses(run_folder, tmp_path):
    for name, loss in (("before", 3.5), ("after", 2.25)):
        (tmp_path / name).write_text(json.dumps({"loss": loss, "tokens": 640, "samples": 16}))
    pairs = [f"{name}={tmp_path / name}" for name in ("before", "after")]
    result = run_script("report.py", run_folder, "--held-out", *pairs)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^before +3\.5 +640 +16$", result.stdout, re.MULTILINE)
    assert re.search(r"^after +2\.25 +640 +16$", result.stdout, re.MULTILINE)
    assert "<td>2.25</td>" in (run_folder / "report.html").read_text()
    (tmp_path / "before").write_text("{}")
    assert run_script("report.py", run_folder, "--held-out", pairs[0]).returncode == 65


def test_report_page_is_self_contained_and_escaped(run_folder):
    assert run_script("report.py", run_folder).returncode == 0
    page = (run_folder / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_report_of_a_running_job_leaves_out_the_unfinished_line(run_folder):
    with (run_folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "train", "step": 13, "lo')
    assert run_script("report.py", run_folder).returncode == 0


def test_report_errors(run_folder, tmp_path):
    absent = run_script("report.py", tmp_path / "nothing")
    assert (absent.returncode, "metrics.jsonl: no such file" in last_line(absent)) == (74, True)
    (run_folder / "metrics.jsonl").write_text('{"kind": "run"}\nnot json\n')
    broken = run_script("report.py", run_folder)
    assert (broken.returncode, "metrics.jsonl:2: not JSON" in last_line(broken)) == (65, True)


def tensorboard_scalars(folder: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    accumulator.Reload()
    return {
        tag: {
            event.step: float(make_ndarray(event.tensor_proto))
            for event in accumulator.Tensors(tag)
        }
        for tag in accumulator.Tags()["tensors"]
    }


def test_track_mirrors_every_number_once(run_folder):
    result = run_script("track.py", run_folder, "--once")
    assert result.returncode == 0, result.stderr
    assert f"sent {STEPS + 1} records to tensorboard" in result.stdout
    scalars = tensorboard_scalars(run_folder / "tensorboard")
    assert scalars["train/loss"] == pytest.approx(
        {step: 4.0 - 0.1 * step for step in range(1, STEPS + 1)}
    )
    assert scalars["eval/loss"] == {STEPS: 2.5}
    assert "train/step" not in scalars


def test_track_follows_appends_and_a_resume_that_cuts_the_file(tmp_path):
    from track import Follower

    path = write_jsonl(tmp_path / "metrics.jsonl", [train_record(1), train_record(2)])
    follower = Follower(path)
    assert [record["step"] for record in follower.new_records()] == [1, 2]
    with path.open("a") as stream:
        stream.write(json.dumps(train_record(3)) + "\n" + '{"kind": "tr')
    assert [record["step"] for record in follower.new_records()] == [3]
    write_jsonl(path, [train_record(1), {"kind": "resume", "step": 1}])
    assert list(follower.new_records()) == []
    write_jsonl(path, [train_record(step) for step in range(1, 6)])
    assert [record["step"] for record in follower.new_records()] == [4, 5]


# Holds the run like a training job does, adds a step after a while, and lets go.
HOLDER = """
import fcntl, sys, time
lock = open(sys.argv[1] + "/lock", "wb")
fcntl.lockf(lock, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(1.5)
with open(sys.argv[1] + "/metrics.jsonl", "a") as stream:
    stream.write(sys.argv[2])
time.sleep(1.5)
"""


def test_track_stays_while_a_job_holds_the_run(run_folder):
    record = json.dumps(train_record(STEPS + 1)) + "\n"
    command = [sys.executable, "-c", HOLDER, str(run_folder), record]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout.readline() == "held\n"
        result = run_script("track.py", run_folder, "--seconds", 0.2)
    assert f"sent {STEPS + 2} records" in result.stdout
    assert STEPS + 1 in tensorboard_scalars(run_folder / "tensorboard")["train/loss"]


def test_track_says_what_is_not_installed(run_folder):
    result = run_script("track.py", run_folder, "--once", "--to", "mlflow")
    assert result.returncode == 64
    assert "mlflow is not installed" in last_line(result)


# Stands in for build/graft: checks that the prompts are readable and answers with their first ids reversed.
FAKE_GRAFT = """#!{python}
import json, pathlib, sys
import yaml
from safetensors.numpy import load_file
assert sys.argv[1:3] == ["generate", "--config"], sys.argv
recipe = yaml.safe_load(open(sys.argv[3]))
if recipe["generate"]["max_new_tokens"] == 7:
    print("graft: error: input: adapter_model.safetensors: wrong", file=sys.stderr)
    sys.exit(65)
data = pathlib.Path(recipe["data"]["eval"])
tensors = load_file(data / json.loads((data / "dataset.json").read_text())["shards"][0]["file"])
output = pathlib.Path(recipe["run"]["output"])
output.mkdir()
pathlib.Path({seen!r}).write_text(json.dumps(recipe))
with open(output / "generations.jsonl", "w") as stream:
    for i in reversed(range(len(tensors["sample_ids"]))):
        start = tensors["offsets"][i]
        prompt = tensors["input_ids"][start : start + tensors["prompt_lengths"][i]].tolist()
        record = {{"sample_id": int(tensors["sample_ids"][i]), "tokens": prompt}}
        stream.write(json.dumps(record) + "\\n")
"""


@pytest.fixture
def fake_graft(tmp_path: Path) -> Path:
    program = tmp_path / "graft"
    program.write_text(FAKE_GRAFT.format(python=sys.executable, seen=str(tmp_path / "seen.json")))
    program.chmod(0o755)
    return program


def test_ask_sends_the_templated_prompt_and_decodes(fake_graft, model_folder):
    result = run_script("ask.py", "--model", model_folder, "--graft", fake_graft, "What é?")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "user\nWhat é?\nassistant\n"
    recipe = json.loads((fake_graft.parent / "seen.json").read_text())
    assert "adapter" not in recipe
    assert recipe["generate"]["temperature"] == 0


def test_ask_uses_the_adapter_of_a_run_unless_bare(fake_graft, run_folder):
    seen = fake_graft.parent / "seen.json"
    for bare in ((), ("--bare",)):
        result = run_script("ask.py", "--run", run_folder, "--graft", fake_graft, "x", *bare)
        assert result.returncode == 0, result.stderr
        adapter = json.loads(seen.read_text()).get("adapter")
        expected = {"method": "lora", "rank": 8, "init_from": os.fspath(run_folder / "adapter")}
        assert adapter == (None if bare else expected)


def test_ask_reads_questions_from_records(fake_graft, model_folder, tmp_path):
    records = [{"instruction": f"I{i}", "input": "", "output": f"O{i}"} for i in range(5)]
    source = write_jsonl(tmp_path / "q.jsonl", records)
    arguments = ["--model", model_folder, "--graft", fake_graft, "--file", source, "--count", 2]
    result = run_script("ask.py", *arguments)
    assert result.stdout == (
        "Q: I0\nA: user\nI0\nassistant\n   (record: O0)\n"
        "Q: I1\nA: user\nI1\nassistant\n   (record: O1)\n"
    )


def test_ask_passes_the_programs_error_on(fake_graft, model_folder, tmp_path):
    arguments = ["--model", model_folder, "--graft", fake_graft, "x", "--max-new-tokens", 7]
    result = run_script("ask.py", *arguments)
    assert result.returncode == 65
    assert last_line(result) == "graft: error: input: adapter_model.safetensors: wrong"
    absent = run_script("ask.py", "--model", model_folder, "--graft", tmp_path / "no", "x")
    assert absent.returncode == 74
    assert run_script("ask.py", "--model", model_folder).returncode == 64
