"""generations.jsonl, as `graft generate` leaves it, beside the records that the data set was made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from graft_prepare.errors import input_error, io_error
from graft_prepare.reader import BadLines, Source, read_records
from graft_prepare.tokenizer import LoadedTokenizer


@dataclass(frozen=True)
class Generation:
    """One answer; `sample_id` is the number of its record, counted as prepare.py counts."""

    where: str
    sample_id: int
    tokens: list[int]


def existing_file(path: Path) -> Path:
    if not path.is_file():
        raise io_error(f"{path}: no such file")
    return path


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def read_generations(path: Path) -> list[Generation]:
    """All answers of the file, in its order; each sample id once."""
    answers: dict[int, Generation] = {}
    for record in read_records([existing_file(path)], "jsonl", Source(BadLines(0))):
        sample_id, tokens = record.value.get("sample_id"), record.value.get("tokens")
        if not _is_count(sample_id):
            raise input_error(f"{record.where}: key 'sample_id' must be a number from 0")
        if not isinstance(tokens, list) or not all(map(_is_count, tokens)):
            raise input_error(f"{record.where}: key 'tokens' must be a list of token ids")
        if sample_id in answers:
            raise input_error(
                f"{record.where}: sample {sample_id} stands in {answers[sample_id].where} already"
            )
        answers[sample_id] = Generation(record.where, sample_id, tokens)
    return list(answers.values())


def decode(tokenizer: LoadedTokenizer, generation: Generation) -> str:
    """The answer as text, without its end token."""
    for token in generation.tokens:
        if token >= tokenizer.vocab_size:
            raise input_error(
                f"{generation.where}: sample {generation.sample_id}: token {token}, the tokenizer "
                f"has {tokenizer.vocab_size}; was another model used?"
            )
    return tokenizer.backend.decode(generation.tokens, skip_special_tokens=True)
