// hash64 of a tensor's memory on one core: what a run reads its frozen weights with.
#include <vector>

#include <benchmark/benchmark.h>

#include "base/hash.h"

namespace graft::bench {
namespace {

// Argument: bytes.
void HashMemory(benchmark::State& state) {
  const std::vector<unsigned char> bytes(static_cast<size_t>(state.range(0)), 3);
  for (auto _ : state) benchmark::DoNotOptimize(Hash64(bytes.data(), bytes.size()));
  state.SetBytesProcessed(state.iterations() * state.range(0));
}
BENCHMARK(HashMemory)->Arg(int64_t{1} << 20)->Arg(int64_t{1} << 28)->UseRealTime();

}  // namespace
}  // namespace graft::bench
