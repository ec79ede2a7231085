"""Method full beyond its steps (training_test.py): the model folder that it leaves, resuming, bfloat16, and what it refuses."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

import prepared_data
import reference
from compare import BFLOAT16_LOSS_RELATIVE, LOSS_RELATIVE, check_final, read_json, relative
from graft_program import Golden, attempt, data_folder, metrics, recipe, run

CLASSES = dict(
    causal_lm=AutoModelForCausalLM,
    classification=AutoModelForSequenceClassification,
    seq2seq=AutoModelForSeq2SeqLM,
)


def losses(output):
    return [record["loss"] for record in metrics(output, "train")]


@pytest.mark.parametrize(
    "name, pipeline",
    [("gqa_full", 1), ("tied_full", 2), ("gpt2_full", 2), ("roberta_full", 1), ("t5_full", 2), ("t5_v1_1_full", 1)],
)
def test_the_model_folder(name, pipeline, tmp_path):
    """HF loads what a run leaves, and so does graft: both give the loss of the reference's own model after the same steps."""
    golden = Golden(name)
    expected = golden.numbers["eval_after"]
    task = golden.numbers["case"]["task"]
    out = tmp_path / "run"
    run("train", recipe(golden, out, parallel=dict(pipeline=pipeline)), out)
    assert not (out / "adapter").exists()
    samples = prepared_data.read(data_folder(task, "eval"))
    model, report = CLASSES[task].from_pretrained(out / "model", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    assert relative(reference.evaluate(reference.Full(model.eval()), samples), expected) <= LOSS_RELATIVE
    keys = recipe(golden, tmp_path / "eval", model=dict(path=str(out / "model")))
    for adapter in (dict(method="full"), None):
        keys["adapter"] = adapter
        if adapter is None and task == "classification":
            keys["adapter"] = dict(method="none", head=dict(train=False))
        result = read_json(run("eval", {k: v for k, v in keys.items() if v}, tmp_path / "eval"))
        assert relative(result["loss"], expected) <= LOSS_RELATIVE


@pytest.mark.parametrize("name, data, pipeline", [("tied_full", 1, 2), ("gpt2_full", 2, 1), ("t5_full", 1, 4)])
def test_resume(name, data, pipeline, tmp_path):
    """From the checkpoint of step 5: the same bytes on the same layout, the same losses on another."""
    golden, out = Golden(name), tmp_path / "run"
    keys = recipe(golden, out, parallel=dict(data=data, pipeline=pipeline), checkpoint=dict(every=5))
    run("train", keys, out)
    whole, expected = (out / "model" / "model.safetensors").read_bytes(), losses(out)
    shutil.rmtree(out / "model")
    shutil.rmtree(out / "checkpoints" / "step-00000010")
    shutil.copytree(out, tmp_path / "other")
    run("train", keys, out)
    assert (out / "model" / "model.safetensors").read_bytes() == whole
    assert losses(out) == expected
    other = recipe(golden, tmp_path / "other", parallel=dict(data=pipeline, pipeline=data) if data * pipeline == 2 else {})
    run("train", other, tmp_path / "other")
    found = losses(tmp_path / "other")
    assert len(found) == len(expected)
    assert max(relative(a, b) for a, b in zip(found, expected)) <= 1e-6


def test_the_best_model_is_the_one_that_stays(tmp_path):
    golden, out = Golden("tied_full"), tmp_path / "run"
    # A rate at which the loss on held-out data soon grows again.
    sections = dict(eval=dict(every=1), optim=dict(lr=3e-2, schedule="constant", warmup_steps=0, steps=6))
    run("train", recipe(golden, out, **sections), out)
    held_out = [record["loss"] for record in metrics(out, "eval")]
    assert held_out[-1] > min(held_out)
    keys = recipe(golden, tmp_path / "eval", model=dict(path=str(out / "model")))
    assert relative(read_json(run("eval", keys, tmp_path / "eval"))["loss"], min(held_out)) <= 1e-6


def test_export_of_a_checkpoint(tmp_path):
    golden, out = Golden("gpt2_full"), tmp_path / "run"
    keys = recipe(golden, out, parallel=dict(pipeline=2), checkpoint=dict(every=5))
    run("train", keys, out)
    keys["parallel"] = dict(device="cpu")
    keys["export"] = {"from": str(out / "checkpoints" / "step-00000010"), "to": str(tmp_path / "to"), "merge": True}
    run("export", keys, tmp_path)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "to", out / "model"))
    assert sorted(ours) == sorted(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    keys["export"] |= {"merge": False, "to": str(tmp_path / "other")}
    code, errors = attempt("export", keys, tmp_path)
    assert code == 78 and "export.merge" in errors.strip().splitlines()[-1], errors


@pytest.mark.parametrize("name, pipeline", [("gqa_full", 1), ("tied_full", 2), ("t5_full", 2)])
def test_bfloat16_has_float32_masters(name, pipeline, tmp_path):
    """The steps follow those in float32; in bfloat16 alone most updates of this size would be lost."""
    golden = Golden(name)
    keys = recipe(golden, tmp_path, model=dict(dtype="bfloat16"), parallel=dict(pipeline=pipeline), checkpoint=dict(every=10))
    run("train", keys, tmp_path)
    for record, expected in zip(metrics(tmp_path, "train"), golden.numbers["steps"]):
        assert relative(record["loss"], expected["loss"]) <= BFLOAT16_LOSS_RELATIVE
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    start = load_file(golden.folder / "initial" / "model.safetensors")
    moved = torch.cat([(load_file(shard)[key] - start[key.removeprefix("param/")]).flatten() for shard, key in masters(tmp_path)])
    assert (moved != 0).float().mean() > 0.99


def masters(output):
    for shard in sorted((output / "checkpoints" / "step-00000010").rglob("*.safetensors")):
        for key in load_file(shard):
            # Of an embedding only the rows that were read move.
            if key.startswith("param/") and "embed" not in key and "shared" not in key:
                yield shard, key


REFUSALS = [
    # sections, exit code, what the last line says
    (dict(adapter=dict(method="full", init_from="somewhere")), "adapter.init_from"),
    (dict(adapter=dict(method="full", layers="0-1")), "adapter.layers"),
    (dict(adapter=dict(method="full", compute_dtype="float32")), "adapter.compute_dtype"),
    (dict(adapter=dict(method="full", track_sensitivity=True)), "adapter.track_sensitivity"),
    (dict(model=dict(path=None, shape="llama-1b")), "model.path"),
]


@pytest.mark.parametrize("sections, message", REFUSALS)
def test_refusals(sections, message, tmp_path):
    keys = recipe(Golden("gqa_full"), tmp_path / "run", **sections)
    keys["model"] = {key: value for key, value in keys["model"].items() if value}
    code, errors = attempt("train", keys, tmp_path)
    assert code == 78 and message in errors.strip().splitlines()[-1], errors
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("command", ["score", "prompt"])
def test_commands_of_adapters_refuse(command, tmp_path):
    keys = recipe(Golden("gqa_full"), tmp_path / "run")
    code, errors = attempt(command, keys, tmp_path)
    assert code == 78, errors


def test_a_run_is_not_continued_as_another_method(tmp_path):
    out = tmp_path / "run"
    keys = recipe(Golden("gqa_full"), out, checkpoint=dict(every=5))
    run("train", keys, out)
    check_final(out, Golden("gqa_full"))
    keys["adapter"] = dict(method="red")
    code, errors = attempt("train", keys, tmp_path)
    assert code == 74 and "full" in errors and "red" in errors, errors
