"""Prints the stored comparisons (bench/results/*.json of compare_peft.py) as a Markdown table."""

import json
from pathlib import Path

MIB = 1 << 20


def row(result):
    ours, peer, ratio = result["graft"], result["peer"], result["ratio"]
    s = result["settings"]
    spread = max(ratio["spread"].values())
    return (
        f"| {result['name']} | {s['batch']} x {s['length']} | {s['pairs']} x {s['steps']} "
        f"| {ours['tokens_per_second']:.0f} | {peer['tokens_per_second']:.0f} | {ratio['speed']:.2f}x "
        f"| {spread:.0%} | {ours['peak_bytes'] / MIB:.0f} | {peer['peak_bytes'] / MIB:.0f} "
        f"| {ratio['memory']:.2f}x | {ours['start_seconds']:.1f} / {peer['start_seconds']:.1f} |"
    )


def header():
    names = "run | batch | pairs x steps | graft tok/s | peer tok/s | speed | spread | graft MiB | peer MiB"
    names += " | memory | start s, graft / peer"
    return f"| {names} |\n|{'---|' * (names.count('|') + 1)}"


def main():
    print(header())
    for path in sorted((Path(__file__).parent / "results").glob("*.json")):
        result = json.loads(path.read_text())
        if "ratio" in result:
            print(row(result))


if __name__ == "__main__":
    main()
