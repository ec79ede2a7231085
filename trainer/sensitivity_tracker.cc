#include "trainer/sensitivity_tracker.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "base/status.h"

namespace graft::trainer {
namespace {

constexpr double kBeta = 0.85;  // of both averages, as AdaLoRA's code

}  // namespace

SensitivityTracker::SensitivityTracker(const torch::Tensor& values)
    : sensitivity_(at::zeros_like(values)), uncertainty_(at::zeros_like(values)) {}

void SensitivityTracker::Update(const torch::Tensor& values, const torch::Tensor& gradients,
                                double divisor) {
  at::NoGradGuard no_grad;
  const torch::Tensor importance = (values * gradients).abs_().div_(divisor);
  sensitivity_.mul_(kBeta).add_(importance, 1 - kBeta);
  uncertainty_.mul_(kBeta).add_((importance - sensitivity_).abs_(), 1 - kBeta);
}

absl::StatusOr<std::vector<adapters::ModuleScore>> SensitivityScores(
    const adapters::Method& method, const std::vector<models::SiteSpec>& matched,
    const sharding::NamedTensors& q) {
  std::vector<adapters::ModuleScore> scores;
  for (const models::SiteSpec& site : matched) {
    if (!models::IsLinear(site.id.role)) continue;
    GRAFT_ASSIGN_OR_RETURN(const adapters::LowRankEdit edit, method.LowRankAt(site, q));
    const torch::Tensor of_a = edit.a.to(at::kDouble).mean(1),
                        of_b = edit.b.to(at::kDouble).mean(0);
    adapters::ModuleScore score{site.id, site.in_features, site.out_features};
    score.score = (of_a + of_b).sum().item<double>();
    scores.push_back(std::move(score));
  }
  std::sort(scores.begin(), scores.end(),
            [](const auto& a, const auto& b) { return a.site < b.site; });
  return scores;
}

}  // namespace graft::trainer
