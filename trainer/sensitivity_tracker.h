// How sensitive the loss is to each trained value, averaged over the steps of a run (AdaLoRA, arXiv
// 2303.10512, section 3.2, as its code computes it; methods.md 16.1): I = abs(w g), Ibar its moving
// average, Ubar that of abs(I - Ibar), q = Ibar x Ubar. That a module's score is the sum over its
// ranks is ours. With adapter.track_sensitivity the trainer updates it in every step, keeps both
// averages in its checkpoints and writes sensitivity.json at the end.
#pragma once

#include <vector>

#include <torch/types.h>

#include "absl/status/statusor.h"
#include "adapters/adapter.h"
#include "adapters/importance.h"
#include "sharding/gather.h"

namespace graft::trainer {

class SensitivityTracker {
 public:
  // values (P) float32: of an AdapterSet.
  explicit SensitivityTracker(const torch::Tensor& values);

  // Before the update of a step: `gradients` are sums behind the all-reduce and before clipping,
  // `divisor` makes the mean of them.
  void Update(const torch::Tensor& values, const torch::Tensor& gradients, double divisor);

  // (P) float32, both from 0; in the checkpoint.
  const torch::Tensor& sensitivity() const { return sensitivity_; }
  const torch::Tensor& uncertainty() const { return uncertainty_; }

 private:
  torch::Tensor sensitivity_, uncertainty_;
};

// Sum over ranks i of mean_j q(A_ij) + mean_j q(B_ji), float64. `q`: under the names of the
// parameters of `method`, of the whole model; q >= 0.
absl::StatusOr<std::vector<adapters::ModuleScore>> SensitivityScores(
    const adapters::Method& method, const std::vector<models::SiteSpec>& matched,
    const sharding::NamedTensors& q);

}  // namespace graft::trainer
