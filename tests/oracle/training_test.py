"""Ten steps of training equal HF transformers + PEFT's: every model variant, adapter, layout, schedule and way to cut a batch."""

import pytest
import torch
from safetensors.torch import load_file

import prepared_data
from compare import (
    BFLOAT16_GRAD_NORM_RELATIVE,
    BFLOAT16_LOSS_RELATIVE,
    LOSS_RELATIVE,
    check_final,
    check_steps,
    relative,
)
from graft_program import GOLDENS, Golden, metrics, recipe, run
from variants import LLAMA_MODELS


def train_and_check(name, output, **sections):
    golden = Golden(name)
    run("train", recipe(golden, output, **sections), output)
    check_steps(metrics(output, "train"), golden.numbers["steps"])
    check_final(output, golden)
    return golden


# The full cross product would only repeat the same code: each row here takes one new way through it.
ONE_RANK = [pytest.param(f"{model}_lora", 2, id=model) for model in LLAMA_MODELS] + [
    pytest.param("gqa_lora_qv", 1, id="q,v rslora cosine"),
    pytest.param("gqa_lora_upper", 3, id="upper layers"),
    pytest.param("gqa_red", 4, id="RED"),
    pytest.param("gqa_red_states", 2, id="RED at hidden states of two layers"),
    pytest.param("biases_red", 3, id="RED on a biased linear"),
    pytest.param("gpt2_lora", 2, id="GPT-2"),
    pytest.param("gpt2_lora_joint", 3, id="GPT-2, one LoRA on the fused projection"),
    pytest.param("gpt2_red", 2, id="GPT-2 RED"),
    pytest.param("gpt2_headless_lora", 1, id="GPT-2 saved without a head"),
    pytest.param("roberta_lora", 2, id="RoBERTa"),
    pytest.param("roberta_red", 3, id="RoBERTa RED"),
    pytest.param("roberta_head_alone", 1, id="RoBERTa, the head alone"),
    pytest.param("roberta_headless_red", 2, id="RoBERTa, regression"),
    pytest.param("gpt2_lora_score", 2, id="GPT-2 with a task head"),
    pytest.param("tied_lora_score", 1, id="Llama with a task head"),
    pytest.param("gqa_ia3", 3, id="IA3"),
    pytest.param("gqa_fanlora", 2, id="FanLoRA"),
    pytest.param("gqa_prompt_tuning", 3, id="prompt tuning"),
    pytest.param("gqa_idpg", 2, id="IDPG"),
    pytest.param("gqa_lopa", 3, id="LoPA"),
    pytest.param("tied_lopa_concat", 2, id="LoPA concat"),
    pytest.param("gqa_para", 3, id="PARA"),
    pytest.param("gqa_para_attention_rational", 2, id="PARA attention rational normed"),
    pytest.param("gpt2_idpg", 3, id="GPT-2 IDPG"),
    pytest.param("gpt2_prompt_tuning_score", 3, id="GPT-2 prompt tuning with a task head"),
    pytest.param("gpt2_para_score", 2, id="GPT-2 PARA with a task head"),
    pytest.param("tied_lopa_score", 2, id="Llama LoPA with a task head"),
    pytest.param("roberta_fanlora", 2, id="RoBERTa FanLoRA"),
    pytest.param("roberta_prompt_tuning", 3, id="RoBERTa prompt tuning"),
    pytest.param("roberta_idpg", 2, id="RoBERTa IDPG"),
    pytest.param("roberta_lopa", 3, id="RoBERTa LoPA"),
    pytest.param("roberta_lopa_first", 1, id="RoBERTa LoPA concat, read at the first row"),
    pytest.param("roberta_para", 3, id="RoBERTa PARA"),
    pytest.param("roberta_para_attention_rational", 2, id="RoBERTa PARA attention rational"),
    pytest.param("t5_lora", 3, id="T5"),
    pytest.param("t5_v1_1_para_attention", 2, id="T5 v1.1 PARA"),
    pytest.param("t5_v1_1_red", 2, id="T5 v1.1 RED"),
    pytest.param("gqa_lopa_encoder", 3, id="LoPA with an encoder of its own"),
    pytest.param("gqa_lopa_encoder_trained", 2, id="LoPA with an encoder that is trained"),
    pytest.param("gpt2_idpg_encoder", 2, id="GPT-2 IDPG with an encoder of its own"),
    pytest.param("roberta_idpg_encoder_trained", 2, id="RoBERTa IDPG with an encoder that is trained"),
    pytest.param("t5_lopa_encoder", 2, id="T5 LoPA with an encoder of its own"),
    pytest.param("gqa_full", 2, id="full"),
    pytest.param("tied_full", 3, id="full, tied"),
    pytest.param("biases_full", 2, id="full, biases"),
    pytest.param("qwen2_full", 2, id="Qwen2 full"),
    pytest.param("gpt2_full", 2, id="GPT-2 full"),
    pytest.param("gpt2_untied_full", 2, id="GPT-2 full, untied"),
    pytest.param("roberta_full", 2, id="RoBERTa full"),
    pytest.param("t5_full", 2, id="T5 full"),
    pytest.param("t5_v1_1_full", 3, id="T5 v1.1 full"),
]


