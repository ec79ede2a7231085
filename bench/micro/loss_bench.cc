// Final norm, LM head and cross-entropy with the gradient to the hidden state, by the number of
// supervised positions.
#include <benchmark/benchmark.h>

#include "bench/micro/shapes.h"
#include "models/layers/head_loss.h"

namespace graft::bench {
namespace {

// Arguments: supervised positions, bfloat16.
void HeadLoss(benchmark::State& state) {
  const torch::Dtype dtype = DtypeOf(state.range(1) != 0);
  const models::LossHead head{
      .norm = {.weight = at::ones({kHidden}), .bias = {}, .eps = 1e-5},
      .projection = models::FrozenLinear(
          models::MakeFrozenWeight(at::randn({kVocabulary, kHidden}).mul_(0.02).to(dtype)), {})};
  const torch::Tensor h = at::randn({kTokens, kHidden}).to(dtype).requires_grad_(true);
  const torch::Tensor rows = at::arange(state.range(0), at::kLong);
  const models::LossTargets targets{rows, at::full_like(rows, 7)};
  for (auto _ : state) models::HeadLossSum(h, targets, head).backward();
  state.counters["FLOP/s"] =
      benchmark::Counter(4.0 * static_cast<double>(state.range(0)) * kHidden * kVocabulary,
                         benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(HeadLoss)
    ->Args({kTokens, 0})
    ->Args({kTokens / 2, 0})
    ->Args({kTokens, 1})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

}  // namespace
}  // namespace graft::bench
