"""fanlora.sh from end to end with the real program on a tiny random Llama: the four steps, what it leaves, going on, bad input."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import LAUNCH
from setup_test import pretend, run_shell
from tiny_llama import GRAFT, write_inputs

OPTIONS = {
    "--method": "taylor_sq magnitude",
    "--k": "2",
    "--rank": "2",
    "--samples": "16",
    "--steps": "6",
    "--task-steps": "4",
    "--seeds": "0 1",
    "--metric": "token_accuracy",
}


def fanlora(inputs: Path, out: Path, *more: str, **options: str):
    folders = {
        "--model": inputs / "model",
        "--instructions": inputs / "train",
        "--scoring": inputs / "scoring",
        "--second": inputs / "second",
        "--task": inputs / "eval",
        "--held-out": inputs / "eval",
        "--out": out,
    }
    words = {**folders, **OPTIONS, **{f"--{key}": value for key, value in options.items()}}
    arguments = [str(word) for pair in words.items() for word in pair]
    environment = {"GRAFT_BINARY": str(GRAFT), "OMP_NUM_THREADS": "1"}
    return run_shell("fanlora.sh", *arguments, "parallel.threads=1", *more, **environment)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("fanlora-inputs"))


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("fanlora") / "out"
    result = fanlora(inputs, out)
    assert result.returncode == 0, result.stdout + result.stderr
    return out, result


def test_the_four_steps_leave_scores_settings_pictures_and_the_table(finished):
    out, result = finished
    for method in ("taylor_sq", "magnitude"):
        importance = json.loads((out / f"score-{method}/importance.json").read_text())
        assert (importance["score"], len(importance["modules"])) == (method, 2 * 7)
        setting = json.loads((out / f"score-{method}/setting.json").read_text())
        assert [len(entry["roles"]) for entry in setting["keep"]] == [2, 2]
    assert (out / "scores.png").stat().st_size > 5000
    assert "taylor_sq / magnitude" in result.stdout
    assert "taylor_sq / taylor_sq-second" in result.stdout
    first, second = (
        json.loads((out / f"{name}-taylor_sq/importance.json").read_text())
        for name in ("score", "second")
    )
    assert first["data_fingerprint"] != second["data_fingerprint"]
    tree = json.loads((out / "downstream/compare.json").read_text())
    rows = {row["name"]: row for row in tree["methods"]}
    assert list(rows) == [
        "backbone",
        "lora-all",
        "lora-qv",
        "fanlora-taylor_sq",
        "fanlora-magnitude",
    ]
    everything = rows["lora-all"]["trainable_parameters"]
    assert everything == 2 * 2 * (2 * 128 + 2 * 96 + 3 * 192)  # rank 2, two layers, seven linears
    for name in list(rows)[2:]:
        assert 0.8 * everything < rows[name]["trainable_parameters"] <= everything
        assert len(rows[name]["metric"]["values"]) == 2


def test_a_second_run_keeps_what_is_done(finished, inputs):
    out, _ = finished
    files = [*out.glob("score-*/importance.json"), *out.glob("downstream/runs/*/*.json")]
    assert len(files) == 2 + 1 + 4 * 2
    before = {path: path.stat().st_mtime_ns for path in files}
    shutil.rmtree(out / "score-magnitude")
    again = fanlora(inputs, out)
    assert again.returncode == 0, again.stdout + again.stderr
    kept = {path: path.stat().st_mtime_ns for path in files if "magnitude" not in str(path)}
    assert all(before[path] == time for path, time in kept.items())
    assert (out / "score-magnitude/setting.json").exists()


def test_a_step_that_fails_ends_it_with_the_programs_code(finished, inputs, tmp_path):
    result = fanlora(inputs, tmp_path / "out", method="nonsense")
    assert result.returncode == 78
    assert "score.method" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out/downstream").exists()


def test_bad_command_lines(inputs, tmp_path):
    out = tmp_path / "out"
    for more, code, message in (
        (["--scoring", str(tmp_path / "no")], 74, "no such folder"),
        (["--second", str(tmp_path / "no")], 74, "no such folder"),
        (["--k", "0"], 64, "--k '0'"),
        (["--seeds", "1 x"], 64, "--seeds 'x'"),
        (["--method", "ab;rm"], 64, "--method 'ab;rm'"),
        (["--method", " "], 64, "at least one word"),
        (["--what", "1"], 64, "unknown option '--what'"),
        (["--k"], 64, "--k needs a value"),
        (["nothing"], 64, "'nothing' is neither"),
    ):
        result = fanlora(inputs, out, *more)
        last = result.stderr.splitlines()[-1]
        assert (result.returncode, message in last) == (code, True), result.stderr
        assert not out.exists()
    absent = run_shell("fanlora.sh", "--out", str(out), GRAFT_BINARY=os.fspath(GRAFT))
    assert (absent.returncode, "--model is missing" in absent.stderr) == (64, True)
    shown = run_shell("fanlora.sh", "--help")
    assert (shown.returncode, "--held-out DATA" in shown.stdout) == (0, True)


# Numbers its jobs 41, 42, ... and writes its words down.
SBATCH = """
printf '%s\\n' "$*" >>{log}
echo $((40 + $(wc -l <{log})))\\;cluster"""


def test_slurm_jobs_wait_for_each_other(tmp_path):
    log = tmp_path / "calls.log"
    path = pretend(tmp_path / "bin", sbatch=SBATCH.format(log=log))
    recipes = [tmp_path / name for name in ("lora.yaml", "score.yaml", "fanlora.yaml")]
    for recipe in recipes:
        recipe.write_text("run: {}\n")
    words = [*map(str, recipes), "--ntasks=4", "--time=10"]
    result = run_shell("slurm/fanlora.sh", *words, PATH=path)
    assert result.stdout == "LoRA 41, score 42, FanLoRA 43\n", result.stderr
    slurm = LAUNCH / "slurm"
    after = "--dependency=afterok:{} --kill-on-invalid-dep=yes"
    assert log.read_text().splitlines() == [
        f"--parsable --ntasks=4 --time=10 {slurm}/train.sbatch {recipes[0]}",
        f"--parsable {after.format(41)} --ntasks=4 --time=10 {slurm}/score.sbatch {recipes[1]}",
        f"--parsable {after.format(42)} --ntasks=4 --time=10 {slurm}/train.sbatch {recipes[2]}",
    ]
    recipes[1].unlink()
    absent = run_shell("slurm/fanlora.sh", *words, PATH=path)
    assert (absent.returncode, "score.yaml cannot be read" in absent.stderr) == (64, True)
    assert run_shell("slurm/fanlora.sh", PATH=path).returncode == 64
    assert len(log.read_text().splitlines()) == 3
