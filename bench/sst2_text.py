"""SST-2 posed as text: a TSV with the columns sentence and label (1 = positive) becomes prompt/completion records.

  sst2_text.py sst2_train.tsv train.jsonl
"""

import argparse
import csv
import json

ANSWERS = {"0": " negative", "1": " positive"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="TSV; the first line names the columns, nothing is quoted")
    parser.add_argument("out", help="JSONL to write")
    args = parser.parse_args()
    with open(args.source, encoding="utf-8", newline="") as rows, open(args.out, "w", encoding="utf-8") as out:
        for row in csv.DictReader(rows, delimiter="\t", quoting=csv.QUOTE_NONE):
            record = {"prompt": f"Review: {row['sentence']}\nSentiment:", "completion": ANSWERS[row["label"]]}
            out.write(json.dumps(record, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
