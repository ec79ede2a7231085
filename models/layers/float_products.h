// Products with a float32 matrix as it is stored, for any number of rows: nothing is packed, so a
// weight takes its own size once. What a row gets depends on that row alone, bit for bit, for every
// number of rows and threads; sums are made of short chains (16 lanes, or blocks of 128), which
// keeps a deep model's rounding error small. Used by frozen_linear.cc; no gradient. CPU.
#pragma once

#include <cstdint>
#include <span>

#include <torch/types.h>

namespace graft::models {

// x (N, in), weight (out, in): float32, contiguous -> x W^T (N, out).
torch::Tensor MultiplyFloat(const torch::Tensor& x, const torch::Tensor& weight);
// dy (N, out), weight (out, in): likewise -> dy W (N, in).
torch::Tensor MultiplyFloatTransposed(const torch::Tensor& dy, const torch::Tensor& weight);

// What the two are made of, for one instruction set.
struct FloatKernels {
  // Operands, row by row: x (rows, summed), y (rows, columns).
  struct Product {
    const float* x;
    const float* weight;
    float* y;
    int64_t rows, summed, columns;
  };
  // Rows [row, row_end) and columns [column, column_end) of y.
  using Block = void (*)(const Product&, int64_t row, int64_t row_end, int64_t column,
                         int64_t column_end);
  const char* instructions;
  Block forward;     // weight (columns, summed)
  Block transposed;  // weight (summed, columns); at most kPanel columns
};
inline constexpr int64_t kPanel = 64;

// Those that this processor has, the best one first.
std::span<const FloatKernels> AvailableFloatKernels();

}  // namespace graft::models
