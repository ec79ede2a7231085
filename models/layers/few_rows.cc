#include "models/layers/few_rows.h"

#include <algorithm>
#include <cstring>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

namespace graft::models {
namespace {

// Sixteen floats; the compiler splits it where registers are narrower.
typedef float Vector __attribute__((vector_size(64)));
typedef float HalfVector __attribute__((vector_size(32)));
typedef float QuarterVector __attribute__((vector_size(16)));
constexpr int64_t kLanes = 16;

#define GRAFT_INLINE __attribute__((always_inline)) inline

// References keep vectors of this width out of calling conventions.
GRAFT_INLINE void Load(const float* from, Vector* to) { std::memcpy(to, from, sizeof(Vector)); }

GRAFT_INLINE float Sum(const Vector& v) {
  HalfVector half[2];
  std::memcpy(half, &v, sizeof(v));
  half[0] += half[1];
  QuarterVector quarter[2];
  std::memcpy(quarter, half, sizeof(quarter));
  quarter[0] += quarter[1];
  return (quarter[0][0] + quarter[0][2]) + (quarter[0][1] + quarter[0][3]);
}

// The operands of one product.
struct Product {
  const float* x;
  const float* weight;
  float* y;
  int64_t rows, in, out;
};

// y[row + i, column + j] for a tile. Each sum is formed lane by lane in rising order, so tiles of
// every size give the same bits.
template <int kOut, int kRows>
GRAFT_INLINE void Tile(const Product& p, int64_t column, int64_t row) {
  const float* w = p.weight + column * p.in;
  const float* x = p.x + row * p.in;
  Vector sum[kOut][kRows] = {};
  const int64_t whole = p.in / kLanes * kLanes;
  for (int64_t place = 0; place < whole; place += kLanes) {
    Vector factors[kOut];
#pragma GCC unroll 4
    for (int j = 0; j < kOut; ++j) Load(w + j * p.in + place, &factors[j]);
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      Vector part;
      Load(x + i * p.in + place, &part);
#pragma GCC unroll 4
      for (int j = 0; j < kOut; ++j) sum[j][i] += factors[j] * part;
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kOut; ++j) {
      float total = Sum(sum[j][i]);
      for (int64_t place = whole; place < p.in; ++place)
        total += w[j * p.in + place] * x[i * p.in + place];
      p.y[(row + i) * p.out + column + j] = total;
    }
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
