"""The commands that train nothing: the loss of `eval` and the greedy tokens of `generate` equal the reference's."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file

import beams
import prepared_data
import reference
from compare import LOGITS_ABSOLUTE, LOSS_RELATIVE, logits_difference, read_json, relative
from graft_program import Golden, attempt, data_folder, recipe, run
from variants import NUM_LABELS, VOCAB_SIZE

NEW_TOKENS = 6


@torch.no_grad()
def expected_answers(model, samples):
    """By their definitions, from the reference's own choice at every trained position."""
    right = []
    for sample in samples:
        if targets := sample.targets():
            said = reference.sample_logits(model, sample).argmax(1).tolist()
            right.append([said[row] == token for row, token in targets])
    tokens = [hit for hits in right for hit in hits]
    return dict(token_accuracy=sum(tokens) / len(tokens), exact_match=sum(map(all, right)) / len(right))


@torch.no_grad()
def answered(model, sample):
    """The sample with the reference's own choice in place of every trained token, from left to right."""
    ids = list(sample.ids)
    for row, _ in sample.targets():
        ids[row + 1] = int(reference.logits(model, ids, sample.prompt_length)[row].argmax())
    return replace(sample, ids=ids)


@pytest.mark.parametrize(
    "name, data, pipeline",
    [
        ("qwen2_lora", 1, 1),
        ("tied_lora", 2, 1),
        ("gqa_red", 1, 2),
        ("gpt2_lora_qv", 1, 1),
        ("gqa_para", 2, 1),
        ("gqa_lopa", 1, 2),
        ("gqa_lopa_encoder", 1, 2),
    ],
)
def test_eval(name, data, pipeline, evaluation_samples, tmp_path):
    golden = Golden(name)
    parallel = dict(data=data, pipeline=pipeline)
    result = read_json(run("eval", recipe(golden, tmp_path, parallel=parallel), tmp_path))
    assert relative(result["loss"], golden.numbers["eval_before"]) <= LOSS_RELATIVE
    assert result["tokens"] == sum(len(s.ids) for s in evaluation_samples)
    assert result["samples"] == len(evaluation_samples)
    model = reference.load_adapter(reference.load_model(golden.model), golden.folder / "initial")
    for metric, value in expected_answers(model, evaluation_samples).items():
        assert abs(result[metric] - value) <= 1e-12, metric


@pytest.mark.parametrize("name, data, pipeline", [("tied_lora", 1, 1), ("gqa_lopa", 2, 1), ("gpt2_lora_qv", 1, 2)])
def test_eval_of_answers_that_the_model_gives(name, data, pipeline, evaluation_samples, tmp_path):
    """Every second sample is answered as the reference itself would, so both metrics lie between 0 and 1."""
    golden = Golden(name)
    model = reference.load_adapter(reference.load_model(golden.model), golden.folder / "initial")
    samples = [answered(model, s) if i % 2 == 0 else s for i, s in enumerate(evaluation_samples)]
    prepared_data.write(tmp_path / "data", samples, model.config.vocab_size)
    keys = recipe(golden, tmp_path, parallel=dict(data=data, pipeline=pipeline), data=dict(eval=str(tmp_path / "data")))
    result = read_json(run("eval", keys, tmp_path))
    expected = expected_answers(model, samples)
    assert 0 < expected["token_accuracy"] < 1 and 0 < expected["exact_match"] < 1
    for metric, value in expected.items():
        assert abs(result[metric] - value) <= 1e-12, metric


def expected_metrics(model, samples):
    """By their definitions: accuracy, macro F1 and Matthews' correlation as that of one-hot columns; Pearson's."""
    outputs = [reference.sample_logits(model, s) for s in samples]
    if isinstance(samples[0].label, float):
        x, y = (torch.tensor(v, dtype=torch.float64) for v in ([o.item() for o in outputs], [s.label for s in samples]))
        return dict(pearson=torch.corrcoef(torch.stack([x, y]))[0, 1].item(), mse=((x - y) ** 2).mean().item())
    said, true = [int(o.argmax()) for o in outputs], [s.label for s in samples]
    right = sum(a == b for a, b in zip(said, true))
    one_hot = [F.one_hot(torch.tensor(v), NUM_LABELS).double() for v in (said, true)]
    centred = [m - m.mean(0) for m in one_hot]
    covariance = [(a * b).sum() for a, b in ((centred[0], centred[1]), (centred[0], centred[0]), (centred[1], centred[1]))]
    f1 = [2 * sum(a == b == c for a, b in zip(said, true)) / max(1, said.count(c) + true.count(c)) for c in range(NUM_LABELS)]
    spread = covariance[1] * covariance[2]
    mcc = covariance[0] / spread.sqrt() if spread > 0 else torch.zeros(())
    return dict(accuracy=right / len(true), f1=sum(f1) / NUM_LABELS, mcc=mcc.item())


