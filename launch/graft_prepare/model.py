"""Makes or checks a model folder: an HF folder as it is, or a GGUF file turned into one."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

from .errors import input_error, io_error, printable, usage_error
from .files import apply_umask, member, read_json_file, sha256_file, whole_folder
from .gguf_check import check_gguf
from .tokenizer import load_tokenizer, read_config

DTYPES = ("bfloat16", "float16", "float32")
MAX_INDEX_BYTES = 64 << 20
PACKAGE_PREFIX = "package:"
COPIED_SUFFIXES = (".json", ".safetensors", ".jinja", ".txt", ".model")


def find_source(source: str) -> Path:
    """The file or folder that --source names; package:NAME is the one GGUF file of an installed package."""
    if not source.startswith(PACKAGE_PREFIX):
        path = Path(source)
        if not path.exists():
            raise io_error(f"{path}: no such file or folder")
        return path
    name = source.removeprefix(PACKAGE_PREFIX).replace("-", "_")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise usage_error(
            f"--source {source}: no installed package of that name; run launch/setup.sh"
        )
    found = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if len(found) != 1:
        raise input_error(
            f"--source {source}: the package holds {len(found)} GGUF files, 1 is needed"
        )
    return found[0]


def weight_files(folder: Path) -> list[str]:
    """The safetensors files of an HF folder, by its index where it has one."""
    index = member(folder, "model.safetensors.index.json")
    if index is None:
        if member(folder, "model.safetensors") is None:
            raise input_error(
                f"{folder}: neither model.safetensors nor model.safetensors.index.json "
                "(pickled weights are not read)"
            )
        return ["model.safetensors"]
    tree = read_json_file(index, MAX_INDEX_BYTES)
    weight_map = tree.get("weight_map") if isinstance(tree, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise input_error(f"{index}: weight_map is missing or empty")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if "/" in name or name in (".", "..") or not name.endswith(".safetensors"):
            raise input_error(
                f"{index}: weight_map names '{printable(name)}', a plain *.safetensors file name is needed"
            )
        if member(folder, name) is None:
            raise input_error(f"{index}: weight_map names '{printable(name)}', which is absent")
    return names


def check_folder(folder: Path) -> dict[str, Any]:
    """Checks an HF folder as far as preparation can (`graft inspect` checks every tensor). Returns its config."""
    from safetensors import safe_open

    config = read_config(folder)
    if not isinstance(config.get("model_type"), str):
        raise input_error(f"{folder / 'config.json'}: model_type is missing, a name is needed")
    for name in weight_files(folder):
        try:
            with safe_open(folder / name, framework="numpy") as tensors:
                count = len(tensors.keys())
        except Exception as error:  # the library raises its own types for a bad header
            raise input_error(f"{folder / name}: {printable(error)}") from None
        if not count:
            raise input_error(f"{folder / name}: holds no tensor")
    load_tokenizer(folder)
    return config


def _quiet_transformers() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _take_special_tokens(tokenizer: Any, config: Any) -> None:
    """Lets the tokenizer name the tokens that the GGUF file says (transformers guesses them and was seen to take
    another end token than the one that the file, and so config.json, has)."""
    for key in ("bos_token", "eos_token", "pad_token"):
        token_id = getattr(config, f"{key}_id", None)
        if isinstance(token_id, int) and 0 <= token_id < len(tokenizer):
            setattr(tokenizer, key, tokenizer.convert_ids_to_tokens(token_id))


def _convert_gguf(source: Path, out: Path, dtype: str) -> None:
    """Writes the de-quantised weights, config, tokenizer and chat template of a checked GGUF file."""
    _quiet_transformers()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": source.name, "local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
        quantized = AutoModelForCausalLM.from_pretrained(
            source.parent, dtype=torch.float32, **where
        )
    except (
        Exception
    ) as error:  # what the libraries raise for a file they cannot read has no common type
        raise input_error(f"{source}: {printable(error)}") from None
    # The loaded model is marked as quantised and could not be saved: its state moves into a plain one.
    config = type(quantized.config).from_dict(
        {
            key: value
            for key, value in quantized.config.to_dict().items()
            if key != "quantization_config"
        }
    )
    config.dtype = getattr(torch, dtype)
    plain = type(quantized)(config)
    plain.load_state_dict(quantized.state_dict())
    plain.to(getattr(torch, dtype)).save_pretrained(out)
    _take_special_tokens(tokenizer, config)
    tokenizer.save_pretrained(out)
    for path in out.glob("*.safetensors"):
        apply_umask(path)


def _copy_folder(source: Path, out: Path) -> None:
    for path in sorted(source.iterdir()):
        if path.suffix in COPIED_SUFFIXES and member(source, path.name) is not None:
            shutil.copyfile(path, out / path.name)


def _describe(folder: Path, config: dict[str, Any]) -> None:
    files = weight_files(folder)
    size = sum((folder / name).stat().st_size for name in files)
    print(f"model folder     {folder}")
    print(
        f"type             {config['model_type']}, {config.get('num_hidden_layers', config.get('n_layer', '?'))} layers, "
        f"hidden {config.get('hidden_size', config.get('n_embd', '?'))}, vocabulary {config.get('vocab_size', '?')}"
    )
    print(
        f"weights          {len(files)} file(s), {size / 1e6:.0f} MB, sha256 {sha256_file(folder / files[0])[:16]}"
    )
    template = load_tokenizer(folder).chat_template
    print(
        f"chat template    {'its own' if template else 'none (name one with prepare.py data --template)'}"
    )


def prepare_model(source: str, out: Path | None, dtype: str, overwrite: bool) -> None:
    """The `model` command: checks an HF folder (and copies it where --out is given), or converts a GGUF file."""
    path = find_source(source)
    if path.is_dir():
        config = check_folder(path)
        if out is not None:
            with whole_folder(out, "config.json", overwrite) as temp:
                _copy_folder(path, temp)
        _describe(out or path, config)
        return
    check_gguf(path)
    if out is None:
        raise usage_error("--out is needed to convert a GGUF file")
    with whole_folder(out, "config.json", overwrite) as temp:
        _convert_gguf(path, temp, dtype)
        config = check_folder(temp)
    _describe(out, config)
