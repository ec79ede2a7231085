"""Every record shape, template and loss policy, against hand-made text and against HF's own masks."""

from __future__ import annotations

import json

import pytest
from conftest import CHATML_TAGGED, last_line, run_script, write_jsonl, write_model_folder
from graft_prepare.errors import GraftError
from prepare_helpers import Decoded, prepare, read_dataset, rows
from safetensors.numpy import load_file
from tokenizers import Tokenizer

Q, A = "What is the capital?", "Paris is."
CHAT = f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n{A}<|im_end|>\n"
SYSTEM = "<|im_start|>system\nBe brief.<|im_end|>\n"

SHAPES = {
    "messages": (
        {"messages": [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]},
        CHAT,
    ),
    "messages_parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": Q}]},
                {"role": "assistant", "content": A},
            ]
        },
        CHAT,
    ),
    "sharegpt": (
        {
            "conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}],
            "system": "Be brief.",
        },
        SYSTEM + CHAT,
    ),
    "alpaca": ({"instruction": Q, "input": "", "output": A}, CHAT),
    "alpaca_input": (
        {"instruction": "Name it.", "input": Q, "output": A},
        CHAT.replace(Q, f"Name it.\n\n{Q}"),
    ),
    "prompt_completion": ({"prompt": Q, "completion": A}, CHAT),
    "prompt_completion_chat": (
        {
            "prompt": [{"role": "user", "content": Q}],
            "completion": [{"role": "assistant", "content": A}],
        },
        CHAT,
    ),
    "orca": (
        {"id": "flan.1", "system_prompt": "Be brief.", "question": Q, "response": A},
        SYSTEM + CHAT,
    ),
    "orca_no_system": ({"system_prompt": "", "question": Q, "response": A}, CHAT),
    "flan": ({"inputs": Q, "targets": A, "task": "x"}, CHAT),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shape_is_detected_and_only_the_answer_is_trained(name, model_folder, tmp_path):
    record, expected = SHAPES[name]
    source = write_jsonl(tmp_path / "in.jsonl", [record])
    data = Decoded(model_folder, prepare(model_folder, tmp_path / "out", source))
    assert data.text() == expected
    assert data.trained() == A + "<|im_end|>"
    assert data.prompt() == expected[: expected.index(A)]


def test_plain_text_trains_everything_but_the_first_token(model_folder, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": "the capital of France"}])
    data = Decoded(model_folder, prepare(model_folder, tmp_path / "out", source))
    assert data.text() == "the capital of France</s>"
    assert data.masks[0].tolist() == [0] + [1] * (len(data.ids[0]) - 1)
    assert data.tensors["prompt_lengths"].tolist() == [0]
    assert data.header["loss_on"] == "all"


def test_json_array_text_file_and_tsv(model_folder, tmp_path):
    array = tmp_path / "a.json"
    array.write_text(json.dumps([{"prompt": Q, "completion": A}] * 2))
    table = tmp_path / "b.tsv"
    table.write_text(f'id\tquestion\tanswer\n7\tsay "hi\t{A}\n')
    lines = tmp_path / "c.txt"
    lines.write_text("the word\n\nthe task\n")
    assert Decoded(model_folder, prepare(model_folder, tmp_path / "oa", array)).text(1) == CHAT
    columns = "prompt=question,completion=answer"
    from_table = Decoded(
        model_folder, prepare(model_folder, tmp_path / "ob", table, columns=columns)
    )
    assert from_table.text() == CHAT.replace(Q, 'say "hi')
    from_lines = Decoded(model_folder, prepare(model_folder, tmp_path / "oc", lines))
    assert [from_lines.text(i) for i in range(2)] == ["the word</s>", "the task</s>"]


def test_column_map_overrides_what_the_keys_suggest(model_folder, tmp_path):
    record = {"instruction": "x", "output": "y", "question": Q, "answer": A}
    source = write_jsonl(tmp_path / "in.jsonl", [record])
    out = prepare(model_folder, tmp_path / "out", source, columns="inputs=question,targets=answer")
    assert Decoded(model_folder, out).text() == CHAT


NAMED_TEXTS = {
    "chatml": ("<|im_start|>system\nS<|im_end|>\n" + CHAT, A + "<|im_end|>"),
    "llama2": (f"<s>[INST] <<SYS>>\nS\n<</SYS>>\n\n{Q} [/INST] {A} </s>", f" {A} </s>"),
    "llama3": (
        (
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
            f"<|start_header_id|>user<|end_header_id|>\n\n{Q}<|eot_id|>"
            f"<|start_header_id|>assistant<|end_header_id|>\n\n{A}<|eot_id|>"
        ),
        f"{A}<|eot_id|>",
    ),
    "alpaca": (
        "S\n\n### Instruction:\n" + Q + f"\n\n### Response:\n{A}</s>",
        f"{A}</s>",
    ),
    "plain": (f"S\n{Q}\n{A}</s>", f"{A}</s>"),
}


@pytest.mark.parametrize("name", NAMED_TEXTS)
def test_named_templates(name, model_folder, tmp_path):
    record = {"system_prompt": "S", "question": Q, "response": A}
    source = write_jsonl(tmp_path / "in.jsonl", [record])
    data = Decoded(model_folder, prepare(model_folder, tmp_path / "out", source, template=name))
    text, trained = NAMED_TEXTS[name]
    assert data.text() == text
    # A token that joins the prompt's last character with the answer's first may be trained too.
    assert data.trained().endswith(trained)
    assert len(data.trained()) - len(trained) <= 2
    assert data.header["template"] == name


def test_alpaca_template_is_the_published_one(model_folder, tmp_path):
    records = [
        {"instruction": "I.", "input": "X.", "output": "O."},
        {"instruction": "I.", "input": "", "output": "O."},
    ]
    source = write_jsonl(tmp_path / "in.jsonl", records)
    data = Decoded(model_folder, prepare(model_folder, tmp_path / "out", source, template="alpaca"))
    assert data.text(0) == (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nI.\n\n### Input:\nX.\n\n### Response:\nO.</s>"
    )
    assert data.text(1) == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nI.\n\n### Response:\nO.</s>"
    )


