// Runs a float32 row function over the rows of a tensor, in parallel, whatever its dtype: float32
// rows are used in place, others are converted through a scratch row. CPU only.
#pragma once

#include <functional>
#include <vector>

#include <ATen/Parallel.h>
#include <torch/types.h>

#include "models/layers/row_kernels.h"

namespace graft::models::rows {

// Reads row i of a contiguous (N, D) tensor as float32.
class RowReader {
 public:
  explicit RowReader(const torch::Tensor& tensor) : tensor_(tensor), width_(tensor.size(-1)) {
    if (tensor.scalar_type() != torch::kFloat32) scratch_.resize(static_cast<size_t>(width_));
  }
  const float* Read(int64_t row) {
    if (scratch_.empty()) return tensor_.const_data_ptr<float>() + row * width_;
    Widen(static_cast<const uint16_t*>(tensor_.const_data_ptr()) + row * width_, scratch_.data(),
          width_);
    return scratch_.data();
  }

 private:
  const torch::Tensor& tensor_;
  int64_t width_;
  std::vector<float> scratch_;
};

// Gives room for row i and stores it rounded to the tensor's dtype.
class RowWriter {
 public:
  explicit RowWriter(const torch::Tensor& tensor) : tensor_(tensor), width_(tensor.size(-1)) {
    if (tensor.scalar_type() != torch::kFloat32) scratch_.resize(static_cast<size_t>(width_));
  }
  float* Room(int64_t row) {
    return scratch_.empty() ? tensor_.data_ptr<float>() + row * width_ : scratch_.data();
  }
  void Store(int64_t row) {
    if (scratch_.empty()) return;
    Round(scratch_.data(), static_cast<uint16_t*>(tensor_.data_ptr()) + row * width_, width_);
  }

 private:
  const torch::Tensor& tensor_;
  int64_t width_;
  std::vector<float> scratch_;
};

// Calls body(begin, end) over [0, num_rows) on the intra-op threads; about 16 K elements a piece at
// least.
template <typename Body>
void ParallelRows(int64_t num_rows, int64_t width, const Body& body) {
  at::parallel_for(0, num_rows, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width)), body);
}

}  // namespace graft::models::rows
