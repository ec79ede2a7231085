"""Writes prepared data sets in graft's format (docs: data format) without graft's own preparation, and reads them back."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file


@dataclass
class Sample:
    ids: list
    mask: list  # 1 = trained target; the first token never is one
    prompt_length: int
    label: float | int | None = None  # classification: int, regression: float; then nothing is masked
    target: list | None = None  # seq2seq: what the decoder must say, end token included
    encoder_ids: list | None = None  # the prompt in the vocabulary of a separate encoder

    def targets(self):
        """(position that predicts, target id) of every trained token; seq2seq: positions of the decoder."""
        if self.target is not None:
            return list(enumerate(self.target))
        return [(t - 1, self.ids[t]) for t in range(1, len(self.ids)) if self.mask[t]]


    def trained(self):
        """What the loss of a batch is divided by."""
        return len(self.targets()) if self.label is None else 1


def kind_of(samples):
    if samples[0].target is not None:
        return "seq2seq"
    label = samples[0].label
    return "causal_lm" if label is None else "classification" if isinstance(label, int) else "regression"


def write(folder, samples, vocab_size, num_shards=1, num_labels=0):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kind, shards = kind_of(samples), []
    for number, part in enumerate(np.array_split(np.arange(len(samples)), num_shards)):
        chosen = [samples[i] for i in part]
        name = f"shard-{number:05d}.safetensors"
        lengths = [len(s.ids) for s in chosen]
        tensors = {
            "input_ids": np.concatenate([np.array(s.ids, np.int32) for s in chosen]),
            "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            "prompt_lengths": np.array([s.prompt_length for s in chosen], np.int32),
            "sample_ids": (part + 1000).astype(np.int64),
        }
        if kind == "causal_lm":
            tensors["loss_mask"] = np.concatenate([np.array(s.mask, np.uint8) for s in chosen])
        elif kind == "seq2seq":
            tensors["target_ids"] = np.concatenate([np.array(s.target, np.int32) for s in chosen])
            ends = np.cumsum([len(s.target) for s in chosen])
            tensors["target_offsets"] = np.concatenate([[0], ends]).astype(np.int64)
        else:
            dtype = np.int64 if kind == "classification" else np.float32
            tensors["labels"] = np.array([s.label for s in chosen], dtype)
        if chosen[0].encoder_ids is not None:
            prompts = [s.encoder_ids for s in chosen]
            tensors["encoder_ids"] = np.concatenate([np.array(p, np.int32) for p in prompts])
            tensors["encoder_offsets"] = np.concatenate([[0], np.cumsum([len(p) for p in prompts])]).astype(np.int64)
        save_file(tensors, folder / name)
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        shards.append({"file": name, "samples": len(chosen), "sha256": digest})
    header = {
        "format": "graft-dataset",
        "version": 1,
        "kind": kind,
        "vocab_size": vocab_size,
        "tokenizer_sha256": None,
        "num_samples": len(samples),
        "num_tokens": sum(len(s.ids) for s in samples),
        "num_trained_tokens": sum(s.trained() for s in samples),
        "max_length": max(len(s.ids) for s in samples),
        "template": "plain",
        "loss_on": "completion",
        "labels": [f"class{i}" for i in range(num_labels)],
        "shards": shards,
    }
    (folder / "dataset.json").write_text(json.dumps(header, indent=2) + "\n")


def read(folder):
    folder = Path(folder)
    samples = []
    for shard in json.loads((folder / "dataset.json").read_text())["shards"]:
        t = load_file(folder / shard["file"])
        for i, (begin, end) in enumerate(zip(t["offsets"][:-1], t["offsets"][1:])):
            ids = t["input_ids"][begin:end].tolist()
            mask = t["loss_mask"][begin:end].tolist() if "loss_mask" in t else []
            label = t["labels"][i].item() if "labels" in t else None
            target = None
            if "target_ids" in t:
                ends = t["target_offsets"]
                target = t["target_ids"][ends[i] : ends[i + 1]].tolist()
            encoder_ids = None
            if "encoder_ids" in t:
                ends = t["encoder_offsets"]
                encoder_ids = t["encoder_ids"][ends[i] : ends[i + 1]].tolist()
            samples.append(Sample(ids, mask, int(t["prompt_lengths"][i]), label, target, encoder_ids))
    return samples


def with_encoder_ids(samples, vocab_size, max_length, seed):
    """Gives each sample a prompt for a separate encoder."""
    rng = np.random.default_rng(seed)
    for sample in samples:
        length = int(rng.integers(1, max_length))
        sample.encoder_ids = rng.integers(3, vocab_size, length).tolist()
    return samples


def labelled_samples(count, vocab_size, max_length, seed, num_labels=0):
    """Random samples without special ids, with a class out of num_labels, or for 0 with a number."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(count):
        length = (1, max_length)[i] if i < 2 else int(rng.integers(2, max_length))
        label = int(rng.integers(num_labels)) if num_labels else float(np.float32(rng.normal()))
        samples.append(Sample(rng.integers(3, vocab_size, length).tolist(), [], length, label))
    return samples


def pairs(count, vocab_size, max_length, seed):
    """Random inputs and targets of very different lengths that both end with the end token 1."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(count):
        lengths = [(1, 1), (max_length, 2), (2, max_length)][i] if i < 3 else rng.integers(2, max_length, 2)
        ids, target = ([*rng.integers(2, vocab_size, n - 1).tolist(), 1] for n in lengths)
        samples.append(Sample(ids, [], len(ids), target=target))
    return samples


def ragged_samples(count, vocab_size, max_length, seed):
    """Random samples of very different lengths, with the edges: the shortest and longest sample, the first and last id of the
    vocabulary, all tokens trained, the last token alone, none at all."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(count):
        length = int(rng.integers(4, max_length))
        prompt = int(rng.integers(1, length - 1))
        ids = rng.integers(0, vocab_size, length)
        mask = (np.arange(length) >= prompt).astype(int)
        if i == 0:
            ids[0], ids[-1], ids[length // 2] = vocab_size - 1, 0, vocab_size - 1
        elif i == 1:
            ids, prompt, mask = rng.integers(0, vocab_size, 2), 1, np.array([0, 1])
        elif i == 2:
            length, prompt = max_length, 1
            ids, mask = rng.integers(0, vocab_size, length), np.ones(length, int)
            mask[0] = 0
        elif i == 3:
            mask[:] = 0
            mask[-1] = 1
        elif i == 4:
            mask[:] = 0
        elif i == 5:
            mask = rng.integers(0, 2, length)
            mask[0] = 0
        samples.append(Sample(ids.tolist(), mask.tolist(), prompt))
    return samples
