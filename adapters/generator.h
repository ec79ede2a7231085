// The small networks that make vectors or soft prompts from one vector per sample: their linears,
// dropout and initial values. Used by para, idpg and lopa.
//
// Shapes: S samples.
#pragma once

#include <cstdint>
#include <vector>

#include <torch/types.h>

#include "adapters/adapter.h"
#include "base/philox.h"
#include "models/site.h"

namespace graft::adapters {

// Random numbers of these parts (methods.md 1.2): values of models::Role that no site has.
inline constexpr int kSoftPromptSite = 32, kGeneratorSite = 33, kColumnGeneratorSite = 35;

// x W^T + b for x (S, in) float32, W (out, in), b (out) or undefined: operands are rounded to
// `compute_dtype`, products and gradients are float32.
torch::Tensor GeneratorLinear(const torch::Tensor& x, const torch::Tensor& weight,
                              const torch::Tensor& bias, torch::Dtype compute_dtype);

// D(x) for x (S, width): row s is masked by its sample's id at position 0. `probability` 0: x.
torch::Tensor GeneratorDropout(const torch::Tensor& x, const std::vector<models::Segment>& segments,
                               int64_t step, models::SiteId site, uint64_t seed,
                               double probability);

// Float32 leaves with requires_grad, of parameters at (layer, site); tensor_number: place in the
// method's init order.
class GeneratorInit {
 public:
  GeneratorInit(const AttachOptions& options, int layer, int site);
  torch::Tensor Normal(int tensor_number, std::vector<int64_t> shape, double stddev) const;
  torch::Tensor Uniform(int tensor_number, std::vector<int64_t> shape, double bound) const;
  torch::Tensor Constant(std::vector<int64_t> shape, double value) const;

 private:
  torch::Tensor Leaf(torch::Tensor value) const;
  uint64_t key_;
  torch::Device device_;
};

}  // namespace graft::adapters
