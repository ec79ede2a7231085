#include "comm/clock_offset.h"

#include <cstdlib>

#include "comm/monotonic.h"

namespace graft::comm {
namespace {

constexpr int kRounds = 8;
constexpr int kTag = 71;

Buffer BufferOf(int64_t* value) { return {value, 1, DType::kInt64, -1}; }

}  // namespace

ClockOffset MeasureClockOffset(Communicator& comm, int peer, bool asks) {
  ClockOffset best;
  for (int round = 0; round < kRounds; ++round) {
    int64_t theirs = 0;
    if (!asks) {
      comm.Recv(BufferOf(&theirs), peer, kTag);
      theirs = MonotonicNanos();
      comm.Send(BufferOf(&theirs), peer, kTag);
      continue;
    }
    const int64_t sent = MonotonicNanos();
    int64_t token = 0;
    comm.Send(BufferOf(&token), peer, kTag);
    comm.Recv(BufferOf(&theirs), peer, kTag);
    const int64_t half = (MonotonicNanos() - sent) / 2;
    if (round == 0 || half < best.error) best = {theirs - (sent + half), half};
  }
  if (std::abs(best.nanos) <= best.error) best.nanos = 0;
  return best;
}

}  // namespace graft::comm
