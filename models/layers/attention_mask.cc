#include "models/layers/attention_mask.h"

#include <cmath>
#include <limits>

#include <ATen/ATen.h>

namespace graft::models {
namespace {

// key - query of each pair, (queries, keys).
torch::Tensor Distances(int64_t queries, int64_t keys, torch::Device device) {
  const auto options = torch::TensorOptions(torch::kInt64).device(device);
  return at::arange(keys, options).unsqueeze(0) -
         at::arange(keys - queries, keys, options).unsqueeze(1);
}

// Nothing when the kernel's own causal mask says the same.
std::optional<torch::Tensor> WindowMask(int64_t queries, int64_t keys, int64_t window,
                                        torch::Dtype dtype, torch::Device device) {
  const bool causal_alone = queries == keys && (window == 0 || keys <= window);
  const bool sees_all = queries == 1 && (window == 0 || keys <= window);
  if (causal_alone || sees_all) return std::nullopt;
  const torch::Tensor distance = Distances(queries, keys, device);
  torch::Tensor hidden = distance.gt(0);
  if (window > 0) hidden = hidden.logical_or(distance.le(-window));
  return at::zeros({queries, keys}, torch::TensorOptions(dtype).device(device))
      .masked_fill(hidden, -std::numeric_limits<float>::infinity());
}

// (1, heads, queries, keys) float32.
torch::Tensor BiasMask(int64_t queries, int64_t keys, const RelativeBias& bias, int64_t num_heads,
                       torch::Device device) {
  const torch::Tensor distance =
      Distances(queries, keys, device).clamp(-bias.reach, bias.reach) + bias.reach;
  const torch::Tensor values =
      bias.table.defined() ? bias.table
                           : at::from_blob(const_cast<float*>(bias.values.data()),
                                           {num_heads, 2 * bias.reach + 1}, torch::kFloat32);
  return values.index_select(1, distance.flatten()).view({1, num_heads, queries, keys});
}

}  // namespace

ScoreMask MaskOf(int64_t queries, int64_t keys, const AttentionShape& shape, torch::Dtype dtype,
                 torch::Device device) {
  ScoreMask mask;
  if (shape.causal) mask.added = WindowMask(queries, keys, shape.sliding_window, dtype, device);
  mask.causal = shape.causal && !mask.added.has_value() && queries > 1;
  if (shape.bias == nullptr) return mask;
  torch::Tensor both = BiasMask(queries, keys, *shape.bias, shape.num_heads, device);
  if (mask.causal) both = both + at::full({queries, keys}, -INFINITY, both.options()).triu(1);
  if (mask.added.has_value()) both = both + *mask.added;
  return {both.to(dtype), /*causal=*/false};
}

}  // namespace graft::models
