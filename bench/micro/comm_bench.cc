// All-reduce of an adapter's gradients and the hand-over of a hidden state, ranks as threads.
// Between processes the same collectives run over MPI.
#include <memory>
#include <vector>

#include <benchmark/benchmark.h>

#include "comm/communicator.h"
#include "comm/local_communicator.h"

namespace graft::bench {
namespace {

constexpr int kTag = 1;
// One communicator per thread of the running benchmark, made anew for each.
std::vector<std::unique_ptr<comm::Communicator>> ranks;

void MakeRanks(const benchmark::State& state) {
  ranks = comm::MakeLocalCommunicators(state.threads());
}
void DropRanks(const benchmark::State&) { ranks.clear(); }

comm::Communicator& Mine(const benchmark::State& state) {
  return *ranks[static_cast<size_t>(state.thread_index())];
}

// Argument: float32 elements.
void AllReduce(benchmark::State& state) {
  comm::Communicator& mine = Mine(state);
  std::vector<float> values(static_cast<size_t>(state.range(0)), 1.0f);
  for (auto _ : state) {
    mine.AllReduce({values.data(), values.size(), comm::DType::kFloat32}, comm::ReduceOp::kMax);
  }
  state.SetBytesProcessed(state.iterations() * state.range(0) * 4);
}
BENCHMARK(AllReduce)
    ->Setup(MakeRanks)
    ->Teardown(DropRanks)
    ->Arg(16)
    ->Arg(460'800)
    ->Arg(2'442'240)
    ->Threads(2)
    ->Unit(benchmark::kMicrosecond)
    ->UseRealTime();

// Argument: bytes, one way; a round trip is measured.
void RoundTrip(benchmark::State& state) {
  comm::Communicator& mine = Mine(state);
  std::vector<uint8_t> bytes(static_cast<size_t>(state.range(0)));
  const comm::Buffer buffer{bytes.data(), bytes.size(), comm::DType::kUint8};
  const int peer = 1 - mine.rank();
  for (auto _ : state) {
    if (mine.rank() == 0) mine.Send(buffer, peer, kTag);
    mine.Recv(buffer, peer, kTag);
    if (mine.rank() == 1) mine.Send(buffer, peer, kTag);
  }
  state.SetBytesProcessed(state.iterations() * state.range(0) * 2);
}
BENCHMARK(RoundTrip)
    ->Setup(MakeRanks)
    ->Teardown(DropRanks)
    ->Arg(8)
    ->Arg(256 * 576 * 4)
    ->Threads(2)
    ->Unit(benchmark::kMicrosecond)
    ->UseRealTime();

}  // namespace
}  // namespace graft::bench
