// How far two tensors are apart, for tests of layers.
#pragma once

#include <algorithm>

#include <ATen/ATen.h>

namespace graft::models {

// ||got - want|| / ||want||, in float64; on any device.
inline double RelativeError(const torch::Tensor& got, const torch::Tensor& want) {
  const torch::Tensor a = got.to(torch::kCPU, torch::kFloat64),
                      b = want.to(torch::kCPU, torch::kFloat64);
  return (a - b).norm().item<double>() / std::max(1e-12, b.norm().item<double>());
}

}  // namespace graft::models
