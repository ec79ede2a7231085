#include "trainer/lr_schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace graft::trainer {

absl::StatusOr<LrDecay> ParseLrDecay(const std::string& name) {
  if (name == "constant") return LrDecay::kConstant;
  if (name == "linear") return LrDecay::kLinear;
  if (name == "cosine") return LrDecay::kCosine;
  return RecipeError(
      absl::StrCat("optim.schedule: found \"", name, "\", allowed: constant, linear, cosine"));
}

double LrSchedule::Rate(int64_t finished_steps) const {
  const auto steps = static_cast<double>(finished_steps);
  if (finished_steps < warmup_steps) return peak * (steps / static_cast<double>(warmup_steps));
  if (decay == LrDecay::kConstant) return peak;
  const auto decay_steps = static_cast<double>(std::max<int64_t>(1, total_steps - warmup_steps));
  const double progress = (steps - static_cast<double>(warmup_steps)) / decay_steps;
  if (decay == LrDecay::kLinear) return peak * std::max(0.0, 1.0 - progress);
  return peak * std::max(0.0, 0.5 * (1.0 + std::cos(std::numbers::pi * progress)));
}

}  // namespace graft::trainer
