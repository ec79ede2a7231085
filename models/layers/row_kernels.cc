#include "models/layers/row_kernels.h"

#include <bit>
#include <cmath>
#include <limits>

#include "base/vector_clones.h"

namespace graft::models::rows {
namespace {

// exp(x) = 2^k exp(r), |r| <= ln2/2, exp(r) by a degree-6 polynomial (coefficients of the Cephes
// library's expf).
__attribute__((always_inline)) inline float ExpOne(float x) {
  constexpr float kLog2E = 1.44269504088896341f;
  constexpr float kLn2High = 0.693359375f;
  constexpr float kLn2Low = -2.12194440e-4f;
  const float clamped = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
  // Adding 1.5 * 2^23 rounds to the nearest integer without a library call.
  constexpr float kRound = 12582912.0f;
  const float k = (clamped * kLog2E + kRound) - kRound;
  const float r = (clamped - k * kLn2High) - k * kLn2Low;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t exponent = static_cast<int32_t>(k) << 23;
  const float result = std::bit_cast<float>(std::bit_cast<int32_t>(p) + exponent);
  return x < -87.0f ? 0.0f : result;
}

__attribute__((always_inline)) inline float Sigmoid(float x) { return 1.0f / (1.0f + ExpOne(-x)); }

}  // namespace

GRAFT_CLONES void Widen(const uint16_t* x, float* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = std::bit_cast<float>(static_cast<uint32_t>(x[i]) << 16);
}

GRAFT_CLONES void Round(const float* x, uint16_t* y, int64_t n) {
  constexpr uint32_t kHalf = 0x7fff, kNaN = 0x7fc0;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(x[i]);
    const uint32_t rounded = (bits + kHalf + ((bits >> 16) & 1)) >> 16;
    y[i] = static_cast<uint16_t>(x[i] != x[i] ? kNaN : rounded);
  }
}

GRAFT_CLONES float SumOfSquares(const float* x, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += x[i] * x[i];
  return sum;
}

GRAFT_CLONES void ScaleByNorm(const float* x, const float* w, float rstd, float* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = w[i] * (x[i] * rstd);
}

GRAFT_CLONES void RmsNormBackward(const float* x, const float* w, const float* dy, float rstd,
                                  float* dx, int64_t n) {
  float dot = 0;
#pragma omp simd reduction(+ : dot)
  for (int64_t i = 0; i < n; ++i) dot += dy[i] * w[i] * x[i];
  const float mean = dot * rstd * rstd / static_cast<float>(n);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) dx[i] = rstd * (dy[i] * w[i] - x[i] * mean);
}

GRAFT_CLONES void SwiGlu(const float* g, const float* u, float* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = g[i] * Sigmoid(g[i]) * u[i];
}

GRAFT_CLONES void SwiGluBackward(const float* g, const float* u, const float* dy, float* dg,
                                 float* du, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float sigma = Sigmoid(g[i]);
    const float silu = g[i] * sigma;
    du[i] = dy[i] * silu;
    dg[i] = dy[i] * u[i] * (sigma + silu * (1.0f - sigma));
  }
}

GRAFT_CLONES void Rotate(const float* x, const float* cosine, const float* sine, float sign,
                         float* y, int64_t half) {
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const float first = x[i];
    const float second = x[i + half];
    const float s = sign * sine[i];
    y[i] = first * cosine[i] - second * s;
    y[i + half] = second * cosine[i] + first * s;
  }
}

GRAFT_CLONES float SoftmaxInPlace(float* x, int64_t n) {
  float top = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : top)
  for (int64_t i = 0; i < n; ++i) top = x[i] > top ? x[i] : top;
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    x[i] = ExpOne(x[i] - top);
    sum += x[i];
  }
  const float scale = 1.0f / sum;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) x[i] *= scale;
  return top + std::log(sum);
}

GRAFT_CLONES float LogSumExp(const float* x, int64_t n) {
  float top = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : top)
  for (int64_t i = 0; i < n; ++i) top = x[i] > top ? x[i] : top;
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += ExpOne(x[i] - top);
  return top + std::log(sum);
}

GRAFT_CLONES void Scale(float* x, float factor, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

GRAFT_CLONES float Largest(const float* x, int64_t n) {
  float top = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : top)
  for (int64_t i = 0; i < n; ++i) top = x[i] > top ? x[i] : top;
  return top;
}

GRAFT_CLONES float Dot(const float* x, const float* y, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += x[i] * y[i];
  return sum;
}

GRAFT_CLONES float ExpMinus(float* x, float shift, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    x[i] = ExpOne(x[i] - shift);
    sum += x[i];
  }
  return sum;
}

GRAFT_CLONES void SoftmaxBackward(const float* p, float delta, float* dp, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) dp[i] = p[i] * (dp[i] - delta);
}

GRAFT_CLONES void Exp(const float* x, float* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = ExpOne(x[i]);
}

}  // namespace graft::models::rows
