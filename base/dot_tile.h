// Inner products of a few rows with a few others, for products whose every element must have the
// same bits whatever is computed beside it: each is summed lane by lane in rising order, whatever
// the size of its tile. Inlined into functions that are compiled for an instruction set
// (base/vector_clones.h, or a `target` of their own). float32.
#pragma once

#include <cstdint>
#include <cstring>

#define GRAFT_INLINE __attribute__((always_inline)) inline

namespace graft {

// Sixteen floats; the compiler splits it where registers are narrower.
typedef float FloatLanes __attribute__((vector_size(64)));
inline constexpr int64_t kFloatLanes = 16;

// References keep vectors of this width out of calling conventions.
GRAFT_INLINE void LoadLanes(const float* from, FloatLanes* to) {
  std::memcpy(to, from, sizeof(FloatLanes));
}

GRAFT_INLINE float SumOfLanes(const FloatLanes& v) {
  typedef float Half __attribute__((vector_size(32)));
  typedef float Quarter __attribute__((vector_size(16)));
  Half half[2];
  std::memcpy(half, &v, sizeof(v));
  half[0] += half[1];
  Quarter quarter[2];
  std::memcpy(quarter, half, sizeof(quarter));
  quarter[0] += quarter[1];
  return (quarter[0][0] + quarter[0][2]) + (quarter[0][1] + quarter[0][3]);
}

// products[i][j] = <a_j, x_i> for kA rows of `a` and kX rows of `x`, all of `width` numbers and one
// after the other.
template <int kA, int kX>
GRAFT_INLINE void DotTile(const float* a, const float* x, int64_t width,
                          float (&products)[kX][kA]) {
  FloatLanes sum[kA][kX] = {};
  const int64_t whole = width / kFloatLanes * kFloatLanes;
  for (int64_t place = 0; place < whole; place += kFloatLanes) {
    FloatLanes factors[kA];
#pragma GCC unroll 4
    for (int j = 0; j < kA; ++j) LoadLanes(a + j * width + place, &factors[j]);
#pragma GCC unroll 4
    for (int i = 0; i < kX; ++i) {
      FloatLanes part;
      LoadLanes(x + i * width + place, &part);
#pragma GCC unroll 4
      for (int j = 0; j < kA; ++j) sum[j][i] += factors[j] * part;
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kX; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kA; ++j) {
      float total = SumOfLanes(sum[j][i]);
      for (int64_t place = whole; place < width; ++place)
        total += a[j * width + place] * x[i * width + place];
      products[i][j] = total;
    }
  }
}

}  // namespace graft
