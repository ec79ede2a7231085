#include "sharding/save_advice.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"
#include "base/text.h"

namespace graft::sharding {
namespace {

constexpr double kCopyBytesPerSecond = 2e9;  // of memory that is not in a cache
constexpr double kFixedStall = 2e-3;         // a folder is made, the ranks agree twice
constexpr double kRestartSeconds = 10;       // to the first step (docs/checkpoints.md)
constexpr double kHour = 3600;
constexpr int64_t kBytesPerParameter = 3 * sizeof(float);  // value and two moments

std::string Every(double seconds, double step_seconds) {
  if (step_seconds <= 0) return absl::StrFormat("every %.0f s", seconds);
  const double steps = std::max(1.0, std::round(seconds / step_seconds));
  return absl::StrFormat("every %.0f s = checkpoint.every %.0f", seconds, steps);
}

}  // namespace

double PredictedStall(int64_t bytes_per_rank) {
  return kFixedStall + static_cast<double>(bytes_per_rank) / kCopyBytesPerSecond;
}

SaveAdvice AdviseSaves(double stall_seconds, double mttf_seconds) {
  SaveAdvice advice;
  advice.interval_seconds = std::sqrt(2 * stall_seconds * mttf_seconds);
  advice.overhead = stall_seconds / advice.interval_seconds +
                    advice.interval_seconds / (2 * mttf_seconds) + kRestartSeconds / mttf_seconds;
  return advice;
}

std::string SaveAdviceLine(int64_t trainable, int ranks, double step_seconds) {
  const int64_t bytes = trainable * kBytesPerParameter;
  const double stall = PredictedStall(bytes / std::max(ranks, 1));
  std::string line = absl::StrFormat("save        %s a checkpoint, %.0f ms of stall predicted",
                                     FormatBytes(bytes), 1e3 * stall);
  for (const double hours : {4.0, 24.0}) {
    const SaveAdvice advice = AdviseSaves(stall, hours * kHour);
    absl::StrAppendFormat(&line, "; for one failure in %.0f h save %s (%.2f %% lost)", hours,
                          Every(advice.interval_seconds, step_seconds), 100 * advice.overhead);
  }
  return line + "\n";
}

}  // namespace graft::sharding