@pytest.mark.parametrize("name, micro_batch", ONE_RANK)
def test_one_rank(name, micro_batch, tmp_path):
    train_and_check(name, tmp_path, optim=dict(micro_batch=micro_batch))


LAYOUTS = [
    # case, data, pipeline, schedule, micro_batch
    ("gqa_lora", 2, 1, "1f1b", 1),
    ("gqa_red", 2, 1, "1f1b", 2),
    ("gqa_lora", 1, 2, "gpipe", 1),
    ("gqa_lora", 1, 2, "gpipe", 3),  # the last micro-batch is smaller
    ("gqa_lora", 1, 2, "1f1b", 1),
    ("gqa_lora", 1, 2, "1f1b", 3),
    ("gqa_lora", 1, 2, "interleaved", 1),
    ("tied_lora", 1, 2, "1f1b", 2),  # embedding and head of one tensor, on two stages
    ("tied_red", 1, 2, "1f1b", 1),
    ("gqa_lora_upper", 1, 2, "1f1b", 1),  # the first stage trains nothing
    ("gqa_lora_lower", 1, 2, "gpipe", 1),  # the last stage trains nothing, yet gradients cross it
    ("gqa_lora", 2, 2, "1f1b", 1),
    ("tied_lora", 2, 2, "gpipe", 2),
    ("gqa_lora", 1, 4, "1f1b", 1),
    ("gqa_red", 1, 4, "gpipe", 1),
    ("gqa_lora_upper", 1, 4, "1f1b", 1),
    ("gpt2_lora", 2, 1, "1f1b", 1),
    ("gpt2_lora_joint", 1, 2, "1f1b", 1),
    ("gpt2_red", 1, 2, "gpipe", 1),
    ("gpt2_lora", 2, 2, "1f1b", 1),
    ("roberta_lora", 2, 1, "1f1b", 1),
    ("roberta_red", 1, 2, "gpipe", 1),
    ("roberta_headless_red", 1, 2, "1f1b", 1),
    ("roberta_lora", 2, 2, "1f1b", 1),
    ("roberta_head_alone", 1, 2, "1f1b", 1),  # only the last stage trains, and no layer of it
    ("gpt2_lora_score", 1, 2, "1f1b", 1),
    ("gqa_ia3", 2, 2, "1f1b", 1),
    ("gqa_fanlora", 1, 2, "1f1b", 1),
    ("gqa_fanlora", 1, 4, "1f1b", 1),  # the first stage trains nothing
    ("gqa_prompt_tuning", 2, 1, "1f1b", 1),
    ("gqa_prompt_tuning", 1, 2, "1f1b", 2),  # gradients cross to a stage that alone is trained
    ("gqa_idpg", 2, 2, "1f1b", 1),
    ("gqa_lopa", 1, 2, "interleaved", 1),
    ("tied_lopa_concat", 2, 2, "gpipe", 1),
    ("gqa_para", 2, 1, "1f1b", 2),
    ("gqa_para", 1, 2, "1f1b", 3),
    ("gqa_para", 2, 2, "1f1b", 1),
    ("gpt2_ia3", 1, 2, "1f1b", 1),
    ("roberta_ia3", 1, 2, "1f1b", 1),
    ("gpt2_fanlora", 2, 1, "1f1b", 1),
    ("gpt2_para", 1, 2, "1f1b", 1),
    ("gpt2_lopa", 1, 2, "gpipe", 2),
    ("gpt2_prompt_tuning", 2, 1, "1f1b", 1),
    ("gqa_red_states", 1, 2, "1f1b", 1),
    ("gpt2_idpg", 1, 2, "1f1b", 1),
    ("roberta_prompt_tuning", 2, 1, "1f1b", 2),
    ("roberta_prompt_tuning", 2, 2, "1f1b", 1),
    ("roberta_idpg", 1, 2, "1f1b", 2),
    ("roberta_lopa", 2, 2, "1f1b", 1),
    ("roberta_lopa_first", 1, 2, "gpipe", 1),
    ("roberta_para", 2, 1, "1f1b", 1),
    ("roberta_para", 2, 2, "1f1b", 1),
    ("roberta_para_attention_rational", 1, 2, "1f1b", 1),
    ("gpt2_para_score", 1, 2, "1f1b", 1),
    ("t5_lora", 2, 1, "1f1b", 1),
    ("t5_lora", 1, 2, "1f1b", 1),
    ("t5_lora", 1, 2, "interleaved", 1),  # encoder and decoder layers on both ranks
    ("t5_lora", 1, 4, "gpipe", 1),  # a layer each
    ("t5_v1_1_lora", 2, 2, "1f1b", 1),
    ("t5_lora_decoder", 1, 2, "1f1b", 1),  # the encoder's stage trains nothing
    ("t5_lora_encoder", 1, 4, "1f1b", 1),  # gradients cross stages that train nothing
    ("t5_para", 1, 4, "1f1b", 1),  # every decoder stage reads the encoder's output
    ("t5_para", 2, 2, "1f1b", 1),
    ("t5_ia3", 1, 2, "gpipe", 1),
    ("t5_red", 2, 2, "1f1b", 1),
    ("t5_prompt_tuning", 1, 2, "1f1b", 2),
    ("t5_v1_1_lopa", 1, 2, "1f1b", 1),
    ("t5_idpg", 2, 1, "1f1b", 1),
    ("gqa_lopa_encoder", 2, 2, "1f1b", 1),
    ("gqa_lopa_encoder_trained", 1, 2, "1f1b", 1),
    ("gpt2_idpg_encoder", 2, 1, "1f1b", 1),
    ("roberta_idpg_encoder_trained", 2, 2, "1f1b", 1),
    ("t5_lopa_encoder", 1, 2, "1f1b", 2),
    ("gqa_full", 2, 1, "1f1b", 1),
    ("tied_full", 1, 2, "1f1b", 1),  # the embedding is trained on two stages
    ("tied_full", 2, 2, "gpipe", 1),
    ("tied_full", 1, 2, "interleaved", 1),
    ("gpt2_full", 1, 4, "1f1b", 1),
    ("gpt2_full", 2, 2, "1f1b", 1),
    ("roberta_full", 2, 2, "1f1b", 1),
    ("t5_full", 1, 4, "1f1b", 1),  # so are the tables of the position bias
    ("t5_full", 2, 2, "1f1b", 2),
    ("t5_v1_1_full", 1, 2, "1f1b", 1),
]