@pytest.mark.parametrize(
    "name, data, pipeline",
    [("roberta_lora", 1, 1), ("roberta_red", 2, 1), ("roberta_headless_red", 1, 2), ("gpt2_lora_score", 1, 1)]
    + [("roberta_prompt_tuning", 1, 2), ("roberta_lopa_first", 2, 1), ("roberta_para", 1, 1)]
    + [("roberta_idpg_encoder_trained", 1, 2)],
)
@torch.no_grad()
def test_eval_with_labels(name, data, pipeline, tmp_path):
    golden = Golden(name)
    task = golden.numbers["case"]["task"]
    samples = prepared_data.read(data_folder(task, "eval"))
    parallel = dict(data=data, pipeline=pipeline)
    result = read_json(run("eval", recipe(golden, tmp_path, parallel=parallel), tmp_path))
    assert relative(result["loss"], golden.numbers["eval_before"]) <= LOSS_RELATIVE
    assert result["samples"] == len(samples)
    model = reference.load_adapter(reference.load_model(golden.model, task=task), golden.folder / "initial")
    for metric, value in expected_metrics(model, samples).items():
        assert abs(result[metric] - value) <= 1e-5 * max(1, abs(value)), metric


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
        ("t5_lora", 1, 1),
        ("t5_v1_1_lora", 1, 3),
        ("t5_ia3", 2, 1),
        ("t5_v1_1_red", 1, 2),
        ("t5_para", 1, 2),
        ("t5_v1_1_para_attention", 2, 2),
        ("t5_prompt_tuning", 1, 1),
        ("t5_idpg", 1, 2),
        ("t5_v1_1_lopa", 2, 1),
        ("gqa_lopa_encoder", 2, 1),
        ("gpt2_idpg_encoder", 1, 2),
        ("t5_lopa_encoder", 1, 2),
    ],
)
def test_generate(name, data, pipeline, tmp_path):
    golden = Golden(name)
    task = golden.numbers["case"]["task"]
    samples = prepared_data.read(data_folder(task, "eval"))
    sections = dict(
        parallel=dict(data=data, pipeline=pipeline), generate=dict(max_new_tokens=NEW_TOKENS)
    )
    said = read_json(run("generate", recipe(golden, tmp_path, **sections), tmp_path))
    lines = (tmp_path / "generations.jsonl").read_text().splitlines()
    model = reference.load_adapter(reference.load_model(golden.model, task=task), golden.folder / "initial")
    expected = [reference.greedy(model, sample, NEW_TOKENS) for sample in samples]
    assert [json.loads(line)["tokens"] for line in lines] == expected
    assert (said["samples"], said["tokens"]) == (len(expected), sum(map(len, expected)))


BEAM_TOKENS = 8
MANY_ENDS = [2, *range(5, 131, 9)]
# With those, searches of these cases finish at several lengths.
ENDING_EARLY = ("tied_lora", "gqa_idpg", "gqa_para")


def with_end_tokens(model_folder, end_tokens, folder):
    """A copy of the model folder whose config names these end tokens."""
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | dict(eos_token_id=end_tokens)))
    return str(folder)


@pytest.mark.parametrize(
    "name, data, pipeline, num_beams, end_tokens",
    [
        ("gqa_red", 1, 1, 2, [2]),
        ("tied_lora", 1, 2, 4, MANY_ENDS),
        ("gpt2_lora_joint", 1, 1, 4, MANY_ENDS),
        ("gpt2_red", 1, 2, 3, [2]),
        ("mistral_lora", 2, 1, 5, [2, 17]),
        ("gqa_prompt_tuning", 1, 1, 3, [2]),
        ("gqa_idpg", 2, 1, 2, MANY_ENDS),
        ("tied_lopa_concat", 1, 2, 3, MANY_ENDS),
        ("gqa_para", 1, 1, 4, MANY_ENDS),
        ("gpt2_para", 1, 2, 3, MANY_ENDS),
        ("gpt2_lopa", 2, 2, 2, [2]),
        ("t5_lora", 1, 1, 4, MANY_ENDS),
        ("t5_v1_1_lora", 1, 2, 3, MANY_ENDS),
        ("t5_para", 2, 1, 3, MANY_ENDS),
        ("t5_idpg", 1, 4, 2, [2]),
        ("gqa_lopa_encoder_trained", 1, 1, 3, MANY_ENDS),
    ],
)
def test_beam_search(name, data, pipeline, num_beams, end_tokens, tmp_path):
    golden = Golden(name)
    task = golden.numbers["case"]["task"]
    samples = prepared_data.read(data_folder(task, "eval"))
    sections = dict(
        model=dict(path=with_end_tokens(golden.model, end_tokens, tmp_path / "model")),
        parallel=dict(data=data, pipeline=pipeline),
        generate=dict(max_new_tokens=BEAM_TOKENS, beams=num_beams),
    )
    run("generate", recipe(golden, tmp_path, **sections), tmp_path)
    lines = (tmp_path / "generations.jsonl").read_text().splitlines()
    model = reference.load_adapter(reference.load_model(golden.model, task=task), golden.folder / "initial")
    expected = [beams.search(model, s, num_beams, BEAM_TOKENS, end_tokens) for s in samples]
    assert [json.loads(line)["tokens"] for line in lines] == expected
    if name in ENDING_EARLY:
        assert len({len(tokens) for tokens in expected}) > 1


