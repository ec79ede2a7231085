"""parallel.shard_weights: replicas that share their weights train and evaluate as those that have them whole."""

import pytest

from compare import check_steps, read_json, relative
from graft_program import Golden, attempt, metrics, recipe, run

SAME_LOSS = 1e-6


def train(golden, output, shard_weights, **sections):
    parallel = sections.pop("parallel", {}) | dict(shard_weights=shard_weights)
    run("train", recipe(golden, output, parallel=parallel, **sections), output)
    return metrics(output, "train"), metrics(output, "run")[-1]


LAYOUTS = [
    # case, data, pipeline, schedule, micro_batch, model
    ("gqa_lora", 2, 1, "1f1b", 1, {}),
    ("gqa_lora", 2, 2, "1f1b", 1, dict(quantize="nf4")),
    ("gpt2_lora", 2, 2, "interleaved", 1, {}),
    ("t5_lora", 2, 1, "1f1b", 2, dict(recompute="layer")),
    ("roberta_lora_upper", 2, 1, "gpipe", 1, dict(quantize="int8")),  # a frozen prefix
]


@pytest.mark.parametrize("name, data, pipeline, schedule, micro_batch, model", LAYOUTS)
def test_same_losses_in_less_memory(name, data, pipeline, schedule, micro_batch, model, tmp_path):
    golden = Golden(name)
    sections = dict(
        parallel=dict(data=data, pipeline=pipeline, schedule=schedule),
        optim=dict(micro_batch=micro_batch),
        model=model,
        eval=dict(every=5),
    )
    whole, whole_run = train(golden, tmp_path / "whole", False, **sections)
    shared, shared_run = train(golden, tmp_path / "shared", True, **sections)
    if not model.get("quantize"):
        check_steps(shared, golden.numbers["steps"])
    for a, b in zip(shared, whole, strict=True):
        assert relative(a["loss"], b["loss"]) <= SAME_LOSS, a["step"]
        assert "received_weight_bytes" not in b
    # Two layers stay whole: a stage of two receives them once.
    steps_with_traffic = sum("received_weight_bytes" in a for a in shared)
    assert steps_with_traffic == (1 if pipeline > 1 else len(shared))
    evaluations = [metrics(tmp_path / kind, "eval") for kind in ("shared", "whole")]
    for a, b in zip(*evaluations, strict=True):
        assert relative(a["loss"], b["loss"]) <= SAME_LOSS
    for a, b in zip(shared_run["stages"], whole_run["stages"], strict=True):
        # Embeddings, norms and biases are on every rank; a layer's share is rounded up to 64 bytes.
        assert a["bytes"] < b["bytes"]
        layers = a["end_layer"] - a["first_layer"]
        matrices = (b["bytes"] - a["bytes"]) * data / (data - 1)
        assert a["gathered_bytes"] >= min(2, layers) * matrices / layers * 0.9


@pytest.mark.parametrize("samples", [1, 5])
def test_eval_with_fewer_samples_on_one_replica(samples, tmp_path):
    """The second replica has none, or a micro-batch less."""
    golden = Golden("gqa_lora")
    losses = []
    for shard_weights in (False, True):
        keys = recipe(
            golden,
            tmp_path,
            parallel=dict(data=2, shard_weights=shard_weights),
            data=dict(max_samples=samples),
            optim=dict(micro_batch=1),
        )
        losses.append(read_json(run("eval", keys, tmp_path)))
    assert losses[1]["samples"] == samples
    assert losses[0].keys() == losses[1].keys()
    for key, value in losses[0].items():
        assert relative(losses[1][key], value) <= SAME_LOSS, key


def test_resume_from_whole_to_shared_and_back(tmp_path):
    golden = Golden("gqa_lora")
    sections = dict(parallel=dict(data=2), optim=dict(schedule="constant", warmup_steps=0))
    straight, _ = train(golden, tmp_path / "straight", False, **sections)
    for steps, shard_weights in ((3, False), (6, True), (len(straight), False)):
        optim = sections["optim"] | dict(steps=steps)
        train(golden, tmp_path / "cut", shard_weights, **(sections | dict(optim=optim)))
    cut = metrics(tmp_path / "cut", "train")
    for a, b in zip(cut, straight, strict=True):
        assert relative(a["loss"], b["loss"]) <= SAME_LOSS, a["step"]


@pytest.mark.parametrize("command", ["generate", "score"])
def test_commands_whose_replicas_run_apart_refuse(command, tmp_path):
    keys = recipe(Golden("gqa_lora"), tmp_path, parallel=dict(data=2, shard_weights=True))
    code, text = attempt(command, keys, tmp_path)
    assert code == 78
    assert f"parallel.shard_weights: found true, in `graft {command}`" in text
    assert text.count("graft: error:") == 1
