#include "models/layers/float_products.h"

#include <algorithm>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "base/dot_tile.h"

namespace graft::models {
namespace {

using Product = FloatKernels::Product;

constexpr int64_t kChain = 128;     // products of the transposed form added in one chain
constexpr int64_t kWork = 32'768;   // products that are worth a thread
constexpr int64_t kCache = 65'536;  // floats of x that a block reads again for every four columns

// y[row + i, column + j] for a tile.
template <int kOut, int kRows>
GRAFT_INLINE void ForwardTile(const Product& p, int64_t row, int64_t column) {
  float products[kRows][kOut];
  DotTile<kOut, kRows>(p.weight + column * p.summed, p.x + row * p.summed, p.summed, products);
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kOut; ++j) p.y[(row + i) * p.columns + column + j] = products[i][j];
  }
}

template <int kOut, int kRows>
GRAFT_INLINE void ForwardRows(const Product& p, int64_t row, int64_t row_end, int64_t column) {
  for (; row + kRows <= row_end; row += kRows) ForwardTile<kOut, kRows>(p, row, column);
  for (; row < row_end; ++row) ForwardTile<kOut, 1>(p, row, column);
}

template <int kOut, int kRows>
GRAFT_INLINE void Forward(const Product& p, int64_t row, int64_t row_end, int64_t column,
                          int64_t column_end) {
  for (; column + kOut <= column_end; column += kOut)
    ForwardRows<kOut, kRows>(p, row, row_end, column);
  for (; column < column_end; ++column) ForwardRows<1, kRows>(p, row, row_end, column);
}

// A piece of the weight, copied together: `length` of its rows, kPanel columns, zeros behind them.
using Panel = float[kChain][kPanel];

GRAFT_INLINE void CopyPanel(const Product& p, int64_t first, int64_t length, int64_t column,
                            int64_t width, Panel& panel) {
  for (int64_t i = 0; i < length; ++i) {
    const float* from = p.weight + (first + i) * p.columns + column;
    if (width == kPanel) {
      std::memcpy(panel[i], from, sizeof(panel[i]));
    } else {
      std::fill(std::copy_n(from, width, panel[i]), panel[i] + kPanel, 0.0F);
    }
  }
}

// Adds the panel's part to `width` (<= 16 kVectors) columns of kRows rows of y, or stores it.
template <int kRows, int kVectors>
GRAFT_INLINE void TransposedTile(const float* x, int64_t x_step, const float* panel, int64_t length,
                                 float* y, int64_t y_step, int64_t width, bool add) {
  FloatLanes sum[kRows][kVectors] = {};
  for (int64_t k = 0; k < length; ++k, panel += kPanel) {
    FloatLanes factors[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) LoadLanes(panel + j * kFloatLanes, &factors[j]);
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) {
      const float part = x[i * x_step + k];
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) sum[i][j] += factors[j] * part;
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      float* to = y + i * y_step + j * kFloatLanes;
      const int64_t left = std::min(width - j * kFloatLanes, kFloatLanes);
      if (left == kFloatLanes) {
        FloatLanes before = {};
        if (add) LoadLanes(to, &before);
        StoreLanes(add ? before + sum[i][j] : sum[i][j], to);
      } else {
        float lanes[kFloatLanes];
        StoreLanes(sum[i][j], lanes);
        for (int64_t lane = 0; lane < left; ++lane)
          to[lane] = add ? to[lane] + lanes[lane] : lanes[lane];
      }
    }
  }
}

template <int kRows, int kVectors>
GRAFT_INLINE void Transposed(const Product& p, int64_t row, int64_t row_end, int64_t column,
                             int64_t column_end) {
  constexpr int64_t kWidth = kVectors * kFloatLanes;
  alignas(64) Panel panel;
  const int64_t width = column_end - column;
  for (int64_t first = 0; first < p.summed; first += kChain) {
    const int64_t length = std::min(kChain, p.summed - first);
    CopyPanel(p, first, length, column, width, panel);
    for (int64_t part = 0; part < width; part += kWidth) {
      const int64_t left = std::min(width - part, kWidth);
      const float* x = p.x + first;
      float* y = p.y + column + part;
      int64_t i = row;
      for (; i + kRows <= row_end; i += kRows) {
        TransposedTile<kRows, kVectors>(x + i * p.summed, p.summed, panel[0] + part, length,
                                        y + i * p.columns, p.columns, left, first > 0);
      }
      for (; i < row_end; ++i) {
        TransposedTile<1, kVectors>(x + i * p.summed, p.summed, panel[0] + part, length,
                                    y + i * p.columns, p.columns, left, first > 0);
      }
    }
  }
}

