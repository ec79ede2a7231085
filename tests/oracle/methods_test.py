"""What each method refuses or warns of before the first step, and what it does with samples without a prompt."""

import json

import pytest
import torch
from safetensors.torch import load_file

import prepared_data
import reference
from compare import LOSS_RELATIVE, relative
from graft_program import GOLDENS, Golden, attempt, metrics, recipe, run
from variants import MAX_SAMPLE_LENGTH, VOCAB_SIZE

POSITIONS = 64


def last_line(errors):
    return errors.strip().splitlines()[-1]


def refused(code, kind, keys, folder, *parts):
    found, errors = attempt("train", keys, folder)
    assert found == code, errors
    assert last_line(errors).startswith(f"graft: error: {kind}: "), errors
    for part in parts:
        assert part in last_line(errors), errors


@pytest.mark.parametrize("name", ["gqa_prompt_tuning", "gqa_lopa"])
def test_text_and_soft_prompt_must_fit_the_positions(name, tmp_path):
    keys = recipe(Golden(name), tmp_path)
    keys["adapter"] = {k: v for k, v in keys["adapter"].items() if k != "init_from"}
    keys["adapter"]["prompt_length"] = POSITIONS - MAX_SAMPLE_LENGTH + 1
    refused(65, "input", keys, tmp_path, "data.train", "sample 1002 has 40 tokens", "positions for 39")
    keys["adapter"]["prompt_length"] -= 1
    run("train", keys, tmp_path)


def test_packing_with_a_soft_prompt_is_refused(tmp_path):
    keys = recipe(Golden("gqa_lopa"), tmp_path, data=dict(packing=True, row_length=64))
    refused(78, "recipe", keys, tmp_path, "data.packing", "lopa")


def without_prompts(folder, keep_one):
    samples = prepared_data.read(GOLDENS / "data" / "train")
    for i, sample in enumerate(samples):
        sample.prompt_length = 0 if i or not keep_one else sample.prompt_length
    prepared_data.write(folder, samples, VOCAB_SIZE)
    return samples


@pytest.mark.parametrize("name", ["gqa_para", "gqa_lopa", "gqa_idpg"])
def test_data_without_any_prompt_is_refused(name, tmp_path):
    without_prompts(tmp_path / "data", keep_one=False)
    keys = recipe(Golden(name), tmp_path, data=dict(train=str(tmp_path / "data")))
    refused(65, "input", keys, tmp_path, "prompt_lengths", "sample 1000")


@pytest.mark.parametrize("name", ["gqa_para", "gqa_lopa"])
def test_a_sample_without_a_prompt_has_a_zero_vector(name, tmp_path):
    golden = Golden(name)
    samples = without_prompts(tmp_path / "data", keep_one=True)
    keys = recipe(golden, tmp_path, data=dict(train=str(tmp_path / "data")), optim=dict(steps=1))
    run("train", keys, tmp_path)
    model = reference.load_adapter(
        reference.load_model(golden.model), golden.folder / "initial", trainable=True
    )
    expected = next(reference.train(model, samples, golden.numbers["case"]["optim"], 1))
    assert relative(metrics(tmp_path, "train")[0]["loss"], expected["loss"]) <= LOSS_RELATIVE


def test_targets_inside_the_prompt_are_counted(tmp_path):
    samples = prepared_data.read(GOLDENS / "data" / "train")
    count = sum(sum(s.mask[1 : s.prompt_length]) for s in samples)
    assert count > 0
    keys = recipe(Golden("gqa_para"), tmp_path, optim=dict(steps=1))
    code, errors = attempt("train", keys, tmp_path)
    assert code == 0, errors
    assert f"{count} trained tokens lie inside the prompt" in errors


def test_keys_that_the_setting_decides_draw_one_warning(tmp_path):
    keys = recipe(Golden("gqa_fanlora"), tmp_path, optim=dict(steps=1))
    keys["adapter"] |= dict(sites="all", layers="0-1", rank=4)
    code, errors = attempt("train", keys, tmp_path)
    assert code == 0, errors
    warnings = [line for line in errors.splitlines() if "does not use" in line]
    assert len(warnings) == 1, errors
    for key in ("adapter.sites", "adapter.layers", "adapter.rank"):
        assert key in warnings[0]


def test_a_setting_of_another_model_is_refused(tmp_path):
    keys = recipe(Golden("gqa_fanlora"), tmp_path)
    setting = json.loads((Golden("gqa_fanlora").folder / "setting.json").read_text())
    setting["num_layers"] = 5
    (tmp_path / "setting.json").write_text(json.dumps(setting))
    keys["adapter"]["setting"] = str(tmp_path / "setting.json")
    refused(65, "input", keys, tmp_path, "num_layers: found 5, the model has 4")


def test_a_setting_counts_by_content_when_a_run_is_continued(tmp_path):
    golden = Golden("gqa_fanlora")
    source = golden.folder / "setting.json"
    keys = recipe(golden, tmp_path, optim=dict(steps=1, schedule="constant", warmup_steps=0))
    run("train", keys, tmp_path)
    moved = tmp_path / "moved.json"
    moved.write_text(source.read_text())
    keys["adapter"]["setting"] = str(moved)
    keys["optim"]["steps"] = 2
    run("train", keys, tmp_path)
    assert [r["step"] for r in metrics(tmp_path, "train")] == [1, 2]
    moved.write_text(source.read_text().replace("4.5", "5.5"))
    keys["optim"]["steps"] = 3
    del keys["adapter"]["init_from"]
    refused(74, "io", keys, tmp_path, "adapter.setting")


def test_a_prompt_may_start_from_word_embeddings(tmp_path):
    keys = recipe(Golden("gqa_prompt_tuning"), tmp_path, optim=dict(steps=1, lr=0.0))
    keys["adapter"] = dict(method="prompt_tuning", prompt_length=6, init="vocab")
    run("train", keys, tmp_path)
    prompt = load_file(tmp_path / "adapter" / "adapter_model.safetensors")["prompt_embeddings"]
    words = reference.load_model(Golden("gqa_prompt_tuning").model).get_input_embeddings().weight
    distance = torch.cdist(prompt, words.detach(), compute_mode="donot_use_mm_for_euclid_dist")
    assert distance.min(1).values.max() < 1e-5
    assert distance.argmin(1).unique().numel() > 1


@pytest.mark.parametrize("name, pipeline", [("gqa_lopa", 2), ("gqa_para", 1)])
def test_a_continued_run_is_the_uninterrupted_one(name, pipeline, tmp_path):
    def train(output, steps, dropout):
        keys = recipe(
            Golden(name),
            tmp_path / output,
            parallel=dict(pipeline=pipeline),
            adapter=dict(dropout=dropout),
            optim=dict(steps=steps, schedule="constant", warmup_steps=0),
        )
        run("train", keys, tmp_path / output)
        return (tmp_path / output / "adapter" / "adapter_model.safetensors").read_bytes()

    whole = train("whole", 4, dropout=0.2)
    assert train("parts", 2, dropout=0.2) != whole
    assert train("parts", 4, dropout=0.2) == whole
    assert train("plain", 4, dropout=0.0) != whole
