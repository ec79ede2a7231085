// A matrix of the backbone that is trained (method `full`, methods.md 11): a float32 leaf which
// every pass computes with in the model's dtype. It stands where a FrozenWeight stands.
#pragma once

#include <cstdint>
#include <utility>

#include <torch/types.h>

#include "models/layers/frozen_linear.h"

namespace graft::models {

class TrainedMatrix : public FrozenWeight {
 public:
  // The whole of `leaf` (out, in). Looking up row `padding_row` gives it no gradient, as HF's
  // nn.Embedding(padding_idx) does; -1 = every row gets one.
  TrainedMatrix(torch::Tensor leaf, torch::Dtype dtype, int64_t padding_row = -1)
      : leaf_(std::move(leaf)),
        dtype_(dtype),
        padding_row_(padding_row),
        begin_(0),
        rows_(leaf_.size(0)) {}
  // Outputs [begin, begin + rows) of a leaf (in, out), as HF's Conv1D stores it.
  TrainedMatrix(torch::Tensor leaf, torch::Dtype dtype, int64_t begin, int64_t rows)
      : leaf_(std::move(leaf)), dtype_(dtype), stored_in_out_(true), begin_(begin), rows_(rows) {}

  int64_t in_features() const override { return leaf_.size(stored_in_out_ ? 0 : 1); }
  int64_t out_features() const override { return rows_; }
  int64_t bytes() const override { return rows_ * in_features() * leaf_.element_size(); }
  torch::Tensor Multiply(const torch::Tensor& x, torch::Dtype result) const override;
  torch::Tensor MultiplyTransposed(const torch::Tensor& dy, torch::Dtype result) const override;
  torch::Tensor Rows(const torch::Tensor& indices) const override;
  torch::Tensor Differentiable() const override { return Matrix(); }
  torch::Tensor Leaf() const override { return leaf_; }

 private:
  // (out, in) in the model's dtype. Made anew for every use: the leaf's memory may be moved.
  torch::Tensor Matrix() const;

  const torch::Tensor leaf_;
  const torch::Dtype dtype_;
  const bool stored_in_out_ = false;
  const int64_t padding_row_ = -1;
  const int64_t begin_, rows_;
};

}  // namespace graft::models
