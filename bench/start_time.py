"""Process start to the begin of the first training step, of graft on a real model folder.

  bench/start_time.py --model runs/quickstart/model [--ranks 2] [--repeat 3] [--max-seconds 5]
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import compare_peft
import measure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--graft", type=Path, default=measure.ROOT / "build" / "graft")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--max-seconds", type=float, default=0, help="exit 1 when the median is above")
    a = parser.parse_args()
    made = measure.begin(a)
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as work:
        vars(a).update(
            work=Path(work), rank=8, micro_batch=0, supervised=1.0, synthetic=True
        )
        folder = compare_peft.workload(a, a.ranks, 32, 1)
        seconds = [
            compare_peft.run_graft(a, folder, a.work / f"run-{i}", a.ranks, 1).start_seconds
            for i in range(a.repeat)
        ]
    median = statistics.median(seconds)
    print(f"start to step 1: median {median:.2f} s of {[round(s, 2) for s in seconds]}")
    measure.write_result(f"start-{a.dtype}-{a.ranks}rank", made, seconds=seconds, median=median)
    slow = f"{median:.2f} s, at most {a.max_seconds} s" if median > a.max_seconds else ""
    measure.check(a.max_seconds, slow)


if __name__ == "__main__":
    main()
