// PARA's vector generator of one layer (methods.md 6): pools the prompt's rows, makes one vector of
// scales per sample, and hands its parts to the layer's linears. Used by para.cc.
//
// Shapes: S samples of the micro-batch, D width of the hidden state, W = dq + dkv + f scales.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <torch/types.h>

#include "adapters/prompt_pool.h"
#include "models/site.h"

namespace graft::adapters {

enum class Activation { kGelu, kRelu, kRational };

struct ParaGeneratorOptions {
  Pooling pooling = Pooling::kMean;
  Activation activation = Activation::kGelu;
  double dropout = 0.0;
  int layer = 0;
  uint64_t seed = 0;
  torch::Dtype compute_dtype = torch::kFloat32;
  std::vector<int64_t> widths = {};  // of the parts, in the order q, v, up
};

// Leaves; those that the options do not use are undefined.
struct ParaParameters {
  torch::Tensor down, down_bias;  // (r, D), (r)
  torch::Tensor up, up_bias;      // (W, r), (W)
  torch::Tensor pool;             // (D), attention pooling
  torch::Tensor a, b;             // (6), (4), rational activation
};

// R(x) = sum_j a_j x^j / (1 + |sum_k b_k x^k|), j = 0..5, k = 1..4: a (6), b (4).
torch::Tensor Rational(const torch::Tensor& x, const torch::Tensor& a, const torch::Tensor& b);

class ParaGenerator {
 public:
  ParaGenerator(ParaParameters parameters, ParaGeneratorOptions options)
      : parameters_(std::move(parameters)), options_(std::move(options)) {}

  // Makes the scales of all samples from own.value (N, D), in a decoder that reads an encoder from
  // its output instead (methods.md 6), and leaves them in the context. In
  // generation a sequence's scales are made when it begins, from its whole prompt, and kept: the
  // prompt must come in one piece.
  void Prepare(const models::SiteInput& own, models::SiteContext& context) const;
  // Of a sequence's scales, as they are kept: where those of `part` begin, and how many there are.
  int64_t FirstScale(size_t part) const;
  int64_t Width(size_t part) const { return options_.widths[part]; }
  // x.value (N, width of `part`) scaled by them, row by row. After Prepare.
  torch::Tensor Scale(size_t part, const models::SiteInput& x, models::SiteContext& context) const;

 private:
  // (S, W) float32.
  torch::Tensor Generate(const models::SiteInput& x, const std::vector<models::Segment>& segments,
                         const models::SiteContext& context) const;
  torch::Tensor GenerateOrRecall(const models::SiteInput& x,
                                 const std::vector<models::Segment>& segments,
                                 const models::SiteContext& context) const;

  ParaParameters parameters_;
  ParaGeneratorOptions options_;
};

}  // namespace graft::adapters
