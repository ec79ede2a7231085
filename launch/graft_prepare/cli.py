"""The command line of prepare.py."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NoReturn

from .encode import LOSS_ON, TRUNCATION
from .errors import usage_error
from .model import DTYPES, prepare_model
from .reader import FORMATS
from .records import SHAPE_NAMES, parse_columns
from .templates import TEMPLATE_NAMES


class Parser(argparse.ArgumentParser):
    """argparse with graft's error line and exit code."""

    def error(self, message: str) -> NoReturn:
        raise usage_error(f"{self.prog}: {message}")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1 is needed")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text}: at least 0 is needed")
    return value


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text}: allowed are 0 <= F < 1")
    return value


def _add_model(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "model", allow_abbrev=False, help="check an HF model folder, or convert a GGUF file to one"
    )
    parser.add_argument(
        "--source",
        required=True,
        metavar="PATH|package:NAME",
        help="an HF folder, a GGUF file, or the GGUF file of an installed Python package",
    )
    parser.add_argument(
        "--out", type=Path, help="the folder to write; needed for GGUF, copies an HF folder"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="bfloat16", help="of the converted weights (%(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing model folder")


def _add_wordnet(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "wordnet", allow_abbrev=False, help="write instruction records made from WordNet as JSONL"
    )
    parser.add_argument("--out", type=Path, required=True, help="the JSONL file to write")
    parser.add_argument("--count", type=int, default=4000, help="records (%(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed gives the same file (%(default)s)"
    )
    parser.add_argument(
        "--wordnet",
        type=Path,
        default=Path("/usr/share/wordnet"),
        help="WordNet's folder (%(default)s)",
    )


def _add_data(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "data", allow_abbrev=False, help="tokenise records into a prepared data set"
    )
    add = parser.add_argument
    add(
        "--input",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="JSONL, JSON array, TSV with header, or text",
    )
    add("--model", type=Path, required=True, help="the model folder whose tokenizer is used")
    add(
        "--out",
        type=Path,
        required=True,
        help="the data set folder (with --eval-fraction: holds train/ and eval/)",
    )
    add(
        "--encoder",
        type=Path,
        metavar="FOLDER",
        help="a RoBERTa-family model that is to read the prompts (adapter.encoder of lopa, idpg): "
        "writes encoder_ids by its tokenizer",
    )
    add(
        "--kind",
        choices=("causal_lm", "classification", "regression", "seq2seq"),
        default="causal_lm",
        help="(%(default)s)",
    )
    add(
        "--format",
        choices=FORMATS,
        default="auto",
        dest="file_format",
        help="of the input files (by suffix and content)",
    )
    add("--shape", choices=SHAPE_NAMES, help="of the records (by the keys of the first one)")
    add(
        "--columns",
        default="",
        metavar="NAME=COLUMN,...",
        help="which column of the file holds which name of the shape",
    )
    add(
        "--template",
        choices=TEMPLATE_NAMES,
        help="how a conversation becomes text (the tokenizer's own)",
    )
    add(
        "--loss-on",
        choices=LOSS_ON,
        help="what is trained: every answer (default), the last one, everything behind the "
        "first prompt, or every token (plain text: always all)",
    )
    add(
        "--max-length",
        type=_positive,
        help="tokens of a sample (1024, or the model's positions if fewer)",
    )
    add(
        "--truncation",
        choices=TRUNCATION,
        default="end",
        help="where a longer sample is cut, or reject it (%(default)s)",
    )
    add("--limit", type=_count, default=0, metavar="N", help="stop after N samples (0: no limit)")
    add(
        "--eval-fraction",
        type=_fraction,
        default=0.0,
        metavar="F",
        help="share of samples held out, chosen by a hash of the id",
    )
    add("--split-seed", type=int, default=0, help="another seed, another split (%(default)s)")
    add(
        "--labels",
        default="",
        metavar="A,B,...",
        help="class names in the order of their numbers (those found, sorted)",
    )
    add(
        "--show",
        type=_count,
        default=0,
        metavar="N",
        help="print the tokens of the first N samples with their mask",
    )
    add(
        "--max-bad",
        type=_count,
        default=0,
        metavar="N",
        help="malformed lines to skip before giving up (%(default)s)",
    )
    add("--shard-tokens", type=_positive, default=16 << 20, help="tokens in a file (%(default)s)")
    add("--overwrite", action="store_true", help="replace an existing data set")


def _parser() -> Parser:
    parser = Parser(
        prog="prepare.py",
        allow_abbrev=False,
        description="Makes model folders and prepared data sets for graft.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_model(commands)
    _add_wordnet(commands)
    _add_data(commands)
    return parser


def main(arguments: list[str] | None = None) -> int:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    args = vars(_parser().parse_args(arguments))
    command = args.pop("command")
    if command == "model":
        prepare_model(args["source"], args["out"], args["dtype"], args["overwrite"])
    elif command == "wordnet":
        from .wordnet import write_wordnet

        write_wordnet(args["wordnet"], args["out"], args["count"], args["seed"])
    else:
        from .data import DataOptions, prepare_data

        args["inputs"] = args.pop("input")
        args["columns"] = parse_columns(args["columns"])
        args["labels"] = [label for label in args["labels"].split(",") if label]
        prepare_data(DataOptions(**args))
    return 0
