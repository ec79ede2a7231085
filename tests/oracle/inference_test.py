"""The commands that train nothing: the loss of `eval` and the greedy tokens of `generate` equal the reference's."""

import json

import pytest

import reference
from compare import LOSS_RELATIVE, read_json, relative
from graft_program import Golden, recipe, run

NEW_TOKENS = 6


@pytest.mark.parametrize(
    "name, data, pipeline",
    [
        ("qwen2_lora", 1, 1),
        ("tied_lora", 2, 1),
        ("gqa_red", 1, 2),
        ("gpt2_lora_qv", 1, 1),
        ("gqa_para", 2, 1),
        ("gqa_lopa", 1, 2),
    ],
)
def test_eval(name, data, pipeline, evaluation_samples, tmp_path):
    golden = Golden(name)
    parallel = dict(data=data, pipeline=pipeline)
    result = read_json(run("eval", recipe(golden, tmp_path, parallel=parallel), tmp_path))
    assert relative(result["loss"], golden.numbers["eval_before"]) <= LOSS_RELATIVE
    assert result["tokens"] == sum(len(s.ids) for s in evaluation_samples)
    assert result["samples"] == len(evaluation_samples)


@pytest.mark.parametrize(
    "name, data, pipeline",
    [
        ("mistral_lora", 1, 1),
        ("rope_yarn_lora", 1, 1),
        ("tied_lora", 1, 2),
        ("gqa_red", 2, 1),
        ("gpt2_lora_joint", 1, 1),
        ("gpt2_red", 1, 2),
        ("biases_ia3", 1, 1),
        ("gqa_prompt_tuning", 1, 1),
        ("gqa_idpg", 2, 1),
        ("tied_lopa_concat", 1, 2),
        ("gqa_para", 1, 1),
        ("gqa_para_attention_rational", 1, 2),
        ("mistral_para_some", 1, 1),
        ("gpt2_para", 1, 2),
        ("gpt2_lopa", 1, 1),
    ],
)
def test_generate(name, data, pipeline, evaluation_samples, tmp_path):
    golden = Golden(name)
    sections = dict(
        parallel=dict(data=data, pipeline=pipeline), generate=dict(max_new_tokens=NEW_TOKENS)
    )
    run("generate", recipe(golden, tmp_path, **sections), tmp_path)
    lines = (tmp_path / "generations.jsonl").read_text().splitlines()
    model = reference.load_adapter(reference.load_model(golden.model), golden.folder / "initial")
    expected = [
        reference.greedy(model, s.ids[: s.prompt_length], NEW_TOKENS) for s in evaluation_samples
    ]
    assert [json.loads(line)["tokens"] for line in lines] == expected
