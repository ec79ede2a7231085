"""SmolLM2-135M: ten steps equal HF transformers + PEFT's on one rank, two data ranks and two stages; so do its beams."""

import json

import pytest
import torch

import prepared_data
import reference
from beams import search_options
from compare import check_final, check_steps
from graft_program import GOLDENS, Golden, metrics, recipe, run

BEAMS, NEW_TOKENS = 4, 16


@pytest.mark.parametrize(
    "name, data, pipeline",
    [
        ("smollm2_lora", 1, 1),
        ("smollm2_lora", 2, 1),
        ("smollm2_lora", 1, 2),
        ("smollm2_red", 1, 1),
        ("smollm2_red", 1, 2),
    ],
)
def test_ten_steps(name, data, pipeline, tmp_path):
    golden = Golden(name)
    parallel = dict(data=data, pipeline=pipeline)
    keys = recipe(golden, tmp_path, parallel=parallel, optim=dict(micro_batch=1))
    run("train", keys, tmp_path)
    check_steps(metrics(tmp_path, "train"), golden.numbers["steps"])
    check_final(tmp_path, golden)


@torch.no_grad()
def test_beam_search(tmp_path):
    """Against HF's own generate with its cache, for LoRA away from its start, on one and on two stages."""
    golden = Golden("smollm2_lora")
    model = reference.load_adapter(reference.load_model(golden.model), golden.folder / "initial")
    options = search_options(BEAMS, NEW_TOKENS, model.config.eos_token_id)
    expected = []
    for sample in prepared_data.read(GOLDENS / "data" / "eval"):
        prompt = torch.tensor([sample.ids[: sample.prompt_length]])
        found = model.generate(input_ids=prompt, use_cache=True, **options)
        expected.append(found[0, prompt.shape[1] :].tolist())
    for pipeline in (1, 2):
        output = tmp_path / str(pipeline)
        sections = dict(
            parallel=dict(pipeline=pipeline),
            generate=dict(beams=BEAMS, max_new_tokens=NEW_TOKENS),
        )
        run("generate", recipe(golden, output, **sections), output)
        lines = (output / "generations.jsonl").read_text().splitlines()
        assert [json.loads(line)["tokens"] for line in lines] == expected, pipeline
