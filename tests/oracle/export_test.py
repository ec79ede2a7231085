"""What graft writes is what HF reads: adapters load in PEFT, merged models in transformers, with the same logits."""

import json
import shutil

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

import prepared_data
import reference
from compare import LOGITS_ABSOLUTE, LOSS_RELATIVE, logits_difference, relative
from graft_program import Golden, attempt, data_folder, metrics, recipe, run
from variants import NUM_LABELS


MERGED = [
    "gqa_lora",
    "tied_lora",
    "gqa_lora_qv",
    "biases_red",
    "gqa_red",
    "biases_ia3",
    "gqa_fanlora",
    "gpt2_lora",
    "gpt2_lora_joint",
    "gpt2_red_fused",
    "gpt2_red",
    "gpt2_red_attention",
    "gpt2_headless_lora",
    "gpt2_ia3",
    "gpt2_fanlora",
    "roberta_lora",
    "roberta_red",
    "roberta_headless_red",
    "gpt2_lora_score",
    "t5_lora",
    "t5_ia3",
    "t5_v1_1_red",
]
TRAINED = MERGED + ["roberta_prompt_tuning", "gpt2_prompt_tuning_score", "roberta_idpg"]


def task_of(golden):
    return golden.numbers["case"]["task"]


def evaluation_samples(golden):
    return prepared_data.read(data_folder(task_of(golden), "eval"))


def load_model(golden):
    return reference.load_model(golden.model, task=task_of(golden))


@pytest.fixture(scope="session")
def trained_run(request, tmp_path_factory):
    golden = Golden(request.param)
    output = tmp_path_factory.mktemp(golden.name)
    keys = recipe(golden, output)
    run("train", keys, output)
    return golden, output, keys


@pytest.mark.parametrize("trained_run", TRAINED, indirect=True)
def test_adapter_loads_in_hf_with_the_same_loss(trained_run):
    golden, output, _ = trained_run
    model = reference.load_adapter(load_model(golden), output / "adapter")
    loss = reference.evaluate(model, evaluation_samples(golden))
    assert relative(loss, golden.numbers["eval_after"]) <= LOSS_RELATIVE


@pytest.mark.parametrize("trained_run", TRAINED, indirect=True)
def test_exported_checkpoint_is_the_adapter(trained_run, tmp_path):
    _, output, keys = trained_run
    export = dict(to=str(tmp_path / "exported"), merge=False)
    export["from"] = str(output)
    run("export", keys | dict(export=export), tmp_path)
    name = "adapter_model.safetensors"
    assert (tmp_path / "exported" / name).read_bytes() == (output / "adapter" / name).read_bytes()


@pytest.mark.parametrize("trained_run", MERGED, indirect=True)
def test_merged_model_loads_in_hf_with_the_same_logits(trained_run, tmp_path):
    golden, output, keys = trained_run
    task = golden.numbers["case"]["task"]
    export = dict(to=str(tmp_path / "merged"), merge=True)
    export["from"] = str(output)
    run("export", keys | dict(export=export), tmp_path)
    unmerged = reference.load_adapter(load_model(golden), output / "adapter")
    if task in ("causal_lm", "seq2seq"):
        merged = reference.load_model(tmp_path / "merged", task=task)
    else:  # the folder itself says which class and how many outputs
        config = json.loads((tmp_path / "merged" / "config.json").read_text())
        merged = getattr(transformers, config["architectures"][0])
        merged = merged.from_pretrained(tmp_path / "merged").eval()
        assert merged.num_labels == (NUM_LABELS if task == "classification" else 1)
    with torch.no_grad():
        for sample in evaluation_samples(golden)[:4]:
            merged_logits, unmerged_logits = (
                reference.logits(model, sample.ids, target=sample.target)
                for model in (merged, unmerged)
            )
            difference = logits_difference(merged_logits, unmerged_logits)
            assert difference <= LOGITS_ABSOLUTE


NOT_MERGED = ["gqa_prompt_tuning", "gqa_idpg", "gqa_lopa", "gqa_para"]
NOT_MERGED += ["t5_prompt_tuning", "t5_para"]


@pytest.mark.parametrize("name", NOT_MERGED)
def test_adapter_that_does_not_merge(name, tmp_path):
    """The folder means the same to the reference; a merge is refused."""
    golden = Golden(name)
    keys = recipe(golden, tmp_path)
    run("train", keys, tmp_path)
    model = reference.load_adapter(load_model(golden), tmp_path / "adapter")
    loss = reference.evaluate(model, evaluation_samples(golden))
    assert relative(loss, golden.numbers["eval_after"]) <= LOSS_RELATIVE
    export = dict(to=str(tmp_path / "merged"), merge=True)
    export["from"] = str(tmp_path)
    code, errors = attempt("export", keys | dict(export=export), tmp_path)
    assert code == 78 and "does not merge" in errors, errors
    assert not (tmp_path / "merged").exists()


