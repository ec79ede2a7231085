// The two-layer network of idpg and lopa: tanh(D(e) W1^T + b1) W2^T + b2 (methods.md 9, 10), with
// its names, shapes and initial values. Only those two use it.
//
// Shapes: K samples, h width of e, H hidden, F numbers that it makes.
#pragma once

#include <string>
#include <vector>

#include <torch/types.h>

#include "adapters/adapter.h"
#include "adapters/generator.h"

namespace graft::adapters {

struct TanhHeadSpec {
  std::string prefix;  // "idpg", "lopa.row"
  int site = kGeneratorSite;
  int first_tensor = 0;  // place of `.0.weight` in the method's init order
  int64_t in = 0, hidden = 0, out = 0;
  int layer = 0;  // owner of its parameters: the number of layers
};

// `.0.weight` (H, h), `.0.bias` (H), `.2.weight` (F, H), `.2.bias` (F).
std::vector<ParameterSpec> TanhHeadParameters(const TanhHeadSpec& spec);

class TanhHead {
 public:
  // Weights ~ N(0, 0.02^2), first bias ~ U(-1/sqrt(h), 1/sqrt(h)), second bias 0.
  TanhHead(const TanhHeadSpec& spec, const AttachOptions& options, double dropout);
  const std::vector<NamedParameter>& parameters() const { return parameters_; }
  // e (K, h) of `segments` -> (K, F) float32.
  torch::Tensor Run(const torch::Tensor& e, const std::vector<models::Segment>& segments,
                    const models::SiteContext& context) const;

 private:
  std::vector<NamedParameter> parameters_;
  models::SiteId site_;
  uint64_t seed_;
  double dropout_;
  torch::Dtype compute_dtype_;
};

}  // namespace graft::adapters
