"""score_text.py against figures that the metric libraries publish or that are worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import last_line, run_script, train_tokenizer, write_jsonl

# sacrebleu's README: three systems' sentences, two references each, BLEU 48.53.
SYSTEM = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
FIRST = ["The dog bit the man.", "It was not unexpected.", "The man bit him first."]
SECOND = ["The dog had bit the man.", "No one was surprised.", "The man had bitten the dog."]


def answers(path: Path, texts: dict[int, str]) -> Path:
    """What `graft generate` would have written: the texts' tokens and the end token."""
    tokenizer = train_tokenizer()
    end = tokenizer.token_to_id("</s>")
    return write_jsonl(
        path,
        [
            {"sample_id": i, "prompt_tokens": [5], "tokens": [*tokenizer.encode(text).ids, end]}
            for i, text in texts.items()
        ],
    )


def record(prompt: str, completion: str) -> dict:
    return {"prompt": prompt, "completion": completion}


def score(tmp_path: Path, model: Path, texts: dict[int, str], records: list[dict], *more: object):
    generations = answers(tmp_path / "generations.jsonl", texts)
    references = write_jsonl(tmp_path / "references.jsonl", records)
    return run_script(
        "score_text.py",
        *("--generations", generations, "--model", model, "--references", references, *more),
    )


def scores(*arguments: object) -> dict:
    result = score(*arguments)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_several_references_as_sacrebleu_publishes(tmp_path: Path, model_folder: Path) -> None:
    records = [record(f"p{i}", text) for column in (FIRST, SECOND) for i, text in enumerate(column)]
    found = scores(tmp_path, model_folder, dict(enumerate(SYSTEM)), records, "--group-prompts")
    assert found["samples"] == 3
    assert found["references"] == 6
    assert found["bleu"] == pytest.approx(48.530827, abs=1e-5)
    assert found["bleu_signature"].startswith("nrefs:2|case:mixed|eff:no|tok:13a|smooth:exp")
    assert found["exact_match"] == pytest.approx(1 / 3)


def test_rouge_l_by_hand(tmp_path: Path, model_folder: Path) -> None:
    """The first pair is the one of rouge-score's README, which gives F1 0.588."""
    texts = {
        0: "The quick brown dog jumps on the log.",  # the quick brown jumps the: 5 of 8 and 9 words
        1: "one two three four",  # one two four: 3 of 4 and 3
        2: "nothing alike",
    }
    records = [
        record("a", "The quick brown fox jumps over the lazy dog"),
        record("b", "one two four"),
        record("c", "wholly different words"),
    ]
    found = scores(tmp_path, model_folder, texts, records)
    by_hand = [2 * 5 / (8 + 9), 2 * 3 / (4 + 3), 0]
    assert found["rouge_l"] == pytest.approx(100 * sum(by_hand) / 3)
    assert found["exact_match"] == 0


def test_exact_match_leaves_white_space_and_the_end_token_out(
    tmp_path: Path, model_folder: Path
) -> None:
    records = [record("a", " Rome\n"), record("b", "Paris"), record("c", "paris"), record("d", "x")]
    found = scores(tmp_path, model_folder, {0: "Rome ", 1: " Paris", 2: "Paris"}, records)
    assert found["exact_match"] == pytest.approx(2 / 3)
    assert found["samples"] == 3  # the fourth record was not asked


def test_the_answer_of_a_conversation(tmp_path: Path, model_folder: Path) -> None:
    turns = [("user", "q"), ("assistant", "first"), ("user", "r"), ("assistant", "last")]
    messages = [{"role": role, "content": text} for role, text in turns]
    for which in ("first", "last"):
        records = [{"messages": messages}]
        found = scores(tmp_path, model_folder, {0: which}, records, "--answer", which)
        assert found["exact_match"] == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"tokens": [1]}', "generations.jsonl:1: key 'sample_id' must be a number from 0"),
        ('{"sample_id": 0, "tokens": "x"}', "generations.jsonl:1: key 'tokens' must be a list"),
        ('{"sample_id": 0, "tokens": [true]}', "key 'tokens' must be a list of token ids"),
        ('{"sample_id": 0, "tokens": [99999]}', "sample 0: token 99999, the tokenizer has"),
        ('{"sample_id": 7, "tokens": [5]}', "sample 7 has no answer in"),
        ('{"sample_id": 0, "tokens": [5]', "generations.jsonl:1:"),
        ("", "the file is empty"),
    ],
)
def test_bad_generations(tmp_path: Path, model_folder: Path, line: str, says: str) -> None:
    generations = tmp_path / "generations.jsonl"
    generations.write_text(f"{line}\n" if line else "")
    references = write_jsonl(tmp_path / "references.jsonl", [record("a", "b")])
    result = run_script(
        "score_text.py",
        *("--generations", generations, "--model", model_folder, "--references", references),
    )
    assert result.returncode == 65
    assert says in last_line(result)
    assert result.stdout == ""


def test_a_sample_twice_and_missing_files(tmp_path: Path, model_folder: Path) -> None:
    generations = tmp_path / "generations.jsonl"
    generations.write_text('{"sample_id": 0, "tokens": [5]}\n' * 2)
    references = write_jsonl(tmp_path / "references.jsonl", [record("a", "b")])
    arguments = ["--generations", generations, "--model", model_folder, "--references", references]
    result = run_script("score_text.py", *arguments)
    assert result.returncode == 65
    assert "generations.jsonl:2: sample 0 stands in" in last_line(result)
    generations.write_text('{"sample_id": 0, "tokens": [5]}\n')
    for index in (1, 5):
        wrong = [*arguments]
        wrong[index] = tmp_path / "nowhere.jsonl"
        result = run_script("score_text.py", *wrong)
        assert result.returncode == 74
        assert "nowhere.jsonl: no such file" in last_line(result)