@pytest.mark.parametrize("name, data, pipeline, schedule, micro_batch", LAYOUTS)
def test_layout(name, data, pipeline, schedule, micro_batch, tmp_path):
    train_and_check(
        name,
        tmp_path,
        parallel=dict(data=data, pipeline=pipeline, schedule=schedule),
        optim=dict(micro_batch=micro_batch),
    )


@pytest.mark.parametrize("name", ["gqa_lora", "t5_lora"])
@pytest.mark.parametrize("split", [[1, 3], [3, 1]])
def test_manual_split(name, split, tmp_path):
    train_and_check(name, tmp_path, parallel=dict(pipeline=2, split=split))


@pytest.mark.parametrize("name", ["gqa_lora", "gqa_para", "gqa_lopa", "t5_para", "gqa_full", "t5_full"])
def test_recompute(name, tmp_path):
    train_and_check(name, tmp_path, model=dict(recompute="layer"))


def test_recompute_above_a_frozen_prefix(tmp_path):
    train_and_check("gqa_lora_upper", tmp_path, model=dict(recompute="layer"))


def first_fit_decreasing(lengths, row_length):
    rows = []
    for length in sorted(lengths, reverse=True):
        row = next((i for i, used in enumerate(rows) if used + length <= row_length), None)
        if row is None:
            rows.append(length)
        else:
            rows[row] += length
    return len(rows)