@torch.no_grad()
def greedy_from_embeddings(model, soft_prompt, sample, max_new_tokens):
    """What a plain HF model says behind these rows, which it gets as input embeddings; no PEFT."""
    embed = model.get_input_embeddings()
    tokens = []
    while len(tokens) < max_new_tokens:
        ids = torch.tensor(sample.ids[: sample.prompt_length] + tokens)
        rows = torch.cat([soft_prompt, embed(ids)])[None]
        tokens.append(int(model(inputs_embeds=rows, use_cache=False).logits[0, -1].argmax()))
        if tokens[-1] == model.config.eos_token_id:
            break
    return tokens


@pytest.mark.parametrize(
    "name, data",
    [
        ("gqa_lopa", 1),
        ("tied_lopa_concat", 2),
        ("gpt2_idpg", 1),
        ("gqa_para", 2),
        ("gpt2_para", 1),
        ("mistral_para_some", 1),
        ("gqa_lopa_encoder", 2),
    ],
)
def test_prompt(name, data, evaluation_samples, tmp_path):
    """HF PEFT with the folder of one request says what the method itself says of that request; the rows of a soft
    prompt do so too when a plain HF model gets them as input embeddings."""
    golden = Golden(name)
    sections = dict(parallel=dict(data=data), generate=dict(max_new_tokens=NEW_TOKENS))
    keys = recipe(golden, tmp_path, **sections)
    run("prompt", keys, tmp_path)
    run("generate", keys, tmp_path)
    lines = map(json.loads, (tmp_path / "generations.jsonl").read_text().splitlines())
    tokens = {line["sample_id"]: line["tokens"] for line in lines}
    assert {int(folder.name) for folder in (tmp_path / "prompts").iterdir()} == set(tokens)
    own = reference.load_adapter(reference.load_model(golden.model), golden.folder / "initial")
    for (sample_id, answer), sample in list(zip(tokens.items(), evaluation_samples))[::3]:
        folder = tmp_path / "prompts" / str(sample_id)
        served = PeftModel.from_pretrained(reference.load_model(golden.model), folder)
        with torch.no_grad():
            difference = logits_difference(
                reference.logits(served, sample.ids),
                reference.sample_logits(own, sample),
            )
        assert difference <= LOGITS_ABSOLUTE
        assert reference.greedy(served, sample, NEW_TOKENS) == answer
        if served.peft_config["default"].peft_type == "PROMPT_TUNING":
            rows = load_file(folder / "adapter_model.safetensors")["prompt_embeddings"]
            plain = reference.load_model(golden.model)
            assert greedy_from_embeddings(plain, rows, sample, NEW_TOKENS) == answer


def test_prompt_refuses(tmp_path):
    def refused(name, code, *parts, **sections):
        keys = recipe(Golden(name), tmp_path / "run", **sections)
        found, errors = attempt("prompt", keys, tmp_path)
        last = errors.strip().splitlines()[-1]
        assert found == code and all(part in last for part in parts), errors
        assert not list((tmp_path / "run").glob("prompts/*"))

    refused("gqa_lora", 78, "adapter.method", "lora", "idpg, lopa, para")
    refused("gqa_prompt_tuning", 78, "adapter.method", "prompt_tuning")
    refused("gqa_para", 78, "parallel.pipeline", parallel=dict(pipeline=2))
    refused("roberta_para", 78, "task.type", "causal_lm")
    samples = prepared_data.read(data_folder("causal_lm", "eval"))
    samples[0].prompt_length = 0
    prepared_data.write(tmp_path / "data", samples, VOCAB_SIZE)
    data = dict(eval=str(tmp_path / "data"))
    refused("gqa_para", 65, "prompt_lengths", "sample 1000", data=data)