def test_plain_template_joins_prompt_and_completion_as_they_are(model_folder, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"prompt": "2+2=", "completion": "4"}])
    data = Decoded(model_folder, prepare(model_folder, tmp_path / "out", source, template="plain"))
    assert (data.text(), data.trained(), data.prompt()) == ("2+2=4</s>", "4</s>", "2+2=")


TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Yes \u00e9\U0001f600.\n\n"},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "  No."},
]
FIRST, SECOND = "Yes \u00e9\U0001f600.\n\n<|im_end|>", "  No.<|im_end|>"
BETWEEN = "\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("loss_on", "trained"),
    [
        ("all_assistant", FIRST + SECOND),
        ("last_assistant", SECOND),
        ("completion", FIRST + BETWEEN + SECOND),
    ],
)
def test_loss_policies_of_a_long_conversation(loss_on, trained, model_folder, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"messages": [*TURNS, TURNS[1]]}])
    data = Decoded(model_folder, prepare(model_folder, tmp_path / "out", source, loss_on=loss_on))
    assert data.trained() == trained
    assert data.text().endswith(SECOND + "\n"), "the unanswered turn at the end is dropped"
    behind = data.text()[len(data.prompt()) :]
    assert behind.startswith(SECOND if loss_on == "last_assistant" else FIRST)


def test_loss_on_all_keeps_every_turn(model_folder, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"messages": [*TURNS, TURNS[1]]}])
    data = Decoded(model_folder, prepare(model_folder, tmp_path / "out", source, loss_on="all"))
    assert data.text().endswith("<|im_start|>user\nOne?<|im_end|>\n")
    assert data.masks[0][0] == 0
    assert (
        data.masks[0][1:].sum() >= len(data.ids[0]) - 2
    )  # all but the newline behind the end token


def test_masks_equal_those_of_apply_chat_template(model_folder, tmp_path):
    """HF computes assistant masks only for templates with generation tags; ours agree with and without them."""
    from transformers import PreTrainedTokenizerFast

    tagged = write_model_folder(tmp_path / "tagged", CHATML_TAGGED)
    source = write_jsonl(tmp_path / "in.jsonl", [{"messages": TURNS}, {"messages": TURNS[:3]}])
    reference = PreTrainedTokenizerFast(tokenizer_file=str(tagged / "tokenizer.json"))
    reference.chat_template = CHATML_TAGGED
    ours = [
        Decoded(folder, prepare(folder, tmp_path / f"out{index}", source))
        for index, folder in enumerate((tagged, model_folder))
    ]
    for row, messages in enumerate((TURNS, TURNS[:3])):
        expected = reference.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True, tokenize=True
        )
        for data in ours:
            assert data.ids[row].tolist() == list(expected["input_ids"])
            assert data.masks[row].tolist() == list(expected["assistant_masks"])


