// C = A B or C += A B for blocks that fit in the cache, in float32, on the calling thread: what the
// attention kernel is made of. Not for whole layers: those are FrozenWeight's.
#pragma once

#include <cstdint>

namespace graft::models {

inline constexpr int64_t kGemmRows = 8;      // m must be a multiple
inline constexpr int64_t kGemmColumns = 16;  // n must be a multiple

// A (m, k): element (i, j) at a[i * row_step + j * column_step], so that a transposed A costs
// nothing. B (k, n) and C (m, n) have contiguous rows, `b_step` and `c_step` floats apart. Adds the
// k products of an element in rising order: the same bits for every blocking.
struct GemmA {
  const float* data;
  int64_t row_step, column_step;
};
void SmallGemm(GemmA a, const float* b, int64_t b_step, float* c, int64_t c_step, int64_t m,
               int64_t n, int64_t k, bool add);

}  // namespace graft::models
