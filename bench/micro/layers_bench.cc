// Forward and backward of a frozen linear and of attention. Counter: FLOP/s of the matrix products.
#include <benchmark/benchmark.h>

#include "bench/micro/shapes.h"
#include "models/layers/attention.h"
#include "models/layers/float_products.h"
#include "models/layers/frozen_linear.h"
#include "models/layers/quantized_weight.h"

namespace graft::bench {
namespace {

void SetFlops(benchmark::State& state, double flop) {
  state.counters["FLOP/s"] =
      benchmark::Counter(flop, benchmark::Counter::kIsIterationInvariantRate);
}

std::shared_ptr<const models::FrozenWeight> RandomWeight(int64_t out, int64_t in,
                                                         torch::Dtype dtype,
                                                         models::Quantization kind) {
  const torch::Tensor weight = at::randn({out, in});
  if (kind == models::Quantization::kNone) return models::MakeFrozenWeight(weight.to(dtype));
  double error = 0;
  return models::MakeQuantizedWeight(models::QuantizeMatrix(weight, kind, &error), {kind, out, in},
                                     dtype);
}

// Arguments: in, out, bfloat16, models::Quantization.
void FrozenLinearForward(benchmark::State& state) {
  const int64_t in = state.range(0), out = state.range(1);
  const torch::Dtype dtype = DtypeOf(state.range(2) != 0);
  const auto weight =
      RandomWeight(out, in, dtype, static_cast<models::Quantization>(state.range(3)));
  const torch::Tensor x = at::randn({kTokens, in}).to(dtype);
  for (auto _ : state) benchmark::DoNotOptimize(weight->Multiply(x, dtype));
  SetFlops(state, 2.0 * kTokens * in * out);
}

void FrozenLinearBackward(benchmark::State& state) {
  const int64_t in = state.range(0), out = state.range(1);
  const torch::Dtype dtype = DtypeOf(state.range(2) != 0);
  const auto weight =
      RandomWeight(out, in, dtype, static_cast<models::Quantization>(state.range(3)));
  const torch::Tensor dy = at::randn({kTokens, out}).to(dtype);
  for (auto _ : state) benchmark::DoNotOptimize(weight->MultiplyTransposed(dy, dtype));
  SetFlops(state, 2.0 * kTokens * in * out);
}

void LinearShapes(benchmark::internal::Benchmark* bench) {
  for (int64_t bfloat16 : {0, 1}) {
    bench->Args({kHidden, kHidden, bfloat16, 0});
    bench->Args({kHidden, kKeyValue, bfloat16, 0});
    for (int64_t quantization : {0, 1, 2}) {
      bench->Args({kHidden, kInner, bfloat16, quantization});
      bench->Args({kInner, kHidden, bfloat16, quantization});
    }
  }
}
BENCHMARK(FrozenLinearForward)->Apply(LinearShapes)->UseRealTime();
BENCHMARK(FrozenLinearBackward)->Apply(LinearShapes)->UseRealTime();

// A float32 product of so many rows (a decoding step, a prompt, a micro-batch), and LibTorch's own.
// Arguments: rows, in, out.
void FloatForward(benchmark::State& state) {
  const int64_t rows = state.range(0), in = state.range(1), out = state.range(2);
  const torch::Tensor x = at::randn({rows, in}), weight = at::randn({out, in});
  for (auto _ : state) benchmark::DoNotOptimize(models::MultiplyFloat(x, weight));
  SetFlops(state, 2.0 * rows * in * out);
}

void FloatTransposed(benchmark::State& state) {
  const int64_t rows = state.range(0), in = state.range(1), out = state.range(2);
  const torch::Tensor dy = at::randn({rows, out}), weight = at::randn({out, in});
  for (auto _ : state) benchmark::DoNotOptimize(models::MultiplyFloatTransposed(dy, weight));
  SetFlops(state, 2.0 * rows * in * out);
}

void LibTorchForward(benchmark::State& state) {
  const int64_t rows = state.range(0), in = state.range(1), out = state.range(2);
  const torch::Tensor x = at::randn({rows, in}), weight = at::randn({out, in});
  for (auto _ : state) benchmark::DoNotOptimize(at::linear(x, weight));
  SetFlops(state, 2.0 * rows * in * out);
}

void RowShapes(benchmark::internal::Benchmark* bench) {
  for (int64_t rows : {1, 8, 64, 256, 1024}) {
    bench->Args({rows, kHidden, kHidden});
    bench->Args({rows, kHidden, 2 * kInner});
    bench->Args({rows, kInner, kHidden});
  }
}
BENCHMARK(FloatForward)->Apply(RowShapes)->UseRealTime();
BENCHMARK(FloatTransposed)->Apply(RowShapes)->UseRealTime();
BENCHMARK(LibTorchForward)->Apply(RowShapes)->UseRealTime();

// Argument: bfloat16. FLOP: the causal half of q k^T and p v, forward and 2.5 times that backward.
void AttentionForwardBackward(benchmark::State& state) {
  const torch::Dtype dtype = DtypeOf(state.range(0) != 0);
  const models::AttentionShape shape{.num_heads = 9, .num_kv_heads = 3, .head_dim = 64};
  const auto segments = Segments();
  const auto leaf = [&](int64_t width) {
    return at::randn({kTokens, width}).to(dtype).requires_grad_(true);
  };
  const torch::Tensor q = leaf(kHidden), k = leaf(kKeyValue), v = leaf(kKeyValue);
  const torch::Tensor dy = at::randn({kTokens, kHidden}).to(dtype);
  for (auto _ : state) models::Attention(q, k, v, segments, shape).backward(dy);
  SetFlops(state, 3.5 * 2.0 * kTokens * kLength * kHidden);
}
BENCHMARK(AttentionForwardBackward)->Arg(0)->Arg(1)->UseRealTime();

}  // namespace
}  // namespace graft::bench
