#!/usr/bin/env python3
"""Scores what `graft generate` wrote against the answers of the records: exact match, BLEU, ROUGE-L.

  score_text.py --generations runs/e2e/generations.jsonl --model models/gpt2-medium --references e2e/test.jsonl

--references are the files that the data set was prepared from (prepare.py data --input), in the same order: sample ids
are the numbers of their records. One JSON object goes to stdout; only samples that were generated count.

  exact_match  share of answers that equal a reference, white space around them aside (0 to 1)
  bleu         sacrebleu's corpus BLEU, tokenizer 13a, over all references of a sample (0 to 100); bleu_signature names it
  rouge_l      rouge-score's ROUGE-L F1 against the best reference of each sample, without stemming, mean (0 to 100)
"""

from project_python import use_project_venv

use_project_venv()

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft_prepare.cli import Parser
from graft_prepare.errors import input_error, run_guarded
from graft_prepare.reader import FORMATS, BadLines, Source, read_records
from graft_prepare.records import (
    SHAPE_NAMES,
    BadRecord,
    RecordReader,
    Rejected,
    Sample,
    parse_columns,
)
from graft_prepare.tokenizer import load_tokenizer
from graft_runs.generations import decode, existing_file, read_generations
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU


@dataclass
class Item:
    """One sample to score: an answer and its references."""

    answer: str
    references: list[str]


def read_references(args: argparse.Namespace) -> Iterator[Sample]:
    """The conversations of the records, numbered as prepare.py numbers them."""
    reader = RecordReader("causal_lm", parse_columns(args.columns), args.shape)
    source = Source(BadLines(args.max_bad))
    paths = [existing_file(path) for path in args.references]
    for record in read_records(paths, args.file_format, source):
        try:
            sample = reader.sample(record.value, record.number, record.where)
        except BadRecord as error:
            source.bad.report(record.where, str(error))
            continue
        except Rejected:
            continue
        if sample.messages:
            yield sample


def split_answer(sample: Sample, which: str) -> tuple[tuple[Any, ...], str] | None:
    """The turns before an answer of the record, as a key, and the answer; None for a record without one."""
    answers = [i for i, message in enumerate(sample.messages) if message["role"] == "assistant"]
    if not answers:
        return None
    place = answers[0] if which == "first" else answers[-1]
    before = tuple((message["role"], message["content"]) for message in sample.messages[:place])
    return before, sample.messages[place]["content"].strip()


def collect(args: argparse.Namespace) -> list[Item]:
    tokenizer = load_tokenizer(args.model)
    generations = {answer.sample_id: answer for answer in read_generations(args.generations)}
    references: dict[Any, list[str]] = {}  # by sample, or by prompt
    scored: dict[Any, int] = {}  # the sample whose answer counts
    found: set[int] = set()
    for sample in read_references(args):
        split = split_answer(sample, args.answer)
        if split is None:
            continue
        key = split[0] if args.group_prompts else sample.number
        references.setdefault(key, []).append(split[1])
        if sample.number in generations:
            found.add(sample.number)
            scored.setdefault(key, sample.number)
    for number, generation in generations.items():
        if number not in found:
            raise input_error(
                f"{generation.where}: sample {number} has no answer in "
                f"{', '.join(map(str, args.references))}; --references must be the files that the "
                "data set was prepared from"
            )
    return [
        Item(decode(tokenizer, generations[number]).strip(), references[key])
        for key, number in scored.items()
    ]


def score(items: list[Item]) -> dict[str, Any]:
    answers = [item.answer for item in items]
    most = max(len(item.references) for item in items)
    # sacrebleu takes one list per place in the references; None stands for a missing one.
    streams = [
        [item.references[place] if place < len(item.references) else None for item in items]
        for place in range(most)
    ]
    bleu = BLEU()
    rouge = RougeScorer(["rougeL"], use_stemmer=False)
    matches = sum(item.answer in item.references for item in items)
    overlaps = [
        rouge.score_multi(item.references, item.answer)["rougeL"].fmeasure for item in items
    ]
    return {
        "samples": len(items),
        "references": sum(len(item.references) for item in items),
        "exact_match": matches / len(items),
        "bleu": bleu.corpus_score(answers, streams).score,
        "rouge_l": 100 * sum(overlaps) / len(items),
        "bleu_signature": str(bleu.get_signature()),
    }


def _parser() -> Parser:
    parser = Parser(
        prog="score_text.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--generations", type=Path, required=True, help="generations.jsonl of a run")
    add("--model", type=Path, required=True, help="the model folder whose tokenizer decodes them")
    add(
        "--references",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="records with the right answers, in any shape that prepare.py reads",
    )
    add(
        "--group-prompts",
        action="store_true",
        help="records with the same prompt are one sample with several references (E2E); the "
        "answer to the first of them that was generated counts",
    )
    add(
        "--answer",
        choices=("first", "last"),
        default="first",
        help="which answer of a conversation is the reference (%(default)s; last for data "
        "prepared with --loss-on last_assistant)",
    )
    add("--format", choices=FORMATS, default="auto", dest="file_format", help="as for prepare.py")
    add("--shape", choices=SHAPE_NAMES, help="as for prepare.py data")
    add("--columns", default="", metavar="NAME=COLUMN,...", help="as for prepare.py data")
    add("--max-bad", type=int, default=0, metavar="N", help="as for prepare.py data (%(default)s)")
    return parser


def main() -> int:
    items = collect(_parser().parse_args())
    print(json.dumps(score(items)))
    return 0


if __name__ == "__main__":
    run_guarded(main)
