#include "models/layers/relative_bias.h"

#include <cmath>

#include <ATen/ATen.h>

namespace graft::models {

torch::Tensor RelativeBuckets(const torch::Tensor& distance, bool bidirectional, int64_t buckets,
                              int64_t max_distance) {
  torch::Tensor first = at::zeros_like(distance), apart = -distance.clamp_max(0);
  if (bidirectional) {
    buckets /= 2;
    first = distance.gt(0).to(torch::kInt64) * buckets;
    apart = distance.abs();
  }
  const int64_t exact = buckets / 2;
  // In float32 and in this order, so that a distance on the edge of a bucket falls where HF puts
  // it.
  const torch::Tensor growth =
      at::log(apart.to(torch::kFloat32) / exact) /
      std::log(static_cast<double>(max_distance) / static_cast<double>(exact)) * (buckets - exact);
  // A distance of 0 has no logarithm; it is one of the exact ones.
  const torch::Tensor far = (exact + growth.clamp_min(0).to(torch::kInt64)).clamp_max(buckets - 1);
  return first + at::where(apart.lt(exact), apart, far);
}

std::shared_ptr<const RelativeBias> MakeRelativeBias(const torch::Tensor& table, bool bidirectional,
                                                     int64_t max_distance) {
  const torch::Tensor distance =
      at::arange(-max_distance, max_distance + 1, table.options().dtype(torch::kInt64));
  const torch::Tensor rows = RelativeBuckets(distance, bidirectional, table.size(0), max_distance);
  const torch::Tensor values =
      table.to(torch::kFloat32).index_select(0, rows).t().contiguous();  // (heads, distances)
  auto bias = std::make_shared<RelativeBias>();
  bias->reach = max_distance;
  if (values.is_cpu()) {
    bias->values.assign(values.const_data_ptr<float>(),
                        values.const_data_ptr<float>() + values.numel());
  } else {
    bias->table = values;
  }
  return bias;
}

torch::Tensor AttentionWithTrainedBias(const torch::Tensor& q, const torch::Tensor& k,
                                       const torch::Tensor& v, const std::vector<Segment>& segments,
                                       const TrainedBiasShape& shape, const torch::Tensor& table) {
  std::vector<torch::Tensor> mixed;
  for (const Segment& segment : segments) {
    const int64_t n = segment.length;
    const auto heads = [&](const torch::Tensor& x) {  // (heads, n, head_dim)
      return x.narrow(0, segment.begin, n).view({n, shape.num_heads, -1}).transpose(0, 1);
    };
    const torch::Tensor places = at::arange(n, table.options().dtype(torch::kInt64));
    const torch::Tensor distance = places.unsqueeze(0) - places.unsqueeze(1);
    const torch::Tensor buckets =
        RelativeBuckets(distance, shape.bidirectional, table.size(0), shape.max_distance);
    const torch::Tensor bias = table.index_select(0, buckets.flatten())
                                   .view({n, n, shape.num_heads})
                                   .permute({2, 0, 1})
                                   .to(q.scalar_type());
    torch::Tensor scores = at::bmm(heads(q), heads(k).transpose(1, 2)) + bias;
    if (!shape.bidirectional) scores = scores.masked_fill(distance.gt(0), -INFINITY);
    const torch::Tensor weights = at::softmax(scores, -1, torch::kFloat32).to(q.scalar_type());
    mixed.push_back(at::bmm(weights, heads(v)).transpose(0, 1).reshape({n, q.size(1)}));
  }
  return at::cat(mixed);
}

}  // namespace graft::models
