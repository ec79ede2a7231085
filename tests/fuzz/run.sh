#!/usr/bin/env bash
# Replays the corpus of a fuzz target and goes on from it: run.sh PROGRAM CORPUS. GRAFT_FUZZ_SECONDS (2) of fuzzing. What is new goes
# into the working directory; an input that fails stays there as NAME-crash-...: mend, then put it into CORPUS.
set -euo pipefail
program="$1" corpus="$2" seconds="${GRAFT_FUZZ_SECONDS:-2}"
name="$(basename "$corpus")"
[ -n "$(ls -A "$corpus")" ] || { echo "run.sh: $corpus holds no file" >&2; exit 65; }
found="found/$name"
mkdir -p "$found"
# An input may take 1 s; beside other work, in the short form, 5 s.
limit=5
[ "$seconds" -lt 60 ] || limit=1
dictionary=()
[ ! -f "$corpus.dict" ] || dictionary=("-dict=$corpus.dict")
export ASAN_OPTIONS=quarantine_size_mb=16 UBSAN_OPTIONS=print_stacktrace=1
"$program" -max_total_time="$seconds" -timeout="$limit" -rss_limit_mb=512 -artifact_prefix="$name-" -print_final_stats=1 \
  "${dictionary[@]}" "$found" "$corpus" 2>"$name.log" || { tail -n 60 "$name.log"; exit 1; }
grep -E 'stat::number_of_executed_units|stat::peak_rss_mb' "$name.log"
