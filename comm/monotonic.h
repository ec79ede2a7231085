// The clock of everything that watches: CLOCK_MONOTONIC in nanoseconds, which all processes of one
// node share and which never jumps. Tests pass a clock of their own.
#pragma once

#include <time.h>

#include <cstdint>

namespace graft::comm {

using MonotonicClock = int64_t (*)();

inline int64_t MonotonicNanos() {
  struct timespec now {};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

constexpr int64_t NanosOf(double seconds) { return static_cast<int64_t>(seconds * 1e9); }
constexpr double SecondsOf(int64_t nanos) { return static_cast<double>(nanos) * 1e-9; }

}  // namespace graft::comm
