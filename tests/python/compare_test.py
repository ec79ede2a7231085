"""compare.py with the real program on a tiny random Llama: sizes for a budget, results, stopping and going on, failures.

Numbers of parameters are worked out by hand from the methods' formulas.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import LAUNCH, last_line, run_script
from graft_compare.program import Program
from graft_compare.sizes import choose_adapter, largest_within, planned_parameters
from graft_compare.study import Method, read_study
from graft_prepare.errors import GraftError
from tiny_llama import GRAFT, write_inputs

BUDGET = 3000
STEPS = 4


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("compare"))


LORA = {"name": "lora", "adapter": {"method": "lora", "sites": ["attn.q", "attn.v"]}, "lr": 1.0e-2}
RED = {"name": "red", "adapter": {"method": "red"}, "lr": 1.0e-2}


def write_study(inputs: Path, path: Path, methods: list[dict], **keys) -> Path:
    data = {"train": str(inputs / "train"), "eval": str(inputs / "eval")}
    optim = {"steps": STEPS, "global_batch": 4, "micro_batch": 4}
    study = {
        "title": "tiny",
        "metric": "perplexity",
        "budget": BUDGET,
        "seeds": [0, 1],
        "recipe": {
            "model": {"path": str(inputs / "model")},
            "data": data,
            "optim": optim | keys.pop("optim", {}),
            "parallel": {"threads": 1} | keys.pop("parallel", {}),
            "checkpoint": {"every": 50} | keys.pop("checkpoint", {}),
        },
        "methods": methods,
    }
    path.write_text(yaml.safe_dump(study | keys))
    return path


def compare(study: Path, out: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run_script("compare.py", "--study", study, "--out", out, "--graft", GRAFT, *arguments)


def rows(out: Path) -> dict[str, dict]:
    tree = json.loads((out / "compare.json").read_text())
    return {row["name"]: row for row in tree["methods"]}


def records(run: Path, kind: str) -> list[dict]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record for record in lines if record["kind"] == kind]


@pytest.mark.parametrize("budget, slope, start", [(1000, 7, 3), (10, 7, 3), (9, 7, 3), (77, 1, 0)])
def test_a_size_fills_a_straight_line_in_few_counts(budget, slope, start):
    asked = []

    def count(size):
        asked.append(size)
        return start + slope * size

    assert largest_within(count, budget) == max(0, (budget - start) // slope)
    assert len(asked) <= 4


def test_a_size_is_found_where_counts_are_no_line_or_end():
    assert largest_within(lambda size: size * size, 50_000) == 223
    assert largest_within(lambda size: 10 * size if size <= 37 else None, 1000) == 37
    assert largest_within(lambda size: 10 * size if size <= 1 else None, 1000) == 1


SIZED = [
    # adapter of the study, the size that it gets, its trainable parameters at that size and at the next one
    ({"method": "lora"}, 6, 6 * 2 * (64 + 64 + 64 + 32), 3136),
    ({"method": "para"}, 5, 5 * 2 * (64 + 64 + 32 + 128), 3456),
    ({"method": "idpg"}, 3, 3 * (64 + 1 + 640) + 640, 3460),
    ({"method": "lopa"}, 4, 4 * (2 * 65 + 40 + 256) + 40 + 256 + 640, 3066),
    ({"method": "prompt_tuning"}, 46, 46 * 64, 3008),
]


@pytest.mark.parametrize("adapter, size, parameters, too_many", SIZED)
def test_sizes_come_closest_to_the_budget(adapter, size, parameters, too_many, inputs, tmp_path):
    study = read_study(write_study(inputs, tmp_path / "study.yaml", [{"name": "x"}]), [])
    program, method = Program(GRAFT, ranks=1), Method("x", adapter)
    chosen = choose_adapter(program, study, method, tmp_path / "plan")
    assert chosen[method.size_key] == size
    assert planned_parameters(program, study, chosen, tmp_path / "plan") == parameters
    assert parameters <= BUDGET < too_many
    assert chosen.get("alpha") == (2 * size if adapter["method"] == "lora" else None)


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory) -> tuple[Path, Path, subprocess.CompletedProcess[str]]:
    """Study file, output folder and first run of a comparison."""
    folder = tmp_path_factory.mktemp("finished")
    fixed = {"name": "lora-r2", "adapter": {"method": "lora", "rank": 2}}
    methods = [{"name": "backbone"}, {**LORA, "lr": [1.0e-2, 1.0e-5]}, RED, fixed]
    study = write_study(inputs, folder / "study.yaml", methods, grid={"seed": 7, "steps": 8})
    result = compare(study, folder / "out")
    assert result.returncode == 0, result.stderr
    return study, folder / "out", result


def test_a_size_that_the_study_gives_stays(finished):
    found = rows(finished[1])
    counts = {name: row["trainable_parameters"] for name, row in found.items()}
    assert counts == {"backbone": 0, "lora": 2688, "red": 2 * 2 * 64, "lora-r2": 896}
    assert (found["lora"]["adapter"]["rank"], found["lora"]["adapter"]["alpha"]) == (6, 12)
    assert found["lora-r2"]["lr"] == 1e-4  # the program's default


def test_figures_are_those_of_the_runs(finished):
    _, out, result = finished
    row = rows(out)["red"]
    values = [json.loads((out / f"runs/red/seed-{s}.json").read_text()) for s in (0, 1)]
    numbers = [value["perplexity"] for value in values]
    assert row["metric"]["values"] == numbers
    assert row["metric"]["mean"] == pytest.approx(sum(numbers) / 2)
    assert numbers[0] != numbers[1]
    assert row["metric"]["std"] == pytest.approx(abs(numbers[0] - numbers[1]) / 2**0.5)
    assert row["loss"]["values"] == [value["loss"] for value in values]
    steps = [record for s in (0, 1) for record in records(out / f"runs/red/seed-{s}", "train")]
    assert [loss for run in row["runs"] for loss in run["losses"]] == pytest.approx(
        [record["loss"] for record in steps], abs=1e-5
    )
    assert row["peak_memory_bytes"] == max(record["peak_memory_bytes"] for record in steps)
    speeds = [
        statistics.median(r["tokens_per_second"] for r in steps[i : i + STEPS]) for i in (0, STEPS)
    ]
    assert row["tokens_per_second"] == pytest.approx(statistics.median(speeds))
    adapter = out / "runs/red/seed-0/adapter"
    assert row["adapter_bytes"] == sum(path.stat().st_size for path in adapter.iterdir())
    assert f"| red | 256 | 0.01 | 2 | {row['metric']['mean']:.4f} ± " in result.stdout
    assert (out / "compare.md").read_text().count("\n| ") == 2 + 4
    assert (out / "compare.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_backbone_is_evaluated_as_it_is(finished, inputs, tmp_path):
    recipe = {"model": {"path": str(inputs / "model")}, "data": {"eval": str(inputs / "eval")}}
    config = tmp_path / "eval.yaml"
    config.write_text(yaml.safe_dump(recipe | {"run": {"output": str(tmp_path / "out")}}))
    plain = subprocess.run(
        [GRAFT, "eval", "--config", config], capture_output=True, text=True, check=True
    )
    loss = rows(finished[1])["backbone"]["loss"]["values"]
    assert loss == pytest.approx([json.loads(plain.stdout)["loss"]], rel=1e-6)


def test_the_grid_chooses_by_the_late_training_loss(finished):
    losses = {}
    for rate in ("0.01", "1e-05"):
        steps = records(finished[1] / f"grid/lora/lr-{rate}", "train")
        losses[float(rate)] = sum(record["loss"] for record in steps[-2:])
    assert rows(finished[1])["lora"]["lr"] == min(losses, key=losses.get)
    config = yaml.safe_load((finished[1] / "grid/lora/lr-0.01.yaml").read_text())
    assert (config["run"]["seed"], config["optim"]["steps"]) == (7, 8)


def test_what_is_done_is_not_repeated(finished):
    study, out, first = finished
    # No run and, for the sizes, no plan.
    kept = [*out.glob("runs/*/*/metrics.jsonl"), *out.glob("*/*.plan.log")]
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert len(before) == 3 * 2 + 1
    table = (out / "compare.md").read_text()
    again = compare(study, out)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (out / "compare.md").read_text() == table
    assert again.stderr.count("was done before") == 1 + 3 * 2 + 2
    assert "[1/9] backbone: perplexity " in first.stderr
    assert "min left" in first.stderr


def test_a_report_shows_what_is_done_and_starts_nothing(finished, tmp_path):
    out = shutil.copytree(finished[1], tmp_path / "out")
    (out / "runs/red/seed-1.json").unlink()
    (out / "runs/lora-r2/seed-0.json").unlink()
    (out / "runs/lora-r2/seed-1.json").unlink()
    for end in ("json", "yaml"):  # the backbone has no seeds: one run of it is shown
        shutil.copy(out / f"runs/backbone/seed-0.{end}", out / f"runs/backbone/seed-1.{end}")
    full = rows(finished[1])
    result = compare(finished[0], out, "--report", "--graft", "/bin/false")
    assert result.returncode == 0, result.stderr
    assert list(rows(out)) == ["backbone", "lora", "red"]
    assert rows(out)["lora"] == full["lora"]
    assert rows(out)["backbone"] == full["backbone"]
    assert rows(out)["red"]["metric"] == {
        "mean": full["red"]["metric"]["values"][0],
        "std": None,
        "values": full["red"]["metric"]["values"][:1],
    }


def test_another_recipe_in_the_same_folder_is_refused(finished):
    result = compare(finished[0], finished[1], "optim.steps=5")
    assert result.returncode == 64
    assert "optim.steps 4, the study now says 5; give another --out" in last_line(result)


def start(study: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, LAUNCH / "compare.py", "--study", study, "--out", out]
    return subprocess.Popen(
        [*map(str, command), "--graft", str(GRAFT)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "GRAFT_PYTHON_CHOSEN": "1"},
    )


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "nothing came in 60 s"
        time.sleep(0.02)


def steps_so_far(run: Path) -> int:
    """Of a run that is still writing its metrics."""
    path = run / "metrics.jsonl"
    return path.read_text().count('"kind":"train"') if path.exists() else 0


def test_a_stopped_comparison_goes_on_where_it_was(inputs, tmp_path):
    long = {"steps": 800}
    study = write_study(inputs, tmp_path / "study.yaml", [RED], seeds=[0], optim=long)
    run = tmp_path / "out/runs/red/seed-0"
    with start(study, tmp_path / "out") as job:
        wait_for(lambda: steps_so_far(run) >= 25)
        job.send_signal(signal.SIGTERM)
        _, text = job.communicate(timeout=60)
    assert job.returncode == 75, text
    assert "run again" in text
    steps = len(records(run, "train"))
    assert 25 <= steps < 800
    result = compare(study, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert [record["step"] for record in records(run, "resume")] == [steps]
    assert [record["step"] for record in records(run, "train")] == list(range(1, 801))
    assert len(rows(tmp_path / "out")["red"]["runs"][0]["losses"]) == 800


def test_a_killed_run_is_named_the_others_go_on_and_it_resumes(inputs, tmp_path):
    # Long enough behind the first checkpoint that the kill meets the training, not the evaluation.
    keys = {"seeds": [0], "optim": {"steps": 1000}, "checkpoint": {"every": 200}}
    study = write_study(inputs, tmp_path / "study.yaml", [RED, LORA], **keys)
    run, out = tmp_path / "out/runs/red/seed-0", tmp_path / "out"
    with start(study, out) as job:
        wait_for(lambda: list(run.glob("checkpoints/step-????????/manifest.json")))
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        _, text = job.communicate(timeout=120)
    assert job.returncode == 70
    assert "graft: error: bug: red seed 0: exit code -9" in text
    tree = json.loads((out / "compare.json").read_text())
    assert [row["name"] for row in tree["methods"]] == ["lora"]
    assert tree["failed"][0]["run"] == "red seed 0"
    result = compare(study, out)
    assert result.returncode == 0, result.stderr
    assert set(rows(out)) == {"red", "lora"}
    assert records(run, "resume")[0]["step"] >= 200
    assert [record["step"] for record in records(run, "train")] == list(range(1, 1001))


def test_a_method_that_fails_leaves_the_others_and_the_exit_code(inputs, tmp_path):
    methods = [
        {"name": "wrong", "adapter": {"method": "red", "what": "nothing"}},
        {"name": "too-large", "adapter": {"method": "para"}},
        RED,
    ]
    study = write_study(inputs, tmp_path / "study.yaml", methods, seeds=[0], budget=500)
    result = compare(study, tmp_path / "out")
    assert result.returncode == 78
    assert last_line(result).startswith("graft: error: recipe: wrong seed 0: ")
    assert last_line(result).endswith("(and 1 more)")
    assert list(rows(tmp_path / "out")) == ["red"]
    table = (tmp_path / "out/compare.md").read_text()
    assert "Failed: too-large: rank 1 has 576 trainable parameters, the budget is 500" in table


def test_ranks_are_started_with_mpirun(inputs, tmp_path):
    study = write_study(
        inputs, tmp_path / "study.yaml", [RED], seeds=[0], parallel={"data": 2}, budget=0
    )
    result = compare(study, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    header = records(tmp_path / "out/runs/red/seed-0", "run")[0]
    assert header["layout"]["data"] == 2


BAD = [
    # change of the study, what the error says
    ({"methods": []}, "study.yaml.methods: is empty"),
    ({"methods": [RED, RED]}, "the name 'red' occurs twice"),
    ({"methods": [{"name": "../out"}]}, "methods[0].name: found '../out'"),
    ({"methods": [{"name": "x", "adapter": {"rank": 8}}]}, "methods[0].adapter.method"),
    ({"methods": [{**RED, "lr": "1e-3"}]}, "methods[0].lr: found 1e-3"),
    ({"methods": [{**RED, "lr": [0.1, 0.2]}]}, "grid.steps"),
    ({"methods": [{**RED, "rank": 3}]}, "methods[0]: unknown key 'rank'"),
    ({"seeds": [1, 1]}, "seeds: found [1, 1]"),
    ({"seeds": [True]}, "seeds: found [True]"),
    ({"budget": -1}, "budget: found -1"),
    ({"speed": 3}, "unknown key 'speed'"),
    ({"recipe": {"data": {"train": "a"}, "optim": {"steps": 1}}}, "recipe.data.eval"),
    ({"recipe": {}}, "recipe.optim.steps"),
    ({"recipe": {"run": {"seed": 3}}}, "recipe.run.seed"),
]


@pytest.mark.parametrize("change, message", BAD)
def test_a_bad_study_is_one_clear_error(change, message, inputs, tmp_path):
    path = write_study(inputs, tmp_path / "study.yaml", [{"name": "backbone"}])
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change))
    with pytest.raises(GraftError) as caught:
        read_study(path, [])
    assert (caught.value.kind, message in caught.value.message) == ("recipe", True), caught.value


def test_a_metric_that_the_task_has_not_is_named_with_those_that_it_has(inputs, tmp_path):
    study = write_study(inputs, tmp_path / "study.yaml", [{"name": "backbone"}], metric="bleu")
    result = compare(study, tmp_path / "out")
    assert result.returncode == 78
    assert "metric 'bleu' is not among those of graft eval: loss, tokens" in last_line(result)


def test_bad_command_lines(inputs, tmp_path):
    study = write_study(inputs, tmp_path / "study.yaml", [RED])
    out = tmp_path / "out"
    for arguments, code in (
        (["--only", "blue"], 64),
        (["--seeds", "1", "1"], 64),
        (["optim.steps"], 64),
        (["--budget", "-5"], 64),
        (["--graft", tmp_path / "no"], 74),
    ):
        assert compare(study, out, *arguments).returncode == code, arguments
    assert compare(tmp_path / "absent.yaml", out).returncode == 74
    assert not out.exists()
    shutil.copytree(inputs / "eval", out)
    result = compare(study, out)
    assert (result.returncode, "neither empty nor" in last_line(result)) == (64, True)
