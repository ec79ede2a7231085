// Final norm, LM head and cross-entropy with the gradient to the hidden state, by the number of
// supervised positions.
#include <numeric>

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
  std::vector<int64_t> rows(static_cast<size_t>(state.range(0)));
  std::iota(rows.begin(), rows.end(), 0);
  const std::vector<int64_t> ids(rows.size(), 7);
  for (auto _ : state) models::HeadLossSum(h, rows, ids, head).backward();
  state.counters["FLOP/s"] =
      benchmark::Counter(4.0 * static_cast<double>(rows.size()) * kHidden * kVocabulary,
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