def test_template_that_rewrites_earlier_turns_is_rejected_with_its_reason(tmp_path, capsys):
    shrinking = (
        "{% for m in messages %}{% if loop.last or m.role != 'assistant' %}"
        "{{ '<|im_start|>' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    )
    folder = write_model_folder(tmp_path / "model", shrinking)
    records = [{"messages": TURNS}, {"messages": TURNS[1:3]}]
    prepare(folder, tmp_path / "out", write_jsonl(tmp_path / "in.jsonl", records))
    assert "rejected 1: template: an earlier turn changes" in capsys.readouterr().out
    assert read_dataset(tmp_path / "out")[1]["sample_ids"].tolist() == [1]


def test_model_without_template_asks_for_a_name(tmp_path):
    folder = write_model_folder(tmp_path / "model", None)
    source = write_jsonl(tmp_path / "in.jsonl", [{"prompt": Q, "completion": A}])
    with pytest.raises(
        GraftError, match="no chat template; name one with --template chatml"
    ) as error:
        prepare(folder, tmp_path / "out", source)
    assert error.value.kind == "usage"
    assert not (tmp_path / "out").exists()


def test_classification_labels_and_pairs(model_folder, tmp_path):
    table = tmp_path / "in.tsv"
    table.write_text(
        "index\tsentence1\tsentence2\tlabel\n0\tthe word\tthe task\tno\n1\ta\tb\tyes\n"
    )
    out = prepare(model_folder, tmp_path / "out", table, kind="classification")
    header, tensors = read_dataset(out)
    assert header["labels"] == ["no", "yes"]
    assert header["num_trained_tokens"] == 2
    assert tensors["labels"].dtype == "int64"
    assert tensors["labels"].tolist() == [0, 1]
    assert set(tensors) == {"input_ids", "offsets", "prompt_lengths", "sample_ids", "labels"}
    lengths = [len(row) for row in rows(tensors, "input_ids")]
    assert tensors["prompt_lengths"].tolist() == lengths
    given = prepare(model_folder, tmp_path / "o2", table, kind="classification", labels="yes,no")
    assert read_dataset(given)[1]["labels"].tolist() == [1, 0]


def test_numeric_labels_keep_their_numbers_and_regression_is_float(model_folder, tmp_path):
    table = tmp_path / "in.tsv"
    table.write_text("sentence\tlabel\nthe word\t2\nthe task\t0\n")
    classes = read_dataset(prepare(model_folder, tmp_path / "a", table, kind="classification"))
    assert classes[0]["labels"] == ["0", "1", "2"]
    assert classes[1]["labels"].tolist() == [2, 0]
    numbers = read_dataset(prepare(model_folder, tmp_path / "b", table, kind="regression"))
    assert numbers[1]["labels"].dtype == "float32"
    assert numbers[1]["labels"].tolist() == [2.0, 0.0]


@pytest.mark.parametrize(
    "config, longest",
    [
        ({"model_type": "gpt2", "n_positions": 12}, 12),
        # RoBERTa's first positions stand behind the padding id.
        ({"model_type": "roberta", "max_position_embeddings": 14, "pad_token_id": 1}, 12),
    ],
)
def test_positions_of_other_models_bound_the_length(config, longest, tmp_path):
    folder = write_model_folder(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({"vocab_size": 512, **config}))
    source = write_jsonl(
        tmp_path / "in.jsonl", [{"sentence": "the capital of France " * 9, "label": n} for n in (0, 1)]
    )
    out = prepare(folder, tmp_path / "out", source, kind="classification", truncation="end")
    header, tensors = read_dataset(out)
    assert header["max_length"] == longest
    assert [len(ids) for ids in rows(tensors, "input_ids")] == [longest, longest]


def test_seq2seq_targets_end_with_the_end_token(model_folder, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"inputs": Q, "targets": A}])
    header, tensors = read_dataset(prepare(model_folder, tmp_path / "out", source, kind="seq2seq"))
    assert tensors["target_ids"][-1] == 1  # </s>
    assert header["num_trained_tokens"] == len(tensors["target_ids"])
    assert tensors["target_offsets"].tolist() == [0, len(tensors["target_ids"])]


def test_prompts_for_a_separate_encoder(model_folder, tmp_path):
    """Turns before the answer without markers, in the encoder's vocabulary, at most its positions."""
    encoder = write_model_folder(tmp_path / "encoder")
    config = {"model_type": "roberta", "vocab_size": 512, "max_position_embeddings": 14}
    (encoder / "config.json").write_text(json.dumps(config))
    records = [
        {"instruction": "Name a colour.", "input": "", "output": "Blue."},
        {"instruction": "Say it again " * 30, "input": "now", "output": "It."},
    ]
    source = write_jsonl(tmp_path / "in.jsonl", records)
    arguments = ["data", "--input", source, "--model", model_folder]
    result = run_script("prepare.py", *arguments, "--encoder", encoder, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    shard = load_file(tmp_path / "out" / "shard-00000.safetensors")
    ends = shard["encoder_offsets"].tolist()
    tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    assert shard["encoder_ids"][: ends[1]].tolist() == tokenizer.encode("Name a colour.").ids
    assert ends[2] - ends[1] == 12  # two positions of the table stand for padding
    plain = run_script("prepare.py", *arguments, "--out", tmp_path / "plain")
    assert plain.returncode == 0
    assert "encoder_ids" not in load_file(tmp_path / "plain" / "shard-00000.safetensors")
    wrong = run_script("prepare.py", *arguments, "--encoder", model_folder, "--out", tmp_path / "no")
    assert wrong.returncode == 65 and "model_type" in last_line(wrong)
    assert not (tmp_path / "no").exists()
