"""Tasks with labels beyond the ten steps: metrics, the kept adapter, resuming a task head, and what is refused."""

import shutil

import pytest

import prepared_data
from compare import LOSS_RELATIVE, check_final, check_steps, read_json, relative
from graft_program import Golden, attempt, data_folder, metrics, recipe, run
from variants import VOCAB_SIZE


def test_evaluation_with_labels_keeps_the_best_by_its_metric(tmp_path):
    golden = Golden("roberta_lora")
    keys = recipe(golden, tmp_path, eval=dict(every=5, metric="accuracy"))
    run("train", keys, tmp_path)
    check_steps(metrics(tmp_path, "train"), golden.numbers["steps"])
    first, last = metrics(tmp_path, "eval")
    assert relative(last["loss"], golden.numbers["eval_after"]) <= LOSS_RELATIVE
    best = first if first["accuracy"] >= last["accuracy"] else last
    keys["adapter"]["init_from"] = str(tmp_path / "adapter")
    result = read_json(run("eval", keys, tmp_path))
    assert {k: result[k] for k in ("accuracy", "f1", "mcc")} == {
        k: best[k] for k in ("accuracy", "f1", "mcc")
    }


def test_a_run_with_a_task_head_goes_on_on_another_layout(tmp_path):
    """The last stage's head comes out of the checkpoint of two stages."""
    golden = Golden("roberta_lora")
    checkpoint = dict(every=4, keep=5)
    run("train", recipe(golden, tmp_path, parallel=dict(pipeline=2), checkpoint=checkpoint), tmp_path)
    for folder in (tmp_path / "checkpoints").iterdir():
        if folder.name > "step-00000004":
            shutil.rmtree(folder)
    run("train", recipe(golden, tmp_path, checkpoint=checkpoint), tmp_path)
    assert metrics(tmp_path, "resume")[-1]["step"] == 4
    check_steps(metrics(tmp_path, "train"), golden.numbers["steps"])
    check_final(tmp_path, golden)


REFUSALS = [
    # case, command, sections, exit code, what the last line says
    ("roberta_lora", "train", dict(task=dict(type="causal_lm")), 78, "data.train"),
    ("roberta_lora", "generate", {}, 78, "task.type"),
    ("roberta_lora", "train", dict(eval=dict(every=5, metric="pearson")), 78, "accuracy"),
    ("roberta_headless_red", "train", dict(task=dict(type="seq2seq")), 78, "data.train"),
    ("gpt2_lora_joint", "train", dict(adapter=dict(fused="split")), 65, "joint"),
]


@pytest.mark.parametrize("name, command, sections, code, message", REFUSALS)
def test_refusals(name, command, sections, code, message, tmp_path):
    golden = Golden(name)
    keys = recipe(golden, tmp_path / "run", **sections)
    if command == "export":
        keys["export"] |= {"from": str(golden.folder / "initial"), "to": str(tmp_path / "to")}
    exit_code, text = attempt(command, keys, tmp_path)
    assert exit_code == code and message in text.rstrip().splitlines()[-1], text[-2000:]
    assert not (tmp_path / "to").exists()


def test_a_head_that_was_drawn_and_not_trained_does_not_merge(tmp_path):
    """No folder holds it."""
    keys = recipe(Golden("roberta_headless_red"), tmp_path / "run", optim=dict(steps=1))
    keys["adapter"] = dict(method="red", head=dict(train=False))
    run("train", keys, tmp_path)
    keys["export"] = {"from": str(tmp_path / "run"), "to": str(tmp_path / "to"), "merge": True}
    exit_code, text = attempt("export", keys, tmp_path)
    assert exit_code == 78 and "no task head" in text.rstrip().splitlines()[-1], text[-2000:]
    assert not (tmp_path / "to").exists()


UNFIT = [
    # case that gives the data and the task, case that gives the model, what the last line says
    ("gqa_lora", "roberta_lora", "roberta"),
    ("roberta_lora", "t5_lora", "seq2seq for model_type t5"),
    ("t5_lora", "gqa_lora", "no encoder and decoder"),
]


@pytest.mark.parametrize("data, model, message", UNFIT)
def test_a_model_that_cannot_do_the_task_is_refused(data, model, message, tmp_path):
    """The data fits the task, the model does not."""
    keys = recipe(Golden(data), tmp_path / "run")
    keys["model"]["path"] = str(Golden(model).model)
    exit_code, text = attempt("train", keys, tmp_path)
    assert exit_code == 78 and message in text.rstrip().splitlines()[-1], text[-2000:]


def test_a_prompt_encoder_and_the_data(tmp_path):
    """The data must have what the encoder reads, and it must fit."""
    golden = Golden("gqa_lopa_encoder")

    def refused(change, *parts, **sections):
        samples = prepared_data.read(data_folder("causal_lm", "train"))
        change(samples)
        prepared_data.write(tmp_path / "data", samples, VOCAB_SIZE)
        keys = recipe(golden, tmp_path / "run", data=dict(train=str(tmp_path / "data")), **sections)
        for pipeline in (1, 2):
            code, text = attempt("train", keys | dict(parallel=dict(pipeline=pipeline)), tmp_path)
            last = text.rstrip().splitlines()[-1]
            assert code == 65 and all(part in last for part in parts), text[-2000:]

    def without(samples):
        for sample in samples:
            sample.encoder_ids = None

    def too_long(samples):
        samples[3].encoder_ids = [5] * 500

    def outside(samples):
        samples[3].encoder_ids = [VOCAB_SIZE]

    refused(without, "data.train", "encoder_ids: absent", "--encoder")
    refused(too_long, "encoder_ids: sample 1003 has 500", "positions")
    refused(outside, "encoder_ids: sample 1003 has", "vocab_size")


def test_a_run_is_not_continued_with_another_encoder(tmp_path):
    """The same content elsewhere is the same encoder; other weights are another one, trained or not."""
    golden = Golden("gqa_lopa_encoder_trained")
    keys = recipe(golden, tmp_path / "run", checkpoint=dict(every=5), optim=dict(steps=5, schedule="constant"))
    run("train", keys, tmp_path)
    encoder = keys["adapter"]["encoder"]
    moved, other = tmp_path / "moved", golden.model.parent / "roberta_headless"
    shutil.copytree(encoder["path"], moved)
    keys["optim"]["steps"] = 10
    keys["adapter"]["encoder"] = encoder | dict(path=str(other))
    code, text = attempt("train", keys, tmp_path)
    assert code in (65, 74) and ("adapter" in text.rstrip().splitlines()[-1]), text[-2000:]
    keys["adapter"]["encoder"] = encoder | dict(path=str(moved))
    run("train", keys, tmp_path)
