#!/usr/bin/env python3
"""Asks a model something: text in, text out. Tokenises here, lets `graft generate` answer, decodes here.

ask.py --run runs/quickstart/lora "Define the noun 'violin'."         with the adapter that the run trained
ask.py --model models-prepared/smollm2 "What is the capital of France?"   the model as it is
ask.py --run runs/demo --file data/eval.jsonl --count 3                questions (and answers) from records
"""

from project_python import use_project_venv

use_project_venv()

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from graft_prepare.cli import Parser
from graft_prepare.encode import Encoded
from graft_prepare.errors import GraftError, input_error, io_error, run_guarded, usage_error
from graft_prepare.reader import BadLines, Source, read_records
from graft_prepare.records import RecordReader, Rejected
from graft_prepare.templates import TEMPLATE_NAMES, choose_template
from graft_prepare.tokenizer import LoadedTokenizer, load_tokenizer
from graft_prepare.writer import DatasetInfo, DatasetWriter
from graft_runs.metrics import read_recipe
from project_python import ROOT


@dataclass(frozen=True)
class Question:
    """A conversation that waits for an answer; `expected` is the answer that a record has."""

    messages: tuple[dict[str, str], ...]
    expected: str | None = None

    @property
    def text(self) -> str:
        return self.messages[-1]["content"]


def questions_from_file(path: Path, count: int) -> list[Question]:
    """The first `count` records, in any shape that prepare.py reads, up to their last answer."""
    reader = RecordReader("causal_lm", {}, None)
    questions: list[Question] = []
    for record in read_records([path], "auto", Source(BadLines(0))):
        if len(questions) == count:
            break
        try:
            messages = reader.sample(record.value, record.number, record.where).messages
        except Rejected:
            continue
        if len(messages) > 1 and messages[-1]["role"] == "assistant":
            questions.append(Question(messages[:-1], messages[-1]["content"]))
    if not questions:
        raise input_error(f"{path}: holds no question with an answer")
    return questions


def write_prompts(
    folder: Path, questions: list[Question], tokenizer: LoadedTokenizer, template_name: str | None
) -> None:
    """A prepared data set whose samples are the prompts, each followed by one end token as its answer."""
    template = choose_template(template_name, tokenizer)
    end = tokenizer.eos_id if tokenizer.eos_id is not None else 0
    samples = []
    for number, question in enumerate(questions):
        text = template.render(question.messages, prompt=True)
        prompt = tokenizer.backend.encode(text, add_special_tokens=False).ids
        ids = np.array([*prompt, end], dtype=np.int32)
        mask = np.zeros(len(ids), dtype=np.uint8)
        mask[-1] = 1
        samples.append(Encoded(number, ids, len(prompt), loss_mask=mask))
    longest = max(len(sample.input_ids) for sample in samples)
    info = DatasetInfo(
        kind="causal_lm",
        vocab_size=tokenizer.vocab_size,
        tokenizer_sha256=tokenizer.sha256,
        max_length=longest,
        template=template.name,
        loss_on="all_assistant",
    )
    writer = DatasetWriter(folder, info, shard_tokens=1 << 24)
    for sample in samples:
        writer.add(sample)
    writer.close()


def make_recipe(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The recipe of `graft generate`: the model and adapter of a run, or a bare model."""
    recipe: dict[str, Any] = {}
    if args.run is not None:
        recipe, _ = read_recipe(args.run)
        if not recipe:
            raise io_error(
                f"{args.run / 'recipe.yaml'}: no such file; give the output folder of a run"
            )
    model = dict(recipe.get("model") or {})
    if args.model is not None:
        model["path"] = str(args.model)
    if not model.get("path"):
        raise usage_error("--model or --run is needed")
    if args.dtype is not None:
        model["dtype"] = args.dtype
    asked = {
        "run": {"name": "ask", "output": str(work / "run")},
        "model": model,
        "data": {"eval": str(work / "prompts")},
        "parallel": {"device": args.device},
        "generate": {"max_new_tokens": args.max_new_tokens, "temperature": args.temperature},
    }
    adapter = dict(recipe.get("adapter") or {})
    if adapter and not args.bare:
        adapter["init_from"] = str(args.run / "adapter")
        asked["adapter"] = adapter
    return asked


def run_generate(graft: Path, recipe: Path) -> None:
    """Runs the program; its own error line and exit code become ours."""
    if not graft.is_file():
        raise io_error(f"{graft}: no such program; build it first (launch/setup.sh --build)")
    result = subprocess.run(
        [str(graft), "generate", "--config", str(recipe)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if result.returncode:
        sys.stderr.write(result.stderr)
        sys.exit(result.returncode if result.returncode > 0 else 128 - result.returncode)


def read_answers(path: Path, count: int) -> list[list[int]]:
    """Token ids of each question's answer, in the order asked."""
    if not path.is_file():
        raise GraftError("bug", f"{path}: graft generate wrote no answers")
    answers: dict[int, list[int]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        answers[record["sample_id"]] = record["tokens"]
    return [answers[number] for number in range(count)]


def print_answers(questions: list[Question], answers: list[str]) -> None:
    if len(questions) == 1 and questions[0].expected is None:
        print(answers[0])
        return
    for question, answer in zip(questions, answers, strict=True):
        print(f"Q: {question.text}\nA: {answer}")
        if question.expected is not None:
            print(f"   (record: {question.expected})")


def _parser() -> Parser:
    parser = Parser(prog="ask.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("questions", nargs="*", metavar="QUESTION", help="what to ask")
    add("--run", type=Path, help="a run's output folder: its model and its adapter answer")
    add("--model", type=Path, help="a model folder (with --run: instead of the run's)")
    add("--bare", action="store_true", help="with --run: leave its adapter out")
    add("--file", type=Path, help="take questions from records that prepare.py can read")
    add("--count", type=int, default=3, help="records to take from --file (%(default)s)")
    add("--system", default="", help="a system message before each question")
    add("--template", choices=TEMPLATE_NAMES, help="as for prepare.py data")
    add("--max-new-tokens", type=int, default=64, help="(%(default)s)")
    add("--temperature", type=float, default=0.0, help="0 = greedy (%(default)s)")
    add("--dtype", choices=("float32", "bfloat16"), help="(the run's, else the program's default)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="(%(default)s)")
    graft = Path(os.environ.get("GRAFT_BINARY") or ROOT / "build" / "graft")
    add("--graft", type=Path, default=graft, help="the program (%(default)s)")
    return parser


def main() -> int:
    args = _parser().parse_args()
    system = ({"role": "system", "content": args.system},) if args.system else ()
    questions = [Question((*system, {"role": "user", "content": text})) for text in args.questions]
    if args.file is not None:
        questions += questions_from_file(args.file, args.count)
    if not questions:
        raise usage_error("a question or --file is needed")
    with tempfile.TemporaryDirectory(prefix="graft-ask-") as folder:
        work = Path(folder)
        recipe = make_recipe(args, work)
        tokenizer = load_tokenizer(Path(recipe["model"]["path"]))
        write_prompts(work / "prompts", questions, tokenizer, args.template)
        (work / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
        run_generate(args.graft, work / "recipe.yaml")
        answers = read_answers(work / "run" / "generations.jsonl", len(questions))
    texts = [tokenizer.backend.decode(ids, skip_special_tokens=True).strip() for ids in answers]
    print_answers(questions, texts)
    return 0


if __name__ == "__main__":
    run_guarded(main)
