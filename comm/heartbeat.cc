#include "comm/heartbeat.h"

#include <algorithm>
#include <limits>

namespace graft::comm {
namespace {

constexpr auto kRelease = std::memory_order_release;
constexpr double kSetupSeconds = 900, kFirstStepSeconds = 600, kSaveSeconds = 600,
                 kExitSeconds = 60;
constexpr double kLeastStepSeconds = 60, kStepMedians = 10;
constexpr std::size_t kRememberedSteps = 100;
constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

double OrDefault(double seconds, double automatic) { return seconds > 0 ? seconds : automatic; }

}  // namespace

const char* PhaseName(Phase phase) {
  switch (phase) {
    case Phase::kIdle:
      return "idle";
    case Phase::kSetup:
      return "setup";
    case Phase::kStep:
      return "step";
    case Phase::kEvaluate:
      return "evaluate";
    case Phase::kSave:
      return "save";
    case Phase::kExit:
      return "exit";
  }
  return "unknown";
}

Heartbeat::Heartbeat(MonotonicClock clock)
    : clock_(clock), entered_ns_(clock()), deadline_ns_(kNever) {}

double Heartbeat::StepLimit() const {
  if (limits_.step_seconds > 0) return limits_.step_seconds;
  if (step_seconds_.empty()) return kFirstStepSeconds;
  std::vector<double> seconds = step_seconds_;
  const auto middle = seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2);
  std::nth_element(seconds.begin(), middle, seconds.end());
  return std::max(kLeastStepSeconds, kStepMedians * *middle);
}

double Heartbeat::LimitOf(Phase phase) const {
  switch (phase) {
    case Phase::kIdle:
      return 0;
    case Phase::kSetup:
    case Phase::kEvaluate:
      return OrDefault(limits_.setup_seconds, kSetupSeconds);
    case Phase::kStep:
      return StepLimit();
    case Phase::kSave:
      return OrDefault(limits_.save_seconds, kSaveSeconds);
    case Phase::kExit:
      return OrDefault(limits_.exit_seconds, kExitSeconds);
  }
  return 0;
}

void Heartbeat::Enter(Phase next, int64_t next_step) {
  const int64_t now = clock_();
  if (phase() == Phase::kStep) {
    const double seconds = SecondsOf(now - entered_ns());
    if (step_seconds_.size() < kRememberedSteps) {
      step_seconds_.push_back(seconds);
    } else {
      step_seconds_[static_cast<std::size_t>(steps_done_) % kRememberedSteps] = seconds;
    }
    ++steps_done_;
  }
  // A reader between two of these stores sees the old deadline or none, never a wrong one.
  deadline_ns_.store(kNever, kRelease);
  phase_.store(next, kRelease);
  step_.store(next_step, kRelease);
  entered_ns_.store(now, kRelease);
  const double limit = LimitOf(next);
  if (limit > 0) deadline_ns_.store(now + NanosOf(limit), kRelease);
}

void Heartbeat::Renew() {
  const double limit = LimitOf(phase());
  if (limit > 0) deadline_ns_.store(clock_() + NanosOf(limit), kRelease);
}

}  // namespace graft::comm
