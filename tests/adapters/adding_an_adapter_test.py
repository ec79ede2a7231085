"""The code in docs/adding-an-adapter.md stands, word for word, in the method that it explains.

Usage: adding_an_adapter_test.py SOURCE_DIR
"""

import re
import sys
from pathlib import Path


def main():
    source = Path(sys.argv[1])
    text = (source / "docs" / "adding-an-adapter.md").read_text()
    code = (source / "adapters" / "ia3.cc").read_text()
    blocks = re.findall(r"```cpp\n(.*?)```", text, re.DOTALL)
    missing = [block for block in blocks if block not in code]
    for block in missing:
        print(f"graft: error: input: not in adapters/ia3.cc:\n{block}", file=sys.stderr)
    return 1 if missing or len(blocks) < 6 else 0


if __name__ == "__main__":
    sys.exit(main())
