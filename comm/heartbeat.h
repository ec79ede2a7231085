// What a rank is doing and until when it may: the main thread stores, the watchdog reads
// (reliability.md 4.1). Atomics only. The limit of a phase becomes a deadline when the phase is
// entered, so a reader needs one number to judge.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "comm/monotonic.h"

namespace graft::comm {

// kIdle: no limit (before a run, and in commands that set none).
enum class Phase { kIdle, kSetup, kStep, kEvaluate, kSave, kExit };
const char* PhaseName(Phase phase);

// Seconds; 0 = automatic: set-up 900, the first step 600, later steps the larger of 60 and ten
// times the median of the last 100, save 600, exit 60. An evaluation has the set-up limit for each
// of its parts.
struct PhaseLimits {
  double setup_seconds = 0;
  double step_seconds = 0;
  double save_seconds = 0;
  double exit_seconds = 0;
};

class Heartbeat {
 public:
  explicit Heartbeat(MonotonicClock clock = &MonotonicNanos);
  Heartbeat(const Heartbeat&) = delete;
  Heartbeat& operator=(const Heartbeat&) = delete;

  // The main thread only. `step` counts from 1; -1 = none.
  void set_limits(const PhaseLimits& limits) { limits_ = limits; }
  void Enter(Phase phase, int64_t step = -1);
  // Something of the phase is done: its limit starts again.
  void Renew();

  // Any thread.
  Phase phase() const { return phase_.load(std::memory_order_acquire); }
  int64_t step() const { return step_.load(std::memory_order_acquire); }
  int64_t entered_ns() const { return entered_ns_.load(std::memory_order_acquire); }
  // INT64_MAX = none.
  int64_t deadline_ns() const { return deadline_ns_.load(std::memory_order_acquire); }

 private:
  double LimitOf(Phase phase) const;
  double StepLimit() const;

  const MonotonicClock clock_;
  PhaseLimits limits_;
  std::vector<double> step_seconds_;  // of the last steps, a ring
  int64_t steps_done_ = 0;
  std::atomic<Phase> phase_{Phase::kIdle};
  std::atomic<int64_t> step_{-1};
  std::atomic<int64_t> entered_ns_;
  std::atomic<int64_t> deadline_ns_;
};

}  // namespace graft::comm