@pytest.mark.parametrize("data, pipeline", [(1, 1), (2, 1), (1, 2)])
def test_packing(data, pipeline, tmp_path):
    """A batch of all rows of the epoch holds every sample once, so its loss is the loss of the unpacked epoch."""
    samples = prepared_data.read(GOLDENS / "data" / "train")
    row_length = next(
        n for n in range(44, 100) if first_fit_decreasing([len(s.ids) for s in samples], n) % 2 == 0
    )
    rows = first_fit_decreasing([len(s.ids) for s in samples], row_length)
    assert rows < len(samples)
    train_and_check(
        "gqa_lora_epoch",
        tmp_path,
        data=dict(packing=True, row_length=row_length),
        optim=dict(global_batch=rows, micro_batch=1),
        parallel=dict(data=data, pipeline=pipeline),
    )


def test_evaluation_during_training(tmp_path):
    golden = train_and_check("gqa_lora", tmp_path, eval=dict(every=10))
    last = metrics(tmp_path, "eval")[-1]
    assert last["step"] == 10
    assert relative(last["loss"], golden.numbers["eval_after"]) <= LOSS_RELATIVE


BFLOAT16 = [("gqa_lora", 1), ("gqa_lora", 2), ("gqa_red", 1), ("gqa_para", 1), ("gqa_lopa", 2)]
# Split, the reference would need its mask again, which a loaded adapter has not.
BFLOAT16 += [("gpt2_lora_joint", 1), ("roberta_red", 1)]


@pytest.mark.parametrize("name, pipeline", BFLOAT16)
def test_bfloat16(name, pipeline, bfloat16_steps, tmp_path):
    """Against HF in bfloat16 with float32 adapters, which is what PEFT does too."""
    golden = Golden(name)
    sections = dict(model=dict(dtype="bfloat16"), parallel=dict(pipeline=pipeline))
    run("train", recipe(golden, tmp_path, **sections), tmp_path)
    check_steps(
        metrics(tmp_path, "train"),
        bfloat16_steps(name),
        BFLOAT16_LOSS_RELATIVE,
        BFLOAT16_GRAD_NORM_RELATIVE,
    )


def test_red_scales_move_under_a_bfloat16_backbone(tmp_path):
    """Stored in bfloat16, scales near one would not move at all by steps of this size."""
    keys = recipe(Golden("gqa_red"), tmp_path, model=dict(dtype="bfloat16"))
    keys["adapter"] = dict(method="red")
    keys["optim"] |= dict(schedule="constant", warmup_steps=0, lr=1e-3, steps=20)
    run("train", keys, tmp_path)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    moved = torch.cat([v - 1 for n, v in tensors.items() if n.endswith("red_scale")]).abs()
    assert (moved > 0).float().mean() >= 0.99
    assert moved.max() >= 5e-3
