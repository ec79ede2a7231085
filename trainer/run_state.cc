#include "trainer/run_state.h"

#include <cmath>

namespace graft::trainer {
namespace {

constexpr int64_t kMaxConsecutiveSkips = 5;
constexpr size_t kMaxRecentSkips = 10;
constexpr int64_t kRecentSteps = 1000;

}  // namespace

void RunState::CountStep(bool was_skipped) {
  ++step;
  was_skipped ? ++skipped : ++updates;
  consecutive_skips = was_skipped ? consecutive_skips + 1 : 0;
  if (was_skipped) recent_skips.push_back(step);
  while (!recent_skips.empty() && recent_skips.front() <= step - kRecentSteps)
    recent_skips.pop_front();
}

bool RunState::TooManySkips() const {
  return consecutive_skips > kMaxConsecutiveSkips || recent_skips.size() > kMaxRecentSkips;
}

bool RunState::CountEvaluation(double loss) {
  const bool best = std::isfinite(loss) && (!best_loss.has_value() || loss < *best_loss);
  evaluations_since_best = best ? 0 : evaluations_since_best + 1;
  if (best) {
    best_loss = loss;
    best_step = step;
  }
  return best;
}

}  // namespace graft::trainer
