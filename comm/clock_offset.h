// How far apart the clocks of two ranks are, for records that put several ranks on one axis (traces). Clocks of one
// node agree; those of two nodes do not.
#pragma once

#include <cstdint>

#include "comm/communicator.h"

namespace graft::comm {

struct ClockOffset {
  int64_t nanos = 0;  // what `peer`'s MonotonicNanos() shows above ours
  int64_t error = 0;  // at most so far off: half of the quickest round trip
};

// A few ping-pongs; the quickest one counts. Both ranks must call, one of them with `asks`, which gets the answer; the
// other one gets zeros. An offset below its own error is reported as 0. Throws kind peer.
ClockOffset MeasureClockOffset(Communicator& comm, int peer, bool asks);

}  // namespace graft::comm
