#!/usr/bin/env python3
"""Reads every #include line and fails on one that goes against the direction of the folders, or that names a library outside its
one place. Usage: include_direction_test.py SOURCE_DIR"""
import pathlib
import re
import sys

# Who may include whom (docs/design.md).
ALLOWED = {
    "base": {"base"},
    "comm": {"base", "comm"},
    "models": {"base", "models"},
    "adapters": {"base", "models", "adapters"},
    "sharding": {"base", "comm", "models", "adapters", "sharding"},
    "trainer": {"base", "comm", "models", "adapters", "sharding", "trainer"},
    "launch": {"base", "comm", "models", "adapters", "sharding", "trainer", "launch"},
}
# What adapters/ may see of models/: the site mechanism and where the loops run, never an architecture.
SITE_HEADERS = {"models/site.h", "models/micro_batch.h", "models/role.h", "models/device.h",
                "models/gpu_kernels.h"}
# System headers that have one place.
ONE_PLACE = {r"<mpi\.h>": "comm/", r"<nccl\.h>": "comm/", r"<glog/.*>": "base/logging."}


def breaches(root: pathlib.Path) -> list[str]:
    found = []
    for folder, allowed in ALLOWED.items():
        for path in sorted((root / folder).rglob("*")):
            if path.suffix not in {".h", ".cc", ".cu", ".cuh"}:
                continue
            name = path.relative_to(root).as_posix()
            for number, line in enumerate(path.read_text().splitlines(), 1):
                include = re.match(r'\s*#\s*include\s+("([^"]+)"|<[^>]+>)', line)
                if not include:
                    continue
                where, target = f"{name}:{number}", include.group(2)
                if target and target.split("/")[0] in ALLOWED.keys() - allowed:
                    found.append(f"{where}: {folder}/ may not include {target}")
                if folder == "adapters" and target and target.startswith("models/") and target not in SITE_HEADERS:
                    found.append(f"{where}: adapters/ sees of models/ only {', '.join(sorted(SITE_HEADERS))}, not {target}")
                for pattern, place in ONE_PLACE.items():
                    if re.fullmatch(pattern, include.group(1)) and not name.startswith(place):
                        found.append(f"{where}: {include.group(1)} belongs in {place}* only")
    return found


def main() -> int:
    root = pathlib.Path(sys.argv[1])
    files = sum(1 for folder in ALLOWED for path in (root / folder).rglob("*.cc"))
    if files < 20:
        print(f"{root}: found {files} sources, so this checked nothing")
        return 1
    found = breaches(root)
    print("\n".join(found) if found else f"{files} sources follow the include direction")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
