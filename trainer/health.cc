#include "trainer/health.h"

#include <algorithm>
#include <cmath>

#include "base/median.h"

namespace graft::trainer {
namespace {

constexpr int64_t kLearnLosses = 20;
constexpr double kDecay = 0.98;  // of the running mean and variance

}  // namespace

std::vector<int> StragglerWatch::Add(const std::vector<double>& seconds) {
  std::vector<int> found;
  slow_steps_.resize(seconds.size(), 0);
  const double limit = kFactor * Median(seconds);
  for (std::size_t rank = 0; rank < seconds.size(); ++rank) {
    int& slow = slow_steps_[rank];
    if (slow >= kSteps) continue;  // named already
    slow = seconds[rank] > limit ? slow + 1 : 0;
    if (slow == kSteps) found.push_back(static_cast<int>(rank));
  }
  return found;
}

std::optional<double> LossSpikeWatch::Add(double loss) {
  if (!std::isfinite(loss)) return std::nullopt;  // the non-finite policy has it
  ++count_;
  if (count_ == 1) mean_ = loss;
  const double deviation = loss - mean_;
  const double sigma = std::sqrt(variance_);
  const bool spike = count_ > kLearnLosses && sigma > 0 && deviation > kSigmas * sigma;
  // A spike must not widen the measure for the next one.
  const double counted = spike ? kSigmas * sigma : deviation;
  variance_ = kDecay * (variance_ + (1 - kDecay) * counted * counted);
  mean_ += (1 - kDecay) * counted;
  return spike ? std::optional<double>(deviation / sigma) : std::nullopt;
}

std::optional<double> LeadWatch::AddStep(double seconds) {
  ++steps_;
  longest_step_ = std::max(longest_step_, seconds);
  return Judge();
}

std::optional<double> LeadWatch::AddSave(double seconds) {
  longest_save_ = std::max(longest_save_, seconds);
  return Judge();
}

std::optional<double> LeadWatch::Judge() {
  const double needed = kFactor * (longest_step_ + longest_save_);
  if (lead_ <= 0 || found_ || steps_ < kSteps || needed <= lead_) return std::nullopt;
  found_ = true;
  return needed;
}

void GradientWatch::Add(const std::vector<bool>& has_gradient) {
  ++updates_;
  for (std::size_t i = 0; i < seen_.size(); ++i) seen_[i] = seen_[i] || has_gradient[i];
}

std::vector<std::size_t> GradientWatch::Dead() const {
  std::vector<std::size_t> dead;
  for (std::size_t i = 0; i < seen_.size(); ++i) {
    if (!seen_[i]) dead.push_back(i);
  }
  return dead;
}

}  // namespace graft::trainer
