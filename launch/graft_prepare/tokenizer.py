"""Loads the tokenizer of a model folder, after checking its untrusted files.

Uses the `tokenizers` library alone: importing all of transformers costs seconds and is needed only for folders
without a tokenizer.json.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from .errors import input_error, printable
from .files import member, read_json_file, sha256_file

MAX_TOKENIZER_BYTES = 256 << 20
SPECIAL_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
ID_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


@dataclass
class LoadedTokenizer:
    """A checked tokenizer: the library's object plus what templates and data sets need to know about it."""

    backend: Tokenizer
    vocab_size: int
    sha256: str
    special_tokens: dict[str, str]
    special_ids: frozenset[int]
    chat_template: str | None
    folder: Path

    @property
    def eos_id(self) -> int | None:
        token = self.special_tokens.get("eos_token")
        return None if token is None else self.backend.token_to_id(token)

    @property
    def bos_text(self) -> str:
        """The begin token where this tokenizer puts one in front by itself, else nothing."""
        bos = self.special_tokens.get("bos_token", "")
        ids = self.backend.encode("a").ids
        return bos if bos and ids and ids[0] == self.backend.token_to_id(bos) else ""


def _vocab_of(model: dict[str, Any], where: str) -> dict[str, int]:
    """Token -> id; a Unigram model lists its tokens in id order."""
    vocab = model.get("vocab")
    if isinstance(vocab, list):
        tokens = [entry[0] if isinstance(entry, list) and entry else entry for entry in vocab]
        if not all(isinstance(token, str) for token in tokens):
            raise input_error(f"{where}: model.vocab has an entry that is not [token, score]")
        vocab = {token: index for index, token in enumerate(tokens)}
    if not isinstance(vocab, dict):
        raise input_error(f"{where}: model.vocab is missing, a table of tokens is needed")
    if not vocab:
        raise input_error(f"{where}: model.vocab is empty, at least one token is needed")
    return vocab


def _check_vocab(vocab: dict[str, int], where: str) -> dict[int, str]:
    by_id: dict[int, str] = {}
    for token, token_id in vocab.items():
        if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
            raise input_error(
                f"{where}: model.vocab['{printable(token)}'] is {printable(token_id)}, not an id >= 0"
            )
        if token_id in by_id:
            raise input_error(
                f"{where}: model.vocab gives id {token_id} to both '{printable(by_id[token_id])}' "
                f"and '{printable(token)}'"
            )
        by_id[token_id] = token
    return by_id


def _check_merges(model: dict[str, Any], vocab: dict[str, int], where: str) -> None:
    prefix = model.get("continuing_subword_prefix") or ""
    for index, merge in enumerate(model.get("merges") or []):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(part, str) for part in pair)
        ):
            raise input_error(
                f"{where}: model.merges[{index}] is {printable(merge)}, not a pair of tokens"
            )
        for token in (*pair, pair[0] + pair[1].removeprefix(prefix)):
            if token not in vocab:
                raise input_error(
                    f"{where}: model.merges[{index}] uses '{printable(token)}', which model.vocab lacks"
                )


def _check_added(
    added: list[Any], by_id: dict[int, str], vocab_size: int | None, where: str
) -> None:
    for index, entry in enumerate(added):
        token_id = entry.get("id") if isinstance(entry, dict) else None
        content = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(token_id, int) or token_id < 0 or not isinstance(content, str):
            raise input_error(f"{where}: added_tokens[{index}] needs an id >= 0 and a content")
        if vocab_size is not None and token_id >= vocab_size:
            raise input_error(
                f"{where}: added_tokens[{index}] '{printable(content)}' has id {token_id}, "
                f"the model's vocab_size is {vocab_size}"
            )
        if by_id.setdefault(token_id, content) != content:
            raise input_error(
                f"{where}: id {token_id} belongs to both '{printable(by_id[token_id])}' "
                f"and '{printable(content)}'"
            )


