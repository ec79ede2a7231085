#include "trainer/tenants/merged_weights.h"

#include <ATen/ATen.h>

#include "base/status.h"

namespace graft::trainer {

absl::StatusOr<torch::Tensor> MergedWeights::Load(const std::string& name,
                                                  const std::vector<int64_t>& shape,
                                                  torch::Dtype dtype) {
  GRAFT_ASSIGN_OR_RETURN(const torch::Tensor stored, weights_.Load(name, shape, dtype));
  for (auto& [tensor_name, tensor] : tensors_) tensor = tensor.to(stored.device());
  torch::Tensor merged;
  for (const models::SiteSpec& site : adapter_.choice.matched) {
    if (name != site.module + ".weight") continue;
    if (!merged.defined()) merged = stored.to(at::kFloat, /*non_blocking=*/false, /*copy=*/true);
    torch::Tensor weight = site.fan_in_fan_out ? merged.t() : merged;
    if (site.fused()) weight = weight.narrow(0, site.fused_offset, site.out_features);
    torch::Tensor own = weight.contiguous(), bias;
    GRAFT_RETURN_IF_ERROR(adapter_.choice.method->Merge(site, tensors_, &own, &bias));
    weight.copy_(own);
  }
  return merged.defined() ? merged.to(dtype) : stored;
}

}  // namespace graft::trainer
