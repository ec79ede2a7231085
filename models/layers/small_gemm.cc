#include "models/layers/small_gemm.h"

#include <cstring>

namespace graft::models {
namespace {

// Sixteen floats; the compiler splits it where registers are narrower.
typedef float Vector __attribute__((vector_size(64)));

__attribute__((always_inline)) inline void Load(const float* from, Vector* to) {
  std::memcpy(to, from, sizeof(Vector));
}

// C rows [0, kRows), vectors [0, kVectors) from column 0 of b and c.
template <int kRows, int kVectors>
__attribute__((always_inline)) inline void Tile(GemmA a, const float* b, int64_t b_step, float* c,
                                                int64_t c_step, int64_t k, bool add) {
  Vector sum[kRows][kVectors] = {};
  if (add) {
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) Load(c + i * c_step + v * kGemmColumns, &sum[i][v]);
    }
  }
  for (int64_t j = 0; j < k; ++j) {
    Vector row[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) Load(b + j * b_step + v * kGemmColumns, &row[v]);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const float factor = a.data[i * a.row_step + j * a.column_step];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[i][v] += row[v] * factor;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v)
      std::memcpy(c + i * c_step + v * kGemmColumns, &sum[i][v], sizeof(Vector));
  }
}

// Tiles of kRows x (16 kVectors), then of 16 columns; kRows divides kGemmRows.
template <int kRows, int kVectors>
__attribute__((always_inline)) inline void Gemm(GemmA a, const float* b, int64_t b_step, float* c,
                                                int64_t c_step, int64_t m, int64_t n, int64_t k,
                                                bool add) {
  constexpr int64_t kWidth = kVectors * kGemmColumns;
  int64_t column = 0;
  for (; column + kWidth <= n; column += kWidth) {
    for (int64_t row = 0; row < m; row += kRows) {
      const GemmA part{a.data + row * a.row_step, a.row_step, a.column_step};
      Tile<kRows, kVectors>(part, b + column, b_step, c + row * c_step + column, c_step, k, add);
    }
  }
  for (; column < n; column += kGemmColumns) {
    for (int64_t row = 0; row < m; row += kRows) {
      const GemmA part{a.data + row * a.row_step, a.row_step, a.column_step};
      Tile<kRows, 1>(part, b + column, b_step, c + row * c_step + column, c_step, k, add);
    }
  }
}

// The tile follows the registers: 32 of 512 bits, 16 of 256 bits, or fewer.
#if defined(__x86_64__)
__attribute__((target("arch=x86-64-v4"))) void GemmV4(GemmA a, const float* b, int64_t b_step,
                                                      float* c, int64_t c_step, int64_t m,
                                                      int64_t n, int64_t k, bool add) {
  Gemm<8, 2>(a, b, b_step, c, c_step, m, n, k, add);
}
__attribute__((target("arch=x86-64-v3"))) void GemmV3(GemmA a, const float* b, int64_t b_step,
                                                      float* c, int64_t c_step, int64_t m,
                                                      int64_t n, int64_t k, bool add) {
  Gemm<4, 1>(a, b, b_step, c, c_step, m, n, k, add);
}
#endif

void GemmPlain(GemmA a, const float* b, int64_t b_step, float* c, int64_t c_step, int64_t m,
               int64_t n, int64_t k, bool add) {
  Gemm<2, 1>(a, b, b_step, c, c_step, m, n, k, add);
}

auto* Choose() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("x86-64-v4")) return &GemmV4;
  if (__builtin_cpu_supports("x86-64-v3")) return &GemmV3;
#endif
  return &GemmPlain;
}

}  // namespace

void SmallGemm(GemmA a, const float* b, int64_t b_step, float* c, int64_t c_step, int64_t m,
               int64_t n, int64_t k, bool add) {
  static auto* const gemm = Choose();
  gemm(a, b, b_step, c, c_step, m, n, k, add);
}

}  // namespace graft::models
