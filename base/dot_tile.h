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

GRAFT_INLINE void StoreLanes(const FloatLanes& from, float* to) {
  std::memcpy(to, &from, sizeof(FloatLanes));
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

// The sums of four at once, each in SumOfLanes' order.
GRAFT_INLINE void SumsOfLanes(const FloatLanes* four, float* sums) {
  typedef float Half __attribute__((vector_size(32)));
  typedef float Quarter __attribute__((vector_size(16)));
  typedef int Places __attribute__((vector_size(16)));
  Quarter quarter[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    Half half[2];
    std::memcpy(half, &four[j], sizeof(FloatLanes));
    half[0] += half[1];
    Quarter parts[2];
    std::memcpy(parts, &half[0], sizeof(Half));
    quarter[j] = parts[0] + parts[1];
  }
  const Places low = {0, 4, 1, 5}, high = {2, 6, 3, 7};  // of two: their lanes side by side
  const Places first = {0, 1, 4, 5}, second = {2, 3, 6, 7};
  const Quarter low01 = __builtin_shuffle(quarter[0], quarter[1], low);
  const Quarter low23 = __builtin_shuffle(quarter[2], quarter[3], low);
  const Quarter high01 = __builtin_shuffle(quarter[0], quarter[1], high);
  const Quarter high23 = __builtin_shuffle(quarter[2], quarter[3], high);
  const Quarter even =
      __builtin_shuffle(low01, low23, first) + __builtin_shuffle(high01, high23, first);
  const Quarter odd =
      __builtin_shuffle(low01, low23, second) + __builtin_shuffle(high01, high23, second);
  const Quarter total = even + odd;
  std::memcpy(sums, &total, sizeof(total));
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
    if constexpr (kA == 4) {
      const FloatLanes four[4] = {sum[0][i], sum[1][i], sum[2][i], sum[3][i]};
      SumsOfLanes(four, products[i]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < kA; ++j) {
      float total = kA == 4 ? products[i][j] : SumOfLanes(sum[j][i]);
      for (int64_t place = whole; place < width; ++place)
        total += a[j * width + place] * x[i * width + place];
      products[i][j] = total;
    }
  }
}

}  // namespace graft
