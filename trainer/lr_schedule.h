// The learning rate as a pure function of the finished steps, as transformers'
// get_{constant,linear,cosine}_schedule_with_warmup define it: with a warm-up the first step has
// rate 0. Used by the trainer; holds no state, so a resumed run needs only the step number.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace graft::trainer {

enum class LrDecay { kConstant, kLinear, kCosine };

// The recipe's words; error kind recipe lists them.
absl::StatusOr<LrDecay> ParseLrDecay(const std::string& name);

struct LrSchedule {
  LrDecay decay = LrDecay::kConstant;
  double peak = 1e-4;
  int64_t warmup_steps = 0;
  int64_t total_steps = 0;

  // The rate of the step that follows `finished_steps` finished ones.
  double Rate(int64_t finished_steps) const;
};

}  // namespace graft::trainer
