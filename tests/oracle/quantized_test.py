"""model.quantize: losses, gradients and tokens equal HF's on weights that went through a NumPy int8 or nf4."""

import json

import pytest
import torch

import prepared_data
import quantized
import reference
from compare import (
    BFLOAT16_GRAD_NORM_RELATIVE,
    BFLOAT16_LOSS_RELATIVE,
    LOSS_RELATIVE,
    check_steps,
    read_json,
    relative,
)
from graft_program import Golden, attempt, data_folder, metrics, recipe, run


def quantized_reference(golden, kind, dtype=torch.float32, trainable=False):
    """(model with the golden case's adapter, errors of its matrices)."""
    task = golden.numbers["case"]["task"]
    model = reference.load_model(golden.model, dtype, task)
    errors = quantized.quantize(model, kind)
    return reference.load_adapter(model, golden.folder / "initial", trainable=trainable), errors


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("name", ["gqa_lora", "biases_lora", "gpt2_lora", "roberta_lora", "t5_v1_1_lora"])
def test_loss(name, kind, tmp_path):
    golden = Golden(name)
    model, _ = quantized_reference(golden, kind)
    samples = prepared_data.read(data_folder(golden.numbers["case"]["task"], "eval"))
    expected = reference.evaluate(model, samples)
    result = read_json(run("eval", recipe(golden, tmp_path, model=dict(quantize=kind)), tmp_path))
    assert relative(result["loss"], expected) <= LOSS_RELATIVE
    # So that not quantising at all would be seen.
    assert relative(golden.numbers["eval_before"], expected) > 2 * LOSS_RELATIVE


@pytest.mark.parametrize(
    "name, kind, pipeline, recompute",
    [("gqa_lora", "nf4", 2, "none"), ("gpt2_lora_joint", "int8", 1, "layer"), ("t5_lora", "nf4", 1, "none")],
)
def test_training(name, kind, pipeline, recompute, tmp_path):
    golden = Golden(name)
    case = golden.numbers["case"]
    model, errors = quantized_reference(golden, kind, trainable=True)
    steps = list(
        reference.train(model, prepared_data.read(data_folder(case["task"], "train")), case["optim"], case["steps"])
    )
    sections = dict(model=dict(quantize=kind, recompute=recompute), parallel=dict(pipeline=pipeline))
    run("train", recipe(golden, tmp_path, **sections), tmp_path)
    check_steps(metrics(tmp_path, "train"), steps)
    report = metrics(tmp_path, "run")[0]["quantization"]
    assert (report["kind"], report["matrices"]) == (kind, len(errors))
    assert relative(report["mean_error"], sum(errors.values()) / len(errors)) <= 1e-4
    assert relative(report["largest_error"], max(errors.values())) <= 1e-4


def test_training_in_bfloat16(tmp_path):
    """W~ is rounded to bfloat16 once, as assigning it to a bfloat16 parameter does."""
    golden = Golden("gqa_lora")
    case = golden.numbers["case"]
    model, _ = quantized_reference(golden, "nf4", torch.bfloat16, trainable=True)
    samples = prepared_data.read(data_folder("causal_lm", "train"))
    steps = list(reference.train(model, samples, case["optim"], case["steps"]))
    run("train", recipe(golden, tmp_path, model=dict(dtype="bfloat16", quantize="nf4")), tmp_path)
    check_steps(metrics(tmp_path, "train"), steps, BFLOAT16_LOSS_RELATIVE, BFLOAT16_GRAD_NORM_RELATIVE)


def test_greedy_tokens(tmp_path):
    golden = Golden("gqa_lora")
    model, _ = quantized_reference(golden, "nf4")
    keys = recipe(golden, tmp_path, model=dict(quantize="nf4"), generate=dict(max_new_tokens=6))
    run("generate", keys, tmp_path)
    expected = [reference.greedy(model, s, 6) for s in prepared_data.read(data_folder("causal_lm", "eval"))]
    lines = (tmp_path / "generations.jsonl").read_text().splitlines()
    assert [json.loads(line)["tokens"] for line in lines] == expected


def test_a_merge_reads_the_source_weights(tmp_path):
    golden = Golden("gqa_lora")
    merged = []
    for kind in ("none", "nf4"):
        to = tmp_path / kind / "merged"
        export = {"from": str(golden.folder / "initial"), "to": str(to), "merge": True}
        keys = recipe(golden, tmp_path / kind, model=dict(quantize=kind), export=export)
        run("export", keys, tmp_path / kind)
        merged.append((to / "model.safetensors").read_bytes())
    assert merged[0] == merged[1]


def test_a_resume_keeps_the_quantisation(tmp_path):
    golden = Golden("gqa_lora")
    optim = dict(steps=2, schedule="constant", warmup_steps=0)
    keys = recipe(golden, tmp_path, model=dict(quantize="nf4"), optim=optim)
    run("train", keys, tmp_path)
    keys["optim"]["steps"] = 3
    keys["model"]["quantize"] = "int8"
    code, text = attempt("train", keys, tmp_path)
    assert code == 74 and "model.quantize" in text and "nf4" in text and "int8" in text, text
    keys["model"]["quantize"] = "nf4"
    run("train", keys, tmp_path)
    assert [r["step"] for r in metrics(tmp_path, "train")] == [1, 2, 3]


def test_full_trains_no_quantised_weights(tmp_path):
    golden = Golden("gqa_full")
    code, text = attempt("train", recipe(golden, tmp_path, model=dict(quantize="int8")), tmp_path)
    assert code == 78
    assert "model.quantize: found int8, method full trains the weights themselves; allowed: none" in text
