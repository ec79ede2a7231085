// A frozen linear layer y = x W^T + b. In training it keeps a reference to W and nothing else: no
// input, no weight gradient (performance.md 2.1). How W is stored and multiplied is behind
// FrozenWeight, so that the same layer runs on plain, up-cast, quantised or gathered weights, and
// on those that method `full` trains (trained_matrix.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include <torch/types.h>

#include "models/site.h"

namespace graft::models {

// Memory that a frozen matrix was rearranged into, and its hash64 from the moment when that was
// done.
struct PackedBytes {
  const void* data = nullptr;
  std::size_t size = 0;
  uint64_t hash64 = 0;
};

// A frozen matrix W (out, in). Thread-safe, immutable.
class FrozenWeight {
 public:
  virtual ~FrozenWeight() = default;
  virtual int64_t in_features() const = 0;
  virtual int64_t out_features() const = 0;
  virtual int64_t bytes() const = 0;
  // x (N, in) -> x W^T (N, out), in `result` dtype: x's own, or float32.
  virtual torch::Tensor Multiply(const torch::Tensor& x, torch::Dtype result) const = 0;
  // dy (N, out) -> dy W (N, in), likewise.
  virtual torch::Tensor MultiplyTransposed(const torch::Tensor& dy, torch::Dtype result) const = 0;
  // Rows of W by index (embedding look-up): (indices) -> (indices, in).
  virtual torch::Tensor Rows(const torch::Tensor& indices) const = 0;
  // What it multiplies with instead of the tensor that it was made from: nothing at first where
  // that is done on first use. The memory lives as long as this.
  virtual std::vector<PackedBytes> Packed() const { return {}; }
  // Does now what would be done on the first Multiply and, with `transposed`, on the first
  // MultiplyTransposed. Done while the heap is empty, weights lie together in it; done in the first
  // step, they lie between activations and keep the heap from shrinking back to what is used.
  virtual void Prepare(bool /*transposed*/) const {}
  // Of a matrix that is trained after all: W (out, in) as autograd follows it down to Leaf(), the
  // float32 parameter. Undefined when it is frozen.
  virtual torch::Tensor Differentiable() const { return {}; }
  virtual torch::Tensor Leaf() const { return {}; }
};

enum class FrozenUse {
  kProducts,           // Multiply and MultiplyTransposed only
  kProductsAndLookup,  // Rows too: the matrix stays as it is stored
  kPassing,            // a few products, then it is gone: never packed
};

// Picks the fastest form for this processor. On CPUs a float32 matrix is read as it is stored
// (float_products.h); a bfloat16 one is packed once for each direction, when that direction is
// first used: evaluation never pays for the backward one. After both, a kProducts weight gives its
// plain form up. A bfloat16 matrix on a CPU without wide bfloat16 instructions is multiplied in
// float32 slab by slab (LibTorch's own fall-back there is about 40 times slower).
std::shared_ptr<const FrozenWeight> MakeFrozenWeight(torch::Tensor weight,
                                                     FrozenUse use = FrozenUse::kProductsAndLookup);

// Whether a CPU weight of this dtype is packed, once for each direction.
bool PacksWeights(torch::Dtype dtype);

// True when bfloat16 matrix products run on this CPU's own instructions.
bool HasFastBFloat16();

class FrozenLinear {
 public:
  FrozenLinear() = default;
  FrozenLinear(std::shared_ptr<const FrozenWeight> weight, torch::Tensor bias)
      : weight_(std::move(weight)), bias_(std::move(bias)) {}
  // A bias that is trained: outputs [begin, begin + out) of a float32 leaf.
  FrozenLinear(std::shared_ptr<const FrozenWeight> weight, torch::Tensor bias_leaf,
               int64_t bias_begin)
      : weight_(std::move(weight)), bias_(std::move(bias_leaf)), bias_begin_(bias_begin) {}
  // (N, in) -> (N, out), differentiable in x and in what is trained.
  torch::Tensor Forward(const torch::Tensor& x) const;
  const FrozenWeight& weight() const { return *weight_; }
  const torch::Tensor& bias() const { return bias_; }
  std::shared_ptr<const FrozenWeight> shared_weight() const { return weight_; }
  int64_t parameters() const {
    return weight_->in_features() * weight_->out_features() + (bias_.defined() ? bias_.numel() : 0);
  }
  int64_t bytes() const {
    return weight_->bytes() + (bias_.defined() ? static_cast<int64_t>(bias_.nbytes()) : 0);
  }

 private:
  std::shared_ptr<const FrozenWeight> weight_;
  torch::Tensor bias_;  // (out) or undefined; a trained one is the whole leaf
  int64_t bias_begin_ = 0;
};

}  // namespace graft::models
