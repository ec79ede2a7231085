// The element-wise arithmetic of the layers on one float32 row: plain loops that the compiler
// vectorises for several instruction sets (chosen at load time). The layers call them row by row
// from parallel loops; bfloat16 rows are converted around them.
#pragma once

#include <cstdint>

namespace graft::models::rows {

// bfloat16, as its bits, to float32 and back with one rounding to nearest even.
void Widen(const uint16_t* x, float* y, int64_t n);
void Round(const float* x, uint16_t* y, int64_t n);
// sum of x_i^2.
float SumOfSquares(const float* x, int64_t n);
// y_i = w_i * (x_i * rstd).
void ScaleByNorm(const float* x, const float* w, float rstd, float* y, int64_t n);
// RMSNorm backward: dx_i = rstd * (dy_i w_i - x_i rstd * mean_j(dy_j w_j x_j rstd)).
void RmsNormBackward(const float* x, const float* w, const float* dy, float rstd, float* dx,
                     int64_t n);
// y_i = silu(g_i) * u_i.
void SwiGlu(const float* g, const float* u, float* y, int64_t n);
// dg_i = dy_i u_i sigma(g_i) (1 + g_i (1 - sigma(g_i))), du_i = dy_i silu(g_i).
void SwiGluBackward(const float* g, const float* u, const float* dy, float* dg, float* du,
                    int64_t n);
// Rotates one head of 2 `half` numbers: (x1, x2) -> (x1 c - x2 s, x2 c + x1 s) with x2 the second
// half. sign -1 = backward.
void Rotate(const float* x, const float* cosine, const float* sine, float sign, float* y,
            int64_t half);
// In place: x_i -> exp(x_i - max) / sum; returns log(sum_j exp(x_j)), the float32 log-sum-exp.
float SoftmaxInPlace(float* x, int64_t n);
// The float32 log-sum-exp alone.
float LogSumExp(const float* x, int64_t n);
// x_i *= factor.
void Scale(float* x, float factor, int64_t n);
float Largest(const float* x, int64_t n);
float Dot(const float* x, const float* y, int64_t n);
// In place: x_i -> exp(x_i - shift); returns the sum.
float ExpMinus(float* x, float shift, int64_t n);
// Softmax backward with delta = sum_j dp_j p_j: dp_i -> p_i (dp_i - delta).
void SoftmaxBackward(const float* p, float delta, float* dp, int64_t n);
// The exponential used above (relative error < 2e-7 on [-87, 88]; 0 below).
void Exp(const float* x, float* y, int64_t n);

}  // namespace graft::models::rows