def test_no_bias_merges_into_t5(tmp_path):
    """Its linears have none; what: scale merges (above)."""
    golden = Golden("t5_red")
    export = dict(to=str(tmp_path / "merged"), merge=True)
    export["from"] = str(golden.folder / "initial")
    code, errors = attempt("export", recipe(golden, tmp_path, export=export), tmp_path)
    assert code == 78 and "needs a bias" in errors, errors
    assert not (tmp_path / "merged").exists()


def test_prompt_tuning_of_both_stacks_is_read_for_the_encoder(tmp_path):
    """HF PEFT's default for T5 keeps as many rows again behind the encoder's and never uses them."""
    golden = Golden("t5_prompt_tuning")
    initial = tmp_path / "initial"
    shutil.copytree(golden.folder / "initial", initial)
    config = json.loads((initial / "adapter_config.json").read_text())
    config["num_transformer_submodules"] = 2
    (initial / "adapter_config.json").write_text(json.dumps(config))
    rows = load_file(initial / "adapter_model.safetensors")["prompt_embeddings"]
    doubled = torch.cat([rows, torch.full_like(rows, 7.0)])
    save_file({"prompt_embeddings": doubled}, initial / "adapter_model.safetensors")
    keys = recipe(golden, tmp_path / "run", adapter=dict(init_from=str(initial)))
    run("train", keys | dict(optim=keys["optim"] | dict(steps=1)), tmp_path / "run")
    loss = metrics(tmp_path / "run", "train")[0]["loss"]
    assert relative(loss, golden.numbers["steps"][0]["loss"]) <= LOSS_RELATIVE


@pytest.mark.parametrize(
    "name, what",
    [("gqa_red", "scale"), ("biases_red", "bias"), ("gpt2_red", "scale"), ("gpt2_red_fused", "scale")]
    + [("t5_v1_1_red", "scale"), ("roberta_red", "scale"), ("roberta_red", "bias")],
)
def test_a_half_of_red_as_a_type_of_peft(name, what, tmp_path):
    """PEFT's IA3 or BEFT with the exported folder computes what the reference's RED does with the run's own."""
    golden = Golden(name)
    keys = recipe(golden, tmp_path / "run")
    keys["adapter"] = {k: v for k, v in keys["adapter"].items() if k != "init_from"} | dict(what=what)
    run("train", keys, tmp_path / "run")
    keys["export"] = {"from": str(tmp_path / "run"), "to": str(tmp_path / "to"), "as": "peft"}
    run("export", keys, tmp_path)
    own = reference.load_adapter(load_model(golden), tmp_path / "run" / "adapter")
    peft = PeftModel.from_pretrained(load_model(golden), tmp_path / "to").eval()
    assert type(peft.peft_config["default"]).__name__ == dict(scale="IA3Config", bias="BeftConfig")[what]
    with torch.no_grad():
        for sample in evaluation_samples(golden)[:4]:
            a, b = (reference.logits(model, sample.ids, target=sample.target) for model in (own, peft))
            assert logits_difference(a, b) <= LOGITS_ABSOLUTE


def test_red_whole_has_no_type_of_peft(tmp_path):
    golden = Golden("gqa_red")
    keys = recipe(golden, tmp_path)
    keys["export"] = {"from": str(golden.folder / "initial"), "to": str(tmp_path / "to"), "as": "peft"}
    code, errors = attempt("export", keys, tmp_path)
    assert code == 78 and "export.as" in errors and "scale_and_bias" in errors, errors
    golden = Golden("gpt2_red")  # BEFT knows no Conv1D
    keys = recipe(golden, tmp_path, export=keys["export"] | {"from": str(golden.folder / "initial")})
    keys["adapter"]["what"] = "bias"
    del keys["adapter"]["init_from"]
    run("train", keys, tmp_path / "bias")
    keys["export"]["from"] = keys["run"]["output"]
    code, errors = attempt("export", keys, tmp_path)
    assert code == 78 and "Conv1D" in errors, errors
    keys = recipe(Golden("gqa_lora"), tmp_path, export=keys["export"] | {"from": str(Golden("gqa_lora").folder / "initial")})
    code, errors = attempt("export", keys, tmp_path)
    assert code == 78 and "export.as" in errors, errors
