#include "models/layers/relative_bias.h"

#include <cmath>

#include <ATen/ATen.h>

namespace graft::models {

torch::Tensor BucketsOfDistances(int64_t reach, const RelativeBuckets& rule) {
  const torch::Tensor distances = at::arange(-reach, reach + 1, torch::kInt64);
  const int64_t buckets = rule.both_directions ? rule.buckets / 2 : rule.buckets;
  const torch::Tensor ahead = distances.gt(0).to(torch::kInt64) * buckets;
  const torch::Tensor size = rule.both_directions ? distances.abs() : distances.clamp_max(0).neg();
  // The first half of the buckets is exact, the second logarithmic; in float32, as the reference.
  const int64_t exact = buckets / 2;
  const torch::Tensor logarithmic =
      exact + (at::log(size.to(torch::kFloat32) / static_cast<double>(exact)) /
               std::log(static_cast<double>(rule.max_distance) / static_cast<double>(exact)) *
               static_cast<double>(buckets - exact))
                  .to(torch::kInt64);
  const torch::Tensor bucket = at::where(size.lt(exact), size, logarithmic.clamp_max(buckets - 1));
  return rule.both_directions ? bucket + ahead : bucket;
}

torch::Tensor RelativeBias(const torch::Tensor& table, int64_t reach, const RelativeBuckets& rule) {
  return table.to(torch::kFloat32).index_select(0, BucketsOfDistances(reach, rule)).t().contiguous();
}

}  // namespace graft::models
