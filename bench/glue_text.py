"""GLUE tasks posed as text: a TSV whose first line names its columns becomes prompt/completion records.

  glue_text.py sst2 sst2_train.tsv train.jsonl      columns sentence, label (1 = positive, 0 = negative)
  glue_text.py rte rte_train.tsv train.jsonl        columns sentence1, sentence2, label (entailment, not_entailment)
"""

import argparse
import csv
import json

TASKS = {
    "sst2": ("Review: {sentence}\nSentiment:", {"0": " negative", "1": " positive"}),
    "rte": (
        "Text: {sentence1}\nClaim: {sentence2}\nDoes the claim follow from the text?",
        {"entailment": " yes", "not_entailment": " no"},
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("source", help="TSV; the first line names the columns, nothing is quoted")
    parser.add_argument("out", help="JSONL to write")
    args = parser.parse_args()
    prompt, answers = TASKS[args.task]
    with open(args.source, encoding="utf-8", newline="") as rows, open(args.out, "w", encoding="utf-8") as out:
        for row in csv.DictReader(rows, delimiter="\t", quoting=csv.QUOTE_NONE):
            record = {"prompt": prompt.format(**row), "completion": answers[row["label"]]}
            out.write(json.dumps(record, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