def check_tokenizer_json(path: Path, vocab_size: int | None) -> None:
    """Refuses a tokenizer.json whose tables contradict each other or the model's vocab_size."""
    tree = read_json_file(path, MAX_TOKENIZER_BYTES)
    if not isinstance(tree, dict) or not isinstance(tree.get("model"), dict):
        raise input_error(f"{path}: model is missing, an object is needed")
    vocab = _vocab_of(tree["model"], str(path))
    by_id = _check_vocab(vocab, str(path))
    if isinstance(tree["model"].get("vocab"), list) and len(by_id) != len(tree["model"]["vocab"]):
        raise input_error(f"{path}: model.vocab lists a token twice")
    _check_merges(tree["model"], vocab, str(path))
    added = tree.get("added_tokens") or []
    if not isinstance(added, list):
        raise input_error(f"{path}: added_tokens is not a list")
    _check_added(added, by_id, vocab_size, str(path))


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder, or {} where there is none; ids in it must fit its vocab_size."""
    path = member(folder, "config.json")
    if path is None:
        return {}
    config = read_json_file(path)
    if not isinstance(config, dict):
        raise input_error(f"{path}: an object is needed at the top")
    vocab_size = config.get("vocab_size")
    if vocab_size is None:
        return config
    if not isinstance(vocab_size, int) or not 1 <= vocab_size <= 1 << 22:
        raise input_error(
            f"{path}: vocab_size is {printable(vocab_size)}, allowed are 1..{1 << 22}"
        )
    for key in ID_KEYS:
        values = config.get(key)
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, int) and value >= vocab_size:
                raise input_error(f"{path}: {key} is {value}, vocab_size is {vocab_size}")
    return config


def _read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json on top of the older special_tokens_map.json."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = member(folder, name)
        if path is not None:
            tree = read_json_file(path, MAX_TOKENIZER_BYTES)
            if not isinstance(tree, dict):
                raise input_error(f"{path}: an object is needed at the top")
            settings.update(tree)
    return settings


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    path = member(folder, "chat_template.jinja")
    if path is not None:
        return path.read_text(encoding="utf-8", errors="replace")
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = next(
            (
                entry.get("template")
                for entry in template
                if isinstance(entry, dict) and entry.get("name") == "default"
            ),
            None,
        )
    return template if isinstance(template, str) else None


def _special_tokens(settings: dict[str, Any]) -> dict[str, str]:
    tokens = {}
    for name in SPECIAL_NAMES:
        value = settings.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            tokens[name] = content
    return tokens


def _backend(folder: Path, vocab_size: int | None) -> tuple[Tokenizer, str]:
    """The library's tokenizer and the hash that identifies it."""
    path = member(folder, "tokenizer.json")
    if path is not None:
        check_tokenizer_json(path, vocab_size)
        try:
            return Tokenizer.from_file(str(path)), sha256_file(path)
        except Exception as error:  # the library raises plain Exception
            raise input_error(f"{path}: {printable(error)}") from None
    from transformers import AutoTokenizer

    try:
        backend = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        ).backend_tokenizer
    except Exception as error:
        raise input_error(
            f"{folder}: no tokenizer.json, and no other tokenizer can be read: {printable(error)}"
        ) from None
    return backend, hashlib.sha256(backend.to_str().encode()).hexdigest()


def load_tokenizer(folder: Path) -> LoadedTokenizer:
    """Checks and loads the tokenizer of a model folder; vocab_size is the model's where it has a config.json."""
    if not folder.is_dir():
        raise input_error(f"{folder}: not a model folder")
    vocab_size = read_config(folder).get("vocab_size")
    backend, digest = _backend(folder, vocab_size)
    backend.no_padding()
    backend.no_truncation()
    settings = _read_settings(folder)
    special_ids = frozenset(
        token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special
    )
    return LoadedTokenizer(
        backend=backend,
        vocab_size=vocab_size or backend.get_vocab_size(with_added_tokens=True),
        sha256=digest,
        special_tokens=_special_tokens(settings),
        special_ids=special_ids,
        chat_template=_chat_template(folder, settings),
        folder=folder,
    )
