"""What "equal to the reference" means: the tolerances of the project and the comparisons that use them."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

LOSS_RELATIVE = 2e-5
GRAD_NORM_RELATIVE = 1e-4
LOGITS_ABSOLUTE = 1e-4
# Distance of a trained tensor from the reference's, over the distance that the reference moved it. AdamW divides a
# gradient by its own size, so that the few elements whose gradient is rounding noise move by noise.
FINAL_RELATIVE_TO_MOVEMENT = 1e-4
BFLOAT16_LOSS_RELATIVE = 1e-2
BFLOAT16_GRAD_NORM_RELATIVE = 5e-2


def relative(ours, reference):
    return abs(ours - reference) / max(abs(reference), 1e-12)


def check_steps(ours, reference, loss_tolerance=LOSS_RELATIVE, norm_tolerance=GRAD_NORM_RELATIVE):
    """`ours`: the train records of metrics.jsonl."""
    assert [r["step"] for r in ours] == [r["step"] for r in reference]
    for mine, his in zip(ours, reference):
        step = his["step"]
        assert relative(mine["loss"], his["loss"]) <= loss_tolerance, (
            f"step {step}: loss {mine['loss']!r}, reference {his['loss']!r}"
        )
        assert relative(mine["grad_norm"], his["grad_norm"]) <= norm_tolerance, (
            f"step {step}: grad_norm {mine['grad_norm']!r}, reference {his['grad_norm']!r}"
        )
        assert abs(mine["lr"] - his["lr"]) <= 1e-9, (
            f"step {step}: lr {mine['lr']!r}, reference {his['lr']!r}"
        )
        for key in ("tokens", "trained_tokens"):
            assert mine[key] == his[key], f"step {step}: {key} {mine[key]}, reference {his[key]}"


def without_effect(name, value):
    """Where a tensor cannot change the loss: attention's weights stay when all keys move by the same vector."""
    mask = torch.zeros_like(value)
    if name.endswith("self.key.bias"):
        mask[:] = 1
    elif name.endswith("c_attn.bias"):
        mask[len(value) // 3 : 2 * len(value) // 3] = 1
    return mask


def check_final(output, golden):
    """Names, shapes and values of what a run leaves against the reference's after the same steps."""
    if (Path(output) / "model").exists():
        file = "model.safetensors"
        ours = load_file(Path(output) / "model" / file)
    else:
        file = "adapter_model.safetensors"
        ours = load_file(Path(output) / "adapter" / file)
    start = load_file(golden.folder / "initial" / file)
    stored = load_file(golden.folder / "golden.safetensors")
    final = {n.removeprefix("final/"): v for n, v in stored.items() if n.startswith("final/")}
    assert sorted(ours) == sorted(final)
    for name, value in final.items():
        assert ours[name].dtype == torch.float32 and ours[name].shape == value.shape, name
        counts = 1 - without_effect(name, value)
        if not counts.any():
            continue
        moved = ((value - start[name]) * counts).norm()
        distance = ((ours[name] - value) * counts).norm()
        assert moved > 0, name
        assert distance <= FINAL_RELATIVE_TO_MOVEMENT * moved, (
            f"{name}: {distance / moved:.2e} of its movement away from the reference"
        )


def logits_difference(a, b):
    return (a - b).abs().max().item()


def read_json(text):
    """The one JSON object that a command writes to stdout."""
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) == 1, f"expected one line on stdout, got {lines}"
    return json.loads(lines[0])
