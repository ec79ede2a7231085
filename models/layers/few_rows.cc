#include "models/layers/few_rows.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "base/dot_tile.h"

namespace graft::models {
namespace {

// The operands of one product.
struct Product {
  const float* x;
  const float* weight;
  float* y;
  int64_t rows, in, out;
};

// y[row + i, column + j] for a tile.
template <int kOut, int kRows>
GRAFT_INLINE void Tile(const Product& p, int64_t column, int64_t row) {
  float products[kRows][kOut];
  DotTile<kOut, kRows>(p.weight + column * p.in, p.x + row * p.in, p.in, products);
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kOut; ++j) p.y[(row + i) * p.out + column + j] = products[i][j];
  }
}

template <int kOut, int kRows>
GRAFT_INLINE void AllRows(const Product& p, int64_t column) {
  int64_t row = 0;
  for (; row + kRows <= p.rows; row += kRows) Tile<kOut, kRows>(p, column, row);
  for (; row < p.rows; ++row) Tile<kOut, 1>(p, column, row);
}

// Columns [begin, end) of y.
template <int kOut, int kRows>
GRAFT_INLINE void Columns(const Product& p, int64_t begin, int64_t end) {
  int64_t column = begin;
  for (; column + kOut <= end; column += kOut) AllRows<kOut, kRows>(p, column);
  for (; column < end; ++column) AllRows<1, kRows>(p, column);
}

// The tile follows the registers: 32 of 512 bits, 16 of 256 bits, or fewer.
#if defined(__x86_64__)
__attribute__((target("arch=x86-64-v4"))) void ColumnsV4(const Product& p, int64_t begin,
                                                         int64_t end) {
  Columns<4, 4>(p, begin, end);
}
__attribute__((target("arch=x86-64-v3"))) void ColumnsV3(const Product& p, int64_t begin,
                                                         int64_t end) {
  Columns<2, 2>(p, begin, end);
}
#endif

void ColumnsPlain(const Product& p, int64_t begin, int64_t end) { Columns<1, 2>(p, begin, end); }

auto* Choose() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("x86-64-v4")) return &ColumnsV4;
  if (__builtin_cpu_supports("x86-64-v3")) return &ColumnsV3;
#endif
  return &ColumnsPlain;
}

}  // namespace

torch::Tensor MultiplyFewRows(const torch::Tensor& x, const torch::Tensor& weight) {
  static auto* const columns = Choose();
  torch::Tensor y = at::empty({x.size(0), weight.size(0)}, x.options());
  const Product p{x.const_data_ptr<float>(),
                  weight.const_data_ptr<float>(),
                  y.data_ptr<float>(),
                  x.size(0),
                  weight.size(1),
                  weight.size(0)};
  constexpr int64_t kWork = 32'768;  // products that are worth a thread
  const int64_t grain = std::max<int64_t>(4, kWork / std::max<int64_t>(1, p.rows * p.in));
  at::parallel_for(0, p.out, grain, [&](int64_t begin, int64_t end) { columns(p, begin, end); });
  return y;
}

}  // namespace graft::models