// The tiles follow the registers: 32 of 512 bits, 16 of 256 bits, or fewer.
#if defined(__x86_64__)
__attribute__((target("arch=x86-64-v4"))) void ForwardV4(const Product& p, int64_t row,
                                                         int64_t row_end, int64_t column,
                                                         int64_t column_end) {
  Forward<4, 4>(p, row, row_end, column, column_end);
}
__attribute__((target("arch=x86-64-v4"))) void TransposedV4(const Product& p, int64_t row,
                                                            int64_t row_end, int64_t column,
                                                            int64_t column_end) {
  Transposed<6, 4>(p, row, row_end, column, column_end);
}
__attribute__((target("arch=x86-64-v3"))) void ForwardV3(const Product& p, int64_t row,
                                                         int64_t row_end, int64_t column,
                                                         int64_t column_end) {
  Forward<2, 2>(p, row, row_end, column, column_end);
}
__attribute__((target("arch=x86-64-v3"))) void TransposedV3(const Product& p, int64_t row,
                                                            int64_t row_end, int64_t column,
                                                            int64_t column_end) {
  Transposed<4, 1>(p, row, row_end, column, column_end);
}
#endif

void ForwardPlain(const Product& p, int64_t row, int64_t row_end, int64_t column,
                  int64_t column_end) {
  Forward<1, 2>(p, row, row_end, column, column_end);
}
void TransposedPlain(const Product& p, int64_t row, int64_t row_end, int64_t column,
                     int64_t column_end) {
  Transposed<2, 1>(p, row, row_end, column, column_end);
}

// Blocks of `row_step` rows and `column_step` columns, neighbours in a column of blocks one after
// the other: they read the same part of the weight.
void ForEachBlock(const Product& p, int64_t row_step, int64_t column_step,
                  FloatKernels::Block block) {
  const int64_t row_blocks = (p.rows + row_step - 1) / row_step;
  const int64_t column_blocks = (p.columns + column_step - 1) / column_step;
  const int64_t work = std::min(row_step, p.rows) * std::min(column_step, p.columns) *
                       std::max<int64_t>(1, p.summed);
  at::parallel_for(0, row_blocks * column_blocks,
                   std::max<int64_t>(1, kWork / std::max<int64_t>(1, work)),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i) {
                       const int64_t row = i % row_blocks * row_step;
                       const int64_t column = i / row_blocks * column_step;
                       block(p, row, std::min(row + row_step, p.rows), column,
                             std::min(column + column_step, p.columns));
                     }
                   });
}

}  // namespace

std::span<const FloatKernels> AvailableFloatKernels() {
  static const std::vector<FloatKernels> available = [] {
    std::vector<FloatKernels> kernels;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("x86-64-v4"))
      kernels.push_back({"x86-64-v4", &ForwardV4, &TransposedV4});
    if (__builtin_cpu_supports("x86-64-v3"))
      kernels.push_back({"x86-64-v3", &ForwardV3, &TransposedV3});
#endif
    kernels.push_back({"plain", &ForwardPlain, &TransposedPlain});
    return kernels;
  }();
  return available;
}

torch::Tensor MultiplyFloat(const torch::Tensor& x, const torch::Tensor& weight) {
  torch::Tensor y = at::empty({x.size(0), weight.size(0)}, x.options());
  const Product p{x.const_data_ptr<float>(),
                  weight.const_data_ptr<float>(),
                  y.data_ptr<float>(),
                  x.size(0),
                  weight.size(1),
                  weight.size(0)};
  const int64_t rows =
      std::clamp<int64_t>(kCache / std::max<int64_t>(1, p.summed) / 4 * 4, 16, 128);
  // Few rows need many narrow blocks to share among threads; many rows are read once for a wide
  // one.
  const int64_t columns = p.rows <= rows ? 16 : 64;
  ForEachBlock(p, rows, columns, AvailableFloatKernels()[0].forward);
  return y;
}

torch::Tensor MultiplyFloatTransposed(const torch::Tensor& dy, const torch::Tensor& weight) {
  constexpr int64_t kRows = 252;  // enough that copying the weight's panels does not count
  torch::Tensor dx = at::empty({dy.size(0), weight.size(1)}, dy.options());
  const Product p{dy.const_data_ptr<float>(),
                  weight.const_data_ptr<float>(),
                  dx.data_ptr<float>(),
                  dy.size(0),
                  weight.size(0),
                  weight.size(1)};
  ForEachBlock(p, kRows, kPanel, AvailableFloatKernels()[0].transposed);
  return dx;
}

}  // namespace graft::models
