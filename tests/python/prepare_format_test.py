"""The written folder: keys, types, splits, limits, determinism, counts, and that nothing partial stays behind."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from conftest import last_line, run_script, write_jsonl
from graft_prepare.errors import GraftError
from prepare_helpers import Decoded, prepare, read_dataset, rows

RECORDS = [{"prompt": f"the word {i}", "completion": f"is {i * i}"} for i in range(200)]


def test_dataset_json_and_tensors_are_those_of_the_format(model_folder, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", RECORDS)
    out = prepare(model_folder, tmp_path / "out", source, max_length=64)
    header, tensors = read_dataset(out)
    tokenizer = hashlib.sha256((model_folder / "tokenizer.json").read_bytes()).hexdigest()
    shard = hashlib.sha256((out / "shard-00000.safetensors").read_bytes()).hexdigest()
    total, trained = len(tensors["input_ids"]), int(tensors["loss_mask"].sum())
    assert header == {
        "format": "graft-dataset",
        "version": 1,
        "kind": "causal_lm",
        "vocab_size": 512,
        "tokenizer_sha256": tokenizer,
        "num_samples": 200,
        "num_tokens": total,
        "num_trained_tokens": trained,
        "max_length": 64,
        "template": "tokenizer",
        "loss_on": "all_assistant",
        "labels": [],
        "shards": [{"file": "shard-00000.safetensors", "samples": 200, "sha256": shard}],
    }
    types = {name: str(tensor.dtype) for name, tensor in tensors.items()}
    assert types == {
        "input_ids": "int32",
        "offsets": "int64",
        "loss_mask": "uint8",
        "prompt_lengths": "int32",
        "sample_ids": "int64",
    }
    assert tensors["offsets"][0] == 0
    assert tensors["offsets"][-1] == total
    assert tensors["sample_ids"].tolist() == list(range(200))


def test_shards_hold_the_samples_in_order(model_folder, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", RECORDS)
    whole = read_dataset(prepare(model_folder, tmp_path / "one", source))[1]
    out = prepare(model_folder, tmp_path / "many", source, shard_tokens=500)
    header = json.loads((out / "dataset.json").read_text())
    assert len(header["shards"]) > 3
    from safetensors.numpy import load_file

    ids = [i for shard in header["shards"] for i in load_file(out / shard["file"])["input_ids"]]
    assert ids == whole["input_ids"].tolist()
    assert sum(shard["samples"] for shard in header["shards"]) == header["num_samples"] == 200


def test_same_input_gives_the_same_bytes(model_folder, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", RECORDS)
    digests = []
    for name in ("a", "b"):
        out = prepare(model_folder, tmp_path / name, source, eval_fraction=0.2)
        files = sorted(path for path in out.rglob("*") if path.is_file())
        digests.append([(path.relative_to(out), path.read_bytes()) for path in files])
    assert digests[0] == digests[1]


def test_split_depends_on_the_id_alone(model_folder, tmp_path):
    def held_out(name: str, records: list[dict], **options) -> set[int]:
        source = write_jsonl(tmp_path / f"{name}.jsonl", records)
        out = prepare(model_folder, tmp_path / name, source, eval_fraction=0.25, **options)
        train = set(read_dataset(out / "train")[1]["sample_ids"].tolist())
        held = set(read_dataset(out / "eval")[1]["sample_ids"].tolist())
        assert not train & held
        assert len(train | held) == len(records)
        return held

    all_of_them = held_out("all", RECORDS)
    assert 30 <= len(all_of_them) <= 70
    assert held_out("half", RECORDS[:100]) == {i for i in all_of_them if i < 100}
    assert held_out("other", RECORDS, split_seed=1) != all_of_them


@pytest.mark.parametrize("truncation", ["end", "start"])
def test_truncation_keeps_the_asked_for_side(truncation, model_folder, tmp_path):
    record = {"prompt": "the word " * 5, "completion": "the task " * 20}
    source = write_jsonl(tmp_path / "in.jsonl", [record])
    whole = Decoded(model_folder, prepare(model_folder, tmp_path / "whole", source))
    size = len(whole.ids[0])
    out = prepare(
        model_folder, tmp_path / "cut", source, max_length=size - 4, truncation=truncation
    )
    cut = Decoded(model_folder, out)
    prompt = int(whole.tensors["prompt_lengths"][0])
    if truncation == "end":
        assert cut.ids[0].tolist() == whole.ids[0].tolist()[:-4]
        assert cut.tensors["prompt_lengths"].tolist() == [prompt]
    else:
        assert cut.ids[0].tolist() == whole.ids[0].tolist()[4:]
        assert cut.tensors["prompt_lengths"].tolist() == [prompt - 4]


def test_rejections_and_malformed_lines_are_counted_with_their_reason(model_folder, tmp_path):
    source = tmp_path / "in.jsonl"
    good = json.dumps(RECORDS[0])
    empty = json.dumps({"prompt": "a", "completion": " "})
    long = json.dumps({"prompt": "the word " * 100, "completion": "x"})
    source.write_text(f'{good}\n{{broken\n{empty}\n{long}\n{{"prompt": "a"}}\n{good}' + "\n")
    arguments = ["data", "--model", model_folder, "--out", tmp_path / "out", "--input", source]
    result = run_script("prepare.py", *arguments, "--max-length", 64, "--max-bad", 2, "--show", 1)
    assert result.returncode == 0, result.stderr
    assert f"skipped {source}:2:2: not JSON" in result.stderr
    assert f"skipped {source}:5: key 'completion' is missing" in result.stderr
    assert "rejected 1: empty answer" in result.stdout
    assert "rejected 1: no trained token is left after truncation" in result.stdout
    assert "malformed 1: key 'completion' is missing" in result.stdout
    assert "sample 0:" in result.stdout
    assert read_dataset(tmp_path / "out")[1]["sample_ids"].tolist() == [0, 5]
    over = run_script("prepare.py", *arguments, "--overwrite", "--max-bad", 1)
    assert over.returncode == 65
    assert last_line(over).startswith(f"graft: error: input: {source}:5: ")
    assert "--max-bad allows 1" in last_line(over)


def test_reject_truncation_counts_long_samples(model_folder, tmp_path, capsys):
    records = [RECORDS[0], {"prompt": "the word " * 100, "completion": "x"}]
    source = write_jsonl(tmp_path / "in.jsonl", records)
    prepare(model_folder, tmp_path / "out", source, max_length=64, truncation="reject")
    assert "rejected 1: too long" in capsys.readouterr().out


def test_limit_takes_the_first_samples(model_folder, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", RECORDS)
    tensors = read_dataset(prepare(model_folder, tmp_path / "out", source, limit=7))[1]
    assert tensors["sample_ids"].tolist() == list(range(7))


def test_existing_folder_is_replaced_only_on_request(model_folder, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", RECORDS[:3])
    out = prepare(model_folder, tmp_path / "out", source)
    with pytest.raises(GraftError, match="--overwrite") as error:
        prepare(model_folder, out, source)
    assert error.value.kind == "io"
    prepare(model_folder, out, source, overwrite=True, limit=1)
    assert read_dataset(out)[0]["num_samples"] == 1
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "thesis.txt").write_text("precious")
    with pytest.raises(GraftError):
        prepare(model_folder, keep, source, overwrite=True)
    assert (keep / "thesis.txt").read_text() == "precious"
    assert not list(tmp_path.glob(".*tmp*"))


def test_token_of_an_id_above_vocab_size_is_refused(model_folder, tmp_path):
    """A tokenizer that fits by itself but writes ids that the model has no row for."""
    import shutil

    folder = Path(shutil.copytree(model_folder, tmp_path / "small"))
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": 20}
    (folder / "config.json").write_text(json.dumps(config))
    source = write_jsonl(tmp_path / "in.jsonl", RECORDS[:3])
    with pytest.raises(GraftError, match="vocab_size is 20") as error:
        prepare(folder, tmp_path / "out", source)
    assert error.value.kind == "input"


def test_windows_line_ends_and_byte_order_mark_are_read(model_folder, tmp_path):
    source = tmp_path / "in.jsonl"
    text = "".join(json.dumps(record) + "\r\n" for record in RECORDS[:2])
    source.write_bytes(b"\xef\xbb\xbf" + text.encode())
    tensors = read_dataset(prepare(model_folder, tmp_path / "out", source))[1]
    assert len(rows(tensors, "input_ids")) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "--input", "x"],
        ["data", "--input", "x", "--model", "m", "--out", "o", "--nope"],
        ["data", "--input", "x", "--model", "m", "--out", "o", "--columns", "wrong=a"],
        ["data", "--input", "x", "--model", "m", "--out", "o", "--eval-fraction", "1.5"],
        ["model"],
        ["model", "--source", "package:no-such-package"],
        [],
    ],
)
def test_usage_errors(arguments, tmp_path):
    result = run_script("prepare.py", *arguments, cwd=tmp_path)
    assert result.returncode == 64
    assert last_line(result).startswith("graft: error: usage: ")


def test_missing_input_file_is_an_io_error(model_folder, tmp_path):
    result = run_script(
        "prepare.py",
        "data",
        "--input",
        tmp_path / "absent.jsonl",
        "--model",
        model_folder,
        "--out",
        tmp_path / "out",
    )
    assert result.returncode == 74
    assert "absent.jsonl: no such file" in last_line(result)
