"""What graft writes is what HF reads: adapters load in PEFT, merged models in transformers, with the same logits."""

import json

import pytest
import torch
import transformers

import prepared_data
import reference
from compare import LOGITS_ABSOLUTE, LOSS_RELATIVE, logits_difference, relative
from graft_program import Golden, attempt, data_folder, recipe, run
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
    "gpt2_headless_lora",
    "gpt2_ia3",
    "gpt2_fanlora",
    "roberta_lora",
    "roberta_red",
    "roberta_headless_red",
    "gpt2_lora_score",
]
TRAINED = MERGED + ["roberta_prompt_tuning", "gpt2_prompt_tuning_score", "roberta_idpg"]


def load_model(golden):
    return reference.load_model(golden.model, task=golden.numbers["case"]["task"])


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
    samples = prepared_data.read(data_folder(golden.numbers["case"]["task"], "eval"))
    model = reference.load_adapter(load_model(golden), output / "adapter")
    loss = reference.evaluate(model, samples)
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
    if task == "causal_lm":
        merged = reference.load_model(tmp_path / "merged")
    else:  # the folder itself says which class and how many outputs
        config = json.loads((tmp_path / "merged" / "config.json").read_text())
        merged = getattr(transformers, config["architectures"][0])
        merged = merged.from_pretrained(tmp_path / "merged").eval()
        assert merged.num_labels == (NUM_LABELS if task == "classification" else 1)
    with torch.no_grad():
        for sample in prepared_data.read(data_folder(task, "eval"))[:4]:
            difference = logits_difference(
                reference.logits(merged, sample.ids), reference.logits(unmerged, sample.ids)
            )
            assert difference <= LOGITS_ABSOLUTE


@pytest.mark.parametrize("name", ["gqa_prompt_tuning", "gqa_idpg", "gqa_lopa", "gqa_para"])
def test_adapter_that_does_not_merge(name, evaluation_samples, tmp_path):
    """The folder means the same to the reference; a merge is refused."""
    golden = Golden(name)
    keys = recipe(golden, tmp_path)
    run("train", keys, tmp_path)
    model = reference.load_adapter(reference.load_model(golden.model), tmp_path / "adapter")
    loss = reference.evaluate(model, evaluation_samples)
    assert relative(loss, golden.numbers["eval_after"]) <= LOSS_RELATIVE
    export = dict(to=str(tmp_path / "merged"), merge=True)
    export["from"] = str(tmp_path)
    code, errors = attempt("export", keys | dict(export=export), tmp_path)
    assert code == 78 and "does not merge" in errors, errors
    assert not (tmp_path / "merged").exists()
