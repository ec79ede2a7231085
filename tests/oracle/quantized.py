"""int8 and nf4 as the papers define them, in NumPy: what model.quantize does to the matrices of a model's layers.

nf4 follows "QLoRA" (arXiv 2305.14314) with the numbers that bitsandbytes' quantize_4bit(quant_type="nf4",
compress_statistics=True) uses; int8 is symmetric with a scale for each output.
"""

import re

import numpy as np
import torch
from transformers.pytorch_utils import Conv1D

# Appendix E of the paper.
NF4 = np.array(
    """-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635 -0.18477343022823334
    -0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725 0.24611230194568634 0.33791524171829224
    0.44070982933044434 0.5626170039176941 0.7229568362236023 1.0""".split(),
    dtype=np.float32,
)
BLOCK, SCALE_BLOCK = 64, 256
LAYER = re.compile(r"\.(layers|h|layer|block)\.\d+\.")


def dynamic_map():
    """bitsandbytes' create_dynamic_map(signed=True, max_exponent_bits=7, total_bits=8)."""
    values = [0.0, 1.0]
    for exponent in range(7):
        ends = np.linspace(0.1, 1, 2**exponent + 1, dtype=np.float32)
        means = (ends[:-1] + ends[1:]) / 2
        values += [sign * 10.0 ** (exponent - 6) * float(m) for m in means for sign in (1, -1)]
    return np.array(sorted(values), dtype=np.float32)


def nearest(code, values):
    return np.searchsorted((code[1:] + code[:-1]) / 2, values)


def in_blocks(values, size):
    return np.concatenate([values, np.zeros(-len(values) % size, values.dtype)]).reshape(-1, size)


def through_nf4(weight):
    blocks = in_blocks(weight.reshape(-1), BLOCK)
    scales = np.abs(blocks).max(axis=1)
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)
    codes = nearest(NF4, blocks * inverse[:, None])
    mean = scales.mean(dtype=np.float64).astype(np.float32)
    rest = in_blocks(scales - mean, SCALE_BLOCK)
    largest = np.abs(rest).max(axis=1, keepdims=True)
    unit = np.divide(rest, largest, out=np.zeros_like(rest), where=largest > 0)
    code = dynamic_map()
    scales = (code[nearest(code, unit)] * largest).reshape(-1)[: len(scales)] + mean
    return (NF4[codes] * scales[:, None]).reshape(-1)[: weight.size].reshape(weight.shape)


def through_int8(weight):
    scales = np.abs(weight).max(axis=1, keepdims=True) / np.float32(127)
    codes = np.divide(weight, scales, out=np.zeros_like(weight), where=scales > 0)
    return np.clip(np.rint(codes), -127, 127).astype(np.float32) * scales


THROUGH = dict(int8=through_int8, nf4=through_nf4)


@torch.no_grad()
def quantize(model, kind):
    """Puts W~ in the place of every matrix of the layers; returns the errors ||W - W~|| / ||W|| by module."""
    errors = {}
    for name, module in model.named_modules():
        is_linear, is_conv = isinstance(module, torch.nn.Linear), isinstance(module, Conv1D)
        if not LAYER.search(f".{name}.") or not (is_linear or is_conv):
            continue
        weight = module.weight.float()
        # A Conv1D is stored (in, out); c_attn is three linears.
        parts = (weight.t() if is_conv else weight).chunk(3 if name.endswith("c_attn") else 1)
        through = [torch.from_numpy(THROUGH[kind](p.contiguous().numpy())) for p in parts]
        for i, (before, after) in enumerate(zip(parts, through)):
            errors[f"{name} {i}"] = ((before - after).norm() / before.norm()).item()
        whole = torch.cat(through)
        module.weight.copy_(whole.t() if is_conv else whole)
    return errors
