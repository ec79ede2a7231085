# Shared by the scripts of launch/: source it, do not run it.
# shellcheck shell=bash
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${GRAFT_VENV:-$ROOT/.venv}"
PYTHON="$VENV/bin/python"
export ROOT VENV PYTHON

say() { printf '== %s\n' "$*"; }

# Ends the script with graft's error line: fail KIND CODE MESSAGE.
fail() {
  printf 'graft: error: %s: %s\n' "$1" "$3" >&2
  exit "$2"
}

# What cmake is told about a site's own libraries, one option a line.
site_cmake_options() {
  [ -z "${GRAFT_LIBTORCH:-}" ] || echo "-DGRAFT_LIBTORCH=$GRAFT_LIBTORCH"
  [ -z "${CMAKE_PREFIX_PATH:-}" ] || echo "-DCMAKE_PREFIX_PATH=${CMAKE_PREFIX_PATH//:/;}"
}

# mpirun for N ranks on this machine: ranks may outnumber cores and root may run them (containers). Waiting ranks
# give their core away.
local_ranks() {
  local ranks="$1"
  shift
  local root_flag=()
  [ "$(id -u)" -eq 0 ] && root_flag=(--allow-run-as-root)
  mpirun -q "${root_flag[@]}" --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 -np "$ranks" "$@"
}
