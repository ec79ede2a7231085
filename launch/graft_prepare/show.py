"""Prints a sample's tokens so that a person sees what is prompt and what is trained."""

from __future__ import annotations

from itertools import groupby

from .encode import Encoded
from .tokenizer import LoadedTokenizer


def show_sample(sample: Encoded, tokenizer: LoadedTokenizer) -> None:
    """One line for each run of tokens with the same mask: + is trained, - is not."""
    ids = sample.input_ids.tolist()
    mask = sample.loss_mask.tolist() if sample.loss_mask is not None else [0] * len(ids)
    print(
        f"sample {sample.number}: {len(ids)} tokens, prompt {sample.prompt_length}, trained {sample.trained}"
        + (f", label {sample.label}" if sample.label is not None else "")
    )
    for trained, group in groupby(range(len(ids)), key=lambda index: mask[index]):
        indices = list(group)
        tokens = " ".join(
            repr(tokenizer.backend.decode([ids[index]], skip_special_tokens=False))
            for index in indices
        )
        print(f"  {'+' if trained else '-'} {indices[0]:5d}..{indices[-1]:<5d} {tokens}")
    if sample.target_ids is not None:
        print(
            f"  + target       {tokenizer.backend.decode(sample.target_ids.tolist(), skip_special_tokens=False)!r}"
        )
